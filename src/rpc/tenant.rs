//! TenantService: tenants, and through api_token.rs their tokens.

use super::resource::{New, Resource};
use super::wire::{self, Fields};
use super::{Answer, Api, Selection, api_token, only, open};
use crate::pb;
use crate::store::api_token::{self as tokens, ApiToken, CreateApiToken};
use crate::store::caller::{Caller, SYSTEM_TENANT, is_tenant_id};
use crate::store::change::Create;
use crate::store::noun::{Meta, Noun};
use crate::store::tenant::{LISTING, Tenant};
use crate::{Error, Reason};
use tonic::{Request, Response};
use uuid::Uuid;

const NEWEST: &[(&str, bool)] = &[("create_time", true)];

/// Tenants' rows belong to the tenant "system", whoever asks.
fn as_system(mut caller: Caller) -> Caller {
    caller.tenant = SYSTEM_TENANT.into();
    caller
}

#[tonic::async_trait]
impl pb::tenant_service_server::TenantService for Api {
    async fn create_tenant(
        &self,
        request: Request<pb::CreateTenantRequest>,
    ) -> Answer<pb::CreateTenantResponse> {
        let (caller, request) = open(request)?;
        let write = self.ask(request, &caller).await?;
        let (rows, receipt) = self.write_as(as_system(caller), write).await?;
        let tenant = only(rows)?;
        (self.forget.tenant)(&tenant.id);
        Ok(Response::new(pb::CreateTenantResponse { tenant: Some(tenant.into()), receipt }))
    }

    async fn get_tenant(
        &self,
        request: Request<pb::GetTenantRequest>,
    ) -> Answer<pb::GetTenantResponse> {
        let (caller, request) = open(request)?;
        let pb::GetTenantRequest { tenant_id } = request;
        let id = if tenant_id.is_empty() {
            caller.tenant.to_string()
        } else {
            wire::id("tenant_id", tenant_id)?
        };
        // Another tenant's existence is nobody's business but the system's.
        if id != *caller.tenant && !caller.is_system {
            return Err(Error::not_found(Tenant::KIND, id).into());
        }
        let tenant: Tenant = self.store.get(&as_system(caller), &id).await?;
        Ok(Response::new(pb::GetTenantResponse { tenant: Some(tenant.into()) }))
    }

    async fn list_tenants(
        &self,
        request: Request<pb::ListTenantsRequest>,
    ) -> Answer<pb::ListTenantsResponse> {
        let (caller, mut request) = open(request)?;
        let caller = as_system(caller);
        let lister = self.lister(&caller, &mut request, &LISTING, NEWEST)?;
        let selection =
            Selection { filter: lister.filter(request.r#where)?, ..Selection::default() };
        let (rows, page) = self.list::<Tenant>(&caller, &lister, selection).await?;
        let tenants = rows.into_iter().map(Into::into).collect();
        Ok(Response::new(pb::ListTenantsResponse { tenants, page }))
    }

    async fn update_tenant(
        &self,
        request: Request<pb::UpdateTenantRequest>,
    ) -> Answer<pb::UpdateTenantResponse> {
        let (caller, request) = open(request)?;
        let write = self.ask(request, &caller).await?;
        let (row, receipt) = self.write_as(as_system(caller), write).await?;
        if let Some(tenant) = &row {
            (self.forget.tenant)(&tenant.id);
        }
        Ok(Response::new(pb::UpdateTenantResponse { tenant: row.map(Into::into), receipt }))
    }

    async fn create_api_token(
        &self,
        request: Request<pb::CreateApiTokenRequest>,
    ) -> Answer<pb::CreateApiTokenResponse> {
        let (caller, request) = open(request)?;
        let (write, secret) = api_token::create(request)?;
        let (row, receipt) = self.write_as::<CreateApiToken>(caller, write).await?;
        Ok(Response::new(pb::CreateApiTokenResponse {
            api_token: Some(row.into()),
            // After a rehearsal there is no token that it could open.
            secret: if receipt.is_some() { secret } else { String::new() },
            receipt,
        }))
    }

    async fn list_api_tokens(
        &self,
        request: Request<pb::ListApiTokensRequest>,
    ) -> Answer<pb::ListApiTokensResponse> {
        let (caller, mut request) = open(request)?;
        let lister = self.lister(&caller, &mut request, &tokens::LISTING, NEWEST)?;
        let selection =
            Selection { filter: lister.filter(request.r#where)?, ..Selection::default() };
        let (rows, page) = self.list::<ApiToken>(&caller, &lister, selection).await?;
        let api_tokens = rows.into_iter().map(Into::into).collect();
        Ok(Response::new(pb::ListApiTokensResponse { api_tokens, page }))
    }

    async fn revoke_api_token(
        &self,
        request: Request<pb::RevokeApiTokenRequest>,
    ) -> Answer<pb::RevokeApiTokenResponse> {
        let (row, receipt) = self.write(request).await?;
        if let Some(token) = &row {
            (self.forget.token)(token.meta.uid);
        }
        Ok(Response::new(pb::RevokeApiTokenResponse { api_token: row.map(Into::into), receipt }))
    }

    async fn who_am_i(&self, request: Request<pb::WhoAmIRequest>) -> Answer<pb::WhoAmIResponse> {
        let (caller, pb::WhoAmIRequest {}) = open(request)?;
        Ok(Response::new(pb::WhoAmIResponse {
            tenant_id: caller.tenant.to_string(),
            principal: caller.principal.to_string(),
            actor: caller.actor.to_string(),
            roles: api_token::roles_of(caller.roles),
            expire_time: caller.expire_time.and_then(wire::timestamp),
        }))
    }
}

/// The stored number of a state; the numbers are the protocol's.
fn read_state(fields: &mut Fields, state: i32) -> i16 {
    match pb::TenantState::try_from(state) {
        Ok(pb::TenantState::Active) => 1,
        Ok(pb::TenantState::ReadOnly) => 2,
        Ok(pb::TenantState::Suspended) => 3,
        Ok(pb::TenantState::Unspecified) | Err(_) => {
            fields
                .wrong("state", format!("must be ACTIVE, READ_ONLY or SUSPENDED, and is {state}"));
            1
        }
    }
}

crate::requests! { Tenant:
    update UpdateTenantRequest(tenant);
}

crate::requests!(@ask CreateTenantRequest -> Create<Tenant>, |fields, on_conflict, tenant_id, tenant| {
    fields.no_replace(on_conflict, "use UpdateTenant");
    let tenant = tenant.unwrap_or_default();
    if !tenant_id.is_empty() && !tenant.id.is_empty() && tenant_id != tenant.id {
        fields.wrong("tenant.id", "must be empty or the same as tenant_id");
    }
    let id = if tenant_id.is_empty() { tenant.id.clone() } else { tenant_id };
    if id.contains('\0') {
        fields.wrong_because(Reason::NulByte, "tenant_id", "must not contain a NUL byte");
    } else if !is_tenant_id(&id) {
        fields.wrong("tenant_id", "must match ^[a-z][a-z0-9-]{0,62}$");
    }
    let new = New { id, meta: Meta::new(Uuid::now_v7()) };
    Create { rows: vec![fields.within("tenant", |f| tenant.read(f, new))], on_conflict }
});

impl Resource for pb::Tenant {
    type Row = Tenant;
    const CHANGEABLE: &'static [&'static str] = &["display_name", "state", "strict_references"];

    fn identity(&self) -> (&str, &str) {
        (&self.id, &self.etag)
    }

    fn read(self, f: &mut Fields, New { id, meta }: New) -> Tenant {
        let pb::Tenant { id: _, etag: _, meta: _, display_name, state, strict_references } = self;
        // 0 is a new tenant's. An update that says so is refused, because it cannot mean anything.
        let state = if state == 0 && meta.uid != Uuid::nil() { 1 } else { read_state(f, state) };
        let display_name = f.text("display_name", display_name, 255);
        Tenant { id, meta, display_name, state, strict_references }
    }

    fn fault(row: &Tenant) -> Option<(&'static str, &'static str)> {
        // Nobody could ever undo it.
        let is_lost = row.id == SYSTEM_TENANT && row.state != 1;
        is_lost.then_some(("state", "must stay ACTIVE for the tenant \"system\""))
    }
}

impl From<Tenant> for pb::Tenant {
    fn from(row: Tenant) -> Self {
        let etag = row.etag();
        let Tenant { id, meta, display_name, state, strict_references } = row;
        let (meta, state) = (wire::meta(meta), state.into());
        Self { id, etag, meta, display_name, state, strict_references }
    }
}
