//! Who is asking: the principal behind a call, what it may do, and in which tenant it acts.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::time::Instant;
use uuid::Uuid;

/// The tenant whose principals administer the others.
pub const SYSTEM_TENANT: &str = "system";

/// Who makes a call, and what the log says about it. Cheap to clone; absent text is empty.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The tenant the call acts in.
    pub tenant: Arc<str>,
    /// The credential: `token:<uid>`, `cli` or `anonymous`. Never the secret.
    pub principal: Arc<str>,
    /// The user the principal acts for, from `x-casebook-actor`.
    pub actor: Arc<str>,
    pub roles: Roles,
    /// The tenant wants what a resource refers to to exist.
    pub strict_references: bool,
    /// The tenant takes no writes.
    pub is_read_only: bool,
    /// The principal belongs to the tenant "system", whichever tenant it acts in.
    pub is_system: bool,
    /// When the credential ends.
    pub expire_time: Option<SystemTime>,
    /// The peer's IP address, or "unix".
    pub address: Arc<str>,
    pub user_agent: Arc<str>,
    /// The call's x-request-id; not the idempotency key.
    pub request_id: Arc<str>,
    /// W3C trace id, 32 hexadecimal digits.
    pub trace_id: Arc<str>,
    /// Full RPC name: `casebook.v1.DecisionService/GetDecision`.
    pub method: &'static str,
    /// When the caller stops waiting. The store enforces it.
    pub deadline: Instant,
}

impl Caller {
    /// Whom `created_by` names: the acting user, or else the principal.
    pub fn acting(&self) -> &Arc<str> {
        if self.actor.is_empty() { &self.principal } else { &self.actor }
    }
}

/// One right a credential can carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    Reader,
    Writer,
    Auditor,
    Admin,
}

impl Role {
    pub const ALL: [Role; 4] = [Role::Reader, Role::Writer, Role::Auditor, Role::Admin];

    pub const fn name(self) -> &'static str {
        match self {
            Role::Reader => "reader",
            Role::Writer => "writer",
            Role::Auditor => "auditor",
            Role::Admin => "admin",
        }
    }

    pub fn from_name(name: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|role| role.name() == name)
    }
}

/// A set of roles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Roles(u8);

impl Roles {
    pub const NONE: Roles = Roles(0);
    pub const ALL: Roles = Roles::of(&Role::ALL);

    pub const fn of(roles: &[Role]) -> Roles {
        let mut bits = 0;
        let mut index = 0;
        while index < roles.len() {
            bits |= 1 << roles[index] as u8;
            index += 1;
        }
        Roles(bits)
    }

    /// The set as one number, for a column. The bits are Role's order and never change.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Bits that name no role are dropped.
    pub const fn from_bits(bits: u8) -> Roles {
        Roles(bits & Roles::ALL.0)
    }

    pub const fn contains(self, role: Role) -> bool {
        self.0 & (1 << role as u8) != 0
    }

    pub const fn intersects(self, other: Roles) -> bool {
        self.0 & other.0 != 0
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = Role> {
        Role::ALL.into_iter().filter(move |role| self.contains(*role))
    }

    pub fn names(self) -> impl Iterator<Item = &'static str> {
        self.iter().map(Role::name)
    }
}

impl FromIterator<Role> for Roles {
    fn from_iter<I: IntoIterator<Item = Role>>(roles: I) -> Self {
        Roles(roles.into_iter().fold(0, |bits, role| bits | 1 << role as u8))
    }
}

/// `reader, admin`
impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, name) in self.names().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            f.write_str(name)?;
        }
        Ok(())
    }
}

/// Whether a tenant takes calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TenantState {
    Active,
    /// Reads only.
    ReadOnly,
    /// Nothing: every call is refused.
    Suspended,
}

/// What a call needs to know of its tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Standing {
    pub state: TenantState,
    /// What a resource refers to must exist.
    pub strict_references: bool,
}

/// An API token as stored, with the standing of its tenant.
#[derive(Clone, Debug)]
pub struct Credential {
    pub uid: Uuid,
    pub tenant: String,
    pub roles: Roles,
    /// Of the 43 characters of the secret, as they stand in the token.
    pub secret_sha256: [u8; 32],
    pub expire_time: Option<SystemTime>,
    pub revoked: bool,
    pub standing: Standing,
}

/// `^[a-z][a-z0-9-]{0,62}$`
pub fn is_tenant_id(id: &str) -> bool {
    let bytes = id.as_bytes();
    bytes.len() <= 63
        && bytes.first().is_some_and(u8::is_ascii_lowercase)
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_a_set() {
        let some = Roles::of(&[Role::Admin, Role::Reader]);
        assert!(some.contains(Role::Admin) && !some.contains(Role::Writer));
        assert_eq!(some.to_string(), "reader, admin");
        assert_eq!(some, [Role::Reader, Role::Admin, Role::Admin].into_iter().collect());
        assert_eq!(Roles::from_bits(some.bits() | 0xf0), some);
        assert!(some.intersects(Roles::ALL) && !some.intersects(Roles::of(&[Role::Auditor])));
        assert!(Roles::NONE.is_empty() && Roles::NONE.to_string().is_empty());
        for role in Role::ALL {
            assert_eq!(Role::from_name(role.name()), Some(role));
        }
    }

    #[test]
    fn tenant_ids() {
        for good in ["a", "system", "acme-2", &"a".repeat(63)] {
            assert!(is_tenant_id(good), "{good}");
        }
        for bad in ["", "-a", "2a", "Acme", "a_b", "a b", "é", &"a".repeat(64)] {
            assert!(!is_tenant_id(bad), "{bad}");
        }
    }
}
