//! Vectors as numbers: what a space takes, their digests, their distances, and how PostgreSQL is told them.

use super::log::hex;
use super::vector_space::{COSINE, FLOAT16, VectorSpace};
use crate::{Reason, queries};
use bytes::{BufMut, BytesMut};
use half::f16;
use pgvector::{HalfVector, Vector};
use sha2::{Digest, Sha256};
use std::error::Error;
use tokio_postgres::types::{IsNull, Kind, ToSql, Type, to_sql_checked};
use uuid::Uuid;

/// So long that no metric can overflow: neither the squares of a difference nor an inner product.
const SQUARES_MAX: f32 = f32::MAX / 4.0;

/// A vector as its space keeps it.
#[derive(Clone, Debug, PartialEq)]
pub struct Numbers {
    values: Vec<f32>,
    /// SHA-256 of the values, 4 bytes each, little endian; 64 hex digits.
    pub digest: String,
}

impl Numbers {
    /// Holds values to a space. The error says what is wrong with the vector: why, and how it must be.
    pub fn of(space: &VectorSpace, mut values: Vec<f32>) -> Result<Self, (Reason, String)> {
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
        // As pgvector adds them up.
        let squares: f32 = values.iter().map(|value| value * value).sum();
        if squares > SQUARES_MAX {
            let what = format!("is too long: its squares must add up to at most {SQUARES_MAX:e}");
            return Err((Reason::VectorInvalid, what));
        }
        if space.metric == COSINE && squares == 0.0 {
            let what =
                "must not be zero under COSINE, nor so small that its squares are".to_owned();
            return Err((Reason::ZeroVector, what));
        }
        let digest = hex(&Sha256::digest(f32_le(&values)));
        Ok(Self { values, digest })
    }

    pub fn values(&self) -> &[f32] {
        &self.values
    }
}

/// 4 bytes a value, little endian.
pub fn f32_le(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
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
    /// Keeps vectors that are not there yet: (space, digests, vectors). None of them goes before the transaction ends,
    /// because a purge asks for the same lock alone.
    KEEP(Uuid, Vec<String>, Array) -> () =
        "INSERT INTO embedding_vector (space_uid, digest, vector) SELECT $1, u.digest, u.vector \
         FROM (SELECT pg_advisory_xact_lock_shared(hashtextextended('casebook.embedding_vector', \
         hashtextextended(current_setting('casebook.tenant'), 0)))) AS held, \
         unnest($2::text[], $3::public.vector[]) AS u (digest, vector) ON CONFLICT DO NOTHING";
    /// The same in a space of FLOAT16.
    KEEP_HALF(Uuid, Vec<String>, Array) -> () =
        "INSERT INTO embedding_vector (space_uid, digest, half) SELECT $1, u.digest, u.half \
         FROM (SELECT pg_advisory_xact_lock_shared(hashtextextended('casebook.embedding_vector', \
         hashtextextended(current_setting('casebook.tenant'), 0)))) AS held, \
         unnest($2::text[], $3::public.halfvec[]) AS u (digest, half) ON CONFLICT DO NOTHING";
} }

/// The statement that keeps vectors of a space, and what it takes. In the order of their digests, so that two
/// transactions with the same vectors do not wait for each other.
pub(super) fn keep<'a>(
    space: &VectorSpace,
    vectors: impl Iterator<Item = &'a Numbers>,
) -> (&'static super::query::Query<(Uuid, Vec<String>, Array), ()>, (Uuid, Vec<String>, Array)) {
    let mut vectors: Vec<&Numbers> = vectors.collect();
    vectors.sort_unstable_by(|a, b| a.digest.cmp(&b.digest));
    vectors.dedup_by(|a, b| a.digest == b.digest);
    let digests = vectors.iter().map(|vector| vector.digest.clone()).collect();
    let is_half = space.storage == FLOAT16;
    let array = Array::of(&vectors, is_half);
    (if is_half { &KEEP_HALF } else { &KEEP }, (space.meta.uid, digests, array))
}

/// Vectors as PostgreSQL reads an array of them. The number of their type is the database's own, so it is filled in when
/// the statement is known.
#[derive(Debug)]
pub struct Array {
    is_half: bool,
    /// Or what is wrong with them.
    bytes: Result<BytesMut, String>,
}

/// Where in an array the number of its members' type stands.
const MEMBER_OID: std::ops::Range<usize> = 8..12;

impl Array {
    fn of(vectors: &[&Numbers], is_half: bool) -> Self {
        Self { is_half, bytes: Self::encode(vectors, is_half).map_err(|error| error.to_string()) }
    }

    fn encode(
        vectors: &[&Numbers],
        is_half: bool,
    ) -> Result<BytesMut, Box<dyn Error + Sync + Send>> {
        let size = vectors.iter().map(|vector| 8 + vector.values.len() * 4).sum::<usize>();
        let mut array = BytesMut::with_capacity(20 + size);
        // One dimension without NULLs, of members of a type, so many, which count from 1.
        array.put_i32(1);
        array.put_i32(0);
        array.put_u32(0);
        array.put_i32(i32::try_from(vectors.len())?);
        array.put_i32(1);
        for vector in vectors {
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
    ) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
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
