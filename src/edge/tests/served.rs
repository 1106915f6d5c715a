//! The whole edge in a real server on a real socket, as a client sees it.

use super::*;
use crate::pb::admin_service_client::AdminServiceClient;
use crate::pb::admin_service_server::{AdminService, AdminServiceServer};
use crate::pb::health::HealthCheckRequest;
use crate::pb::health::health_check_response::ServingStatus;
use crate::pb::health::health_client::HealthClient;
use crate::pb::health::health_server::HealthServer;
use crate::pb::{
    self, GetCapabilitiesRequest, GetCapabilitiesResponse, GetStatusRequest, GetStatusResponse,
};
use crate::rpc::health::HealthState;
use crate::store::caller::Caller;
use crate::telemetry::tests::capture;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::client::Grpc;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Server};
use tonic::{Code, Response};
use tonic_prost::ProstCodec;
use tonic_types::{ErrorDetails, StatusExt as _};

const SIZE_MAX: usize = 1024;

/// GetStatus panics, hangs or answers, as the actor says; GetCapabilities tells who called.
struct FakeAdmin;

#[tonic::async_trait]
impl AdminService for FakeAdmin {
    async fn get_status(
        &self,
        request: tonic::Request<GetStatusRequest>,
    ) -> Result<Response<GetStatusResponse>, Status> {
        match &*request.extensions().get::<Caller>().unwrap().actor {
            "panic" => panic!("secret"),
            "hang" => std::future::pending().await,
            _ => Ok(Response::new(GetStatusResponse::default())),
        }
    }

    async fn get_capabilities(
        &self,
        request: tonic::Request<GetCapabilitiesRequest>,
    ) -> Result<Response<GetCapabilitiesResponse>, Status> {
        let caller = request.extensions().get::<Caller>().unwrap();
        let services = vec![caller.tenant.to_string(), caller.address.to_string()];
        Ok(Response::new(GetCapabilitiesResponse { services, ..Default::default() }))
    }
}

struct Served {
    address: SocketAddr,
    channel: Channel,
    health: HealthState,
    edge: Edge,
    bearer: String,
    stop: oneshot::Sender<()>,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Served {
    async fn start(requests_in_flight_max: usize) -> Served {
        let fake = FakeDirectory::default();
        let bearer = format!("Bearer {}", token(fake.add("acme", Roles::ALL), SECRET));
        fake.add("other", Roles::ALL);
        let edge = Edge { requests_in_flight_max, ..edge(&fake) };
        let health = HealthState::new(access::services());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let router = Server::builder()
            .layer(layers(edge.clone()))
            .add_service(HealthServer::new(health.clone()))
            .add_service(AdminServiceServer::new(FakeAdmin).max_decoding_message_size(SIZE_MAX));
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let server = tokio::spawn(router.serve_with_incoming_shutdown(incoming, async {
            let _ = stopped.await;
        }));
        let channel =
            Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        Served { address, channel, health, edge, bearer, stop, server }
    }

    fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone())
    }

    fn request<T>(&self, message: T, headers: &[(&'static str, &str)]) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        for (name, value) in headers {
            request.metadata_mut().insert(*name, value.parse().unwrap());
        }
        request
    }

    async fn status(&self, headers: &[(&'static str, &str)]) -> Result<(), Status> {
        let request = self.request(GetStatusRequest {}, headers);
        self.admin().get_status(request).await.map(|_| ())
    }

    /// Calls any path with any message.
    async fn send<M: prost::Message + Default + 'static>(
        &self,
        path: &'static str,
        message: M,
    ) -> Status {
        let mut grpc = Grpc::new(self.channel.clone());
        grpc.ready().await.unwrap();
        let request = self.request(message, &[("authorization", &self.bearer)]);
        let path = http::uri::PathAndQuery::from_static(path);
        let codec = ProstCodec::<M, GetStatusResponse>::default();
        grpc.unary(request, path, codec).await.unwrap_err()
    }
}

fn get_status() -> &'static Method {
    access::find("/casebook.v1.AdminService/GetStatus").unwrap()
}

fn failure(status: &Status) -> (Code, String, ErrorDetails) {
    let details = status.check_error_details().unwrap();
    let info = details.error_info().unwrap();
    assert_eq!(info.domain, "casebook");
    (status.code(), info.reason.clone(), details)
}

#[tokio::test]
async fn a_client_reads_every_refusal() {
    let served = Served::start(8).await;
    let refused = async |headers: &[(&'static str, &str)]| {
        let status = served.status(headers).await.unwrap_err();
        let (code, reason, details) = failure(&status);
        (code, reason, details, status)
    };
    let (code, reason, ..) = refused(&[]).await;
    assert_eq!((code, &*reason), (Code::Unauthenticated, "TOKEN_MISSING"));
    let wrong = format!("Bearer {}", token(Uuid::now_v7(), SECRET));
    let (code, reason, ..) = refused(&[("authorization", &wrong)]).await;
    assert_eq!((code, &*reason), (Code::Unauthenticated, "TOKEN_INVALID"));
    let bearer = &*served.bearer;
    let (code, reason, ..) =
        refused(&[("authorization", bearer), ("x-casebook-tenant", "other")]).await;
    assert_eq!((code, &*reason), (Code::PermissionDenied, "TENANT_MISMATCH"));
    let (code, reason, details, status) =
        refused(&[("authorization", bearer), ("x-casebook-actor", "panic")]).await;
    assert_eq!((code, &*reason), (Code::Internal, "INTERNAL"));
    assert!(details.error_info().unwrap().metadata.contains_key("incident_id"));
    assert!(!status.message().contains("secret"));
    assert!(status.metadata().get("x-request-id").is_some());

    served.status(&[("authorization", bearer)]).await.unwrap();
    let request = served.request(GetCapabilitiesRequest {}, &[("authorization", bearer)]);
    let seen = served.admin().get_capabilities(request).await.unwrap().into_inner();
    assert_eq!(seen.services, ["acme", "127.0.0.1"]);
}

#[tokio::test]
async fn the_log_tells_which_call_failed_and_never_what_it_carried() {
    let (lines, _guard) = capture("debug,h2=off,hyper=off,tower=off");
    let served = Served::start(8).await;
    let bearer = &*served.bearer;
    let named =
        |actor| [("authorization", bearer), ("x-casebook-actor", actor), ("x-request-id", actor)];
    served.status(&named("fine")).await.unwrap();
    let incident = served.status(&named("panic")).await.unwrap_err();
    served.status(&[("x-request-id", "stranger")]).await.unwrap_err();
    let of = |id: &str| -> Vec<serde_json::Value> {
        let text = lines.text();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines.filter(|line: &serde_json::Value| line["spans"][0]["request_id"] == id).collect()
    };
    let fine = of("fine");
    assert_eq!(fine.len(), 1, "{fine:?}");
    assert_eq!((&fine[0]["level"], &fine[0]["code"]), (&"DEBUG".into(), &"OK".into()));
    assert_eq!(fine[0]["spans"][0]["method"], "casebook.v1.AdminService/GetStatus");
    assert!(fine[0]["duration_ms"].is_number());
    let stranger = of("stranger");
    assert_eq!(stranger.len(), 1, "{stranger:?}");
    assert_eq!(
        (&stranger[0]["level"], &stranger[0]["code"]),
        (&"INFO".into(), &"UNAUTHENTICATED".into())
    );

    // The fault once, with its incident, and then how the call ended.
    let panicked = of("panic");
    let levels: Vec<_> = panicked.iter().map(|line| line["level"].as_str().unwrap()).collect();
    assert_eq!(levels, ["ERROR", "WARN"], "{panicked:?}");
    let (.., details) = failure(&incident);
    let incident_id = &details.error_info().unwrap().metadata["incident_id"];
    assert_eq!(panicked[0]["incident_id"], **incident_id);
    assert_eq!(panicked[0]["cause"], "panicked: secret");
    assert!(!lines.text().contains(SECRET));
}

#[tokio::test]
async fn tonic_s_own_failures_have_our_details() {
    let served = Served::start(8).await;
    let too_large = HealthCheckRequest { service: "x".repeat(2 * SIZE_MAX) };
    let (code, reason, _) = failure(&served.send(get_status().path, too_large).await);
    assert_eq!((code, &*reason), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"));

    // Its first field is a number; that of the health check is text.
    let malformed = pb::ResourceRef { kind: 1, ..Default::default() };
    let (code, reason, details) =
        failure(&served.send("/grpc.health.v1.Health/Check", malformed).await);
    assert_eq!((code, &*reason), (Code::InvalidArgument, "FIELD_INVALID"));
    assert!(details.bad_request().is_some());

    let (code, reason, _) = failure(&served.send("/no.Such/Method", GetStatusRequest {}).await);
    assert_eq!((code, &*reason), (Code::Unimplemented, "UNIMPLEMENTED"));
    // Known to the table, but not served here.
    let who = "/casebook.v1.TenantService/WhoAmI";
    let (code, reason, _) = failure(&served.send(who, GetStatusRequest {}).await);
    assert_eq!((code, &*reason), (Code::Unimplemented, "UNIMPLEMENTED"));
    let (code, reason, _) = failure(
        &served
            .send("/grpc.health.v1.Health/Check", HealthCheckRequest { service: "nobody".into() })
            .await,
    );
    assert_eq!((code, &*reason), (Code::NotFound, "NOT_FOUND"));
}

#[tokio::test]
async fn a_full_server_says_when_to_come_back() {
    let served = Served::start(1).await;
    let hanging = served.request(
        GetStatusRequest {},
        &[("authorization", &served.bearer), ("x-casebook-actor", "hang")],
    );
    let mut admin = served.admin();
    let hanging = tokio::spawn(async move { admin.get_status(hanging).await });
    let in_flight = &served.edge.metrics.call(Some(get_status().index)).in_flight;
    while in_flight.get() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let status = served.status(&[("authorization", &served.bearer)]).await.unwrap_err();
    let (code, reason, details) = failure(&status);
    assert_eq!((code, &*reason), (Code::ResourceExhausted, "OVERLOADED"));
    assert!(details.retry_info().unwrap().retry_delay.is_some());
    assert!(status.metadata().get("grpc-retry-pushback-ms").is_some());
    let mut health = HealthClient::new(served.channel.clone());
    health.check(HealthCheckRequest::default()).await.unwrap();

    // The caller goes away; its place is free again, and the call is counted as cancelled.
    hanging.abort();
    while in_flight.get() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    served.status(&[("authorization", &served.bearer)]).await.unwrap();
    let labels = "grpc_method=\"casebook.v1.AdminService/GetStatus\",grpc_status=\"CANCELLED\"";
    let line = format!("grpc_server_call_duration_seconds_count{{{labels}}} 1");
    assert!(served.edge.metrics.text().contains(&line));
}

/// One call over bare HTTP/2: tonic's client would end it itself, by its own timer. Returns at the answer's headers.
async fn call_without_a_timer(address: SocketAddr, headers: &[(&str, &str)]) {
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const SETTINGS: u8 = 4;
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let [high, low] = (payload.len() as u16).to_be_bytes();
        let mut frame = vec![0, high, low, kind, flags, 0, 0, 0, stream];
        frame.extend_from_slice(payload);
        frame
    };
    // Literal fields, neither indexed nor compressed.
    let literal = |(name, value): &(&str, &str)| {
        let sized = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
        [vec![0], sized(name), sized(value)].concat()
    };
    let fields: Vec<u8> = headers.iter().flat_map(literal).collect();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let sent = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(SETTINGS, 0, 0, &[]),
        frame(HEADERS, 0x4, 1, &fields),
        frame(DATA, 0x1, 1, &[0; 5]),
    ];
    stream.write_all(&sent.concat()).await.unwrap();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        stream.read_exact(&mut payload).await.unwrap();
        if (head[3], head[8]) == (HEADERS, 1) {
            return;
        }
    }
}

/// tonic's server ends a call at the client's deadline too, from outside our layers, which would see it cancelled.
#[tokio::test]
async fn we_end_a_call_before_tonic_does() {
    let served = Served::start(8).await;
    let timeouts = ["0n", "1m", "5m", "30m", "200m"];
    for timeout in timeouts {
        let headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", get_status().path),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("authorization", &*served.bearer),
            ("x-casebook-actor", "hang"),
            ("grpc-timeout", timeout),
        ];
        call_without_a_timer(served.address, &headers).await;
    }
    let count = "grpc_server_call_duration_seconds_count{grpc_method=\"casebook.v1.AdminService/GetStatus\"";
    let page = served.edge.metrics.text();
    let counts: Vec<_> = page.lines().filter(|line| line.starts_with(count)).collect();
    let expected = format!("{count},grpc_status=\"DEADLINE_EXCEEDED\"}} {}", timeouts.len());
    assert_eq!(counts, [expected]);
}

#[tokio::test]
async fn watch_streams_do_not_hold_the_shutdown() {
    let served = Served::start(8).await;
    let mut health = HealthClient::new(served.channel.clone());
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    served.health.set_ready(true);
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    served.health.set_draining();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    served.stop.send(()).unwrap();
    served.health.close();
    let status = watch.message().await.unwrap_err();
    let (code, reason, _) = failure(&status);
    assert_eq!((code, &*reason), (Code::Unavailable, "SHUTTING_DOWN"));
    tokio::time::timeout(Duration::from_secs(5), served.server).await.unwrap().unwrap().unwrap();
}
