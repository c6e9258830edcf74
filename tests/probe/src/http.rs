//! The HTTP side: results out, peers in.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use axum::{
    Json, Router,
    body::Bytes,
    extract::{Query, State},
    http::StatusCode,
    routing::{get, post},
};
use serde::Deserialize;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use crate::{
    peer::{Peer, Prober, Results},
    say_error,
};

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
    say_error(&format!("probe: results at http://{address}/results.json"));
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

/// Takes any content type: `kubectl create --raw` names none.
async fn peers(
    State(prober): State<Prober>,
    body: Bytes,
) -> Result<StatusCode, (StatusCode, String)> {
    let peers: Vec<Peer> = serde_json::from_slice(&body).map_err(|error| {
        let expected = "expected [{\"name\": …, \"ip\": …}, …]";
        (StatusCode::BAD_REQUEST, format!("{error}; {expected}\n"))
    })?;
    prober.set_peers(peers);
    Ok(StatusCode::NO_CONTENT)
}
