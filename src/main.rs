//! The program: reads the command line and the configuration, and does what they say.

#![forbid(unsafe_code)]

use casebook::cli::{self, Audit, Command, ConfigCommand, Invocation, KeyCommand, exit};
use casebook::config::{self, Client, Config};
use casebook::demo;
use casebook::error::Error;
use casebook::pb::ArchiveAuditEntriesRequest;
use casebook::pb::archive_audit_entries_request::Until;
use casebook::pb::audit_service_client::AuditServiceClient;
use casebook::pb::health::HealthCheckRequest;
use casebook::pb::health::health_check_response::ServingStatus;
use casebook::pb::health::health_client::HealthClient;
use casebook::rpc::api_token::{mint, revoke};
use casebook::server::{Database, Server, blob_keys, program, store_settings};
use casebook::store::Store;
use casebook::store::api_token::{self, ApiToken};
use casebook::store::blob::rotate::Rotated;
use casebook::store::caller::{Role, SYSTEM_TENANT};
use casebook::store::change::{Create, OnConflict};
use casebook::store::envelope::{self, KeySource};
use casebook::store::filter::Field;
use casebook::store::list::{ListQuery, Listing, Order};
use casebook::store::log::hex;
use casebook::store::migrate::Migrator;
use casebook::store::query::FromRow;
use casebook::store::tenant::{self, Tenant};
use casebook::store::write::WriteOptions;
use casebook::telemetry::{self, Metrics};
use casebook::transfer::{self, Export, TransferError};
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::signal::unix::{SignalKind, signal};
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What a person reads when it did not work, and the exit code.
struct Failure(u8, String);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (code, cause) = match &error {
            Error::Unavailable { cause, .. } => (exit::UNREACHABLE, Some(cause)),
            Error::Internal(cause) | Error::CommitUnknown(cause) | Error::Conflict(cause) => {
                (exit::FAILED, Some(cause))
            }
            _ => (exit::FAILED, None),
        };
        // Here the reader is the operator, who may see the cause.
        let text = match cause {
            Some(cause) => format!("{error}: {}", whole(&**cause)),
            None => error.to_string(),
        };
        Self(code, text)
    }
}

/// An error with its sources, as one line.
fn whole(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let source_text = source.to_string();
        if !text.contains(&source_text) {
            text.push_str(": ");
            text.push_str(&source_text);
        }
        next = source.source();
    }
    text
}

fn main() -> ExitCode {
    let invocation = match cli::parse(std::env::args_os()) {
        Ok(invocation) => invocation,
        Err(error) => error.exit(),
    };
    match start(invocation) {
        Ok(code) => ExitCode::from(code),
        Err(Failure(code, text)) => {
            eprintln!("casebook: {text}");
            ExitCode::from(code)
        }
    }
}

fn start(invocation: Invocation) -> Result<u8, Failure> {
    let Invocation { config_file, env_file, flags, command } = invocation;
    match command {
        Command::Key(KeyCommand::Generate) => {
            let line = envelope::keys::generate();
            print(&line.map_err(|error| Failure(exit::FAILED, error.to_string()))?);
            return Ok(exit::OK);
        }
        Command::Config(ConfigCommand::List) => {
            print(&config::list());
            return Ok(exit::OK);
        }
        Command::Demo(command) => {
            let client = Client::from_process(env_file.as_deref(), command.address, command.token)
                .map_err(usage)?;
            return runtime(1)?.block_on(record_demo(client, command.count, command.concurrency));
        }
        Command::Audit(Audit::Archive { address, token, tenant, older_than }) => {
            let client =
                Client::from_process(env_file.as_deref(), address, token).map_err(usage)?;
            return runtime(1)?.block_on(archive_audit(client, tenant, older_than));
        }
        Command::Export(cli::Export { target, output, kinds }) => {
            let server = server_of(env_file.as_deref(), target)?;
            return runtime(1)?.block_on(export(Export { server, output, kinds }));
        }
        Command::Import(command) => {
            let server = server_of(env_file.as_deref(), command.target.clone())?;
            return runtime(1)?.block_on(import(server, command));
        }
        Command::Health(command) => {
            let client =
                Client::from_process(env_file.as_deref(), command.address, None).map_err(usage)?;
            return runtime(1)?.block_on(check_health(client, command.service));
        }
        _ => {}
    }
    let config = Config::from_process(config_file, env_file.as_deref(), flags).map_err(usage)?;
    if let Command::Config(ConfigCommand::Print { redacted }) = command {
        print(&config.print(redacted));
        return Ok(exit::OK);
    }
    let format = match config.log_format {
        config::LogFormat::Json => telemetry::LogFormat::Json,
        config::LogFormat::Pretty => telemetry::LogFormat::Pretty,
    };
    telemetry::init_log(format, &config.log_filter)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    runtime(config.worker_threads)?.block_on(run(command, config))
}

fn runtime(worker_threads: usize) -> Result<tokio::runtime::Runtime, Failure> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let built = builder.worker_threads(worker_threads).enable_all().build();
    built.map_err(|error| Failure(exit::FAILED, format!("no runtime: {error}")))
}

async fn run(command: Command, config: Config) -> Result<u8, Failure> {
    match command {
        Command::Serve => serve(config).await,
        Command::Migrate(command) => {
            with_database(&config, async |database| migrate(database, command).await).await
        }
        Command::Token(command) => {
            with_store(&config, async |store| tokens(store, command).await).await
        }
        Command::Tenant(command) => {
            with_store(&config, async |store| tenants(store, command).await).await
        }
        Command::Key(KeyCommand::Rotate) => {
            let keys = blob_keys(&config)?;
            let keys = keys.ok_or_else(|| {
                Failure(exit::USAGE, "set --blob-key-file or --blob-key to rotate keys".into())
            })?;
            with_store(&config, async |store| rotate_keys(store, &*keys).await).await
        }
        // Done above.
        Command::Config(_)
        | Command::Key(KeyCommand::Generate)
        | Command::Audit(_)
        | Command::Export(_)
        | Command::Import(_)
        | Command::Demo(_)
        | Command::Health(_) => Ok(exit::OK),
    }
}

fn usage(error: config::ConfigError) -> Failure {
    Failure(exit::USAGE, error.to_string())
}

/// Prints to standard output; a reader that has gone away is not an error.
fn print(text: &str) {
    let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
}

async fn serve(config: Config) -> Result<u8, Failure> {
    // Before anything is started, so that no signal is lost.
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::internal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::internal)?;
    let database = Database::open(&config).await?;
    let result = serve_on(config, &database, async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        // A second signal means now.
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::warn!("a second signal: stopping at once");
            std::process::exit(i32::from(exit::FAILED));
        });
    })
    .await;
    database.close().await;
    result
}

async fn serve_on(
    config: Config,
    database: &Database,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<u8, Failure> {
    if config.migrate_on_start {
        database.migrate().await?;
    }
    let auth = format!("{:?}", config.auth).to_lowercase();
    let server = Server::bind(config, database).await?;
    let pages = server
        .pages_address()
        .map(|address| format!("http://{address}/metrics"))
        .unwrap_or_default();
    tracing::info!(
        address = server.address(),
        auth,
        pages,
        version = env!("CARGO_PKG_VERSION"),
        "serving"
    );
    server.serve(shutdown).await?;
    tracing::info!("stopped");
    Ok(exit::OK)
}

async fn with_database(
    config: &Config,
    run: impl AsyncFnOnce(&Database) -> Result<u8, Failure>,
) -> Result<u8, Failure> {
    let database = Database::open(config).await?;
    let result = run(&database).await;
    database.close().await;
    result
}

async fn with_store(
    config: &Config,
    run: impl AsyncFnOnce(&Store) -> Result<u8, Failure>,
) -> Result<u8, Failure> {
    with_database(config, async |database| {
        let metrics = Arc::new(Metrics::new([], []));
        let store = Store::new(store_settings(config, database.service.clone()), metrics)?;
        store.check_ready().await?;
        let names = [SYSTEM_TENANT, config.default_tenant.as_str()];
        store.ensure_tenants(&program(SYSTEM_TENANT, "cli", "casebook/tenant"), &names).await?;
        let result = run(&store).await;
        store.close();
        result
    })
    .await
}

async fn migrate(database: &Database, command: cli::Migrate) -> Result<u8, Failure> {
    let mut migrator = Migrator::connect(&database.owner).await?;
    match command {
        cli::Migrate::Up => {
            let applied = migrator.up().await?;
            for step in &applied {
                print(&format!("applied V{}__{}", step.version, step.name));
            }
            if applied.is_empty() {
                print("nothing to do: the schema is current");
            }
        }
        cli::Migrate::Down { steps } => {
            let undone = migrator.down(steps as usize).await?;
            for step in &undone {
                print(&format!("undid V{}__{}", step.version, step.name));
            }
            if undone.is_empty() {
                print("nothing to undo: no migration is applied");
            }
        }
        cli::Migrate::Status => {
            let steps = migrator.status().await?;
            for step in &steps {
                let when = step.applied_on.as_deref().unwrap_or("pending");
                print(&format!("V{}__{}\t{when}", step.version, step.name));
            }
            if steps.iter().any(|step| step.applied_on.is_none()) {
                return Ok(exit::FAILED);
            }
        }
        cli::Migrate::Plan => {
            let pending = migrator.plan().await?;
            for (step, sql) in &pending {
                print(&format!("-- V{}__{}\n{sql}", step.version, step.name));
            }
            if pending.is_empty() {
                print("-- nothing to do: the schema is current");
            }
        }
    }
    Ok(exit::OK)
}

async fn rotate_keys(store: &Store, keys: &dyn KeySource) -> Result<u8, Failure> {
    let caller = |tenant: &str| program(tenant, "cli", "casebook/key rotate");
    let is_watched = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let told = |so_far: &Rotated| {
        if is_watched {
            eprint!("\r\x1b[K{} blobs", so_far.rewrapped + so_far.passed_over);
        }
    };
    let rotated = store.rotate_keys(keys, caller, told).await;
    if is_watched {
        eprintln!();
    }
    let Rotated { rewrapped, passed_over, unknown, damaged, parts } = rotated?;
    print(&format!("{rewrapped} blobs are wrapped by the first key now"));
    if passed_over > 0 {
        print(&format!("{passed_over} went away or were done by somebody else meanwhile"));
    }
    for (key_id, blobs) in &unknown {
        print(&format!(
            "{blobs} are under the key \"{key_id}\", which is not there: add its line and run this again"
        ));
    }
    if damaged > 0 {
        print(&format!(
            "{damaged} have a damaged key that nothing opens: upload their bytes again, or restore the database"
        ));
    }
    if parts > 0 {
        print(&format!(
            "{parts} parts of uploads under way are under other keys: keep their lines until those are completed, or for \
             7 days, when the last of them has expired"
        ));
    }
    if unknown.is_empty() && damaged == 0 && parts == 0 {
        print("all blobs are under the first key; the others open only backups from before");
        return Ok(exit::OK);
    }
    Ok(if unknown.is_empty() && damaged == 0 { exit::OK } else { exit::FAILED })
}

async fn require_tenant(store: &Store, tenant: &str) -> Result<(), Failure> {
    match store.standing(tenant).await? {
        Some(_) => Ok(()),
        None => Err(Failure(
            exit::FAILED,
            format!(
                "there is no tenant \"{tenant}\"; make it with `casebook tenant create {tenant}`"
            ),
        )),
    }
}

async fn tokens(store: &Store, command: cli::Token) -> Result<u8, Failure> {
    match command {
        cli::Token::Create { tenant, roles, name, expires_in } => {
            require_tenant(store, &tenant).await?;
            let roles =
                roles.into_iter().filter_map(|role| Role::from_name(role.as_str())).collect();
            let expire_time = expires_in.map(|span| SystemTime::now() + span);
            let (change, secret) = mint(name.unwrap_or_default(), roles, expire_time)?;
            let caller = program(&tenant, "cli", "casebook/token create");
            store.write(caller, WriteOptions::default(), change).await?;
            eprintln!("This is the only time the token is shown:");
            print(&secret);
        }
        cli::Token::List { tenant } => {
            require_tenant(store, &tenant).await?;
            for token in all::<ApiToken>(store, &tenant, &api_token::LISTING).await? {
                let time = |time: Option<SystemTime>| time.map(casebook::store::canonical::rfc3339);
                let state = match (time(token.revoke_time), time(token.expire_time)) {
                    (Some(revoked), _) => format!("revoked {revoked}"),
                    (None, Some(expires)) => format!("expires {expires}"),
                    (None, None) => "does not expire".into(),
                };
                print(&format!("{}\t{}\t{state}\t{}", token.id, token.roles(), token.display_name));
            }
        }
        cli::Token::Revoke { tenant, id } => {
            require_tenant(store, &tenant).await?;
            let caller = program(&tenant, "cli", "casebook/token revoke");
            store.write(caller, WriteOptions::default(), revoke(id.clone())).await?;
            print(&format!(
                "revoked {id}; servers that are running notice within credential_cache_ms"
            ));
        }
    }
    Ok(exit::OK)
}

async fn tenants(store: &Store, command: cli::Tenant) -> Result<u8, Failure> {
    match command {
        cli::Tenant::Create { id } => {
            let rows = vec![Tenant::new(id.clone(), String::new(), 1)];
            let caller = program(SYSTEM_TENANT, "cli", "casebook/tenant create");
            let create = Create { rows, on_conflict: OnConflict::Fail };
            store.write(caller, WriteOptions::default(), create).await?;
            print(&format!("created {id}"));
        }
        cli::Tenant::List => {
            for tenant in all::<Tenant>(store, SYSTEM_TENANT, &tenant::LISTING).await? {
                let state = format!("{:?}", tenant::state_of(tenant.state)).to_lowercase();
                print(&format!("{}\t{state}\t{}", tenant.id, tenant.display_name));
            }
        }
    }
    Ok(exit::OK)
}

/// Every row of a listing, in the order of creation.
async fn all<R: FromRow>(
    store: &Store,
    tenant: &str,
    listing: &'static Listing,
) -> Result<Vec<R>, Failure> {
    let field = Field::find(listing.fields, "create_time")
        .ok_or_else(|| Error::internal("no create_time"))?;
    let order = vec![Order { field, desc: false }];
    let mut query = ListQuery { order, limit: 1000, ..ListQuery::default() };
    let mut rows = Vec::new();
    loop {
        let caller = program(tenant, "cli", "casebook/list");
        let page = store.list::<R>(&caller, listing, query.clone(), false).await?;
        rows.extend(page.rows);
        let Some(key) = page.next else { return Ok(rows) };
        query.after = casebook::store::list::Cursor::parse(&query.order, &key);
        query.snapshot = Some(page.seq);
    }
}

async fn record_demo(client: Client, count: u32, concurrency: u32) -> Result<u8, Failure> {
    let options = demo::Options {
        address: client.address,
        token: client.token.map(|token| token.expose().to_owned()),
        tenant: None,
        count: count as usize,
        concurrency: concurrency as usize,
    };
    match demo::run(options).await {
        Ok(_) => Ok(exit::OK),
        Err(error @ demo::DemoError::Unreachable { .. }) => {
            Err(Failure(exit::UNREACHABLE, error.to_string()))
        }
        Err(error) => Err(Failure(exit::FAILED, error.to_string())),
    }
}

fn server_of(env_file: Option<&Path>, target: cli::Target) -> Result<transfer::Server, Failure> {
    let cli::Target { address, token, tenant } = target;
    let Client { address, token } =
        Client::from_process(env_file, address, token).map_err(usage)?;
    let token = token.map(|token| token.expose().to_owned());
    Ok(transfer::Server { address, token, tenant })
}

impl From<TransferError> for Failure {
    fn from(error: TransferError) -> Self {
        let code = match &error {
            TransferError::Usage(_) => exit::USAGE,
            TransferError::Unreachable { .. } => exit::UNREACHABLE,
            TransferError::Failed(_) => exit::FAILED,
        };
        Self(code, error.to_string())
    }
}

async fn export(options: Export) -> Result<u8, Failure> {
    for (kind, count) in transfer::export(options).await? {
        eprintln!("{kind:20}{count:>11}");
    }
    Ok(exit::OK)
}

async fn import(server: transfer::Server, command: cli::Import) -> Result<u8, Failure> {
    let cli::Import { target: _, input, from, on_conflict, state, concurrency } = command;
    let concurrency = concurrency as usize;
    let report = match from {
        cli::ImportFrom::Jsonl { unsealed } => {
            let options =
                transfer::Import { server, input, on_conflict, state, unsealed, concurrency };
            transfer::import(options).await?
        }
        #[cfg(feature = "sqlite")]
        cli::ImportFrom::Sqlite { work } => {
            let database = input;
            let options =
                transfer::FromSqlite { server, database, work, on_conflict, state, concurrency };
            transfer::import_sqlite(options).await?
        }
    };
    print(&report.to_string());
    match &report.refused {
        None => Ok(exit::OK),
        Some(list) => {
            let count = report.refused();
            eprintln!("casebook: {count} lines are refused; they are listed in {}", list.display());
            Ok(exit::FAILED)
        }
    }
}

fn unreachable(client: &Client, error: &dyn std::error::Error) -> Failure {
    Failure(exit::UNREACHABLE, format!("{} cannot be reached: {error}", client.address))
}

/// A connection whose calls take no longer than that.
async fn connect(client: &Client, timeout: Duration) -> Result<Channel, Failure> {
    let endpoint = Endpoint::from_shared(client.address.clone())
        .map_err(|error| {
            Failure(exit::USAGE, format!("{:?} is not an address: {error}", client.address))
        })?
        .connect_timeout(Duration::from_secs(5))
        .timeout(timeout);
    endpoint.connect().await.map_err(|error| unreachable(client, &error))
}

/// Archives until nothing is left that is old enough.
async fn archive_audit(
    client: Client,
    tenant: Option<String>,
    older_than: Duration,
) -> Result<u8, Failure> {
    let channel = connect(&client, Duration::from_secs(60)).await?;
    let mut service = AuditServiceClient::new(channel);
    let token = client.token.as_ref().map(|token| format!("Bearer {}", token.expose()));
    let mut headers = MetadataMap::new();
    for (name, value) in [("authorization", token), ("x-casebook-tenant", tenant)] {
        if let Some(value) = value {
            let value = value.parse().map_err(|_| {
                Failure(exit::USAGE, format!("{name} has bytes that no header may"))
            })?;
            headers.insert(name, value);
        }
    }
    let span = older_than.try_into().map_err(Error::internal)?;
    loop {
        let mut request = tonic::Request::new(ArchiveAuditEntriesRequest {
            until: Some(Until::OlderThan(span)),
            ..Default::default()
        });
        *request.metadata_mut() = headers.clone();
        let answer = match service.archive_audit_entries(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) if status.code() == tonic::Code::Unavailable => {
                return Err(unreachable(&client, &status));
            }
            Err(status) => return Err(Failure(exit::FAILED, status.message().into())),
        };
        if answer.archived_count == 0 {
            return Ok(exit::OK);
        }
        let sha256 = hex(&answer.segment_sha256);
        let (first, last) = (answer.first_seq, answer.last_seq);
        print(&format!("{first}-{last}  {}  {sha256}", answer.segment));
    }
}

async fn check_health(client: Client, service: String) -> Result<u8, Failure> {
    let channel = connect(&client, Duration::from_secs(5)).await?;
    let answer = HealthClient::new(channel).check(HealthCheckRequest { service }).await;
    let status = match answer {
        Ok(answer) => answer.into_inner().status(),
        Err(status) if status.code() == tonic::Code::NotFound => {
            return Err(Failure(exit::FAILED, status.message().into()));
        }
        Err(status) => return Err(unreachable(&client, &status)),
    };
    print(status.as_str_name());
    Ok(if status == ServingStatus::Serving { exit::OK } else { exit::FAILED })
}
