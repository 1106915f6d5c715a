//! Vectors as numbers: what a space takes, their digests, their distances, and how PostgreSQL is told them.

use super::log::hex;
use super::vector_space::{COSINE, FLOAT16, VectorSpace};
use super::write::{Insert, Tx};
use crate::{Reason, Result, queries};
use bytes::{BufMut, BytesMut};
use half::f16;
use pgvector::{HalfVector, Vector};
use sha2::{Digest, Sha256};
use std::error::Error as StdError;
use tokio_postgres::types::{IsNull, Kind, ToSql, Type, to_sql_checked};
use uuid::Uuid;

/// So long that no metric can overflow, in whatever order pgvector adds up: neither the squares of a difference nor an
/// inner product.
const SQUARES_MAX: f64 = (f32::MAX / 8.0) as f64;
/// Below this the squares lose digits, and with them the angle is wrong.
const SQUARES_MIN: f64 = f32::MIN_POSITIVE as f64;

/// A vector as its space keeps it.
#[derive(Clone, Debug, PartialEq)]
pub struct Numbers {
    values: Vec<f32>,
    /// SHA-256 of the values, 4 bytes each, little endian; 64 hex digits.
    pub digest: String,
    /// Whether the space's storage is FLOAT16.
    is_half: bool,
    space_uid: Uuid,
}

impl Numbers {
    /// Holds values to a space. The error says what is wrong with the vector: why, and how it must be.
    pub fn of(
        space: &VectorSpace,
        mut values: Vec<f32>,
    ) -> std::result::Result<Self, (Reason, String)> {
        let (expected, actual) = (space.dimensions, values.len());
        if usize::try_from(expected) != Ok(actual) {
            let both = format!(
                "must have {expected} dimensions, as the vector space \"{}\" has, and has {actual}",
                space.id
            );
            return Err((Reason::DimensionMismatch, both));
        }
        if let Some(n) = values.iter().position(|value| !value.is_finite()) {
            let what = format!("must be finite, and is {} at place {n}", values[n]);
            return Err((Reason::VectorInvalid, what));
        }
        if space.storage == FLOAT16 {
            for (n, value) in values.iter_mut().enumerate() {
                let kept = f16::from_f32(*value);
                if !kept.is_finite() {
                    let what = format!(
                        "must be at most 65504 in a space of FLOAT16, and is {value} at place {n}"
                    );
                    return Err((Reason::VectorInvalid, what));
                }
                *value = kept.to_f32();
            }
        }
        let squares: f64 = values.iter().map(|value| f64::from(*value) * f64::from(*value)).sum();
        if squares > SQUARES_MAX {
            let what = format!("is too long: its squares must add up to at most {SQUARES_MAX:e}");
            return Err((Reason::VectorInvalid, what));
        }
        if space.metric == COSINE && squares < SQUARES_MIN {
            let least = format!("its squares must add up to at least {SQUARES_MIN:e}");
            let what = format!("must not be zero under COSINE: {least}");
            return Err((Reason::ZeroVector, what));
        }
        let digest = hex(&Sha256::digest(f32_le(&values)));
        let (is_half, space_uid) = (space.storage == FLOAT16, space.meta.uid);
        Ok(Self { values, digest, is_half, space_uid })
    }

    /// Stands for a vector that is not known, and is never kept.
    pub fn none() -> Self {
        let (values, digest) = (Vec::new(), String::new());
        Self { values, digest, is_half: false, space_uid: Uuid::nil() }
    }

    /// Whether the space's storage is FLOAT16.
    pub(super) fn is_half(&self) -> bool {
        self.is_half
    }

    pub fn values(&self) -> &[f32] {
        &self.values
    }
}

/// 4 bytes a value, little endian.
pub fn f32_le(values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 * values.len());
    for value in values {
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// The opposite of [`f32_le`]; `None` where a number is not whole.
pub fn from_f32_le(bytes: &[u8]) -> Option<Vec<f32>> {
    let (whole, rest) = bytes.as_chunks::<4>();
    rest.is_empty().then(|| whole.iter().map(|value| f32::from_le_bytes(*value)).collect())
}

/// How a space compares, in SQL.
pub struct Metric {
    /// The operator for the distance.
    pub operator: &'static str,
    /// The column of `embedding_vector`.
    pub column: &'static str,
    /// Its type.
    pub sql_type: &'static str,
}

impl Metric {
    pub fn of(space: &VectorSpace) -> Self {
        let operator = match space.metric {
            COSINE => "OPERATOR(public.<=>)",
            2 => "OPERATOR(public.<->)",
            3 => "OPERATOR(public.<#>)",
            _ => "OPERATOR(public.<+>)",
        };
        let (column, sql_type) = match space.storage {
            FLOAT16 => ("half", "public.halfvec"),
            _ => ("vector", "public.vector"),
        };
        Self { operator, column, sql_type }
    }
}

/// What a distance says about closeness: more is closer.
pub fn score(space: &VectorSpace, distance: f64) -> f64 {
    match space.metric {
        COSINE => 1.0 - distance,
        3 => -distance,
        _ => 1.0 / (1.0 + distance),
    }
}

queries! { "embedding_vector" {
    /// Keeps vectors that their embeddings have not had yet: (embeddings, digests, vectors).
    KEEP(Vec<Uuid>, Vec<String>, Array) -> () =
        "INSERT INTO embedding_vector (embedding_uid, digest, vector) SELECT * \
         FROM unnest($1::uuid[], $2::text[], $3::public.vector[]) ON CONFLICT DO NOTHING";
    /// The same in a space of FLOAT16.
    KEEP_HALF(Vec<Uuid>, Vec<String>, Array) -> () =
        "INSERT INTO embedding_vector (embedding_uid, digest, half) SELECT * \
         FROM unnest($1::uuid[], $2::text[], $3::public.halfvec[]) ON CONFLICT DO NOTHING";
    /// Keeps vectors of new embeddings, unseen. It fails, for want of a digest, unless all of the spaces are live; then
    /// they stay so until the transaction ends: (embeddings, digests, vectors, spaces).
    KEEP_NEW(Vec<Uuid>, Vec<String>, Array, Vec<Uuid>) -> () =
        "WITH live AS MATERIALIZED (SELECT uid FROM vector_space WHERE uid = ANY($4) AND delete_time IS NULL FOR KEY SHARE) \
         INSERT INTO embedding_vector (embedding_uid, digest, vector) \
         SELECT n.uid, CASE WHEN (SELECT count(*) FROM live) = cardinality($4::uuid[]) THEN n.digest END, n.vector \
         FROM unnest($1::uuid[], $2::text[], $3::public.vector[]) AS n (uid, digest, vector)";
    /// The same in spaces of FLOAT16.
    KEEP_NEW_HALF(Vec<Uuid>, Vec<String>, Array, Vec<Uuid>) -> () =
        "WITH live AS MATERIALIZED (SELECT uid FROM vector_space WHERE uid = ANY($4) AND delete_time IS NULL FOR KEY SHARE) \
         INSERT INTO embedding_vector (embedding_uid, digest, half) \
         SELECT n.uid, CASE WHEN (SELECT count(*) FROM live) = cardinality($4::uuid[]) THEN n.digest END, n.vector \
         FROM unnest($1::uuid[], $2::text[], $3::public.halfvec[]) AS n (uid, digest, vector)";
    /// Lists vectors for the indexes of their spaces, which have not got them yet: (embeddings, digests, spaces). It is a
    /// statement of its own, after the one that holds the spaces: so it sees the indexes that were opened until then. One
    /// that is damaged or no use (4, 5) is never searched again.
    /// What is listed already is locked: whoever seals passes it over, and looks at it again when this is committed.
    LIST(Vec<Uuid>, Vec<String>, Vec<Uuid>) -> () =
        "INSERT INTO embedding_delta (index_uid, embedding_uid, digest) SELECT DISTINCT i.uid, u.uid, u.digest \
         FROM unnest($1::uuid[], $2::text[], $3::uuid[]) AS u (uid, digest, space_uid) \
         JOIN vector_index AS i ON i.space_uid = u.space_uid AND i.state NOT IN (4, 5) \
         ON CONFLICT (tenant_id, index_uid, embedding_uid, digest) DO UPDATE SET digest = EXCLUDED.digest";
} }

/// A vector of an embedding, by its uid.
pub(super) type Kept<'a> = (Uuid, &'a Numbers);

/// Those of FLOAT32 and those of FLOAT16, each with their digests, and as an array.
fn by_storage(vectors: &[Kept<'_>]) -> Vec<(bool, Vec<Uuid>, Vec<String>, Array)> {
    let of = |is_half| {
        let mine = vectors.iter().filter(|(_, vector)| vector.is_half == is_half);
        let mine: Vec<Kept<'_>> = mine.copied().collect();
        let uids = mine.iter().map(|(uid, _)| *uid).collect();
        let digests = mine.iter().map(|(_, vector)| vector.digest.clone()).collect();
        (!mine.is_empty()).then(|| (is_half, uids, digests, Array::of(&mine, is_half)))
    };
    [false, true].into_iter().filter_map(of).collect()
}

/// Keeps vectors of embeddings, in spaces that the transaction holds live.
pub(super) async fn keep(tx: &Tx<'_>, vectors: &[Kept<'_>]) -> Result<()> {
    for (is_half, uids, digests, array) in by_storage(vectors) {
        tx.run(if is_half { &KEEP_HALF } else { &KEEP }, &(uids, digests, array)).await?;
    }
    if !vectors.is_empty() {
        tx.run(&LIST, &listed(vectors)).await?;
    }
    Ok(())
}

/// Keeps vectors of embeddings that are new, in spaces that must be live: none of them twice.
pub(super) fn keep_new(vectors: &[Kept<'_>], spaces: &[Uuid]) -> Vec<Insert> {
    let inserts = by_storage(vectors).into_iter().map(|(is_half, uids, digests, array)| {
        let (query, count) = (if is_half { &KEEP_NEW_HALF } else { &KEEP_NEW }, uids.len());
        Insert::exactly(query, (uids, digests, array, spaces.to_vec()), count)
    });
    let mut inserts: Vec<Insert> = inserts.collect();
    if !vectors.is_empty() {
        inserts.push(Insert::after(&LIST, listed(vectors)));
    }
    inserts
}

/// What [`LIST`] is given.
fn listed(vectors: &[Kept<'_>]) -> (Vec<Uuid>, Vec<String>, Vec<Uuid>) {
    let uids = vectors.iter().map(|(uid, _)| *uid).collect();
    let digests = vectors.iter().map(|(_, vector)| vector.digest.clone()).collect();
    (uids, digests, vectors.iter().map(|(_, vector)| vector.space_uid).collect())
}

/// Vectors as PostgreSQL reads an array of them. The number of their type is the database's own, so it is filled in when
/// the statement is known.
#[derive(Debug)]
pub struct Array {
    is_half: bool,
    /// Or what is wrong with them.
    bytes: std::result::Result<BytesMut, String>,
}

/// Where in an array the number of its members' type stands.
const MEMBER_OID: std::ops::Range<usize> = 8..12;

impl Array {
    fn of(vectors: &[Kept<'_>], is_half: bool) -> Self {
        Self { is_half, bytes: Self::encode(vectors, is_half).map_err(|error| error.to_string()) }
    }

    fn encode(
        vectors: &[Kept<'_>],
        is_half: bool,
    ) -> std::result::Result<BytesMut, Box<dyn StdError + Sync + Send>> {
        let size = vectors.iter().map(|(_, vector)| 8 + vector.values.len() * 4).sum::<usize>();
        let mut array = BytesMut::with_capacity(20 + size);
        // One dimension without NULLs, of members of a type, so many, which count from 1.
        array.put_i32(1);
        array.put_i32(0);
        array.put_u32(0);
        array.put_i32(i32::try_from(vectors.len())?);
        array.put_i32(1);
        for (_, vector) in vectors {
            let place = array.len();
            array.put_i32(0);
            // They do not look at the type.
            if is_half {
                HalfVector::from_f32_slice(&vector.values).to_sql(&Type::UNKNOWN, &mut array)?;
            } else {
                Vector::from(vector.values.clone()).to_sql(&Type::UNKNOWN, &mut array)?;
            }
            let size = i32::try_from(array.len() - place - 4)?;
            array[place..place + 4].copy_from_slice(&size.to_be_bytes());
        }
        Ok(array)
    }
}

fn is_vector(ty: &Type) -> bool {
    matches!(ty.name(), "vector" | "halfvec")
}

impl ToSql for Array {
    fn to_sql(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> std::result::Result<IsNull, Box<dyn StdError + Sync + Send>> {
        let bytes = self.bytes.as_ref().map_err(String::as_str)?;
        let member = match ty.kind() {
            Kind::Array(member) if (member.name() == "halfvec") == self.is_half => member,
            _ => return Err(format!("vectors for {ty}").into()),
        };
        let place = out.len();
        out.extend_from_slice(bytes);
        out[place + MEMBER_OID.start..place + MEMBER_OID.end]
            .copy_from_slice(&member.oid().to_be_bytes());
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        matches!(ty.kind(), Kind::Array(member) if is_vector(member))
    }

    to_sql_checked!();
}
