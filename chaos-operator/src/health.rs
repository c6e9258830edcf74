//! `/healthz`, `/readyz` and `/metrics`.
//!
//! Ready is an operator that leads or could lead at once: a follower is, one that must not lead
//! because Chaos Mesh does is not, and says so.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::agents::Agents;
use crate::leader::Standing;
use crate::metrics::Metrics;

/// What the answers follow from.
#[derive(Clone, Debug)]
pub struct Health {
    /// Where the election is.
    pub standing: watch::Receiver<Standing>,
    /// The first lists of pods and nodes are in; only a leader has any.
    pub synced: watch::Receiver<bool>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The table of agents.
    pub agents: Agents,
}

/// Serves until the listener fails.
///
/// # Errors
/// What the listener answers.
pub async fn serve(listener: TcpListener, health: Health) -> std::io::Result<()> {
    let router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(health);
    axum::serve(listener, router).await
}

async fn ready(State(health): State<Health>) -> (StatusCode, String) {
    readiness(&health.standing.borrow(), *health.synced.borrow())
}

fn readiness(standing: &Standing, synced: bool) -> (StatusCode, String) {
    let unready = StatusCode::SERVICE_UNAVAILABLE;
    match standing {
        Standing::Starting => (unready, "starting\n".to_owned()),
        Standing::Refusing(why) => (unready, format!("not leading: {why}\n")),
        Standing::Follower(leader) => (StatusCode::OK, format!("ok, following {leader}\n")),
        Standing::Leader if synced => (StatusCode::OK, "ok, leading\n".to_owned()),
        Standing::Leader => (unready, "leading, listing pods and nodes\n".to_owned()),
    }
}

async fn metrics(State(health): State<Health>) -> impl IntoResponse {
    let text = health.metrics.text(health.agents.connections());
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_who_leads_or_could() {
        for (standing, synced, ready) in [
            (Standing::Starting, false, false),
            (Standing::Follower("b".into()), false, true),
            (Standing::Refusing("Chaos Mesh".into()), false, false),
            (Standing::Leader, false, false),
            (Standing::Leader, true, true),
        ] {
            let (status, text) = readiness(&standing, synced);
            assert_eq!(status == StatusCode::OK, ready, "{text}");
        }
    }
}
