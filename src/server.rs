//! Puts the pieces together: configuration in, a running server out, and a clean end.

mod blobs;
mod connection;

pub use blobs::blob_keys;

use crate::config::{self, Auth, Config, Listen};
use crate::edge::auth::{AuthMode, Authenticator};
use crate::edge::credentials::Directory;
use crate::edge::deadline::DeadlineLimits;
use crate::edge::{self, Edge};
use crate::embedded::{Embedded, Options};
use crate::pb;
use crate::rpc::health::HealthState;
use crate::rpc::token::TokenKey;
use crate::rpc::{self, Forget, Parts, access};
use crate::store::archive::Place;
use crate::store::backend::RetrySettings;
use crate::store::blob_store::{self, BlobStore};
use crate::store::caller::{Caller, Roles, SYSTEM_TENANT};
use crate::store::envelope::KeySource;
use crate::store::migrate::Migrator;
use crate::store::postgres::{Lane, PoolSettings, SERVICE_ROLE};
use crate::store::projection::built_in::BuiltIn;
use crate::store::projection::schedule::{self, ScheduleSettings};
use crate::store::projection::verify::Verified;
use crate::store::read::ReadSettings;
use crate::store::vector_index::upkeep::{self, UpkeepSettings};
use crate::store::write::WriteSettings;
use crate::store::{self, Store};
use crate::telemetry::{Metrics, pages};
use crate::{Error, Result};
use connection::limited;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::server::TcpIncoming;

/// How often readiness is looked at, and how often the log is kept house for.
const PROBE_EVERY: Duration = Duration::from_secs(1);
const HOUSEKEEPING_EVERY: Duration = Duration::from_secs(600);

/// The operations that have metrics of their own.
fn op_names() -> Vec<&'static str> {
    let queries = store::queries().map(|query| query.name());
    let listings = store::listings().map(|listing| listing.op);
    queries
        .chain(listings)
        .chain([
            "read.BATCH",
            "write.BATCH",
            "decision.STATISTICS",
            "embedding.SEARCH",
            "embedding.SAMPLE",
            "embedding_vector.READ",
            "vector_index.SAMPLE",
        ])
        .chain(blob_store::OPS.iter().copied())
        .collect()
}

/// A database to work with: the one that is configured, or a private one that lives as long as this value.
pub struct Database {
    /// As the service connects.
    pub service: tokio_postgres::Config,
    /// As the schema's owner connects.
    pub owner: tokio_postgres::Config,
    embedded: Option<Embedded>,
}

impl Database {
    /// Finds the database, starting a private one if none is configured. Says so.
    pub async fn open(config: &Config) -> Result<Self> {
        if let (Some(service), Some(owner)) = (&config.database_url, &config.owner_database_url) {
            let parse = |url: &str, name: &'static str| {
                url.parse::<tokio_postgres::Config>().map_err(|error| {
                    Error::invalid(name, format!("is not a PostgreSQL URL: {error}"))
                })
            };
            return Ok(Self {
                service: parse(service.expose(), "database_url")?,
                owner: parse(owner.expose(), "owner_database_url")?,
                embedded: None,
            });
        }
        let options = Options {
            data_dir: config.data_dir.clone(),
            bin_dir: config.postgres_bin.clone(),
            search: config::postgres_folders(),
            settings: Vec::new(),
            start_timeout: Duration::from_secs(60),
        };
        let embedded = Embedded::start(options).await.map_err(|error| Error::Refused {
            reason: crate::Reason::BackendUnavailable,
            message: error.to_string(),
            metadata: Vec::new(),
        })?;
        let owner = embedded.config();
        let mut service = owner.clone();
        // Its folder is the only way in, so the service's own role may log in by itself.
        service.user(SERVICE_ROLE);
        Ok(Self { service, owner, embedded: Some(embedded) })
    }

    /// Applies pending migrations and, on a private server, lets the service log in.
    pub async fn migrate(&self) -> Result<()> {
        let mut migrator = Migrator::connect(&self.owner).await?;
        for step in migrator.up().await? {
            tracing::info!(version = step.version, name = step.name, "migrated");
        }
        if self.embedded.is_some() {
            migrator.let_service_log_in().await?;
        }
        Ok(())
    }

    /// Stops a private server, after everything else has let go of it.
    pub async fn close(self) {
        if let Some(embedded) = self.embedded
            && let Err(error) = embedded.stop().await
        {
            tracing::error!(%error, "PostgreSQL did not stop cleanly");
        }
    }
}

/// The store's part of the configuration.
pub fn store_settings(config: &Config, connect: tokio_postgres::Config) -> store::Settings {
    let ms = Duration::from_millis;
    store::Settings {
        pools: PoolSettings {
            connect,
            work_size_max: config.pool_max_size,
            read_lanes: config.read_lanes,
            write_lanes: config.write_lanes,
            admin_size_max: config.admin_pool_size,
            upkeep_size_max: upkeep::connections(config.index_builds_max as usize),
            wait_timeout: ms(config.pool_wait_timeout_ms),
            lifetime_max: ms(config.pool_max_lifetime_ms),
            verify: config.pool_verify,
            statement_timeout: ms(config.statement_timeout_ms),
        },
        retry: RetrySettings {
            attempts_max: config.retry_attempts_max,
            base: ms(config.retry_base_ms),
            max: ms(config.retry_max_ms),
            budget_percent: config.retry_budget_percent,
        },
        read: ReadSettings {
            lanes: config.read_lanes,
            batch_max: config.read_batch_max,
            queue_max: config.requests_in_flight_max,
        },
        write: WriteSettings {
            lanes: config.write_lanes,
            batch_requests_max: config.write_batch_max_requests,
            batch_size_bytes_max: config.write_batch_max_bytes,
            queue_size_bytes_max: config.write_queue_max_bytes,
            queue_per_tenant_max: config.write_queue_max_per_tenant,
        },
    }
}

fn upkeep_settings(config: &Config) -> UpkeepSettings {
    let ms = Duration::from_millis;
    UpkeepSettings {
        build_memory_bytes: config.index_build_memory_bytes,
        build_workers: config.index_build_workers,
        builds_max: config.index_builds_max as usize,
        every: ms(config.index_upkeep_interval_ms),
        probe_every: (config.index_probe_interval_ms > 0)
            .then_some(ms(config.index_probe_interval_ms)),
        caller: |tenant| program(tenant, "server", "casebook/upkeep"),
    }
}

/// Somebody who acts on behalf of the program itself, in a tenant.
pub fn program(tenant: &str, principal: &str, method: &'static str) -> Caller {
    let nothing: Arc<str> = "".into();
    Caller {
        tenant: tenant.into(),
        principal: principal.into(),
        actor: Arc::clone(&nothing),
        roles: Roles::ALL,
        strict_references: false,
        is_read_only: false,
        is_system: true,
        expire_time: None,
        address: Arc::clone(&nothing),
        user_agent: Arc::clone(&nothing),
        request_id: Arc::clone(&nothing),
        trace_id: nothing,
        method,
        deadline: tokio::time::Instant::now() + Duration::from_secs(60),
    }
}

/// A server that is bound and ready to serve.
pub struct Server {
    config: Config,
    store: Store,
    metrics: Arc<Metrics>,
    authenticator: Arc<Authenticator>,
    health: HealthState,
    token_key: TokenKey,
    listener: Listener,
    pages: Option<TcpListener>,
    start_time: SystemTime,
    blobs: Option<BlobStore>,
    blob_keys: Option<Arc<dyn KeySource>>,
    /// Whether the store of blobs has answered.
    blobs_answer: bool,
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Server {
    /// Checks the wall, makes what every deployment has, and binds. Fails with one sentence.
    pub async fn bind(config: Config, database: &Database) -> Result<Self> {
        let start_time = SystemTime::now();
        // First, because a busy port is the commonest reason not to start.
        let listener = listen(&config.listen).await?;
        let pages = match config.metrics_listen {
            Some(address) => Some(bind_tcp(address, "metrics_listen").await?),
            None => None,
        };
        let blob_keys = blob_keys(&config)?;
        let metrics =
            Arc::new(Metrics::new(access::methods().iter().map(access::Method::name), op_names()));
        let settings = store_settings(&config, database.service.clone());
        let blobs = blobs::open(&config, settings.retry.clone(), &metrics)?;
        if let (Some(_), Some(keys)) = (&blobs, &blob_keys) {
            let current = keys.current_key_id().await.map_err(Error::internal)?;
            tracing::info!(current, "new blobs are encrypted");
        }
        let store = Store::new(settings, Arc::clone(&metrics))?;
        let gauges = store.clone();
        let pools = Lane::ALL.map(|lane| metrics.pool(lane.name()));
        metrics.before_reading(move || {
            for (state, gauge) in gauges.pool_states().iter().zip(&pools) {
                gauge.size.set(state.size as i64);
                gauge.in_use.set(state.in_use as i64);
                gauge.waiting.set(state.waiting as i64);
                gauge.max_size.set(state.size_max as i64);
            }
        });

        // The metrics know the store and the store the metrics, so its connections end only when they are closed.
        let token_key = match prepare(&store, &config).await {
            Ok(key) => key,
            Err(error) => {
                store.close();
                return Err(error);
            }
        };

        let mode = match config.auth {
            Auth::Token => AuthMode::Token,
            Auth::None => AuthMode::None { default_tenant: config.default_tenant.as_str().into() },
        };
        let (tokens, tenants) = (store.clone(), store.clone());
        let directory = Directory {
            credential: Box::new(move |uid| {
                let store = tokens.clone();
                Box::pin(async move { store.credential(uid).await })
            }),
            standing: Box::new(move |tenant: Arc<str>| {
                let store = tenants.clone();
                Box::pin(async move { store.standing(&tenant).await })
            }),
        };
        let keep = Duration::from_millis(config.credential_cache_ms);
        let authenticator = Arc::new(Authenticator::new(mode, directory, keep));
        let health = HealthState::new(access::services());
        let blobs_answer = blobs::first_look(blobs.as_ref(), &health).await;
        health.set_ready(true);
        Ok(Self {
            config,
            store,
            metrics,
            authenticator,
            health,
            token_key,
            listener,
            pages,
            start_time,
            blobs,
            blob_keys,
            blobs_answer,
        })
    }

    /// Where the server listens, as a client would write it.
    pub fn address(&self) -> String {
        match &self.listener {
            Listener::Tcp(listener) => {
                listener.local_addr().map_or_else(|_| String::new(), |a| format!("http://{a}"))
            }
            Listener::Unix(_, path) => format!("unix:{}", path.display()),
        }
    }

    /// Where /metrics, /livez and /readyz are, if they are on.
    pub fn pages_address(&self) -> Option<SocketAddr> {
        self.pages.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Serves until `shutdown` completes, then drains: NOT_SERVING at once, calls for a while still taken, then those
    /// under way ended, then the connections closed.
    pub async fn serve(self, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<()> {
        let Self {
            config,
            store,
            metrics,
            authenticator,
            health,
            token_key,
            listener,
            pages,
            start_time,
            blobs,
            blob_keys,
            blobs_answer,
        } = self;
        let (stop, stopped) = watch::channel(false);

        let mut tasks = vec![
            tokio::spawn(probe(store.clone(), health.clone(), stopped.clone())),
            tokio::spawn(keep_house(
                store.clone(),
                Duration::from_millis(config.request_id_retention_ms),
                stopped.clone(),
            )),
            tokio::spawn(upkeep::run(store.clone(), upkeep_settings(&config), stopped.clone())),
        ];
        if config.sync_check_period_ms > 0 {
            let settings = ScheduleSettings {
                period: Duration::from_millis(config.sync_check_period_ms),
                caller: |tenant| program(tenant, "server", "casebook/sync"),
            };
            let (checked, wrong) = (metrics.sync_checked.clone(), metrics.sync_different.clone());
            let note = move |found: &Verified| {
                checked.inc_by(found.checked.unsigned_abs());
                let differences = found.missing + found.extra + found.different;
                // Where the counts alone differ, that is one.
                wrong.inc_by(differences.max(i64::from(!found.is_in_sync())).unsigned_abs());
            };
            let check =
                schedule::run(store.clone(), Arc::new(BuiltIn), settings, note, stopped.clone());
            tasks.push(tokio::spawn(check));
        }
        let blobs = blobs.map(|blobs| blobs::parts(&config, blobs, blob_keys, &metrics));
        if let Some(blobs) = &blobs {
            let answers = blobs_answer;
            tasks
                .extend(blobs::tasks(&config, &store, blobs, &metrics, &health, answers, &stopped));
        }
        if let Some(listener) = pages {
            let readiness = health.clone();
            let readiness = Arc::new(move || match readiness.not_ready_reason() {
                None => Ok(()),
                Some(reason) => Err(reason),
            });
            let pages =
                pages::serve(listener, Arc::clone(&metrics), readiness, wait(stopped.clone()));
            tasks.push(tokio::spawn(async move {
                if let Err(error) = pages.await {
                    tracing::error!(%error, "the pages for operators ended");
                }
            }));
        }

        let edge = Edge {
            metrics,
            authenticator: Arc::clone(&authenticator),
            requests_in_flight_max: config.requests_in_flight_max,
            deadline: DeadlineLimits {
                default: Duration::from_millis(config.deadline_default_ms),
                max: Duration::from_millis(config.deadline_max_ms),
                stream_max: Duration::from_millis(config.stream_deadline_max_ms),
            },
        };
        let tokens = authenticator;
        let tenants = Arc::clone(&tokens);
        let routes = rpc::routes(Parts {
            store: store.clone(),
            token_key,
            health: health.clone(),
            limits: config.limits().into_iter().map(limit).collect(),
            start_time,
            forget: Forget {
                token: Box::new(move |uid| tokens.forget(uid)),
                tenant: Box::new(move |tenant| tenants.forget_tenant(tenant)),
            },
            message_in_max: config.message_in_max_bytes,
            batch_message_in_max: config.batch_message_in_max_bytes,
            message_out_max: config.message_out_max_bytes,
            page_sizes: rpc::page::Sizes {
                default: config.page_size_default.into(),
                max: config.page_size_max.into(),
                token_life: Duration::from_millis(config.page_token_lifetime_ms),
            },
            batch_max: config.batch_max,
            exports: Arc::new(Semaphore::new(config.export_streams_max)),
            audit_place: config.audit_archive_dir.clone().map(Place),
            audit_keep_min: audit_keep_min(&config),
            streams: rpc::stream::StreamLimits {
                message: Duration::from_millis(config.deadline_default_ms),
                idle: Duration::from_millis(config.stream_idle_timeout_ms),
            },
            blobs,
        });
        // With the types of error details, so that a client without our files can show them.
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(pb::DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .map_err(Error::internal)?;
        let reflection_alpha = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(pb::DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
            .build_v1alpha()
            .map_err(Error::internal)?;
        let routes = routes.add_service(reflection).add_service(reflection_alpha);

        let keepalive = Duration::from_millis(config.keepalive_interval_ms);
        let router = tonic::transport::Server::builder()
            .max_concurrent_streams(config.streams_per_connection_max)
            .http2_keepalive_interval(Some(keepalive))
            .http2_keepalive_timeout(Some(Duration::from_millis(config.keepalive_timeout_ms)))
            .http2_max_header_list_size(config.metadata_header_max_bytes)
            .initial_connection_window_size(16 << 20)
            .initial_stream_window_size(4 << 20)
            // Blobs come in messages of up to 1 MiB, which would be 64 frames of the usual 16 KiB each.
            .max_frame_size(256 << 10)
            .layer(edge::layers(edge))
            .add_routes(routes);

        // What ends the server, in order: the signal, the delay in which balancers look away, GOAWAY.
        let draining = {
            let health = health.clone();
            let delay = Duration::from_millis(config.drain_delay_ms);
            async move {
                shutdown.await;
                tracing::info!("draining: no longer ready");
                health.set_draining();
                tokio::time::sleep(delay).await;
                health.close();
                tracing::info!("draining: taking no new calls");
            }
        };
        let (closing, closed) = watch::channel(false);
        let draining = async move {
            draining.await;
            closing.send_replace(true);
        };
        let connections = Arc::new(Semaphore::new(config.connections_max));
        let serving: JoinHandle<Result<(), tonic::transport::Error>> = match listener {
            Listener::Tcp(listener) => {
                let incoming = TcpIncoming::from(listener)
                    .with_nodelay(Some(true))
                    .with_keepalive(Some(keepalive));
                let incoming = limited(incoming, connections);
                tokio::spawn(async move {
                    router.serve_with_incoming_shutdown(incoming, draining).await
                })
            }
            Listener::Unix(listener, path) => {
                let incoming = limited(UnixListenerStream::new(listener), connections);
                // While the socket is still ours: afterwards it may be another server's.
                let draining = async move {
                    draining.await;
                    let _ = tokio::fs::remove_file(path).await;
                };
                tokio::spawn(async move {
                    router.serve_with_incoming_shutdown(incoming, draining).await
                })
            }
        };
        let abort = serving.abort_handle();
        let bound = async move {
            wait(closed).await;
            tokio::time::sleep(Duration::from_millis(config.drain_timeout_ms)).await;
        };
        let ended = tokio::select! {
            ended = serving => ended,
            () = bound => {
                tracing::warn!("draining took too long: ending the calls that are left");
                abort.abort();
                Ok(Ok(()))
            }
        };
        stop.send_replace(true);
        for task in tasks {
            // The tasks end by themselves; one that panicked has been logged.
            let _ = task.await;
        }
        store.close();
        match ended {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Error::internal(error)),
            Err(error) if error.is_cancelled() => Ok(()),
            Err(error) => Err(Error::internal(error)),
        }
    }
}

/// How long audit entries are kept whole: at least while page tokens and repeated requests are answered from them.
fn audit_keep_min(config: &Config) -> Duration {
    let day_ms = 24 * 3600 * 1000;
    let days_ms = config.audit_keep_min_days.saturating_mul(day_ms);
    let others = config.request_id_retention_ms.max(config.page_token_lifetime_ms).max(day_ms);
    Duration::from_millis(days_ms.max(others))
}

async fn wait(mut signal: watch::Receiver<bool>) {
    // A sender that is gone has nothing more to say: the same as its signal.
    let _ = signal.wait_for(|stop| *stop).await;
}

async fn listen(listen: &Listen) -> Result<Listener> {
    match listen {
        Listen::Tcp(address) => Ok(Listener::Tcp(bind_tcp(*address, "listen").await?)),
        Listen::Unix(path) => {
            // A socket that nobody answers at was left behind by a server that was killed.
            if std::os::unix::net::UnixStream::connect(path)
                .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
                && std::fs::symlink_metadata(path).is_ok_and(|found| {
                    std::os::unix::fs::FileTypeExt::is_socket(&found.file_type())
                })
            {
                let _ = std::fs::remove_file(path);
            }
            let listener = UnixListener::bind(path).map_err(|error| {
                Error::invalid(
                    "listen",
                    format!("cannot be bound: unix:{}: {error}", path.display()),
                )
            })?;
            Ok(Listener::Unix(listener, path.clone()))
        }
    }
}

async fn bind_tcp(address: SocketAddr, setting: &'static str) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                ": another program listens there; stop it or choose another port"
            }
            _ => "",
        };
        Error::invalid(setting, format!("cannot be bound: {address}: {error}{hint}"))
    })
}

/// Checks schema and wall, makes what every deployment has, and finds the key of tokens.
async fn prepare(store: &Store, config: &Config) -> Result<TokenKey> {
    store.check_ready().await?;
    store.check_wall().await?;
    store.ensure_log_partitions().await?;
    let version = store.database_status().await?.pgvector_version;
    if !upkeep::is_at_least(&version, upkeep::SOUND_SINCE) {
        tracing::warn!(
            version,
            "this pgvector can damage vector indexes; update the extension to 0.8.4 or newer, then build them anew"
        );
    }
    store.refresh_indexes().await?;
    let names = [SYSTEM_TENANT, &config.default_tenant];
    store.ensure_tenants(&program(SYSTEM_TENANT, "server", "casebook/serve"), &names).await?;
    match &config.token_key {
        Some(key) => Ok(TokenKey::new(*key.expose())),
        None => shared_key(store).await,
    }
}

/// The key of page and revision tokens that all servers of the deployment share through the database.
async fn shared_key(store: &Store) -> Result<TokenKey> {
    let mut proposal = [0; 32];
    getrandom::fill(&mut proposal).map_err(Error::internal)?;
    let key = store.deployment_secret("token_key", proposal.to_vec()).await?;
    let key =
        key.try_into().map_err(|_| Error::internal("the stored token key is not 32 bytes long"))?;
    Ok(TokenKey::new(key))
}

/// Looks at readiness again and again, so that no health check has to ask the database.
async fn probe(store: Store, health: HealthState, mut stopped: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(PROBE_EVERY) => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
        match store.check_ready().await {
            Ok(()) => {
                let was_ready = health.is_ready();
                health.set_ready(true);
                // A server that drains does not become ready again.
                if !was_ready && health.is_ready() {
                    tracing::info!("ready");
                }
            }
            Err(error) => {
                if health.is_ready() {
                    tracing::warn!(%error, "not ready");
                }
                health.set_not_ready(error.to_string());
            }
        }
    }
}

/// Makes the log's partitions ahead of time and forgets old request ids.
async fn keep_house(store: Store, keep: Duration, mut stopped: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(HOUSEKEEPING_EVERY) => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
        if let Err(error) = store.ensure_log_partitions().await {
            tracing::warn!(%error, "the log's partitions could not be made");
        }
        loop {
            match store.expire_requests(keep).await {
                Ok(0) => break,
                Ok(count) => tracing::debug!(count, "forgot request ids"),
                Err(error) => {
                    tracing::warn!(%error, "old request ids could not be forgotten");
                    break;
                }
            }
        }
    }
}

fn limit(limit: crate::config::Limit) -> pb::Limit {
    let crate::config::Limit { name, value, unit, description, configurable } = limit;
    pb::Limit {
        name: name.into(),
        value,
        unit: unit.into(),
        description: description.into(),
        configurable,
    }
}
