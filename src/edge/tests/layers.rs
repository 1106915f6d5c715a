//! Each layer by itself, and their order, around a service that stands in for the routes.

use super::*;
use crate::edge::explain::Explain;
use crate::store::caller::{Caller, Role, SYSTEM_TENANT};
use futures_util::StreamExt as _;
use futures_util::stream;
use http::{HeaderValue, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use std::pin::pin;
use std::task::Poll;
use tonic::Code;
use tonic_types::StatusExt as _;
use tower::{ServiceExt as _, service_fn};

const GET: &str = "/casebook.v1.DecisionService/GetDecision";
const CREATE: &str = "/casebook.v1.DecisionService/CreateDecision";
const HEALTH: &str = "/grpc.health.v1.Health/Check";

fn request(path: &str, headers: &[(&'static str, &str)]) -> Request<Body> {
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = path.parse().unwrap();
    for (name, value) in headers {
        request.headers_mut().append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    request
}

fn ok() -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    body([Ok(Frame::data(Bytes::from_static(b"12345"))), Ok(Frame::trailers(trailers))])
}

fn body<const N: usize>(frames: [Result<Frame<Bytes>, Status>; N]) -> Response<Body> {
    Response::new(Body::new(StreamBody::new(stream::iter(frames))))
}

/// Sends one request through the whole edge and reads the answer to its end.
async fn through<B, F>(
    edge: &Edge,
    request: Request<Body>,
    inner: F,
) -> (HeaderMap, Option<HeaderMap>)
where
    F: FnMut(Request<metrics::CountedBody<Body>>) -> B + Clone + Send + 'static,
    B: Future<Output = Result<Response<Body>, Infallible>> + Send + 'static,
{
    let response = layers(edge.clone()).layer(service_fn(inner)).oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let collected = body.collect().await.map_err(|_| "body").unwrap();
    (parts.headers, collected.trailers().cloned())
}

async fn status_of(edge: &Edge, request: Request<Body>) -> (Code, String) {
    let (headers, trailers) = through(edge, request, async |_| Ok(ok())).await;
    let status = Status::from_header_map(trailers.as_ref().unwrap_or(&headers)).unwrap();
    let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    (status.code(), reason)
}

fn page_has(edge: &Edge, line: &str) {
    let page = edge.metrics.text();
    assert!(page.lines().any(|l| l == line), "{line}\n{page}");
}

/// The caller that the handler saw.
async fn caller(edge: &Edge, request: Request<Body>) -> Caller {
    let seen = Arc::new(Mutex::new(None));
    let slot = seen.clone();
    through(edge, request, move |request| {
        *slot.lock().unwrap() = request.extensions().get::<Caller>().cloned();
        async { Ok(ok()) }
    })
    .await;
    let caller = seen.lock().unwrap().take();
    caller.expect("the handler did not run, or without a caller")
}

fn bearer_of(uid: Uuid) -> String {
    format!("Bearer {}", token(uid, SECRET))
}

#[test]
fn layers_stand_in_their_order() {
    let fake = FakeDirectory::default();
    let inner =
        service_fn(async |_: Request<metrics::CountedBody<Body>>| Ok::<_, Infallible>(ok()));
    let service = layers(edge(&fake)).layer(inner);
    let name = std::any::type_name_of_val(&service);
    let order = [
        "::MapRequest<",
        "::SetRequestId<",
        "::PropagateRequestId<",
        "::Trace<",
        "::CountCalls<",
        "::Explain<",
        "::CatchPanic<",
        "::Shed<",
        "::Authenticate<",
        "::Deadline<",
        "::ServiceFn<",
    ];
    let places: Vec<_> =
        order.map(|layer| name.find(layer).unwrap_or_else(|| panic!("{layer}: {name}"))).into();
    assert!(places.is_sorted(), "{name}");
}

#[tokio::test]
async fn a_good_client_id_is_kept_and_a_bad_one_replaced() {
    let edge = edge(&FakeDirectory::default());
    let answered = async |id: Option<&str>| {
        let headers: Vec<_> = id.map(|id| ("x-request-id", id)).into_iter().collect();
        let (headers, _) = through(&edge, request(HEALTH, &headers), async |_| Ok(ok())).await;
        headers["x-request-id"].to_str().unwrap().to_owned()
    };
    let longest = "a".repeat(128);
    for good in ["r-1", "two words", &longest] {
        assert_eq!(answered(Some(good)).await, good);
    }
    let too_long = "a".repeat(129);
    for bad in ["", "tab\there", "é", &too_long] {
        let id = answered(Some(bad)).await;
        assert!(id != bad && id.len() > 16, "{id}");
    }
    let (first, second) = (answered(None).await, answered(None).await);
    assert_ne!(first, second);
    let twice = request(HEALTH, &[("x-request-id", "a"), ("x-request-id", "b")]);
    let (headers, _) = through(&edge, twice, async |_| Ok(ok())).await;
    assert!(headers["x-request-id"].len() > 16);
}

#[tokio::test]
async fn calls_are_counted_by_how_they_end() {
    let edge = edge(&FakeDirectory::default());
    let count = |status: &str, n: u32| {
        let labels =
            format!("grpc_method=\"grpc.health.v1.Health/Check\",grpc_status=\"{status}\"");
        page_has(&edge, &format!("grpc_server_call_duration_seconds_count{{{labels}}} {n}"));
    };
    through(&edge, request(HEALTH, &[]), async |_| Ok(ok())).await;
    count("OK", 1);
    let labels = "{grpc_method=\"grpc.health.v1.Health/Check\",grpc_status=\"OK\"}";
    page_has(
        &edge,
        &format!("grpc_server_call_sent_total_compressed_message_size_bytes_sum{labels} 5.0"),
    );

    // In the headers, in the trailers, and nowhere.
    through(&edge, request(HEALTH, &[]), async |_| Ok(refusal(Error::not_found("x", "y")))).await;
    count("NOT_FOUND", 1);
    let aborted = || {
        let mut trailers = HeaderMap::new();
        Status::aborted("later").add_header(&mut trailers).unwrap();
        body([Ok(Frame::data(Bytes::from_static(b"1"))), Ok(Frame::trailers(trailers))])
    };
    through(&edge, request(HEALTH, &[]), move |_| std::future::ready(Ok(aborted()))).await;
    count("ABORTED", 1);
    through(&edge, request(HEALTH, &[]), async |_| Ok(body([]))).await;
    count("UNKNOWN", 1);

    // A caller who goes away: before the answer, and in the middle of it.
    let call = layers(edge.clone())
        .layer(service_fn(async |_: Request<metrics::CountedBody<Body>>| {
            std::future::pending().await
        }))
        .oneshot(request(HEALTH, &[]));
    assert!(call.now_or_never().is_none());
    count("CANCELLED", 1);
    let response = layers(edge.clone())
        .layer(service_fn(async |_: Request<metrics::CountedBody<Body>>| Ok(ok())))
        .oneshot(request(HEALTH, &[]))
        .await
        .unwrap();
    page_has(&edge, "grpc_server_calls_in_flight{grpc_method=\"grpc.health.v1.Health/Check\"} 1");
    drop(response);
    count("CANCELLED", 2);
    page_has(&edge, "grpc_server_calls_in_flight{grpc_method=\"grpc.health.v1.Health/Check\"} 0");
    page_has(
        &edge,
        "grpc_server_calls_started_total{grpc_method=\"grpc.health.v1.Health/Check\"} 6",
    );
}

#[tokio::test]
async fn what_is_received_is_counted_too() {
    let edge = edge(&FakeDirectory::default());
    let sent = request(HEALTH, &[]).map(|_| Body::new(http_body_util::Full::from("1234567")));
    through(&edge, sent, async |request: Request<metrics::CountedBody<Body>>| {
        request.into_body().collect().await.unwrap();
        Ok(ok())
    })
    .await;
    let labels = "{grpc_method=\"grpc.health.v1.Health/Check\",grpc_status=\"OK\"}";
    page_has(
        &edge,
        &format!("grpc_server_call_rcvd_total_compressed_message_size_bytes_sum{labels} 7.0"),
    );
}

#[tokio::test]
async fn unknown_methods_share_a_label_and_are_unimplemented() {
    let edge = edge(&FakeDirectory::default());
    for path in ["/no.Such/Method", "/casebook.v1.DecisionService/Nope", "/", "/x"] {
        let (code, reason) = status_of(&edge, request(path, &[])).await;
        assert_eq!((code, reason.as_str()), (Code::Unimplemented, "UNIMPLEMENTED"), "{path}");
    }
    page_has(&edge, "grpc_server_calls_started_total{grpc_method=\"other\"} 4");
    assert!(!edge.metrics.text().contains("Nope"));
}

#[tokio::test]
async fn a_panic_is_an_answer() {
    let edge = edge(&FakeDirectory::default());
    let (headers, trailers) =
        through(&edge, request(HEALTH, &[]), async |_| panic!("secret {}", 1)).await;
    assert!(trailers.is_none());
    assert_eq!(headers[header::CONTENT_TYPE], "application/grpc");
    assert!(headers.contains_key("x-request-id"));
    let status = Status::from_header_map(&headers).unwrap();
    let info = status.get_details_error_info().unwrap();
    assert_eq!((status.code(), info.reason.as_str()), (Code::Internal, "INTERNAL"));
    assert!(status.message().contains(&info.metadata["incident_id"]));
    assert!(!status.message().contains("secret"));
}

#[tokio::test]
async fn a_panic_in_a_stream_is_its_trailers() {
    let edge = edge(&FakeDirectory::default());
    let panicking = || {
        let first = stream::iter([Ok::<_, Status>(Frame::data(Bytes::from_static(b"1")))]);
        let then = stream::poll_fn(|_| -> Poll<Option<_>> { panic!("in the stream") });
        Response::new(Body::new(StreamBody::new(first.chain(then))))
    };
    let (headers, trailers) =
        through(&edge, request(HEALTH, &[]), move |_| std::future::ready(Ok(panicking()))).await;
    assert!(!headers.contains_key("grpc-status"));
    let status = Status::from_header_map(&trailers.unwrap()).unwrap();
    assert_eq!(status.code(), Code::Internal);
    assert!(status.get_details_error_info().unwrap().metadata.contains_key("incident_id"));
    page_has(
        &edge,
        "grpc_server_call_duration_seconds_count{grpc_method=\"grpc.health.v1.Health/Check\",grpc_status=\"INTERNAL\"} 1",
    );
}

#[tokio::test]
async fn bare_trailers_are_completed() {
    let inner = service_fn(async |_: Request<Body>| {
        let mut trailers = HeaderMap::new();
        Status::out_of_range(
            "Error, encoded message length too large: found 9 bytes, the limit is: 4 bytes",
        )
        .add_header(&mut trailers)
        .unwrap();
        Ok::<_, Infallible>(body([Ok(Frame::trailers(trailers))]))
    });
    // As in the stack: the layer's inner future can be moved.
    let inner = tower::util::BoxService::new(inner);
    let explain: Explain<_> = ExplainLayer.layer(inner);
    let response = explain.oneshot(request(GET, &[])).await.unwrap();
    let trailers = response.into_body().collect().await.unwrap().trailers().cloned().unwrap();
    let status = Status::from_header_map(&trailers).unwrap();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.get_details_error_info().unwrap().reason, "MESSAGE_TOO_LARGE");
}

#[tokio::test]
async fn a_full_server_sheds_until_a_body_ends() {
    let fake = FakeDirectory::default();
    let mut edge = edge(&fake);
    edge.requests_in_flight_max = 1;
    let bearer = bearer_of(fake.add("acme", Roles::ALL));
    let call = || request(GET, &[("authorization", &bearer)]);
    let service = layers(edge.clone())
        .layer(service_fn(async |_: Request<metrics::CountedBody<Body>>| Ok(ok())));
    let held = service.clone().oneshot(call()).await.unwrap();

    let shed = service.clone().oneshot(call()).await.unwrap();
    let status = Status::from_header_map(shed.headers()).unwrap();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.get_details_error_info().unwrap().reason, "OVERLOADED");
    assert!(status.get_details_retry_info().is_some());
    assert_eq!(shed.headers()["grpc-retry-pushback-ms"], "250");
    let health = service.clone().oneshot(request(HEALTH, &[])).await.unwrap();
    assert!(!health.headers().contains_key("grpc-status"), "health is exempt");

    let mut body = pin!(held.into_body());
    while body.frame().await.is_some() {}
    let shed = service.clone().oneshot(call()).await.unwrap();
    assert!(shed.headers().contains_key("grpc-status"), "the body is still held");
    let _ = body;
    drop(shed);
}

#[tokio::test]
async fn a_dropped_body_makes_room() {
    let fake = FakeDirectory::default();
    let mut edge = edge(&fake);
    edge.requests_in_flight_max = 1;
    let bearer = bearer_of(fake.add("acme", Roles::ALL));
    let call = || request(GET, &[("authorization", &bearer)]);
    let service =
        layers(edge).layer(service_fn(async |_: Request<metrics::CountedBody<Body>>| Ok(ok())));
    drop(service.clone().oneshot(call()).await.unwrap());
    let next = service.clone().oneshot(call()).await.unwrap();
    assert!(!next.headers().contains_key("grpc-status"));
}

#[tokio::test]
async fn credentials_are_asked_for() {
    let fake = FakeDirectory::default();
    let edge = edge(&fake);
    let uid = fake.add("acme", Roles::of(&[Role::Reader]));
    let good = bearer_of(uid);
    let refused =
        async |headers: &[(&'static str, &str)]| status_of(&edge, request(GET, headers)).await;
    let missing = (Code::Unauthenticated, "TOKEN_MISSING".to_owned());
    let invalid = (Code::Unauthenticated, "TOKEN_INVALID".to_owned());
    assert_eq!(refused(&[]).await, missing);
    assert_eq!(refused(&[("authorization", "")]).await, missing);
    for bad in [
        "Bearer",
        "Bearer ",
        "Basic eA==",
        "Bearer cbk_x",
        &token(uid, SECRET),
        &bearer_of(Uuid::now_v7()),
    ] {
        assert_eq!(refused(&[("authorization", bad)]).await, invalid, "{bad}");
    }
    assert_eq!(refused(&[("authorization", &good), ("authorization", &good)]).await, invalid);
    assert_eq!(refused(&[("authorization", &good)]).await.0, Code::Ok);
    assert_eq!(refused(&[("authorization", &good.replace("Bearer", "bearer"))]).await.0, Code::Ok);
    let write = status_of(&edge, request(CREATE, &[("authorization", &good)])).await;
    assert_eq!(write, (Code::PermissionDenied, "ROLE_MISSING".to_owned()));
    page_has(&edge, "casebook_auth_failures_total{reason=\"TOKEN_MISSING\"} 2");
    page_has(&edge, "casebook_auth_failures_total{reason=\"ROLE_MISSING\"} 1");

    fake.fail(true);
    let unknown = bearer_of(Uuid::now_v7());
    assert_eq!(refused(&[("authorization", &unknown)]).await.0, Code::Unavailable);
}

#[tokio::test]
async fn only_the_system_names_other_tenants() {
    let fake = FakeDirectory::default();
    let edge = edge(&fake);
    let own = bearer_of(fake.add("acme", Roles::ALL));
    let system = bearer_of(fake.add(SYSTEM_TENANT, Roles::ALL));
    fake.add("other", Roles::ALL);
    let ask = async |bearer: &str, tenant: &str| {
        let headers = [("authorization", bearer), ("x-casebook-tenant", tenant)];
        status_of(&edge, request(GET, &headers)).await
    };
    let mismatch = (Code::PermissionDenied, "TENANT_MISMATCH".to_owned());
    assert_eq!(ask(&own, "acme").await.0, Code::Ok);
    for named in ["other", "nobody", "system", "ACME", "", "é"] {
        assert_eq!(ask(&own, named).await, mismatch, "{named}");
    }
    assert_eq!(ask(&system, "other").await.0, Code::Ok);
    assert_eq!(ask(&system, "nobody").await, mismatch);
    assert_eq!(ask(&system, "no body").await, mismatch);
    let seen =
        caller(&edge, request(GET, &[("authorization", &system), ("x-casebook-tenant", "other")]))
            .await;
    assert_eq!(&*seen.tenant, "other");
    assert!(seen.is_system);
}

#[tokio::test]
async fn tenants_that_take_no_calls() {
    let fake = FakeDirectory::default();
    let edge = edge(&fake);
    let uid = fake.add("acme", Roles::ALL);
    let bearer = bearer_of(uid);
    let system_uid = fake.add(SYSTEM_TENANT, Roles::ALL);
    let system = bearer_of(system_uid);
    let ask =
        async |path: &str| status_of(&edge, request(path, &[("authorization", &bearer)])).await;
    let refused = (Code::FailedPrecondition, "READ_ONLY".to_owned());

    fake.change(uid, |credential| credential.standing.state = TenantState::ReadOnly);
    fake.set_tenant("acme", TenantState::ReadOnly);
    assert_eq!(ask(GET).await.0, Code::Ok);
    assert_eq!(ask(CREATE).await, refused);
    let named = [("authorization", &*system), ("x-casebook-tenant", "acme")];
    assert_eq!(status_of(&edge, request(CREATE, &named)).await, refused);

    fake.change(uid, |credential| credential.standing.state = TenantState::Suspended);
    edge.authenticator.forget_tenant("acme");
    assert_eq!(ask(GET).await, refused);
    assert_eq!(ask("/casebook.v1.TenantService/WhoAmI").await, refused);

    fake.change(system_uid, |credential| credential.standing.state = TenantState::Suspended);
    edge.authenticator.forget(system_uid);
    assert_eq!(status_of(&edge, request(GET, &named)).await, refused);
}

#[tokio::test]
async fn the_handler_sees_its_caller() {
    let fake = FakeDirectory::default();
    let edge = edge(&fake);
    let uid = fake.add("acme", Roles::of(&[Role::Writer]));
    let bearer = bearer_of(uid);
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let parent = format!("00-{trace}-b7ad6b7169203331-01");
    let headers = [
        ("authorization", &*bearer),
        ("x-casebook-actor", "Zoë"),
        ("x-request-id", "r-1"),
        ("user-agent", "test/1"),
        ("traceparent", &parent),
        ("grpc-timeout", "5S"),
    ];
    let before = Instant::now();
    let seen = caller(&edge, request(CREATE, &headers)).await;
    assert_eq!(&*seen.tenant, "acme");
    assert_eq!(&*seen.principal, format!("token:{}", uid.simple()));
    assert_eq!((&*seen.actor, &*seen.request_id, &*seen.user_agent), ("Zoë", "r-1", "test/1"));
    assert_eq!(&*seen.trace_id, trace);
    assert_eq!(seen.method, "casebook.v1.DecisionService/CreateDecision");
    assert_eq!(seen.roles, Roles::of(&[Role::Writer]));
    assert!(!seen.is_system);
    let left = seen.deadline - before;
    assert!(left > Duration::from_secs(4) && left < Duration::from_secs(6), "{left:?}");

    let actor =
        |actor: &str| request(CREATE, &[("authorization", &bearer), ("x-casebook-actor", actor)]);
    assert_eq!(&*caller(&edge, actor(&"a".repeat(255))).await.actor, "a".repeat(255));
    for bad in ["a".repeat(256), "tab\there".into()] {
        let (headers, _) = through(&edge, actor(&bad), async |_| Ok(ok())).await;
        let status = Status::from_header_map(&headers).unwrap();
        assert_eq!(status.code(), Code::InvalidArgument);
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, "x-casebook-actor");
    }
    let mut latin = actor("a");
    latin.headers_mut().insert("x-casebook-actor", HeaderValue::from_bytes(b"\xe9").unwrap());
    assert_eq!(status_of(&edge, latin).await.0, Code::InvalidArgument);
}

#[tokio::test]
async fn without_authentication_everyone_is_anonymous() {
    let fake = FakeDirectory::default();
    fake.add("acme", Roles::ALL);
    let edge = edge_as(AuthMode::None { default_tenant: "acme".into() }, &fake);
    let seen = caller(&edge, request(CREATE, &[])).await;
    assert_eq!((&*seen.principal, &*seen.tenant, seen.roles), ("anonymous", "acme", Roles::ALL));
    let named = |tenant| request(GET, &[("x-casebook-tenant", tenant)]);
    let mismatch = (Code::PermissionDenied, "TENANT_MISMATCH".to_owned());
    assert_eq!(status_of(&edge, named("nobody")).await, mismatch);
    assert_eq!(
        status_of(&edge, request("/casebook.v1.TenantService/ListTenants", &[])).await.0,
        Code::PermissionDenied
    );
    fake.add(SYSTEM_TENANT, Roles::ALL);
    let in_system =
        request("/casebook.v1.TenantService/ListTenants", &[("x-casebook-tenant", "system")]);
    assert_eq!(status_of(&edge, in_system).await.0, Code::Ok);
}

#[tokio::test]
async fn calls_end_at_their_deadline() {
    let mut edge = edge(&FakeDirectory::default());
    edge.deadline.max = Duration::from_millis(60);
    let hang = async |timeout: &str| {
        let began = Instant::now();
        let request = request(HEALTH, &[("grpc-timeout", timeout)]);
        let (headers, _) = through(&edge, request, async |_| std::future::pending().await).await;
        let status = Status::from_header_map(&headers).unwrap();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert_eq!(status.get_details_error_info().unwrap().reason, "DEADLINE_EXCEEDED");
        began.elapsed()
    };
    assert!(hang("50m").await >= Duration::from_millis(48));
    assert!(hang("100m").await >= Duration::from_millis(98), "clamped, with grace");

    let headers = [("grpc-timeout", "0n")];
    let (headers, _) = through(&edge, request(HEALTH, &headers), async |_| panic!("it ran")).await;
    assert_eq!(Status::from_header_map(&headers).unwrap().code(), Code::DeadlineExceeded);
    let (code, reason) = status_of(&edge, request(HEALTH, &[("grpc-timeout", "soon")])).await;
    assert_eq!((code, reason.as_str()), (Code::InvalidArgument, "FIELD_INVALID"));
}

#[tokio::test]
async fn a_slow_directory_does_not_outstay_the_deadline() {
    let fake = FakeDirectory::default();
    let edge = edge(&fake);
    let bearer = bearer_of(fake.add("acme", Roles::ALL));
    fake.delay(Duration::from_secs(3600));
    for timeout in ["0n", "50m"] {
        let headers = [("authorization", &*bearer), ("grpc-timeout", timeout)];
        assert_eq!(status_of(&edge, request(GET, &headers)).await.0, Code::DeadlineExceeded);
    }
}
