//! Verifying: what a projection has is held against the record, by uid, version and digest, at one moment of the record.

use super::{Held, PAGE, Projection, Range, Recorded, SAMPLE, SPACES, count, rows_at_once};
use crate::Result;
use crate::store::Store;
use crate::store::caller::Caller;
use crate::store::snapshot::Snapshot;
use crate::store::vector_space::VectorSpace;
use std::collections::HashMap;
use std::sync::Arc;
use uuid::Uuid;

/// Differences that are told one by one.
pub const TOLD_MAX: usize = 100;

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// So many embeddings, drawn by a seed.
    Sample {
        size: i64,
        seed: i64,
    },
    Full,
}

/// How what a projection has is not as recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Missing,
    Extra,
    Different,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub space_id: String,
    pub uid: Uuid,
    /// Empty for what is not recorded.
    pub embedding_id: String,
    pub fault: Fault,
}

/// What verifying found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Embeddings recorded in the space or in all, and what the projection has for them.
    pub recorded: i64,
    pub held: i64,
    /// Recorded embeddings that were looked at.
    pub checked: i64,
    pub missing: i64,
    pub extra: i64,
    pub different: i64,
    /// The first [`TOLD_MAX`].
    pub told: Vec<Difference>,
    /// The number of the log at that moment.
    pub seq: i64,
}

impl Verified {
    pub fn is_in_sync(&self) -> bool {
        self.missing + self.extra + self.different == 0 && self.recorded == self.held
    }

    /// 0 to 100: how much of what was looked at is as recorded, and how the counts are to each other, whichever is less.
    pub fn rate_percent(&self) -> f64 {
        let percent = |part: i64, whole: i64| match whole {
            0 => 100.0,
            _ => 100.0 * part as f64 / whole as f64,
        };
        let as_recorded = self.checked - self.missing - self.different;
        let found = percent(as_recorded, self.checked + self.extra);
        let counted = percent(self.recorded.min(self.held), self.recorded.max(self.held));
        found.min(counted)
    }

    fn add(&mut self, space: &str, compared: Compared) {
        let Compared { sound, wrong } = compared;
        self.checked += sound.len() as i64;
        for (fault, of) in wrong {
            let (uid, embedding_id) = match of {
                Of::Recorded(row) => (row.uid, row.embedding_id),
                Of::Stray(uid) => (uid, String::new()),
            };
            match fault {
                Fault::Missing => self.missing += 1,
                Fault::Extra => self.extra += 1,
                Fault::Different => self.different += 1,
            }
            self.checked += i64::from(fault != Fault::Extra);
            if self.told.len() < TOLD_MAX {
                let space_id = space.to_owned();
                self.told.push(Difference { space_id, uid, embedding_id, fault });
            }
        }
    }
}

/// Some embeddings, held against each other.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Compared {
    /// As recorded.
    pub sound: Vec<Recorded>,
    /// In the order of uids.
    pub wrong: Vec<(Fault, Of)>,
}

/// What is wrong: a recorded embedding, or something that is not recorded.
#[derive(Debug, PartialEq)]
pub(super) enum Of {
    Recorded(Recorded),
    Stray(Uuid),
}

impl Of {
    fn uid(&self) -> Uuid {
        match self {
            Self::Recorded(row) => row.uid,
            Self::Stray(uid) => *uid,
        }
    }
}

/// Takes in what is held of some recorded embeddings, piece by piece in any order.
struct Comparison {
    open: HashMap<Uuid, Recorded>,
    compared: Compared,
}

impl Comparison {
    fn of(recorded: Vec<Recorded>) -> Self {
        let open = recorded.into_iter().map(|row| (row.uid, row)).collect();
        Self { open, compared: Compared::default() }
    }

    fn take(&mut self, held: Vec<Held>) {
        for Held { uid, version, digest } in held {
            match self.open.remove(&uid) {
                None => self.compared.wrong.push((Fault::Extra, Of::Stray(uid))),
                Some(row) if (row.version, &row.vector_digest) == (version, &digest) => {
                    self.compared.sound.push(row);
                }
                Some(row) => {
                    self.compared.wrong.push((Fault::Different, Of::Recorded(row)));
                }
            }
        }
    }

    fn end(self) -> Compared {
        let Self { open, mut compared } = self;
        let missing = open.into_values().map(|row| (Fault::Missing, Of::Recorded(row)));
        compared.wrong.extend(missing);
        compared.wrong.sort_unstable_by_key(|(_, of)| of.uid());
        compared
    }
}

/// The next recorded embeddings of a space after a uid, held against all that the projection has up to where they end,
/// and where that is: `None` at the end of the space.
pub(super) async fn compare_next(
    at: &Snapshot,
    projection: &dyn Projection,
    space: &VectorSpace,
    after: Uuid,
    limit: i64,
) -> Result<(Compared, Option<Uuid>)> {
    let recorded = at.all(&PAGE, &(space.meta.uid, after, limit)).await?;
    let end = match recorded.last() {
        Some(last) if recorded.len() as i64 == limit => Some(last.uid),
        _ => None,
    };
    // Behind the last recorded one there may be what is not recorded.
    let upto = end.unwrap_or(Uuid::max());
    let limit = rows_at_once(space);
    let mut comparison = Comparison::of(recorded);
    let mut after = after;
    loop {
        let held = projection.page(at, space, Range { after, upto, limit }).await?;
        let (count, last) = (held.len() as i64, held.last().map(|held| held.uid));
        comparison.take(held);
        match last {
            // Were they not in their order, it would never end.
            Some(last) if count == limit && last > after => after = last,
            _ => return Ok((comparison.end(), end)),
        }
    }
}

async fn verify(
    at: &Snapshot,
    projection: &dyn Projection,
    space: Option<&VectorSpace>,
    extent: Extent,
) -> Result<Verified> {
    let uid = space.map(|space| space.meta.uid);
    let mut verified = Verified {
        recorded: count(at, uid).await?,
        held: projection.count(at, uid).await?,
        seq: at.head,
        ..Verified::default()
    };
    let spaces = match space {
        Some(space) => vec![space.clone()],
        None => at.all(&SPACES, &()).await?,
    };
    match extent {
        Extent::Sample { size, seed } => {
            let mut drawn: HashMap<Uuid, Vec<Recorded>> = HashMap::new();
            for row in at.all(&SAMPLE, &(uid, seed, size)).await? {
                drawn.entry(row.space_uid).or_default().push(row);
            }
            for space in &spaces {
                let mut drawn = drawn.remove(&space.meta.uid).unwrap_or_default();
                while !drawn.is_empty() {
                    let piece = rows_at_once(space).min(drawn.len() as i64) as usize;
                    let recorded: Vec<Recorded> = drawn.drain(..piece).collect();
                    let uids = recorded.iter().map(|row| row.uid).collect();
                    let mut comparison = Comparison::of(recorded);
                    comparison.take(projection.find(at, space, uids).await?);
                    verified.add(&space.id, comparison.end());
                }
            }
        }
        Extent::Full => {
            for space in &spaces {
                let mut next = Some(Uuid::nil());
                while let Some(after) = next {
                    let compared;
                    (compared, next) =
                        compare_next(at, projection, space, after, rows_at_once(space)).await?;
                    verified.add(&space.id, compared);
                }
            }
        }
    }
    Ok(verified)
}

impl Store {
    /// Holds what a projection of the caller's tenant has for a space, or for all, against the record, within the
    /// deadline. What is recorded is read at one moment; and so is what the projection has, if it is written in the same transactions.
    /// One that follows may be read later, so what is written meanwhile differs too.
    pub async fn verify(
        &self,
        caller: &Caller,
        projection: Arc<dyn Projection>,
        space: Option<Arc<VectorSpace>>,
        extent: Extent,
    ) -> Result<Verified> {
        self.snapshot(caller, PAGE.name, move |at| {
            let (projection, space) = (Arc::clone(&projection), space.clone());
            Box::pin(async move {
                let found = verify(&at, &*projection, space.as_deref(), extent).await?;
                at.end(found).await
            })
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(n: u128, version: i64) -> Recorded {
        Recorded {
            uid: Uuid::from_u128(n),
            space_uid: Uuid::nil(),
            embedding_id: format!("e-{n}"),
            version,
            vector_digest: format!("d-{n}"),
        }
    }

    fn held(n: u128, version: i64) -> Held {
        Held { uid: Uuid::from_u128(n), version, digest: format!("d-{n}") }
    }

    #[test]
    fn each_fault_is_found_and_told_in_order() {
        let mut comparison = Comparison::of((1..=5).map(|n| recorded(n, 1)).collect());
        comparison.take(vec![held(4, 2), held(1, 1), held(9, 1)]);
        comparison.take(vec![Held { digest: "other".into(), ..held(2, 1) }, held(5, 1)]);
        let compared = comparison.end();
        let wrong: Vec<_> =
            compared.wrong.iter().map(|(fault, of)| (*fault, of.uid().as_u128())).collect();
        use Fault::{Different, Extra, Missing};
        assert_eq!(wrong, [(Different, 2), (Missing, 3), (Different, 4), (Extra, 9)]);
        assert_eq!(compared.sound.iter().map(|row| row.uid.as_u128()).collect::<Vec<_>>(), [1, 5]);
        let mut verified = Verified { recorded: 5, held: 5, ..Verified::default() };
        verified.add("s", compared);
        assert_eq!((verified.checked, verified.missing), (5, 1));
        assert_eq!((verified.extra, verified.different), (1, 2));
        assert!(!verified.is_in_sync());
        // Two of five are as recorded, and one more is there.
        assert_eq!(verified.rate_percent(), 100.0 * 2.0 / 6.0);
        assert_eq!(verified.told[1].embedding_id, "e-3");
        assert_eq!(verified.told[3].embedding_id, "");
    }

    #[test]
    fn the_counts_speak_for_what_a_sample_does_not_see() {
        let found =
            |recorded, held, checked| Verified { recorded, held, checked, ..Verified::default() };
        assert!(found(0, 0, 0).is_in_sync());
        assert_eq!(found(0, 0, 0).rate_percent(), 100.0);
        assert_eq!(found(1000, 1000, 100).rate_percent(), 100.0);
        for unequal in [found(1000, 999, 100), found(999, 1000, 100)] {
            assert!(!unequal.is_in_sync());
            assert_eq!(unequal.rate_percent(), 99.9);
        }
        assert_eq!(found(0, 1, 0).rate_percent(), 0.0);
    }

    #[test]
    fn what_is_told_one_by_one_is_bounded() {
        let mut verified = Verified::default();
        verified.add("s", Comparison::of((0..500).map(|n| recorded(n, 1)).collect()).end());
        assert_eq!((verified.missing, verified.told.len()), (500, TOLD_MAX));
    }
}
