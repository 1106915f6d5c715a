//! A world is one test's own database, and a client connected to a server on top of it.

use casebook::config::Config;
use casebook::embedded::{Embedded, Options};
use casebook::pb;
use casebook::rpc::json_object::Object;
use casebook::server::{Database, Server};
use casebook::store::migrate::Migrator;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::{OnceCell, oneshot};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config as PgConfig, NoTls};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_types::StatusExt;
use uuid::Uuid;

/// The PostgreSQL of the run: the one named by CASEBOOK_TEST_DATABASE_URL, or a private one that ends with the process.
struct Shared {
    config: PgConfig,
    _embedded: Option<Embedded>,
    _folder: Option<tempfile::TempDir>,
}

/// The runtime that outlives every test's own.
pub fn background() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::new().expect("a runtime"))
}

/// Where `make postgres` puts the fetched binaries.
pub fn postgres_search() -> Vec<PathBuf> {
    vec![PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".postgres")]
}

/// A folder that the unprivileged user PostgreSQL runs as can reach, too.
pub fn open_folder() -> tempfile::TempDir {
    open_folder_called("casebook-test-")
}

fn open_folder_called(prefix: &str) -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::Builder::new().prefix(prefix).tempdir().expect("a folder");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))
        .expect("its mode");
    folder
}

/// The folder of the run's PostgreSQL, named after the process: what is static is never dropped, so it stays when the run
/// ends, and the next run removes it.
fn folder_of_the_run() -> tempfile::TempDir {
    const PREFIX: &str = "casebook-test-run-";
    for found in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = found.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split_once('.'));
        if pid.is_some_and(|(pid, _)| !PathBuf::from("/proc").join(pid).exists()) {
            let _ = std::fs::remove_dir_all(found.path());
        }
    }
    open_folder_called(&format!("{PREFIX}{}.", std::process::id()))
}

async fn shared() -> &'static Shared {
    static SHARED: OnceCell<Shared> = OnceCell::const_new();
    SHARED
        .get_or_init(|| async {
            if let Ok(url) = std::env::var("CASEBOOK_TEST_DATABASE_URL") {
                let config = url.parse().expect("CASEBOOK_TEST_DATABASE_URL is a PostgreSQL URL");
                return Shared { config, _embedded: None, _folder: None };
            }
            let folder = folder_of_the_run();
            let options = Options {
                data_dir: folder.path().to_owned(),
                bin_dir: std::env::var_os("CASEBOOK_POSTGRES_BIN").map(Into::into),
                search: postgres_search(),
                // Nothing here outlives the run; what tests a crash of PostgreSQL starts its own.
                settings: vec![
                    ("fsync".into(), "off".into()),
                    ("max_connections".into(), "300".into()),
                    ("autovacuum".into(), "off".into()),
                ],
                start_timeout: Duration::from_secs(60),
            };
            let embedded = background()
                .spawn(Embedded::start(options))
                .await
                .expect("the start of PostgreSQL did not panic")
                .unwrap_or_else(|error| panic!("{error}"));
            Shared { config: embedded.config(), _embedded: Some(embedded), _folder: Some(folder) }
        })
        .await
}

/// The superuser's configuration for one database of the run's server.
pub async fn config_of(database: &str) -> PgConfig {
    let mut config = shared().await.config.clone();
    config.dbname(database);
    config
}

/// A session of the superuser, past the wall.
pub async fn connect(config: &PgConfig) -> Client {
    let (client, connection) = config.connect(NoTls).await.expect("PostgreSQL is up");
    tokio::spawn(connection);
    client
}

/// The same as a URL, for configuration.
pub fn url_of(config: &PgConfig) -> String {
    use tokio_postgres::config::Host;
    let part =
        |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap_or_default().to_vec()).unwrap();
    let user = config.get_user().unwrap_or("postgres");
    let auth = match config.get_password() {
        Some(password) => format!("{user}:{}", part(Some(password))),
        None => user.to_owned(),
    };
    let database = config.get_dbname().unwrap_or("postgres");
    let port = config.get_ports().first().copied().unwrap_or(5432);
    match config.get_hosts().first() {
        Some(Host::Unix(path)) => {
            let path = path.to_str().unwrap().replace('/', "%2F");
            format!("postgresql://{auth}@{path}:{port}/{database}")
        }
        Some(Host::Tcp(host)) => format!("postgresql://{auth}@{host}:{port}/{database}"),
        None => panic!("a database without a host"),
    }
}

/// The migrated database that every test's own is a copy of.
async fn template() -> &'static str {
    static TEMPLATE: OnceCell<String> = OnceCell::const_new();
    TEMPLATE
        .get_or_init(|| async {
            let name = format!("casebook_test_template_{}", std::process::id());
            let admin = connect(&config_of("postgres").await).await;
            admin
                .batch_execute(&format!("CREATE DATABASE {name}"))
                .await
                .expect("a template database");
            let config = config_of(&name).await;
            Migrator::connect(&config).await.unwrap().up().await.expect("migrations apply");
            wait_until_unused(&admin, &name).await;
            name
        })
        .await
}

async fn wait_until_unused(admin: &Client, database: &str) {
    for _ in 0..400 {
        if sessions(admin, database).await == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("sessions stay open on {database}");
}

async fn sessions(admin: &Client, database: &str) -> i64 {
    let count = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend'";
    admin.query_one(count, &[&database]).await.unwrap().get(0)
}

/// A database of one test's own, migrated or empty.
pub async fn new_database(migrated: bool) -> String {
    let name = format!("casebook_test_{}", Uuid::new_v4().simple());
    let admin = connect(&config_of("postgres").await).await;
    let create = if migrated {
        format!("CREATE DATABASE {name} TEMPLATE {} STRATEGY FILE_COPY", template().await)
    } else {
        format!("CREATE DATABASE {name}")
    };
    for _ in 0..400 {
        match admin.batch_execute(&create).await {
            Ok(()) => return name,
            // Another test is copying the template at this moment.
            Err(error) if error.code().is_some_and(|code| code.code() == "55006") => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    panic!("the template is never free");
}

/// Drops a test's database, which nobody may be using any more.
pub async fn drop_database(name: &str) {
    let admin = connect(&config_of("postgres").await).await;
    wait_until_unused(&admin, name).await;
    admin.batch_execute(&format!("DROP DATABASE {name}")).await.expect("the database goes");
}

/// One test's server, with its own database. `close` it at the end: that is when leaks show.
pub struct World {
    pub database: String,
    pub channel: Channel,
    pub address: String,
    pub pages: Option<std::net::SocketAddr>,
    stop: Option<oneshot::Sender<()>>,
    serving: Option<JoinHandle<casebook::Result<()>>>,
}

/// Settings of a world beyond the defaults: names as in the configuration.
pub type Settings<'a> = &'a [(&'a str, &'a str)];

impl World {
    /// Everyone is anonymous and may do everything, in the tenant that x-casebook-tenant names, else "default".
    pub async fn new() -> Self {
        Self::with(&[]).await
    }

    /// With settings of its own.
    pub async fn with(settings: Settings<'_>) -> Self {
        let database = new_database(true).await;
        Self::on(&database, &url_of(&config_of(&database).await), settings).await
    }

    /// A server on a database that is there, reached at `url`.
    pub async fn on(database: &str, url: &str, settings: Settings<'_>) -> Self {
        let defaults = [
            ("database_url", url),
            ("listen", "127.0.0.1:0"),
            ("metrics_listen", ""),
            ("auth", "none"),
            ("drain_delay_ms", "0"),
            ("drain_timeout_ms", "5000"),
            ("blob_store_url", "memory:"),
            // What tests do to bytes they do to a store; `blob::inline` is of small blobs in the database.
            ("blob_inline_max_bytes", "0"),
        ];
        let mut flags: Vec<(String, String)> = Vec::new();
        for (name, value) in defaults.iter().chain(settings) {
            flags.retain(|(known, _)| known != name);
            // Nothing is no URL: without a store the setting is not there.
            if (*name, *value) != ("blob_store_url", "") {
                flags.push(((*name).to_owned(), (*value).to_owned()));
            }
        }
        let config =
            Config::load(None, Vec::new(), flags).unwrap_or_else(|error| panic!("{error}"));
        let opened = Database::open(&config).await.unwrap_or_else(|error| panic!("{error}"));
        let server =
            Server::bind(config, &opened).await.unwrap_or_else(|error| panic!("{error:?}"));
        let (address, pages) = (server.address(), server.pages_address());
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(server.serve(async move {
            let _ = stopped.await;
        }));
        let channel = Endpoint::from_shared(address.clone()).unwrap().connect_lazy();
        Self {
            database: database.to_owned(),
            channel,
            address,
            pages,
            stop: Some(stop),
            serving: Some(serving),
        }
    }

    /// A session of the superuser on this world's database, past the wall.
    pub async fn superuser(&self) -> Client {
        connect(&config_of(&self.database).await).await
    }

    /// Makes a tenant.
    pub async fn tenant(&self, id: &str) {
        let request = pb::CreateTenantRequest { tenant_id: id.to_owned(), ..Default::default() };
        self.as_tenant("system").tenants().create_tenant(request).await.expect("a new tenant");
    }

    /// Calls as "anonymous" in the default tenant.
    pub fn anonymous(&self) -> As {
        As { channel: self.channel.clone(), headers: Vec::new() }
    }

    /// Calls in a tenant, under auth=none.
    pub fn as_tenant(&self, tenant: &str) -> As {
        self.anonymous().header("x-casebook-tenant", tenant)
    }

    /// Calls with an API token.
    pub fn with_token(&self, token: &str) -> As {
        self.anonymous().header("authorization", &format!("Bearer {token}"))
    }

    pub fn decisions(&self) -> pb::decision_service_client::DecisionServiceClient<Wire> {
        self.anonymous().decisions()
    }

    /// Stops the server as SIGTERM would and waits for it.
    pub async fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(serving) = self.serving.take() {
            serving.await.expect("the server did not panic").expect("the server ended well");
        }
    }

    /// Ends the world. Fails if the server left a session open.
    pub async fn close(mut self) {
        self.stop().await;
        drop_database(&self.database).await;
    }
}

impl Drop for World {
    fn drop(&mut self) {
        assert!(
            self.serving.is_none() || std::thread::panicking(),
            "the test did not close its world"
        );
    }
}

pub type Wire = InterceptedService<Channel, Headers>;

/// Somebody who calls: clients that send the same headers with every call.
#[derive(Clone)]
pub struct As {
    channel: Channel,
    headers: Vec<(&'static str, MetadataValue<Ascii>)>,
}

impl As {
    /// Calls a server that is not of a world.
    pub fn over(channel: Channel) -> Self {
        Self { channel, headers: Vec::new() }
    }

    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.parse().expect("a header value")));
        self
    }

    pub fn wire(&self) -> Wire {
        InterceptedService::new(self.channel.clone(), Headers(self.headers.clone()))
    }

    pub fn decisions(&self) -> pb::decision_service_client::DecisionServiceClient<Wire> {
        let client = pb::decision_service_client::DecisionServiceClient::new(self.wire());
        client.max_decoding_message_size(64 << 20).max_encoding_message_size(64 << 20)
    }

    pub fn documents(&self) -> pb::document_service_client::DocumentServiceClient<Wire> {
        let client = pb::document_service_client::DocumentServiceClient::new(self.wire());
        client.max_decoding_message_size(64 << 20).max_encoding_message_size(64 << 20)
    }

    pub fn models(&self) -> pb::model_service_client::ModelServiceClient<Wire> {
        let client = pb::model_service_client::ModelServiceClient::new(self.wire());
        client.max_decoding_message_size(64 << 20).max_encoding_message_size(64 << 20)
    }

    pub fn telemetry(&self) -> pb::telemetry_service_client::TelemetryServiceClient<Wire> {
        pb::telemetry_service_client::TelemetryServiceClient::new(self.wire())
    }

    pub fn policies(&self) -> pb::policy_service_client::PolicyServiceClient<Wire> {
        pb::policy_service_client::PolicyServiceClient::new(self.wire())
    }

    pub fn precedents(&self) -> pb::precedent_service_client::PrecedentServiceClient<Wire> {
        let client = pb::precedent_service_client::PrecedentServiceClient::new(self.wire());
        client.max_decoding_message_size(64 << 20).max_encoding_message_size(64 << 20)
    }

    pub fn search(&self) -> pb::search_service_client::SearchServiceClient<Wire> {
        let client = pb::search_service_client::SearchServiceClient::new(self.wire());
        client.max_decoding_message_size(64 << 20)
    }

    pub fn vectors(&self) -> pb::vector_service_client::VectorServiceClient<Wire> {
        let client = pb::vector_service_client::VectorServiceClient::new(self.wire());
        client.max_decoding_message_size(64 << 20).max_encoding_message_size(64 << 20)
    }

    pub fn syncs(&self) -> pb::sync_service_client::SyncServiceClient<Wire> {
        let client = pb::sync_service_client::SyncServiceClient::new(self.wire());
        client.max_decoding_message_size(64 << 20).max_encoding_message_size(64 << 20)
    }

    pub fn spaces(&self) -> pb::vector_space_service_client::VectorSpaceServiceClient<Wire> {
        pb::vector_space_service_client::VectorSpaceServiceClient::new(self.wire())
    }

    pub fn blobs(&self) -> pb::blob_service_client::BlobServiceClient<Wire> {
        let client = pb::blob_service_client::BlobServiceClient::new(self.wire());
        client.max_decoding_message_size(64 << 20).max_encoding_message_size(64 << 20)
    }

    pub fn evidence(&self) -> pb::evidence_service_client::EvidenceServiceClient<Wire> {
        let client = pb::evidence_service_client::EvidenceServiceClient::new(self.wire());
        client.max_decoding_message_size(64 << 20).max_encoding_message_size(64 << 20)
    }

    pub fn objects(&self) -> pb::object_service_client::ObjectServiceClient<Wire> {
        pb::object_service_client::ObjectServiceClient::new(self.wire())
    }

    pub fn operations(&self) -> pb::operation_service_client::OperationServiceClient<Wire> {
        pb::operation_service_client::OperationServiceClient::new(self.wire())
    }

    pub fn claims(&self) -> pb::claim_service_client::ClaimServiceClient<Wire> {
        let client = pb::claim_service_client::ClaimServiceClient::new(self.wire());
        client.max_decoding_message_size(64 << 20).max_encoding_message_size(64 << 20)
    }

    pub fn retention(&self) -> pb::retention_service_client::RetentionServiceClient<Wire> {
        pb::retention_service_client::RetentionServiceClient::new(self.wire())
    }

    pub fn transactions(&self) -> pb::transaction_service_client::TransactionServiceClient<Wire> {
        pb::transaction_service_client::TransactionServiceClient::new(self.wire())
    }

    pub fn audit(&self) -> pb::audit_service_client::AuditServiceClient<Wire> {
        pb::audit_service_client::AuditServiceClient::new(self.wire())
            .max_decoding_message_size(64 << 20)
    }

    pub fn tenants(&self) -> pb::tenant_service_client::TenantServiceClient<Wire> {
        pb::tenant_service_client::TenantServiceClient::new(self.wire())
    }

    pub fn admin(&self) -> pb::admin_service_client::AdminServiceClient<Wire> {
        pb::admin_service_client::AdminServiceClient::new(self.wire())
    }

    pub fn health(&self) -> pb::health::health_client::HealthClient<Wire> {
        pb::health::health_client::HealthClient::new(self.wire())
    }
}

/// Calls over a connection of one's own.
pub fn through(channel: Channel) -> As {
    As { channel, headers: Vec::new() }
}

/// Adds the caller's headers to each call.
#[derive(Clone)]
pub struct Headers(Vec<(&'static str, MetadataValue<Ascii>)>);

impl Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        for (name, value) in &self.0 {
            request.metadata_mut().insert(*name, value.clone());
        }
        Ok(request)
    }
}

/// The reason of a failure, as a program reads it.
pub fn reason(status: &Status) -> String {
    status.get_details_error_info().unwrap_or_else(|| panic!("no ErrorInfo in {status:?}")).reason
}

/// The fields that a failure names.
pub fn wrong_fields(status: &Status) -> Vec<String> {
    let details = status.get_details_bad_request();
    details
        .into_iter()
        .flat_map(|details| details.field_violations)
        .map(|violation| violation.field)
        .collect()
}

/// A decision to record: the smallest one that is complete.
pub fn decision(verdict: &str, confidence: f64) -> pb::Decision {
    pb::Decision {
        final_verdict: verdict.to_owned(),
        avg_confidence: Some(confidence),
        input_data: Some(object(&[("text", "hello")])),
        ..Default::default()
    }
}

/// A request to record it under an id; an empty id lets the server choose.
pub fn create(id: &str, decision: pb::Decision) -> pb::CreateDecisionRequest {
    pb::CreateDecisionRequest {
        decision_id: id.to_owned(),
        decision: Some(decision),
        options: None,
    }
}

/// The same under a request id.
pub fn create_once(
    request_id: &str,
    id: &str,
    decision: pb::Decision,
) -> pb::CreateDecisionRequest {
    pb::CreateDecisionRequest { options: Some(request(request_id)), ..create(id, decision) }
}

/// Options with a request id.
pub fn request(id: &str) -> pb::WriteOptions {
    pb::WriteOptions { request_id: id.to_owned(), ..Default::default() }
}

/// A flat object of texts.
pub fn object(members: &[(&str, &str)]) -> Object {
    tree(members).into()
}

/// The same to go on with.
pub fn tree(members: &[(&str, &str)]) -> prost_types::Struct {
    let value = |text: &str| prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue(text.to_owned())),
    };
    prost_types::Struct {
        fields: members.iter().map(|(key, text)| ((*key).to_owned(), value(text))).collect(),
    }
}

pub fn get(id: &str) -> pb::GetDecisionRequest {
    pb::GetDecisionRequest { decision_id: id.to_owned(), ..Default::default() }
}
