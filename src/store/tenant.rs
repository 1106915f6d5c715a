//! Tenants: the hard walls. Their rows belong to the tenant "system", which administers the others.

use super::Store;
use super::caller::{Caller, SYSTEM_TENANT, Standing, TenantState};
use super::change::{Create, OnConflict};
use super::child::Parent;
use super::filter::{Field, FieldKind};
use super::list::Listing;
use super::noun::Meta;
use super::write::WriteOptions;
use crate::{Error, Result, noun, queries, row};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use uuid::Uuid;

noun! {
    pub struct Tenant in "tenant" as tenant + [QUERIES] {
        pub display_name: String,
        /// 1 active, 2 read only, 3 suspended.
        pub state: i16,
        pub strict_references: bool,
    }
}

impl Tenant {
    /// A tenant that is still to be created.
    pub fn new(id: String, display_name: String, state: i16) -> Self {
        let meta = Meta::new(Uuid::now_v7());
        Self { id, meta, display_name, state, strict_references: false }
    }
}

/// Names of the states, as filters say them.
pub const STATES: FieldKind = FieldKind::Enum {
    prefix: "TENANT_STATE_",
    names: &[("ACTIVE", 1), ("READ_ONLY", 2), ("SUSPENDED", 3)],
};

impl Parent for Tenant {}

pub static LISTING: Listing = Listing {
    kind: "tenant",
    table: "tenant",
    op: "tenant.LIST",
    fields: &[
        Field::new("id", "d.id", FieldKind::Text),
        Field::new("display_name", "d.display_name", FieldKind::Text),
        Field::new("state", "d.state", STATES),
        Field::new("strict_references", "d.strict_references", FieldKind::Bool),
        Field::new("create_time", "d.create_time", FieldKind::Time),
    ],
};

row! {
    /// A transaction entered a tenant.
    pub struct TenantSet {
        pub tenant: String,
        pub now: SystemTime,
    }
}

row! {
    pub struct StandingRow {
        pub state: i16,
        pub strict_references: bool,
    }
}

queries! { "wall" {
    /// Enters a tenant until the transaction ends, and tells the transaction's time.
    SET_TENANT(String) -> TenantSet = "SELECT set_config('casebook.tenant', $1, true) AS tenant, now() AS now";
    STANDING(String) -> StandingRow = "SELECT {*} FROM wall.standing($1)";
} }

/// The state as the edge needs it. A number that no version knows reads as suspended, which is the safe side.
pub fn state_of(number: i16) -> TenantState {
    match number {
        1 => TenantState::Active,
        2 => TenantState::ReadOnly,
        _ => TenantState::Suspended,
    }
}

impl Store {
    /// How a tenant stands, before any tenant is entered; `None` when there is no such tenant.
    pub async fn standing(&self, tenant: &str) -> Result<Option<Standing>> {
        let params = Arc::new((tenant.to_owned(),));
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        let rows = self
            .admin(STANDING.name, deadline, move |conn| {
                let params = Arc::clone(&params);
                Box::pin(async move {
                    let rows = conn.all(&STANDING, &*params).await?;
                    conn.done();
                    Ok(rows)
                })
            })
            .await?;
        Ok(rows.first().map(|row| Standing {
            state: state_of(row.state),
            strict_references: row.strict_references,
        }))
    }

    /// Makes the tenants that every deployment has, through the log like any other, unless they are there.
    pub async fn ensure_tenants(&self, caller: &Caller, names: &[&str]) -> Result<()> {
        for name in names {
            if self.standing(name).await?.is_some() {
                continue;
            }
            let mut caller = caller.clone();
            caller.tenant = SYSTEM_TENANT.into();
            let rows = vec![Tenant::new((*name).to_owned(), String::new(), 1)];
            let create = Create { rows, on_conflict: OnConflict::Fail };
            match self.write(caller, WriteOptions::default(), create).await {
                // Another server was faster.
                Ok(_) | Err(Error::Taken { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
