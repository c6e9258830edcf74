//! The operator against a real API server and etcd, and an agent that has everything but a kernel.
//!
//! Needs root, `ip`, and the multi-call Kubernetes binary (`$FAULTLINE_KUBE`, or the cache of
//! `cargo xtask setup`); without them it is skipped, with the reason.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test: it fails by panicking, and says what it measures"
)]

mod control_plane;
mod fake_agent;
mod scenarios;
mod world;

use control_plane::{ControlPlane, enter_network_namespace, kube_binary};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;
use world::World;

#[test]
fn the_operator_runs_experiments_on_a_real_api_server() {
    let Some(binary) = kube_binary() else {
        println!("skipped: no Kubernetes binary: set FAULTLINE_KUBE, or run cargo xtask setup");
        return;
    };
    if let Err(error) = enter_network_namespace() {
        println!("skipped: {error:#}");
        return;
    }
    if let Ok(log) = std::env::var("FAULTLINE_LOG") {
        let filter: Targets = log.parse().unwrap();
        let logs = tracing_subscriber::fmt().with_max_level(LevelFilter::TRACE);
        logs.finish().with(filter).init();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let control_plane = ControlPlane::start(&binary).unwrap();
    runtime.block_on(async {
        let mut world = World::new(control_plane).await.unwrap();
        scenarios::run_all(&mut world).await;
        world.kill_operator();
    });
    runtime.shutdown_background();
}
