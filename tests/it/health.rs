//! Health, reflection and the pages for operators: F34, F122, F257 to F259.

use crate::help::*;
use crate::world::{World, create, decision};
use casebook::pb;
use pb::health::health_check_response::ServingStatus;
use pb::health::{HealthCheckRequest, HealthListRequest};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SERVICES: [&str; 21] = [
    "casebook.v1.AdminService",
    "casebook.v1.AuditService",
    "casebook.v1.BlobService",
    "casebook.v1.ClaimService",
    "casebook.v1.DecisionService",
    "casebook.v1.DocumentService",
    "casebook.v1.EvidenceService",
    "casebook.v1.ModelService",
    "casebook.v1.ObjectService",
    "casebook.v1.OperationService",
    "casebook.v1.PolicyService",
    "casebook.v1.PrecedentService",
    "casebook.v1.RetentionService",
    "casebook.v1.SearchService",
    "casebook.v1.SyncService",
    "casebook.v1.TelemetryService",
    "casebook.v1.TenantService",
    "casebook.v1.TransactionService",
    "casebook.v1.VectorService",
    "casebook.v1.VectorSpaceService",
    "grpc.health.v1.Health",
];

fn of(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.into() }
}

#[tokio::test]
async fn every_service_is_checked_and_listed_without_a_credential() {
    let (world, mut open) = guarded(&[]).await;
    let mut client = world.anonymous().health();
    for service in SERVICES.into_iter().chain([""]) {
        assert_eq!(ok!(client.check(of(service))).status(), ServingStatus::Serving, "{service}");
    }
    fails!(client.check(of("casebook.v1.Nope")), NotFound, "NOT_FOUND");
    let list = ok!(client.list(HealthListRequest {})).statuses;
    let names: BTreeSet<_> = list.keys().map(String::as_str).collect();
    assert_eq!(names, SERVICES.into_iter().chain([""]).collect());
    assert!(list.values().all(|status| status.status() == ServingStatus::Serving));
    open.stop().await;
    world.close().await;
}

#[tokio::test]
async fn a_watch_sees_the_drain_and_calls_go_on_until_it_ends() {
    let mut world = World::with(&[("drain_delay_ms", "1500")]).await;
    let mut client = world.anonymous().health();
    let mut whole = ok!(client.watch(of("")));
    let mut unknown = ok!(client.watch(of("casebook.v1.Nope")));
    assert_eq!(whole.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let status = unknown.message().await.unwrap().unwrap().status();
    assert_eq!(status, ServingStatus::ServiceUnknown);
    let mut decisions = world.decisions();
    ok!(decisions.create_decision(create("before", decision("ALLOW", 0.5))));
    let began = std::time::Instant::now();
    let stopping = world.stop();
    let watching = async {
        let status = whole.message().await.unwrap().unwrap().status();
        assert_eq!(status, ServingStatus::NotServing);
        assert!(began.elapsed() < Duration::from_millis(1000), "{:?}", began.elapsed());
        assert_eq!(ok!(client.check(of(""))).status(), ServingStatus::NotServing);
        // Load balancers look away in this time, and who comes nevertheless is served.
        ok!(decisions.create_decision(create("during", decision("ALLOW", 0.5))));
        let ended = whole.message().await.unwrap_err();
        assert_eq!(ended.code(), tonic::Code::Unavailable, "{ended:?}");
    };
    tokio::join!(stopping, watching);
    assert!(began.elapsed() >= Duration::from_millis(1500));
    world.close().await;
}

#[tokio::test]
async fn both_reflection_services_list_and_describe_everything() {
    let (world, mut open) = guarded(&[]).await;
    macro_rules! reflected {
        ($version:ident) => {{
            use reflection::server_reflection_client::ServerReflectionClient;
            use reflection::server_reflection_request::MessageRequest;
            use reflection::server_reflection_response::MessageResponse;
            use tonic_reflection::pb::$version as reflection;
            let mut client = ServerReflectionClient::new(world.channel.clone());
            let ask = |request| reflection::ServerReflectionRequest {
                host: String::new(),
                message_request: Some(request),
            };
            let symbol = "casebook.v1.DecisionService.CreateDecision".to_owned();
            let asked = tokio_stream::iter([
                ask(MessageRequest::ListServices(String::new())),
                ask(MessageRequest::FileContainingSymbol(symbol)),
            ]);
            let mut answers = ok!(client.server_reflection_info(asked));
            let mut next = async || answers.message().await.unwrap().unwrap().message_response;
            let Some(MessageResponse::ListServicesResponse(list)) = next().await else { panic!() };
            let names: BTreeSet<_> = list.service.into_iter().map(|s| s.name).collect();
            for service in SERVICES {
                assert!(names.contains(service), "{service} in {names:?}");
            }
            let Some(MessageResponse::FileDescriptorResponse(files)) = next().await else {
                panic!()
            };
            assert!(!files.file_descriptor_proto.is_empty());
        }};
    }
    reflected!(v1);
    reflected!(v1alpha);
    open.stop().await;
    world.close().await;
}

/// The status line and the body of a page.
async fn page_at(address: std::net::SocketAddr, path: &str) -> (String, String) {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

#[tokio::test]
async fn the_pages_tell_life_readiness_and_numbers() {
    let mut world =
        World::with(&[("metrics_listen", "127.0.0.1:0"), ("drain_delay_ms", "1000")]).await;
    let pages = world.pages.unwrap();
    ok!(world.decisions().create_decision(create("d", decision("ALLOW", 0.5))));
    let _ = world.decisions().get_decision(crate::world::get("none")).await;
    for path in ["/livez", "/readyz"] {
        let (status, _) = page_at(pages, path).await;
        assert_eq!(status, "HTTP/1.1 200 OK", "{path}");
    }
    let (status, metrics) = page_at(pages, "/metrics").await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert!(metrics.ends_with("# EOF\n"));
    for part in ["casebook_pool_size", "CreateDecision", "GetDecision", "NOT_FOUND"] {
        assert!(metrics.contains(part), "{part} in {metrics}");
    }
    // No ids and no tenants.
    assert!(!metrics.contains("\"default\""));
    let (status, _) = page_at(pages, "/nope").await;
    assert_eq!(status, "HTTP/1.1 404 Not Found");
    let draining = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let (status, body) = page_at(pages, "/readyz").await;
        assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
        assert!(body.contains("shutting down"), "{body}");
        let (status, _) = page_at(pages, "/livez").await;
        assert_eq!(status, "HTTP/1.1 200 OK");
    };
    tokio::join!(world.stop(), draining);
    world.close().await;
}
