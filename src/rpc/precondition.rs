//! The states of other resources that a write depends on, as they are asked for.

use super::wire::{Fields, kind_name};
use crate::pb;
use crate::store::facts;
use crate::store::write::{Precondition, Wanted};

impl Fields {
    /// One precondition; `None` where it is none.
    pub(super) fn precondition(&mut self, condition: pb::Precondition) -> Option<Precondition> {
        use pb::precondition::Check;
        let (field, reference, wants) = match condition.check {
            Some(Check::MustExist(reference)) => ("must_exist", reference, Wanted::Exists),
            Some(Check::MustNotExist(reference)) => ("must_not_exist", reference, Wanted::Absent),
            Some(Check::UnchangedSince(reference)) => {
                let version = reference.version;
                ("unchanged_since", reference, Wanted::Version(version))
            }
            None => {
                self.wrong("", "must have a check");
                return None;
            }
        };
        self.within(field, |fields| {
            if let Wanted::Version(version) = wants
                && version < 1
            {
                fields.wrong("version", "must be at least 1");
            }
            let facts = kind_name(reference.kind).and_then(|kind| facts(&kind));
            let Some(facts) = facts.filter(|facts| facts.ids_of_tenant) else {
                fields.wrong("kind", "must be a kind whose ids are unique in the tenant");
                return None;
            };
            let kind = facts.kind;
            fields.reference_id(kind, &reference.id);
            Some(Precondition { kind, id: fields.id_of(kind, "id", reference.id), wants })
        })
    }
}
