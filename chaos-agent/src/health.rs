//! `/healthz`, `/readyz` and `/metrics`, for the kubelet and Prometheus. Plain HTTP: nothing here
//! can be changed, and nothing is secret.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::metrics;
use crate::node_thread::NodeHandle;

/// The node's thread does a round at least every 10 s; one that has not for this long hangs in
/// the kernel, and a new process is the better try.
const HUNG: Duration = Duration::from_secs(60);

/// How long a scrape waits for the node's thread; Prometheus gives up after 10 s by default.
const SCRAPE: Duration = Duration::from_secs(8);

/// Whether the operator can reach us; set by the server.
#[derive(Clone, Debug, Default)]
pub struct Ready(Arc<AtomicBool>);

impl Ready {
    /// From now on, or no more.
    pub fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Relaxed);
    }

    /// As it was set last.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Serves until the process ends.
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: TcpListener, node: NodeHandle, ready: Ready) -> io::Result<()> {
    axum::serve(listener, router(node, ready)).await
}

/// Binds the address; apart from [`serve`], so that a port in use is seen at start.
///
/// # Errors
/// What the kernel answers.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

fn router(node: NodeHandle, ready: Ready) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_text))
        .with_state((node, ready))
}

async fn healthz(State((node, _)): State<(NodeHandle, Ready)>) -> Response {
    let silence = node.silence();
    if silence < HUNG {
        return "ok\n".into_response();
    }
    let reason = format!(
        "the node's thread has not answered for {} s\n",
        silence.as_secs()
    );
    (StatusCode::INTERNAL_SERVER_ERROR, reason).into_response()
}

async fn readyz(State((node, ready)): State<(NodeHandle, Ready)>) -> Response {
    if !ready.get() {
        let reason = "no certificate yet: the operator cannot connect\n";
        return (StatusCode::SERVICE_UNAVAILABLE, reason).into_response();
    }
    healthz(State((node, ready))).await
}

async fn metrics_text(State((node, _)): State<(NodeHandle, Ready)>) -> Response {
    let report = match tokio::time::timeout(SCRAPE, node.report()).await {
        Ok(Ok(report)) => report,
        Ok(Err(stopped)) => {
            return (StatusCode::SERVICE_UNAVAILABLE, format!("{stopped}\n")).into_response();
        }
        Err(_) => {
            let reason = "the node's thread does not answer\n";
            return (StatusCode::SERVICE_UNAVAILABLE, reason).into_response();
        }
    };
    match metrics::encode(node.name(), &report) {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
