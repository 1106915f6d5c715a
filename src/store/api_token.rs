//! API tokens: who may act for a tenant. The secret's hash lives apart, where no read and no log entry shows it.

use super::Store;
use super::caller::{Credential, Roles, Standing};
use super::change::{create_all, rows_of};
use super::child::Parent;
use super::filter::{Field, FieldKind};
use super::list::Listing;
use super::log::LogRow;
use super::noun::{Meta, Noun};
use super::tenant::state_of;
use super::write::{Applied, Change, Outcome, RowKey, Tx};
use crate::{Error, Result, noun, queries, row};
use futures_util::future::BoxFuture;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use uuid::Uuid;

noun! {
    pub struct ApiToken in "api_token" as api_token + [QUERIES] {
        pub display_name: String,
        /// The bits of `Roles`.
        pub roles: i16,
        pub expire_time: Option<std::time::SystemTime>,
        pub revoke_time: Option<std::time::SystemTime>,
    }
}

impl ApiToken {
    /// A token that is still to be created; its id is its uid.
    pub fn new(
        uid: Uuid,
        display_name: String,
        roles: Roles,
        expire_time: Option<SystemTime>,
    ) -> Self {
        Self {
            id: uid.simple().to_string(),
            meta: Meta::new(uid),
            display_name,
            roles: i16::from(roles.bits()),
            expire_time,
            revoke_time: None,
        }
    }

    pub fn roles(&self) -> Roles {
        Roles::from_bits(self.roles as u8)
    }
}

impl Parent for ApiToken {}

pub static LISTING: Listing = Listing {
    kind: "api_token",
    table: "api_token",
    op: "api_token.LIST",
    fields: &[
        Field::new("id", "d.id", FieldKind::Text),
        Field::new("display_name", "d.display_name", FieldKind::Text),
        Field::new("create_time", "d.create_time", FieldKind::Time),
        Field::new("expire_time", "d.expire_time", FieldKind::Time).nullable(),
        Field::new("revoke_time", "d.revoke_time", FieldKind::Time).nullable(),
    ],
};

row! {
    pub struct CredentialRow {
        pub tenant_id: String,
        pub roles: i16,
        pub secret_sha256: Vec<u8>,
        pub expire_time: Option<SystemTime>,
        pub revoke_time: Option<SystemTime>,
        pub tenant_state: i16,
        pub strict_references: bool,
    }
}

queries! { "api_token_secret" {
    INSERT_SECRET(Vec<Uuid>, Vec<Vec<u8>>) -> () =
        "INSERT INTO api_token_secret (uid, secret_sha256) SELECT * FROM unnest($1::uuid[], $2::bytea[])";
    CREDENTIAL(Uuid) -> CredentialRow = "SELECT {*} FROM wall.credential($1)";
} }

/// Makes a token and keeps the hash of its secret.
pub struct CreateApiToken {
    pub token: ApiToken,
    pub secret_sha256: [u8; 32],
}

impl Change for CreateApiToken {
    type Answer = ApiToken;

    fn touches(&self, rows: &mut Vec<RowKey>) {
        rows.push(RowKey::new(&[ApiToken::KIND, &self.token.id]));
    }

    fn size_bytes(&self) -> usize {
        self.token.size_bytes()
    }

    fn apply<'a>(
        tx: &'a Tx<'a>,
        changes: &'a [Applied<'a, Self>],
    ) -> BoxFuture<'a, Result<Vec<Outcome<ApiToken>>>> {
        Box::pin(async move {
            let creates: Vec<_> = changes
                .iter()
                .map(|a| (std::slice::from_ref(&a.change.token), Default::default(), a.caller))
                .collect();
            let results = create_all(tx, &creates).await?;
            let uids = changes.iter().map(|a| a.change.token.meta.uid).collect();
            let secrets = changes.iter().map(|a| a.change.secret_sha256.to_vec()).collect();
            tx.run(&INSERT_SECRET, &(uids, secrets)).await?;
            results
                .into_iter()
                .map(|result| {
                    // The id is a fresh UUID, so it is never taken.
                    let created = result.map_err(|(error, _)| Error::internal(error))?;
                    let (entries, shown) = created.traces();
                    let (answer, _) = created
                        .rows
                        .into_iter()
                        .next()
                        .ok_or_else(|| Error::internal("a token was created without a row"))?;
                    Ok(Outcome::Done { answer, entries, shown })
                })
                .collect()
        })
    }

    fn rebuild(&self, entries: &[LogRow]) -> Result<ApiToken> {
        rows_of(entries)?.pop().ok_or_else(|| Error::internal("a replayed answer lacks a row"))
    }
}

impl Store {
    /// What a token is, before any tenant is entered; `None` when there is no such token.
    pub async fn credential(&self, uid: Uuid) -> Result<Option<Credential>> {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        let params = Arc::new((uid,));
        let rows = self
            .admin(CREDENTIAL.name, deadline, move |conn| {
                let params = Arc::clone(&params);
                Box::pin(async move {
                    let rows = conn.all(&CREDENTIAL, &*params).await?;
                    conn.done();
                    Ok(rows)
                })
            })
            .await?;
        let Some(row) = rows.into_iter().next() else { return Ok(None) };
        let secret_sha256 = row
            .secret_sha256
            .try_into()
            .map_err(|_| Error::internal("a token's hash is not 32 bytes long"))?;
        Ok(Some(Credential {
            uid,
            tenant: row.tenant_id,
            roles: Roles::from_bits(row.roles as u8),
            secret_sha256,
            expire_time: row.expire_time,
            revoked: row.revoke_time.is_some(),
            standing: Standing {
                state: state_of(row.tenant_state),
                strict_references: row.strict_references,
            },
        }))
    }
}
