//! API tokens on the wire: how a secret is made and what a caller may say about it.

use super::wire::{self, Fields, Write};
use crate::pb;
use crate::store::api_token::{ApiToken, CreateApiToken};
use crate::store::caller::{Role, Roles};
use crate::store::change::Modify;
use crate::store::noun::Noun;
use crate::{Error, Result};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use std::time::SystemTime;
use uuid::Uuid;

/// Reads the wish for a token and makes its secret, which is shown once.
pub fn create(request: pb::CreateApiTokenRequest) -> Result<(Write<CreateApiToken>, String)> {
    let pb::CreateApiTokenRequest { api_token, options } = request;
    let mut fields = Fields::default();
    if options.as_ref().is_some_and(|options| !options.request_id.is_empty()) {
        fields
            .wrong("options.request_id", "is not taken: a replay could not show the secret again");
    }
    let (options, on_conflict) = fields.options(options, [0; 32]);
    fields.only_fail(on_conflict);
    let pb::ApiToken { id: _, etag: _, meta: _, display_name, roles, expire_time, revoke_time: _ } =
        fields.required("api_token", api_token);
    let (display_name, roles, expire_time) = fields.within("api_token", |f| {
        let expire_time = f.time("expire_time", expire_time);
        if expire_time.is_some_and(|time| time <= SystemTime::now()) {
            f.wrong("expire_time", "must lie in the future");
        }
        (f.text("display_name", display_name, 255), read_roles(f, roles), expire_time)
    });
    fields.finish(())?;
    let (change, secret) = mint(display_name, roles, expire_time)?;
    Ok((Write { change, options }, secret))
}

/// A new token and its secret, `cbk_<uid>_<43 characters of base64url>`. Only the hash of the 43 is kept.
pub fn mint(
    display_name: String,
    roles: Roles,
    expire_time: Option<SystemTime>,
) -> Result<(CreateApiToken, String)> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(Error::internal)?;
    let uid = Uuid::now_v7();
    let secret = URL_SAFE_NO_PAD.encode(random);
    let secret_sha256 = Sha256::digest(&secret).into();
    let token = ApiToken::new(uid, display_name, roles, expire_time);
    Ok((CreateApiToken { token, secret_sha256 }, format!("cbk_{}_{secret}", uid.simple())))
}

fn read_roles(fields: &mut Fields, roles: Vec<i32>) -> Roles {
    if roles.is_empty() {
        fields.wrong("roles", "must have at least one item");
    }
    let mut set = Vec::new();
    for (n, number) in roles.into_iter().enumerate() {
        let role = match pb::Role::try_from(number) {
            Ok(pb::Role::Reader) => Role::Reader,
            Ok(pb::Role::Writer) => Role::Writer,
            Ok(pb::Role::Auditor) => Role::Auditor,
            Ok(pb::Role::Admin) => Role::Admin,
            Ok(pb::Role::Unspecified) | Err(_) => {
                fields.wrong(
                    &format!("roles[{n}]"),
                    format!("must be a known role, and is {number}"),
                );
                continue;
            }
        };
        if set.contains(&role) {
            fields.wrong(&format!("roles[{n}]"), "must not stand twice");
        }
        set.push(role);
    }
    set.into_iter().collect()
}

pub fn roles_of(roles: Roles) -> Vec<i32> {
    let role = |role| match role {
        Role::Reader => pb::Role::Reader,
        Role::Writer => pb::Role::Writer,
        Role::Auditor => pb::Role::Auditor,
        Role::Admin => pb::Role::Admin,
    };
    roles.iter().map(|one| role(one).into()).collect()
}

crate::requests!(@ask RevokeApiTokenRequest -> Modify<ApiToken>, |fields, on_conflict, api_token_id| {
    fields.only_fail(on_conflict);
    revoke(fields.id("api_token_id", api_token_id))
});

/// Ends a token. One that is revoked already stays as it is.
pub fn revoke(id: String) -> Modify<ApiToken> {
    Modify {
        action: "REVOKE",
        ..Modify::update(id, None, 0, |row: &mut ApiToken, now| {
            row.revoke_time.get_or_insert(now);
            Ok(())
        })
    }
}

impl From<ApiToken> for pb::ApiToken {
    fn from(row: ApiToken) -> Self {
        let (etag, roles) = (row.etag(), roles_of(row.roles()));
        let ApiToken { id, meta, display_name, roles: _, expire_time, revoke_time } = row;
        Self {
            id,
            etag,
            meta: wire::meta(meta),
            display_name,
            roles,
            expire_time: expire_time.and_then(wire::timestamp),
            revoke_time: revoke_time.and_then(wire::timestamp),
        }
    }
}
