//! Words on the wire: one file per noun, which checks and converts, and names what the store shall do.

pub mod access;
pub mod admin;
pub mod analysis;
pub mod api_token;
pub mod attachment;
pub mod audit;
pub mod blob;
pub mod chunk;
pub mod citation;
pub mod claim;
pub mod consensus;
pub mod critic_output;
pub mod decision;
pub mod descriptor;
pub mod document;
pub mod embedding;
pub mod evidence;
pub mod evidence_bundle;
pub mod expression;
pub mod filter;
pub mod health;
pub mod ingest;
pub mod json;
pub mod json_object;
pub mod legal_hold;
pub mod metrics_snapshot;
pub mod model_checkpoint;
pub mod object;
pub mod object_version;
pub mod operation;
mod r#override;
pub mod page;
pub mod policy_rule;
pub mod precedent;
pub mod precedent_reference;
pub mod precondition;
pub mod resource;
pub mod retention_policy;
pub mod search;
pub mod search_receipt;
pub mod service_health;
pub mod status;
pub mod stream;
pub mod sync;
pub mod tenant;
pub mod token;
pub mod training_example;
pub mod transaction;
pub mod vector_space;
pub mod verification;
pub mod wire;

use crate::pb;
use crate::store::Store;
use crate::store::archive::Place;
use crate::store::caller::Caller;
use crate::store::filter::{Field, Filter};
use crate::store::list::{ListQuery, Listing};
use crate::store::log::{self, LogRow};
use crate::store::noun::Noun;
use crate::store::query::FromRow;
use crate::store::snapshot;
use crate::store::write::{Change, Receipt};
use crate::{Error, Result};
use page::{Binding, Page, Pager};
use prost::Message;
use resource::Ask;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use token::TokenKey;
use tokio::sync::Semaphore;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use uuid::Uuid;
use wire::Write;

/// What every handler works with.
#[derive(Clone)]
pub struct Api(Arc<Parts>);

pub struct Parts {
    pub store: Store,
    pub token_key: TokenKey,
    pub health: health::HealthState,
    pub limits: Vec<pb::Limit>,
    pub start_time: SystemTime,
    /// Tells the door that a token or a tenant has changed, so that it looks again.
    pub forget: Forget,
    /// Message sizes in bytes.
    pub message_in_max: usize,
    pub batch_message_in_max: usize,
    pub message_out_max: usize,
    pub page_sizes: page::Sizes,
    /// Items of one batch.
    pub batch_max: usize,
    /// Exports of the audit log that may be under way at once.
    pub exports: Arc<Semaphore>,
    /// Where the audit log is archived; nowhere if unset.
    pub audit_place: Option<Place>,
    /// How long the detail of audit entries is kept whatever is asked.
    pub audit_keep_min: Duration,
    pub streams: stream::StreamLimits,
    /// None without a store of blobs.
    pub blobs: Option<blob::Blobs>,
}

/// What the door may have remembered and must not believe any more.
pub struct Forget {
    pub token: Box<dyn Fn(Uuid) + Send + Sync>,
    pub tenant: Box<dyn Fn(&str) + Send + Sync>,
}

impl std::ops::Deref for Api {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// All services of the server. The larger message limit is for the services that have batches.
pub fn routes(parts: Parts) -> Routes {
    let api = Api(Arc::new(parts));
    let (small, large, out) = (api.message_in_max, api.batch_message_in_max, api.message_out_max);
    macro_rules! limited {
        ($server:expr, $max:expr) => {
            $server.max_decoding_message_size($max).max_encoding_message_size(out)
        };
    }
    use pb::admin_service_server::AdminServiceServer;
    use pb::audit_service_server::AuditServiceServer;
    use pb::blob_service_server::BlobServiceServer;
    use pb::claim_service_server::ClaimServiceServer;
    use pb::decision_service_server::DecisionServiceServer;
    use pb::document_service_server::DocumentServiceServer;
    use pb::evidence_service_server::EvidenceServiceServer;
    use pb::health::health_server::HealthServer;
    use pb::model_service_server::ModelServiceServer;
    use pb::object_service_server::ObjectServiceServer;
    use pb::operation_service_server::OperationServiceServer;
    use pb::policy_service_server::PolicyServiceServer;
    use pb::precedent_service_server::PrecedentServiceServer;
    use pb::retention_service_server::RetentionServiceServer;
    use pb::search_service_server::SearchServiceServer;
    use pb::sync_service_server::SyncServiceServer;
    use pb::telemetry_service_server::TelemetryServiceServer;
    use pb::tenant_service_server::TenantServiceServer;
    use pb::transaction_service_server::TransactionServiceServer;
    use pb::vector_service_server::VectorServiceServer;
    use pb::vector_space_service_server::VectorSpaceServiceServer;
    let health = api.health.clone();
    Routes::default()
        .add_service(limited!(DecisionServiceServer::new(api.clone()), large))
        .add_service(limited!(ClaimServiceServer::new(api.clone()), large))
        .add_service(limited!(DocumentServiceServer::new(api.clone()), large))
        .add_service(limited!(ModelServiceServer::new(api.clone()), large))
        .add_service(limited!(PolicyServiceServer::new(api.clone()), small))
        .add_service(limited!(PrecedentServiceServer::new(api.clone()), large))
        .add_service(limited!(SearchServiceServer::new(api.clone()), small))
        .add_service(limited!(SyncServiceServer::new(api.clone()), large))
        .add_service(limited!(AuditServiceServer::new(api.clone()), small))
        .add_service(limited!(TelemetryServiceServer::new(api.clone()), small))
        .add_service(limited!(TenantServiceServer::new(api.clone()), small))
        .add_service(limited!(RetentionServiceServer::new(api.clone()), small))
        .add_service(limited!(TransactionServiceServer::new(api.clone()), large))
        .add_service(limited!(OperationServiceServer::new(api.clone()), small))
        .add_service(limited!(VectorServiceServer::new(api.clone()), large))
        .add_service(limited!(VectorSpaceServiceServer::new(api.clone()), small))
        .add_service(limited!(BlobServiceServer::new(api.clone()), small))
        .add_service(limited!(EvidenceServiceServer::new(api.clone()), small))
        .add_service(limited!(ObjectServiceServer::new(api.clone()), large))
        .add_service(limited!(AdminServiceServer::new(api), small))
        .add_service(limited!(HealthServer::new(health), small))
}

/// What a handler answers.
type Answer<T> = Result<Response<T>, Status>;

/// Who asks, and what.
fn open<T>(request: Request<T>) -> Result<(Caller, T)> {
    let (_, mut extensions, message) = request.into_parts();
    let caller = extensions
        .remove::<Caller>()
        .ok_or_else(|| Error::internal("a call came past the door"))?;
    Ok((caller, message))
}

impl Parts {
    /// Checks a request, makes the change it asks for, and words the receipt: what every write does.
    async fn write<A: Ask>(
        &self,
        request: Request<A>,
    ) -> Result<(<A::Change as Change>::Answer, Option<pb::WriteReceipt>)> {
        let (caller, request) = open(request)?;
        let write = self.ask(request, &caller).await?;
        self.write_as(caller, write).await
    }

    /// The same for a request that is checked.
    async fn write_as<C: Change>(
        &self,
        caller: Caller,
        write: Write<C>,
    ) -> Result<(C::Answer, Option<pb::WriteReceipt>)> {
        let Write { change, options } = write;
        let (answer, receipt) = self.store.write(caller.clone(), options, change).await?;
        Ok((answer, self.receipt(&caller, receipt)?))
    }

    /// The receipt of a write; none after a rehearsal, which wrote nothing.
    fn receipt(&self, caller: &Caller, receipt: Receipt) -> Result<Option<pb::WriteReceipt>> {
        let Receipt { seq, replayed, unchanged, rehearsed } = receipt;
        if rehearsed {
            return Ok(None);
        }
        Ok(Some(pb::WriteReceipt {
            revision: Some(self.revision(caller, seq)?),
            audit_seq: seq,
            replayed,
            unchanged,
        }))
    }

    fn revision(&self, caller: &Caller, seq: i64) -> Result<pb::Revision> {
        Ok(pb::Revision { token: token::revision(&self.token_key, &caller.tenant, seq)? })
    }

    /// The log number that a read must be made at; `None` means now, which is as fresh as can be.
    async fn read_at(
        &self,
        caller: &Caller,
        consistency: Option<pb::Consistency>,
    ) -> Result<Option<i64>> {
        use pb::consistency::Requirement;
        let parse = |revision: pb::Revision, field: &str| {
            token::parse_revision(&self.token_key, &caller.tenant, &revision.token, field)
        };
        match consistency.and_then(|consistency| consistency.requirement) {
            None | Some(Requirement::FullyConsistent(_)) => Ok(None),
            Some(Requirement::AtLeastAsFresh(revision)) => {
                // There is one database, and it is as fresh as any revision it gave out; but not as fresh as those
                // it gave out before it was restored from a backup.
                let seq = parse(revision, "consistency.at_least_as_fresh")?;
                self.store.reaches(caller, seq).await?;
                Ok(None)
            }
            Some(Requirement::AtExactSnapshot(revision)) => {
                Ok(Some(parse(revision, "consistency.at_exact_snapshot")?))
            }
        }
    }

    /// For reads that have no past.
    async fn now_only(&self, caller: &Caller, consistency: Option<pb::Consistency>) -> Result<()> {
        match self.read_at(caller, consistency).await? {
            None => Ok(()),
            Some(_) => Err(Error::invalid(
                "consistency.at_exact_snapshot",
                "is not taken here: list the resources at that revision",
            )),
        }
    }

    /// One resource: now, at a revision, or as an earlier version.
    async fn get<T: Noun>(
        &self,
        caller: &Caller,
        id: String,
        consistency: Option<pb::Consistency>,
        version: i64,
    ) -> Result<T> {
        match (self.read_at(caller, consistency).await?, version) {
            (_, ..0) => Err(Error::invalid("version", "must not be negative")),
            (seq, 0) => self.get_at(caller, id, seq).await,
            (None, _) => self.store.get_version(caller, &id, version).await,
            (Some(_), _) => Err(Error::invalid(
                "version",
                "must not be set together with consistency.at_exact_snapshot",
            )),
        }
    }

    /// One resource as it stood at a log number; `None` means now. The later pages of a listing look for what it is about
    /// where the first did: meanwhile that may be gone, or be another of the same id.
    async fn get_at<T: Noun>(&self, caller: &Caller, id: String, seq: Option<i64>) -> Result<T> {
        let Some(seq) = seq else { return self.store.get(caller, &id).await };
        let found = self.store.get_as_of(caller, vec![id.clone()], seq).await?.pop().flatten();
        found.ok_or_else(|| Error::not_found(T::KIND, id))
    }

    /// Begins a listing. Page tokens are bound to the whole request without its page.
    fn lister<'a, M: Paged>(
        &'a self,
        caller: &Caller,
        request: &mut M,
        listing: &'static Listing,
        default_order: &'static [(&'static str, bool)],
    ) -> Result<Lister<'a>> {
        let page = request.page_mut().take();
        *request.page_mut() = page::unpaged(page.as_ref());
        let binding = Binding::new(&caller.tenant, caller.method, &request.encode_to_vec());
        let (now, sizes) = (SystemTime::now(), self.page_sizes);
        let pager = Pager { key: &self.token_key, binding, now, sizes };
        let page = pager.page(page, listing.fields, default_order)?;
        Ok(Lister { pager, page, listing })
    }

    /// Reads one page.
    async fn list<R: FromRow>(
        &self,
        caller: &Caller,
        lister: &Lister<'_>,
        selection: Selection,
    ) -> Result<(Vec<R>, Option<pb::PageInfo>)> {
        let (rows, page, _) = self.list_at(caller, lister, selection).await?;
        Ok((rows, page))
    }

    /// Reads one page, and PostgreSQL's time with it.
    async fn list_at<R: FromRow>(
        &self,
        caller: &Caller,
        lister: &Lister<'_>,
        selection: Selection,
    ) -> Result<(Vec<R>, Option<pb::PageInfo>, SystemTime)> {
        let query = lister.query(selection);
        let wants_total = lister.page.include_total_size;
        let found = self.store.list(caller, lister.listing, query, wants_total).await?;
        let now = found.now;
        let (rows, page) = self.page_of(caller, lister, found)?;
        Ok((rows, page, now))
    }

    /// A page as it is answered.
    fn page_of<R>(
        &self,
        caller: &Caller,
        lister: &Lister<'_>,
        found: snapshot::Page<R>,
    ) -> Result<(Vec<R>, Option<pb::PageInfo>)> {
        let Lister { pager, page, .. } = lister;
        let next_page_token = match found.next {
            Some(cursor_key) => pager.next(page, cursor_key, (found.seq, found.outgrown))?,
            None => String::new(),
        };
        let info = pb::PageInfo {
            next_page_token,
            total_size: found.total.map_or(0, |total| total.rows),
            total_size_is_estimate: found.total.is_some_and(|total| total.is_estimate),
            read_at: Some(self.revision(caller, found.seq)?),
        };
        Ok((found.rows, Some(info)))
    }
}

impl Parts {
    /// The versions of a live resource, newest first, each with its log entry; an archived one only with that.
    async fn revisions<T: Noun, M: Paged>(
        &self,
        caller: &Caller,
        request: &mut M,
        id: &str,
    ) -> Result<(Vec<(LogRow, Option<T>)>, Option<pb::PageInfo>)> {
        if request.page_mut().as_ref().is_some_and(|page| !page.order_by.is_empty()) {
            return Err(Error::invalid(
                "page.order_by",
                "is not taken here: the newest version comes first",
            ));
        }
        let lister = self.lister(caller, request, &log::LISTING, audit::NEWEST)?;
        let current: T = self.get_at(caller, id.to_owned(), lister.page.snapshot).await?;
        let filter = log::of_resource(T::KIND, id, Some(current.meta().uid))?;
        let selection = Selection { filter, ..Selection::default() };
        let (entries, page) = self.list::<LogRow>(caller, &lister, selection).await?;
        let versions = entries
            .into_iter()
            .map(|entry| {
                let row = entry.document.as_deref().map(T::from_document).transpose()?;
                Ok((entry, row))
            })
            .collect::<Result<_>>()?;
        Ok((versions, page))
    }
}

/// A request for a page of something.
pub trait Paged: Message {
    fn page_mut(&mut self) -> &mut Option<pb::PageRequest>;
}

macro_rules! paged {
    ($($request:ident),* $(,)?) => {$(
        impl Paged for pb::$request {
            fn page_mut(&mut self) -> &mut Option<pb::PageRequest> {
                &mut self.page
            }
        }
    )*};
}
paged! { ListApiTokensRequest, ListAuditEntriesRequest, ListDecisionRevisionsRequest, ListTenantsRequest }

/// A listing under way.
struct Lister<'a> {
    pager: Pager<'a>,
    page: Page,
    listing: &'static Listing,
}

impl Lister<'_> {
    /// What the store shall read for this page.
    fn query(&self, selection: Selection) -> ListQuery {
        let Selection { filter, show_deleted, parent, window, snapshot } = selection;
        let page = &self.page;
        ListQuery {
            filter,
            order: page.order.clone(),
            after: page.after.clone(),
            limit: page.size,
            skip: page.skip,
            show_deleted,
            parent,
            window,
            snapshot: page.snapshot.or(snapshot),
            outgrown: page.outgrown,
            ..ListQuery::default()
        }
    }

    fn filter(&self, selector: Option<pb::Selector>) -> Result<Filter> {
        filter::selector(self.listing.fields, selector, "where")
    }

    fn window(
        &self,
        field: &str,
        window: Option<pb::TimeWindow>,
    ) -> Result<Option<crate::store::list::Window>> {
        let field = Field::find(self.listing.fields, field)
            .ok_or_else(|| Error::internal(format!("no field {field} for a window")))?;
        page::window(field, window, self.page.as_of, "window")
    }
}

/// Which rows of a listing.
#[derive(Default)]
struct Selection {
    filter: Filter,
    show_deleted: bool,
    /// What the rows belong to: the column and the id.
    parent: Option<(&'static str, String)>,
    window: Option<crate::store::list::Window>,
    snapshot: Option<i64>,
}

/// The only item of a write of one.
fn only<T>(rows: Vec<T>) -> Result<T> {
    let mut rows = rows.into_iter();
    match (rows.next(), rows.next()) {
        (Some(row), None) => Ok(row),
        _ => Err(Error::internal("a write of one row answered with another number")),
    }
}
