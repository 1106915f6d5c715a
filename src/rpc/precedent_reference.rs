//! References between precedents on the wire.

use super::descriptor::ReadMask;
use super::resource::{New, Resource, read_part_within};
use super::wire::{self, Fields};
use super::{Paged, Parts, Selection, json, open};
use crate::pb;
use crate::store::change::Modify;
use crate::store::noun::Noun;
use crate::store::precedent_reference::{
    LISTING, LinkPrecedents, PrecedentReference, UnlinkPrecedents, Walk,
};
use crate::{Error, Reason, Result};
use std::collections::HashMap;
use tonic::Request;

const DEPTH_MAX: i32 = 5;

crate::requests!(@ask LinkPrecedentsRequest -> LinkPrecedents, |fields, on_conflict, precedent_references| {
    fields.no_replace(on_conflict, "unlink first");
    let rows = fields.batch("precedent_references", precedent_references, read_part_within);
    fields.no_duplicates(rows.iter().map(Noun::id), |n| format!("precedent_references[{n}].id"));
    no_edge_twice(fields, &rows);
    LinkPrecedents { rows, on_conflict }
});

crate::requests!(@ask UnlinkPrecedentsRequest -> UnlinkPrecedents,
|fields, on_conflict, precedent_reference_ids, allow_missing| {
    fields.only_fail(on_conflict);
    let at = "precedent_reference_ids";
    let ids = fields.batch(at, precedent_reference_ids, |fields, id| fields.id("", id));
    fields.no_duplicates(ids.iter().map(String::as_str), |n| format!("{at}[{n}]"));
    UnlinkPrecedents(ids.into_iter().map(|id| Modify::delete(id, None, allow_missing)).collect())
});

fn no_edge_twice(fields: &mut Fields, rows: &[PrecedentReference]) {
    let mut seen = HashMap::new();
    for (n, row) in rows.iter().enumerate() {
        if let Some(first) = seen.insert(row.edge(), n) {
            let what = format!("is the same reference as precedent_references[{first}]");
            let field = format!("precedent_references[{n}]");
            fields.wrong_because(Reason::DuplicateInBatch, &field, what);
        }
    }
}

impl Paged for pb::ListPrecedentReferencesRequest {
    fn page_mut(&mut self) -> &mut Option<pb::PageRequest> {
        &mut self.page
    }
}

/// One page of the references around a precedent, or of all; and whether there were too many precedents to walk.
pub async fn read_walk(
    parts: &Parts,
    request: Request<pb::ListPrecedentReferencesRequest>,
) -> Result<(Vec<pb::PrecedentReference>, Option<pb::PageInfo>, bool)> {
    let (caller, mut request) = open(request)?;
    let lister = parts.lister(&caller, &mut request, &LISTING, &[("create_time", true)])?;
    let pb::ListPrecedentReferencesRequest {
        page: _,
        r#where,
        window,
        consistency,
        read_mask,
        show_deleted,
        precedent_id,
        incoming,
        depth,
    } = request;
    let mask = ReadMask::new::<pb::PrecedentReference>(read_mask)?;
    let depth = match depth {
        0 => 1,
        1..=DEPTH_MAX => depth,
        _ => return Err(Error::invalid("depth", format!("must be 0 to {DEPTH_MAX}"))),
    };
    let walk = match precedent_id.as_str() {
        "" | "-" if depth > 1 => {
            return Err(Error::invalid("precedent_id", "is required with a depth above 1"));
        }
        "" | "-" => None,
        _ => {
            let precedent_id = wire::id("precedent_id", precedent_id)?;
            Some(Walk { precedent_id, incoming, depth })
        }
    };
    let selection = Selection {
        filter: lister.filter(r#where)?,
        window: lister.window("create_time", window)?,
        snapshot: parts.read_at(&caller, consistency).await?,
        show_deleted,
        parent: None,
    };
    let query = lister.query(selection);
    let wants_total = lister.page.include_total_size;
    let (found, truncated) =
        parts.store.precedent_references(&caller, query, walk, wants_total).await?;
    let (rows, page) = parts.page_of(&caller, &lister, found)?;
    let references = rows.into_iter().map(|row| mask.apply(row.into()));
    Ok((references.collect::<Result<_>>()?, page, truncated))
}

impl Resource for pb::PrecedentReference {
    type Row = PrecedentReference;
    const CHANGEABLE: &'static [&'static str] = &[];

    fn identity(&self) -> (&str, &str) {
        (&self.id, &self.etag)
    }

    fn read(self, f: &mut Fields, New { id, meta }: New) -> PrecedentReference {
        let pb::PrecedentReference {
            id: _,
            etag: _,
            meta: _,
            from_precedent_id,
            to_precedent_id,
            reference_type,
            similarity,
            metadata,
        } = self;
        PrecedentReference {
            id,
            meta,
            from_precedent_id: f.id("from_precedent_id", from_precedent_id),
            to_precedent_id: f.id("to_precedent_id", to_precedent_id),
            reference_type: f.name("reference_type", reference_type, 50),
            similarity: similarity.map(|value| f.confidence("similarity", value)),
            metadata: f.object("metadata", metadata),
        }
    }

    fn fault(row: &PrecedentReference) -> Option<(&'static str, &'static str)> {
        let is_circle = row.from_precedent_id == row.to_precedent_id;
        let named = !row.from_precedent_id.is_empty();
        (is_circle && named).then_some(("to_precedent_id", "must not be from_precedent_id"))
    }
}

impl From<PrecedentReference> for pb::PrecedentReference {
    fn from(row: PrecedentReference) -> Self {
        let etag = row.etag();
        let PrecedentReference {
            id,
            meta,
            from_precedent_id,
            to_precedent_id,
            reference_type,
            similarity,
            metadata,
        } = row;
        Self {
            id,
            etag,
            meta: wire::meta(meta),
            from_precedent_id,
            to_precedent_id,
            reference_type,
            similarity,
            metadata: json::to_optional_object(&metadata),
        }
    }
}
