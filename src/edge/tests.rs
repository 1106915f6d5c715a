//! What the edge's tests share: a directory of made-up tokens, and whole stacks.

mod layers;
mod served;

use super::*;
use crate::edge::auth::AuthMode;
use crate::edge::credentials::Directory;
use crate::error::Error;
use crate::store::caller::{Credential, Roles, Standing, TenantState};
use futures_util::FutureExt as _;
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;
use uuid::Uuid;

pub const SECRET: &str = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJ-_01234";

pub fn token(uid: Uuid, secret: &str) -> String {
    format!("cbk_{}_{secret}", uid.simple())
}

#[derive(Default)]
struct Known {
    credentials: HashMap<Uuid, Credential>,
    tenants: HashMap<String, Standing>,
    asked: usize,
    fails: bool,
    delay: Duration,
}

/// Tokens and tenants in memory. Every token's secret is `SECRET`.
#[derive(Clone, Default)]
pub struct FakeDirectory(Arc<Mutex<Known>>);

impl FakeDirectory {
    pub fn add(&self, tenant: &str, roles: Roles) -> Uuid {
        let uid = Uuid::now_v7();
        self.add_as(uid, tenant, roles);
        uid
    }

    pub fn add_as(&self, uid: Uuid, tenant: &str, roles: Roles) {
        let credential = Credential {
            uid,
            tenant: tenant.into(),
            roles,
            secret_sha256: Sha256::digest(SECRET).into(),
            expire_time: None,
            revoked: false,
            standing: standing(TenantState::Active),
        };
        let mut known = self.0.lock().unwrap();
        known.tenants.insert(tenant.into(), standing(TenantState::Active));
        known.credentials.insert(uid, credential);
    }

    pub fn change(&self, uid: Uuid, change: impl FnOnce(&mut Credential)) {
        change(self.0.lock().unwrap().credentials.get_mut(&uid).unwrap());
    }

    pub fn set_tenant(&self, tenant: &str, state: TenantState) {
        self.0.lock().unwrap().tenants.insert(tenant.into(), standing(state));
    }

    pub fn asked(&self) -> usize {
        self.0.lock().unwrap().asked
    }

    pub fn fail(&self, fails: bool) {
        self.0.lock().unwrap().fails = fails;
    }

    pub fn delay(&self, delay: Duration) {
        self.0.lock().unwrap().delay = delay;
    }

    /// Reads first and answers later, as a database does.
    fn look_up<V>(
        &self,
        read: impl FnOnce(&Known) -> Option<V>,
    ) -> (Duration, crate::Result<Option<V>>) {
        let mut known = self.0.lock().unwrap();
        known.asked += 1;
        let answer = if known.fails { Err(Error::unavailable("down")) } else { Ok(read(&known)) };
        (known.delay, answer)
    }

    pub fn directory(&self) -> Directory {
        let (a, b) = (self.clone(), self.clone());
        Directory {
            credential: Box::new(move |uid| {
                let (delay, answer) = a.look_up(|known| known.credentials.get(&uid).cloned());
                async move {
                    tokio::time::sleep(delay).await;
                    answer
                }
                .boxed()
            }),
            standing: Box::new(move |tenant| {
                let (_, answer) = b.look_up(|known| known.tenants.get(&*tenant).copied());
                async move { answer }.boxed()
            }),
        }
    }
}

fn standing(state: TenantState) -> Standing {
    Standing { state, strict_references: false }
}

pub const LIMITS: DeadlineLimits = DeadlineLimits {
    default: Duration::from_secs(10),
    max: Duration::from_secs(60),
    stream_max: Duration::from_secs(60),
};

fn edge_as(mode: AuthMode, fake: &FakeDirectory) -> Edge {
    let names = access::methods().iter().map(Method::name);
    let authenticator = Authenticator::new(mode, fake.directory(), Duration::from_secs(4));
    Edge {
        metrics: Arc::new(Metrics::new(names, [])),
        authenticator: Arc::new(authenticator),
        requests_in_flight_max: 8,
        deadline: LIMITS,
    }
}

fn edge(fake: &FakeDirectory) -> Edge {
    edge_as(AuthMode::Token, fake)
}
