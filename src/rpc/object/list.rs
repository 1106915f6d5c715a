//! ListObjects and SearchObjects.

use crate::pb;
use crate::rpc::descriptor::ReadMask;
use crate::rpc::wire::Fields;
use crate::rpc::{Lister, Paged, Parts, Selection, filter};
use crate::store::caller::Caller;
use crate::store::filter::{Condition, Field, Filter, Op};
use crate::store::object::walk::Walk;
use crate::store::object::{LISTING, Object};
use crate::store::search::objects::{SearchObjects, Text};
use crate::{Error, Result};
use uuid::Uuid;

use super::KEY_BYTES_MAX;

const DELIMITER_BYTES_MAX: usize = 16;
const QUERY_BYTES_MAX: usize = 4 << 10;
const HITS: i64 = 50;
const HITS_MAX: i64 = 1000;
/// A page of common prefixes ends at no row.
const NO_ROW: Uuid = Uuid::nil();

impl Paged for pb::ListObjectsRequest {
    fn page_mut(&mut self) -> &mut Option<pb::PageRequest> {
        &mut self.page
    }
}

/// What a request for a level must not ask for.
fn check_level(fields: &mut Fields, request: &pb::ListObjectsRequest) {
    let delimiter = &request.delimiter;
    fields.text("delimiter", delimiter.clone(), DELIMITER_BYTES_MAX);
    if delimiter.is_empty() {
        return;
    }
    if delimiter.chars().all(|char| char == char::MAX) {
        fields.wrong("delimiter", "must not be U+10FFFF alone");
    }
    let not_taken = "is not taken together with a delimiter";
    if let Some(page) = &request.page {
        let asked = [
            ("page.order_by", !page.order_by.is_empty()),
            ("page.skip", page.skip != 0),
            ("page.include_total_size", page.include_total_size),
        ];
        for (field, _) in asked.into_iter().filter(|(_, asked)| *asked) {
            fields.wrong(field, not_taken);
        }
    }
    if request.show_deleted {
        fields.wrong("show_deleted", not_taken);
    }
}

impl Parts {
    pub(super) async fn list_objects(
        &self,
        caller: &Caller,
        mut request: pb::ListObjectsRequest,
    ) -> Result<pb::ListObjectsResponse> {
        let mut fields = Fields::new(caller, self.batch_max);
        fields.text("prefix", request.prefix.clone(), KEY_BYTES_MAX);
        check_level(&mut fields, &request);
        fields.finish(())?;
        let lister = self.lister(caller, &mut request, &LISTING, &[("key", false)])?;
        let pb::ListObjectsRequest {
            page: _,
            r#where,
            window,
            consistency,
            read_mask,
            show_deleted,
            prefix,
            delimiter,
        } = request;
        let mask = ReadMask::new::<pb::Object>(read_mask)?;
        let mut selection = Selection {
            filter: lister.filter(r#where)?,
            window: lister.window("last_modified", window)?,
            snapshot: self.read_at(caller, consistency).await?,
            show_deleted,
            parent: None,
        };
        let (objects, common_prefixes, page): (Vec<Object>, _, _) = if delimiter.is_empty() {
            if !prefix.is_empty() {
                let begins = Filter::Field(begins_with(prefix)?);
                selection.filter = Filter::All(vec![begins, selection.filter]);
            }
            let (objects, page) = self.list(caller, &lister, selection).await?;
            (objects, Vec::new(), page)
        } else {
            self.list_level(caller, &lister, selection, (prefix, delimiter)).await?
        };
        let objects = objects.into_iter().map(|object| mask.apply(object.into()));
        let objects = objects.collect::<Result<_>>()?;
        Ok(pb::ListObjectsResponse { objects, common_prefixes, page })
    }

    /// One page of the keys and common prefixes of a level.
    async fn list_level(
        &self,
        caller: &Caller,
        lister: &Lister<'_>,
        selection: Selection,
        (prefix, delimiter): (String, String),
    ) -> Result<(Vec<Object>, Vec<String>, Option<pb::PageInfo>)> {
        let Selection { filter, window, snapshot, .. } = selection;
        let page = &lister.page;
        let from = page.after.as_ref().and_then(|after| after.first_text()).map(str::to_owned);
        let snapshot = page.snapshot.or(snapshot);
        let walk = Walk { prefix, delimiter, filter, window, from, limit: page.size, snapshot };
        let level = self.store.walk_objects(caller, walk).await?;
        let next_page_token = match level.next {
            Some(next) => {
                let cursor = vec![Some(next), Some(NO_ROW.to_string())];
                lister.pager.next(page, cursor, (level.seq, level.outgrown))?
            }
            None => String::new(),
        };
        let read_at = Some(self.revision(caller, level.seq)?);
        let info = pb::PageInfo { next_page_token, read_at, ..Default::default() };
        Ok((level.objects, level.common_prefixes, Some(info)))
    }

    pub(super) async fn search_objects(
        &self,
        caller: &Caller,
        request: pb::SearchObjectsRequest,
    ) -> Result<pb::SearchObjectsResponse> {
        let pb::SearchObjectsRequest { query, limit, r#where, read_mask } = request;
        let mut fields = Fields::new(caller, self.batch_max);
        let query = fields.text("query", query, QUERY_BYTES_MAX);
        let limit = match i64::from(limit) {
            0 => HITS,
            limit if limit < 0 => {
                fields.wrong("limit", "must not be negative");
                HITS
            }
            limit => limit.min(HITS_MAX),
        };
        let query = fields.finish(query)?;
        let mask = ReadMask::new::<pb::Object>(read_mask)?;
        let filter = filter::selector(LISTING.fields, r#where, "where")?;
        let search = SearchObjects { text: Text::new(&query), filter, limit };
        let (found, seq) = self.store.search_objects(caller, search).await?;
        let hits = found.into_iter().map(|(object, rank)| {
            let object = Some(mask.apply(object.into())?);
            Ok(pb::search_objects_response::Hit { object, rank })
        });
        let hits = hits.collect::<Result<_>>()?;
        Ok(pb::SearchObjectsResponse { hits, read_at: Some(self.revision(caller, seq)?) })
    }
}

fn begins_with(prefix: String) -> Result<Condition> {
    let field =
        Field::find(LISTING.fields, "key").ok_or_else(|| Error::internal("objects have no key"))?;
    Condition::new(field, Vec::new(), Op::Prefix(prefix))
}
