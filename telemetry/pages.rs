//! The HTTP pages an operator's tools read: /metrics, /livez and /readyz.

use super::Metrics;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use std::io;
use std::sync::Arc;
use tokio::net::TcpListener;

/// Whether the server takes calls, or why not.
pub type Readiness = Arc<dyn Fn() -> Result<(), Arc<str>> + Send + Sync>;

#[derive(Clone)]
struct Pages {
    metrics: Arc<Metrics>,
    readiness: Readiness,
}

/// Serves the pages until `stop` completes, then ends what is under way.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(read_metrics))
        // The process only: a database that is away must not have the server restarted.
        .route("/livez", get(async || "live\n"))
        .route("/readyz", get(read_readiness))
        .with_state(Pages { metrics, readiness });
    axum::serve(listener, router).with_graceful_shutdown(stop).await
}

async fn read_metrics(State(pages): State<Pages>) -> impl IntoResponse {
    let format = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, format)], pages.metrics.text())
}

async fn read_readiness(State(pages): State<Pages>) -> impl IntoResponse {
    match (pages.readiness)() {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn pages_answer_and_stop() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ready = Arc::new(AtomicBool::new(false));
        let (stop, stopped) = oneshot::channel::<()>();
        let readiness: Readiness = {
            let ready = ready.clone();
            Arc::new(move || {
                if ready.load(Ordering::Relaxed) { Ok(()) } else { Err("the schema is old".into()) }
            })
        };
        let metrics = Arc::new(Metrics::new([], []));
        let server = tokio::spawn(serve(listener, metrics, readiness, async {
            let _ = stopped.await;
        }));
        let read = async |path: &str| {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut page = String::new();
            stream.read_to_string(&mut page).await.unwrap();
            page
        };

        let page = read("/metrics").await;
        assert!(page.starts_with("HTTP/1.1 200") && page.contains("application/openmetrics-text"));
        assert!(page.contains("# EOF"));
        assert!(read("/livez").await.starts_with("HTTP/1.1 200"));
        let page = read("/readyz").await;
        assert!(page.starts_with("HTTP/1.1 503"), "{page}");
        assert!(page.contains("not ready: the schema is old"), "{page}");
        ready.store(true, Ordering::Relaxed);
        assert!(read("/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(read("/other").await.starts_with("HTTP/1.1 404"));

        // An idle connection does not hold the stop.
        let _idle = TcpStream::connect(address).await.unwrap();
        stop.send(()).unwrap();
        server.await.unwrap().unwrap();
    }
}
