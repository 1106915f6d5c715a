//! Embeddings that are given with their record, as they are asked for.

use super::{Home, read_embedding};
use crate::pb;
use crate::rpc::wire::{self, Fields, LIST_MAX};
use crate::store::embedding::given::Given;
use crate::store::noun::Noun;
use std::collections::BTreeSet;

/// The vector spaces that embeddings name.
pub(in crate::rpc) fn name_spaces<'a>(
    embeddings: impl IntoIterator<Item = &'a pb::Embedding>,
    names: &mut BTreeSet<&'a str>,
) {
    names.extend(embeddings.into_iter().map(|embedding| embedding.vector_space_id.as_str()));
}

/// Reads the embeddings of a record, which is the one at that place in its request.
pub(in crate::rpc) fn read_given<T: Noun>(
    fields: &mut Fields,
    embeddings: Vec<pb::Embedding>,
    record: &T,
    of: usize,
) -> Vec<Given> {
    let read = fields.list("embeddings", embeddings, LIST_MAX, |fields, mut message| {
        if message.subject.is_some() {
            fields.wrong("subject", "must be unset: it is the record");
        }
        let home = Home::named(fields, std::mem::take(&mut message.vector_space_id));
        let kind = wire::kind_number(T::KIND).into();
        message.subject = Some(pb::ResourceRef { kind, id: record.id().to_owned(), version: 0 });
        let takes_id = message.id.is_empty();
        let (row, vector) = read_embedding(fields, message, &home)?;
        Some(Given { of, row, vector, takes_id })
    });
    read.into_iter().flatten().collect()
}

/// Refuses two embeddings of a request with one id in one space. The field is that of a record's place.
pub(in crate::rpc) fn no_twins(
    fields: &mut Fields,
    given: &[Given],
    field: impl Fn(usize) -> String,
) {
    if fields.is_sound() {
        let ids =
            given.iter().map(|given| format!("{}/{}", given.row.space_id, given.row.embedding_id));
        let ids: Vec<String> = ids.collect();
        let place = |n: usize| {
            let of = given[n].of;
            let before = given[..n].iter().filter(|given| given.of == of).count();
            format!("{}embeddings[{before}].id", field(of))
        };
        fields.no_duplicates(ids.iter().map(String::as_str), place);
    }
}
