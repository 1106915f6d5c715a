//! What the messages of all nouns have in common: how a request becomes a change or a query, and the answer a message.

use super::descriptor::ReadMask;
use super::wire::{Fields, Write};
use super::{Lister, Paged, Parts, Selection, json, open, wire};
use crate::pb;
use crate::store::caller::Caller;
use crate::store::canonical::Json;
use crate::store::change::{Create, Modify, OnConflict};
use crate::store::child::{Hide, Parent};
use crate::store::list::Listing;
use crate::store::noun::{Meta, Noun};
use crate::store::write::Change;
use crate::{Error, Result};
use prost::{Message, Name};
use std::collections::BTreeSet;
use std::time::SystemTime;
use tonic::Request;
use uuid::Uuid;

/// The message of a noun.
pub trait Resource: Message + Name + Default + From<Self::Row> {
    type Row: Parent;
    /// The fields that an update mask may name, each with a column of its name, or of its name and `_us`.
    const CHANGEABLE: &'static [&'static str];
    /// Columns that the server reckons from a field, and that are taken over with it: (field, column).
    const DERIVED: &'static [(&'static str, &'static str)] = &[];
    /// Why a resource that is there cannot be replaced by a create, where it cannot.
    const NO_REPLACE: Option<&'static str> = None;

    /// Reads what the caller says about a resource; what the server owns is passed over. Paths are those in the message.
    fn read(self, fields: &mut Fields, new: New) -> Self::Row;

    /// Reads a new resource that is a part of another message, which alone has its id.
    fn read_part(self, fields: &mut Fields) -> Self::Row {
        let uid = Uuid::now_v7();
        let id = fields.new_id("id", self.identity().0.to_owned(), uid);
        self.read(fields, New { id, meta: Meta::new(uid) })
    }

    /// Its id and its etag.
    fn identity(&self) -> (&str, &str);

    /// What is wrong with a row as a whole: the field, and how.
    fn fault(_row: &Self::Row) -> Option<(&'static str, &'static str)> {
        None
    }
}

pub type RowOf<R> = <R as Resource>::Row;

/// The identity of a resource that is read from a request.
pub struct New {
    pub id: String,
    pub meta: Meta,
}

/// A request for a change.
pub trait Ask: Message + Clone + Sized {
    type Change: Change;
    /// Whether it puts what it brings in the place of what is there, unless the caller says otherwise.
    const REPLACES: bool = false;

    /// The vector spaces that it names, which are looked up before it is read.
    fn spaces<'a>(&'a self, names: &mut BTreeSet<&'a str>) {
        let _ = names;
    }

    fn options(&mut self) -> &mut Option<pb::WriteOptions>;

    /// Reads everything but the options.
    fn read(self, fields: &mut Fields, on_conflict: OnConflict) -> Self::Change;
}

/// A request that is a part of another, which has the options for both.
pub fn ask_within<A: Ask>(
    mut request: A,
    fields: &mut Fields,
    on_conflict: OnConflict,
) -> A::Change {
    let options = request.options().take();
    fields.no_options(options);
    request.read(fields, on_conflict)
}

/// A resource to be created: its id may stand in the request or in the message.
pub fn read_new<R: Resource>(
    fields: &mut Fields,
    id: String,
    message: Option<R>,
    on_conflict: OnConflict,
) -> R::Row {
    if let Some(why) = R::NO_REPLACE {
        fields.no_replace(on_conflict, why);
    }
    let noun = R::Row::KIND;
    let message = fields.required(noun, message);
    let uid = Uuid::now_v7();
    let id = fields.new_id_of(noun, id, message.identity().0.to_owned(), uid);
    read_within(fields, message, New { id, meta: Meta::new(uid) })
}

/// A new resource that is one of several in a request, held to all rules.
pub fn read_part_within<R: Resource>(fields: &mut Fields, message: R) -> R::Row {
    let row = message.read_part(fields);
    if let Some((field, wrong)) = R::fault(&row) {
        fields.wrong(field, wrong);
    }
    row
}

fn read_within<R: Resource>(fields: &mut Fields, message: R, new: New) -> R::Row {
    fields.within(R::Row::KIND, |fields| {
        let row = message.read(fields, new);
        if let Some((field, wrong)) = R::fault(&row) {
            fields.wrong(field, wrong);
        }
        row
    })
}

/// Several requests to create one resource each.
pub fn read_batch<R: Resource, A: Ask<Change = Create<R::Row>>>(
    fields: &mut Fields,
    requests: Vec<A>,
    on_conflict: OnConflict,
) -> Create<R::Row> {
    let rows: Vec<_> = fields.batch("requests", requests, |fields, request| {
        ask_within(request, fields, on_conflict).rows
    });
    let rows: Vec<_> = rows.into_iter().flatten().collect();
    let ids = rows.iter().map(Noun::id);
    fields.no_duplicates(ids, |n| format!("requests[{n}].{}_id", R::Row::KIND));
    Create { rows, on_conflict }
}

/// An update of the fields that the mask names. Only they are held to the rules, and only they are taken over.
pub fn read_update<R: Resource>(
    fields: &mut Fields,
    message: Option<R>,
    mask: Option<prost_types::FieldMask>,
    on_conflict: OnConflict,
) -> Modify<R::Row> {
    fields.only_fail(on_conflict);
    let noun = R::Row::KIND;
    let message = fields.required(noun, message);
    let (id, etag) = message.identity();
    let (id, etag) = (id.to_owned(), etag.to_owned());
    let id = fields.id(&format!("{noun}.id"), id);
    let etag = fields.etag(&format!("{noun}.etag"), etag);
    let size_bytes = message.encoded_len();
    let (mut steps, mut unknown): (Vec<Step>, Vec<String>) = Default::default();
    for path in fields.update_mask(mask) {
        let (top, key) = match path.split_once('.') {
            Some(("labels", key)) => ("labels", Some(key.to_owned())),
            _ => (path.as_str(), None),
        };
        match R::CHANGEABLE.iter().find(|field| **field == top) {
            Some(field) => steps.push(Step { field, key }),
            None => unknown.push(path),
        }
    }
    let mut given = fields.apart();
    let new = New { id: id.clone(), meta: Meta::new(Uuid::nil()) };
    // As a whole the row is looked at below, when the rest of it is known.
    let row = given.within(noun, |given| message.read(given, new));
    fields.take_over(given, |field| {
        let field = field.strip_prefix(noun).and_then(|rest| rest.strip_prefix('.'));
        let top = field.and_then(|field| field.split(['.', '[']).next());
        top.is_some_and(|top| steps.iter().any(|step| step.field == top))
    });
    for key in steps.iter().filter_map(|step| step.key.as_ref()) {
        // The value is checked where it stands; this is for a key that has none.
        let one = [(key.clone(), String::new())].into();
        fields.within(noun, |fields| fields.labels("labels", one));
    }
    for path in unknown {
        fields.unknown_path::<R>(&path, R::CHANGEABLE);
    }
    Modify::update(id, etag, size_bytes, move |there: &mut R::Row, _| {
        for Step { field, key } in &steps {
            match key {
                None => {
                    take(there, field, &row)?;
                    for (_, column) in R::DERIVED.iter().filter(|(of, _)| of == field) {
                        take(there, column, &row)?;
                    }
                }
                Some(key) => take_label(there, key, &row)?,
            }
        }
        match R::fault(there) {
            Some((field, wrong)) => Err(Error::invalid(format!("{}.{field}", R::Row::KIND), wrong)),
            None => Ok(()),
        }
    })
}

/// One path of an update mask: a field, or one label.
struct Step {
    field: &'static str,
    key: Option<String>,
}

fn take<T: Noun>(there: &mut T, field: &str, given: &T) -> Result<()> {
    if there.copy(field, given) || there.copy(&format!("{field}_us"), given) {
        return Ok(());
    }
    Err(Error::internal(format!("{} has no column for {field}", T::KIND)))
}

/// One label as it is given, or taken away where it is not.
fn take_label<T: Noun>(there: &mut T, key: &str, given: &T) -> Result<()> {
    let (mut given, none) = (given.clone(), || format!("{} has no labels", T::KIND));
    let of = |row| Noun::column_mut(row, "labels").and_then(|labels| labels.downcast_mut::<Json>());
    let (Some(there), Some(given)) = (of(there), of(&mut given)) else {
        return Err(Error::internal(none()));
    };
    let mut labels = json::to_strings(there);
    match json::to_strings(given).remove(key) {
        Some(value) => labels.insert(key.to_owned(), value),
        None => labels.remove(key),
    };
    let mut fields = Fields::default();
    let labels = fields.within(T::KIND, |fields| fields.labels("labels", labels));
    *there = fields.finish(labels)?;
    Ok(())
}

/// A deletion, and what belongs to the resource with it.
pub fn read_delete<R: Resource>(
    fields: &mut Fields,
    id: String,
    etag: String,
    allow_missing: bool,
    on_conflict: OnConflict,
) -> Hide<R::Row> {
    fields.only_fail(on_conflict);
    let id = fields.id(&format!("{}_id", R::Row::KIND), id);
    let etag = fields.etag("etag", etag);
    Hide(Modify::delete(id, etag, allow_missing))
}

/// The way back from a deletion.
pub fn read_undelete<R: Resource>(
    fields: &mut Fields,
    id: String,
    on_conflict: OnConflict,
) -> Hide<R::Row> {
    fields.only_fail(on_conflict);
    Hide(Modify::undelete(fields.id(&format!("{}_id", R::Row::KIND), id)))
}

/// A request for one resource.
pub struct Get {
    pub id: String,
    pub consistency: Option<pb::Consistency>,
    pub read_mask: Option<prost_types::FieldMask>,
    pub version: i64,
}

pub trait GetRequest: Message {
    type Resource: Resource;
    fn parts(self) -> Get;
}

/// A request for several resources.
pub struct BatchGet {
    pub ids: Vec<String>,
    pub consistency: Option<pb::Consistency>,
    pub read_mask: Option<prost_types::FieldMask>,
    pub allow_missing: bool,
}

pub trait BatchGetRequest: Message {
    type Resource: Resource;
    const IDS: &'static str;
    fn parts(self) -> BatchGet;
}

/// A request for a listing.
pub struct List {
    pub r#where: Option<pb::Selector>,
    pub window: Option<pb::TimeWindow>,
    pub consistency: Option<pb::Consistency>,
    pub read_mask: Option<prost_types::FieldMask>,
    pub show_deleted: bool,
    pub parent: Option<OfParent>,
}

/// What the listed must belong to. The id "-" means anything, and so does "" where there need not be anything.
pub struct OfParent {
    pub column: &'static str,
    /// The field of the request.
    pub field: &'static str,
    pub id: String,
    /// The noun, if there must be one of that id.
    pub noun: Option<&'static str>,
    /// False where it is any text.
    pub is_id: bool,
}

/// The rows of a page, the parts of them that are asked for, and PostgreSQL's time when they were read.
pub(super) struct Found<R> {
    pub rows: Vec<R>,
    pub page: Option<pb::PageInfo>,
    pub mask: ReadMask,
    pub now: SystemTime,
}

pub trait ListRequest: Paged {
    type Resource: Resource;
    /// The time that the window is on and, newest first, the default order.
    const TIME: &'static str;
    const ORDER: &'static [(&'static str, bool)];
    fn parts(self) -> List;
}

impl Parts {
    /// Checks a request for a change, with its options.
    pub(super) async fn ask<A: Ask>(
        &self,
        mut request: A,
        caller: &Caller,
    ) -> Result<Write<A::Change>> {
        let mut options = request.options().clone();
        let digest = wire::digest(&request, options.as_ref());
        let mut names = BTreeSet::new();
        request.spaces(&mut names);
        let spaces = self.spaces(caller, names).await?;
        if A::REPLACES {
            let options = options.get_or_insert_default();
            if options.on_conflict == i32::from(pb::OnConflict::Unspecified) {
                options.on_conflict = pb::OnConflict::Replace.into();
            }
        }
        let key = options.iter().filter(|options| !options.validate_only);
        let key = key.map(|options| &options.request_id).find(|id| !id.is_empty());
        let again = key.filter(|_| !spaces.is_empty()).map(|_| request.clone());
        let read = |request: A, spaces| {
            let mut fields = Fields::new(caller, self.batch_max).with_spaces(spaces);
            let (options, on_conflict) = fields.options(options.clone(), digest);
            let change = request.read(&mut fields, on_conflict);
            fields.finish(Write { change, options })
        };
        match (read(request, spaces), again, key) {
            // What a name stands for may be another space now. A call that was made then is answered all the same, and read
            // without a space it can do nothing else.
            (Err(_), Some(again), Some(key)) if self.store.was_requested(caller, key).await? => {
                read(again, wire::Spaces::new())
            }
            (read, ..) => read,
        }
    }

    /// The resource that a write of one row has made.
    pub(super) async fn create<A, R>(
        &self,
        request: Request<A>,
    ) -> Result<(Option<R>, Option<pb::WriteReceipt>)>
    where
        A: Ask,
        A::Change: Change<Answer = Vec<R::Row>>,
        R: Resource,
    {
        let (rows, receipt) = self.write(request).await?;
        Ok((Some(super::only(rows)?.into()), receipt))
    }

    /// Those that a batch has made.
    pub(super) async fn create_batch<A, R>(
        &self,
        request: Request<A>,
    ) -> Result<(Vec<R>, Option<pb::WriteReceipt>)>
    where
        A: Ask,
        A::Change: Change<Answer = Vec<R::Row>>,
        R: Resource,
    {
        let (rows, receipt) = self.write(request).await?;
        Ok((rows.into_iter().map(Into::into).collect(), receipt))
    }

    /// The one that an update, a deletion or its way back has changed.
    pub(super) async fn change<A, R>(
        &self,
        request: Request<A>,
    ) -> Result<(Option<R>, Option<pb::WriteReceipt>)>
    where
        A: Ask,
        A::Change: Change<Answer = Option<R::Row>>,
        R: Resource,
    {
        let (row, receipt) = self.write(request).await?;
        Ok((row.map(Into::into), receipt))
    }

    /// The one that is asked for.
    pub(super) async fn get_one<G: GetRequest>(
        &self,
        request: Request<G>,
    ) -> Result<Option<G::Resource>> {
        let (caller, request) = open(request)?;
        let Get { id, consistency, read_mask, version } = request.parts();
        let kind = <RowOf<G::Resource>>::KIND;
        let id = wire::id(&format!("{kind}_id"), id)?;
        let mask = ReadMask::new::<G::Resource>(read_mask)?;
        let row: RowOf<G::Resource> = self.get(&caller, id, consistency, version).await?;
        Ok(Some(mask.apply(row.into())?))
    }

    /// What a read finds that has no past, such as a claim's current consensus.
    pub(super) async fn get_now<R: Resource>(
        &self,
        caller: &Caller,
        consistency: Option<pb::Consistency>,
        read_mask: Option<prost_types::FieldMask>,
        found: impl Future<Output = Result<R::Row>> + Send,
    ) -> Result<Option<R>> {
        let mask = ReadMask::new::<R>(read_mask)?;
        self.now_only(caller, consistency).await?;
        Ok(Some(mask.apply(found.await?.into())?))
    }

    /// Those that are asked for, in order, and the ids of which there is none.
    pub(super) async fn get_several<G: BatchGetRequest>(
        &self,
        request: Request<G>,
    ) -> Result<(Vec<G::Resource>, Vec<String>)> {
        let (caller, request) = open(request)?;
        let BatchGet { ids, consistency, read_mask, allow_missing } = request.parts();
        let mask = ReadMask::new::<G::Resource>(read_mask)?;
        let mut fields = Fields::new(&caller, self.batch_max);
        let ids = fields.batch(G::IDS, ids, |fields, id| fields.id("", id));
        fields.no_duplicates(ids.iter().map(String::as_str), |n| format!("{}[{n}]", G::IDS));
        let ids = fields.finish(ids)?;
        let found: Vec<Option<RowOf<G::Resource>>> =
            match self.read_at(&caller, consistency).await? {
                None => self.store.get_many(&caller, ids.clone()).await?,
                Some(seq) => self.store.get_as_of(&caller, ids.clone(), seq).await?,
            };
        let mut resources = Vec::with_capacity(found.len());
        let mut missing = Vec::new();
        for (id, row) in ids.into_iter().zip(found) {
            match row {
                Some(row) => resources.push(mask.apply(row.into())?),
                None if allow_missing => missing.push(id),
                None => {
                    return Err(Error::not_found(<RowOf<G::Resource>>::KIND, id));
                }
            }
        }
        Ok((resources, missing))
    }

    /// A page of them.
    pub(super) async fn get_page<L: ListRequest>(
        &self,
        request: Request<L>,
    ) -> Result<(Vec<L::Resource>, Option<pb::PageInfo>)> {
        let Found { rows, page, mask, now: _ } = self.get_rows(request).await?;
        let resources = rows.into_iter().map(|row: RowOf<L::Resource>| mask.apply(row.into()));
        Ok((resources.collect::<Result<_>>()?, page))
    }

    /// A page of them, still to be worded.
    pub(super) async fn get_rows<L: ListRequest>(
        &self,
        request: Request<L>,
    ) -> Result<Found<RowOf<L::Resource>>> {
        let (caller, mut request) = open(request)?;
        let listing: &'static Listing = <RowOf<L::Resource>>::facts().listing;
        let lister: Lister<'_> = self.lister(&caller, &mut request, listing, L::ORDER)?;
        let List { r#where, window, consistency, read_mask, show_deleted, parent } =
            request.parts();
        let mask = ReadMask::new::<L::Resource>(read_mask)?;
        let any = |parent: &OfParent| match parent.id.as_str() {
            "" => parent.noun.is_none(),
            id => id == "-",
        };
        let parent = match parent.filter(|parent| !any(parent)) {
            Some(OfParent { column, field, id, noun, is_id }) => {
                let id = if is_id { wire::id(field, id)? } else { wire::text(field, id)? };
                // The pages after the first show the tenant as it was then.
                let noun = noun.filter(|_| lister.page.after.is_none() && consistency.is_none());
                if let Some(facts) = noun.and_then(crate::store::facts) {
                    self.store.must_exist(&caller, facts, &id).await?;
                }
                Some((column, id))
            }
            None => None,
        };
        let selection = Selection {
            filter: lister.filter(r#where)?,
            window: lister.window(L::TIME, window)?,
            snapshot: self.read_at(&caller, consistency).await?,
            show_deleted,
            parent,
        };
        let (rows, page, now) = self.list_at(&caller, &lister, selection).await?;
        Ok(Found { rows, page, mask, now })
    }
}

/// The requests that nouns have alike, one line each. Their fields are the same for every noun.
#[macro_export]
macro_rules! requests {
    ($noun:ident: $($kind:ident $request:ident ($($extra:tt)*);)*) => {
        $($crate::requests!(@$kind $noun $request $($extra)*);)*
    };
    // A request for a change: its type, and how it is read from its fields, all but the options; and the vector spaces that
    // it names.
    (@ask $request:ident -> $change:ty, |$fields:ident, $on_conflict:ident, $($field:ident),*| $read:expr
        $(, spaces |$asked:ident, $names:ident| $spaces:expr)? $(, replaces $replaces:literal)?) => {
        impl $crate::rpc::resource::Ask for $crate::pb::$request {
            type Change = $change;
            $(const REPLACES: bool = $replaces;)?

            $(fn spaces<'a>(&'a self, $names: &mut std::collections::BTreeSet<&'a str>) {
                let $asked = self;
                $spaces
            })?

            fn options(&mut self) -> &mut Option<$crate::pb::WriteOptions> {
                &mut self.options
            }
            fn read(
                self,
                $fields: &mut $crate::rpc::wire::Fields,
                $on_conflict: $crate::store::change::OnConflict,
            ) -> Self::Change {
                let Self { $($field,)* options: _ } = self;
                $read
            }
        }
    };
    (@create $noun:ident $request:ident $id:ident $field:ident) => {
        $crate::requests!(@ask $request -> $crate::store::change::Create<$crate::rpc::resource::RowOf<$crate::pb::$noun>>,
            |fields, on_conflict, $id, $field| $crate::store::change::Create {
                rows: vec![$crate::rpc::resource::read_new(fields, $id, $field, on_conflict)],
                on_conflict,
            });
    };
    (@batch $noun:ident $request:ident $requests:ident) => {
        $crate::requests!(@ask $request -> $crate::store::change::Create<$crate::rpc::resource::RowOf<$crate::pb::$noun>>,
            |fields, on_conflict, $requests| $crate::rpc::resource::read_batch::<$crate::pb::$noun, _>(
                fields, $requests, on_conflict));
    };
    (@update $noun:ident $request:ident $field:ident) => {
        $crate::requests!(@ask $request -> $crate::store::change::Modify<$crate::rpc::resource::RowOf<$crate::pb::$noun>>,
            |fields, on_conflict, $field, update_mask| $crate::rpc::resource::read_update(
                fields, $field, update_mask, on_conflict));
    };
    (@delete $noun:ident $request:ident $id:ident) => {
        $crate::requests!(@ask $request -> $crate::store::child::Hide<$crate::rpc::resource::RowOf<$crate::pb::$noun>>,
            |fields, on_conflict, $id, etag, allow_missing| $crate::rpc::resource::read_delete::<$crate::pb::$noun>(
                fields, $id, etag, allow_missing, on_conflict));
    };
    (@undelete $noun:ident $request:ident $id:ident) => {
        $crate::requests!(@ask $request -> $crate::store::child::Hide<$crate::rpc::resource::RowOf<$crate::pb::$noun>>,
            |fields, on_conflict, $id| $crate::rpc::resource::read_undelete::<$crate::pb::$noun>(
                fields, $id, on_conflict));
    };
    (@get $noun:ident $request:ident $id:ident) => {
        impl $crate::rpc::resource::GetRequest for $crate::pb::$request {
            type Resource = $crate::pb::$noun;

            fn parts(self) -> $crate::rpc::resource::Get {
                let Self { $id: id, consistency, read_mask, version } = self;
                $crate::rpc::resource::Get { id, consistency, read_mask, version }
            }
        }
    };
    (@batch_get $noun:ident $request:ident $ids:ident) => {
        impl $crate::rpc::resource::BatchGetRequest for $crate::pb::$request {
            type Resource = $crate::pb::$noun;
            const IDS: &'static str = stringify!($ids);

            fn parts(self) -> $crate::rpc::resource::BatchGet {
                let Self { $ids: ids, consistency, read_mask, allow_missing } = self;
                $crate::rpc::resource::BatchGet { ids, consistency, read_mask, allow_missing }
            }
        }
    };
    // The time that a window is on, the default order, and what the listed may be asked to belong to.
    (@list $noun:ident $request:ident $time:literal by [$($order:tt),*] $(of $column:literal $parent:ident $(in $of:literal)?)?) => {
        impl $crate::rpc::Paged for $crate::pb::$request {
            fn page_mut(&mut self) -> &mut Option<$crate::pb::PageRequest> {
                &mut self.page
            }
        }
        impl $crate::rpc::resource::ListRequest for $crate::pb::$request {
            type Resource = $crate::pb::$noun;
            const TIME: &'static str = $time;
            const ORDER: &'static [(&'static str, bool)] = &[$($order),*];

            fn parts(self) -> $crate::rpc::resource::List {
                let Self { page: _, r#where, window, consistency, read_mask, show_deleted, $($parent)? } = self;
                let parent = $crate::requests!(@parent $($column $parent $($of)?)?);
                $crate::rpc::resource::List { r#where, window, consistency, read_mask, show_deleted, parent }
            }
        }
    };
    (@parent) => { None };
    (@parent $column:literal $parent:ident) => {
        $crate::requests!(@parent $column $parent None)
    };
    (@parent $column:literal $parent:ident $noun:literal) => {
        $crate::requests!(@parent $column $parent Some($noun))
    };
    (@parent $column:literal $parent:ident $($noun:tt)+) => {
        Some($crate::rpc::resource::OfParent {
            column: $column,
            field: stringify!($parent),
            id: $parent,
            noun: $($noun)+,
            is_id: true,
        })
    };
}
