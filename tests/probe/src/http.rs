//! The HTTP side: results out, peers in.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use axum::{
    Json, Router,
    extract::{Query, State},
    http::StatusCode,
    routing::{get, post},
};
use serde::Deserialize;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use crate::peer::{Peer, Prober, Results};

/// The span of time that results are asked for.
#[derive(Debug, Deserialize)]
struct Span {
    /// Milliseconds since 1970.
    #[serde(default)]
    since: u64,
    /// Milliseconds since 1970; without it, until now.
    until: Option<u64>,
}

/// Serves until the process is told to end.
///
/// # Errors
/// If the address cannot be listened on.
pub(crate) async fn serve(address: SocketAddr, prober: Prober) -> Result<()> {
    let routes = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/results.json", get(results))
        .route("/peers", post(peers))
        .with_state(prober);
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("failed to listen on TCP {address}"))?;
    // PID 1 of a container: the kernel delivers it no signal that it has no handler for.
    let mut terminate = signal(SignalKind::terminate()).context("failed to handle SIGTERM")?;
    tokio::select! {
        served = axum::serve(listener, routes) => served.context("failed to serve HTTP"),
        _ = terminate.recv() => Ok(()),
    }
}

async fn results(State(prober): State<Prober>, Query(span): Query<Span>) -> Json<Results> {
    Json(prober.results(span.since, span.until))
}

async fn peers(State(prober): State<Prober>, Json(peers): Json<Vec<Peer>>) -> StatusCode {
    prober.set_peers(peers);
    StatusCode::NO_CONTENT
}
