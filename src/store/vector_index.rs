//! Indexes of vector spaces: what a space can have, and what there is, as every server knows it.

pub mod advice;
pub mod recall;
pub mod stats;
pub mod upkeep;
pub mod worker;

use super::Store;
use super::caller::Caller;
use super::vector_space::{COSINE, VectorSpace};
use crate::{Error, Reason, Result, queries, row};
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;
use uuid::Uuid;

pub const HNSW: i16 = 1;
pub const IVFFLAT: i16 = 2;
pub const NONE: i16 = 3;

pub const FLOAT32: i16 = 1;
pub const FLOAT16: i16 = 2;
pub const BINARY: i16 = 3;

pub const FILLING: i16 = 1;
pub const FILLED: i16 = 2;
pub const READY: i16 = 3;
pub const SUSPECT: i16 = 4;
pub const UNSUITED: i16 = 5;

const L1: i16 = 4;

/// From here on a bit of each number tells neighbours well enough apart.
const BINARY_DIMENSIONS_MIN: i32 = 768;
pub const M_DEFAULT: i32 = 16;
pub const EF_CONSTRUCTION_DEFAULT: i32 = 64;

/// What index a space should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexSpec {
    /// [`HNSW`], [`IVFFLAT`] or [`NONE`].
    pub method: i16,
    /// [`FLOAT32`], [`FLOAT16`] or [`BINARY`]; 0 for what fits the space.
    pub codes: i16,
    pub m: i32,
    pub ef_construction: i32,
    /// 0 for what fits the number of embeddings.
    pub lists: i32,
}

impl IndexSpec {
    pub const HNSW: Self = Self {
        method: HNSW,
        codes: 0,
        m: M_DEFAULT,
        ef_construction: EF_CONSTRUCTION_DEFAULT,
        lists: 0,
    };
    pub const NONE: Self = Self { method: NONE, codes: 0, m: 0, ef_construction: 0, lists: 0 };

    /// What a space says that it has or is to have.
    pub fn of(space: &VectorSpace) -> Option<Self> {
        Some(Self {
            method: space.index_method?,
            codes: space.index_codes.unwrap_or_default(),
            m: space.index_m.unwrap_or_default(),
            ef_construction: space.index_ef_construction.unwrap_or_default(),
            lists: space.index_lists.unwrap_or_default(),
        })
    }

    pub fn is_none(&self) -> bool {
        self.method == NONE
    }

    /// The codes, chosen by the space where they are not given.
    pub fn codes_for(&self, space: &VectorSpace) -> i16 {
        match self.codes {
            0 if space.dimensions >= BINARY_DIMENSIONS_MIN => BINARY,
            0 => FLOAT16,
            codes => codes,
        }
    }

    /// Whether the space can have it.
    pub fn check(&self, space: &VectorSpace) -> Result<()> {
        if self.is_none() {
            return Ok(());
        }
        let codes = self.codes_for(space);
        // pgvector's limits.
        let (name, most) = match codes {
            FLOAT32 => ("FLOAT32", 2000),
            FLOAT16 => ("FLOAT16", 4000),
            _ => ("BINARY", 64_000),
        };
        let message = if space.dimensions > most {
            format!(
                "vector_space \"{}\" has {} dimensions, and an index with {name} codes at most {most}: use BINARY",
                space.id, space.dimensions
            )
        } else if self.method == IVFFLAT && space.metric == L1 && codes != BINARY {
            format!(
                "vector_space \"{}\" is under L1, which IVFFLAT knows only with BINARY codes: use HNSW",
                space.id
            )
        } else {
            return Ok(());
        };
        Err(Error::Refused { reason: Reason::NotIndexable, message, metadata: Vec::new() })
    }

    /// Notes it on the space; says whether that is anything new.
    pub fn set_on(&self, space: &mut VectorSpace) -> bool {
        let codes = if self.is_none() { None } else { Some(self.codes_for(space)) };
        let number = |value: i32| (value != 0).then_some(value);
        let before = space.clone();
        space.index_method = Some(self.method);
        space.index_codes = codes;
        space.index_m = number(self.m);
        space.index_ef_construction = number(self.ef_construction);
        space.index_lists = number(self.lists);
        *space != before
    }
}

/// How many lists suit so many embeddings, where nobody says: the table of the collection's origin up to 100,000 (F474 to
/// F476), pgvector's rule above (C9).
pub fn lists_for(rows: i64) -> i32 {
    let lists = match rows {
        ..1_000 => (rows / 20).max(10),
        1_000..10_000 => 50 + (rows - 1_000) * 50 / 9_000,
        10_000..100_000 => 100 + (rows - 10_000) * 400 / 90_000,
        100_000..1_000_000 => rows / 1_000,
        _ => rows.isqrt(),
    };
    i32::try_from(lists.clamp(1, 32_768)).unwrap_or(32_768)
}

row! {
    /// An index, as every server knows it.
    pub struct Index {
        pub tenant_id: String,
        pub uid: Uuid,
        /// Names its table.
        pub number: i64,
        pub space_uid: Uuid,
        pub method: i16,
        pub codes: i16,
        /// [`FILLING`] to [`UNSUITED`].
        pub state: i16,
        /// About how many codes it has.
        pub rows: i64,
        /// How many are still to come, up to 10,000.
        pub fresh: i64,
        /// Whether PostgreSQL has it and thinks it sound.
        pub is_valid: bool,
        pub is_space_live: bool,
        pub probe_time: Option<SystemTime>,
        pub probe_recall: Option<f64>,
    }
}

queries! { "vector_index" {
    /// Those of all tenants.
    ALL() -> Index = "SELECT {*} FROM wall.vector_indexes()";
} }

impl Index {
    /// The view of its codes.
    pub fn table(&self) -> String {
        format!("sealed_{}", self.number)
    }

    /// What its codes are compared by, and the type of the column without its dimensions.
    pub fn comparison(&self, space: &VectorSpace) -> (&'static str, &'static str) {
        if self.codes == BINARY {
            return ("OPERATOR(public.<~>)", "bit");
        }
        let operator = match space.metric {
            COSINE => "OPERATOR(public.<=>)",
            2 => "OPERATOR(public.<->)",
            3 => "OPERATOR(public.<#>)",
            _ => "OPERATOR(public.<+>)",
        };
        (operator, if self.codes == FLOAT16 { "public.halfvec" } else { "public.vector" })
    }
}

/// The indexes that may be searched, by tenant and space. It may be behind by a moment: an index that it does not have
/// yet is not used, and one that is gone has no table any more, which the search finds out.
#[derive(Clone, Default)]
pub struct Catalog(Arc<RwLock<Ready>>);

const PREPARED_MAX: usize = 64;

type Ready = HashMap<Uuid, Arc<Index>>;

impl Catalog {
    /// The index of a space. Uids of spaces are unique over all tenants, because the server chooses them.
    pub fn of(&self, space: &VectorSpace) -> Option<Arc<Index>> {
        let ready = self.0.read().unwrap_or_else(PoisonError::into_inner);
        ready.get(&space.meta.uid).map(Arc::clone)
    }

    /// Whether a statement for each may stay prepared on every connection.
    pub fn are_few(&self) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).len() <= PREPARED_MAX
    }

    fn set(&self, all: &[Index]) {
        let ready = all.iter().filter(|index| index.state == READY);
        let ready = ready.map(|index| (index.space_uid, Arc::new(index.clone()))).collect();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = ready;
    }
}

impl Store {
    /// Looks up what indexes there are.
    pub async fn refresh_indexes(&self) -> Result<Vec<Index>> {
        let all = self.admin_rows(&ALL, ()).await?;
        self.indexes.set(&all);
        Ok(all)
    }

    /// The index to search a space by, if there is one.
    pub fn index_of(&self, caller: &Caller, space: &VectorSpace) -> Option<Arc<Index>> {
        self.indexes.of(space).filter(|index| *index.tenant_id == *caller.tenant)
    }
}

#[cfg(test)]
mod tests {
    use super::lists_for;

    #[test]
    fn lists_grow_with_embeddings_as_the_origin_and_pgvector_say() {
        let rows =
            [0, 200, 999, 1_000, 9_999, 10_000, 99_999, 100_000, 999_999, 1_000_000, 4_000_000];
        let lists = [10, 10, 49, 50, 99, 100, 499, 100, 999, 1_000, 2_000];
        assert_eq!(rows.map(lists_for), lists);
        assert_eq!(lists_for(i64::MAX), 32_768);
    }
}
