//! `run`: the daemon. Wires the node's thread, the servers and the signals together.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use super::Context;
use crate::args::RunArgs;
use crate::health::{self, Ready};
use crate::identity::Identity;
use crate::{node_thread, priority, server};

pub(super) async fn run(context: Context, args: RunArgs) -> anyhow::Result<ExitCode> {
    let name = match args.node_name {
        Some(name) => name,
        None => nix::unistd::gethostname()?.to_string_lossy().into_owned(),
    };
    let options = context.options;
    let socket = options.run_dir.join("agent.sock");
    // Signals first: one that comes while the node is being opened must not be lost.
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let node = node_thread::spawn(&name, move || node_thread::open(options))?;
    // Not before: opening the node is much work, and nobody waits for it.
    if let Err(error) = priority::raise() {
        tracing::warn!(
            %error,
            "not ahead of other programs: while this node's CPUs are busy, faults begin late; grant CAP_SYS_NICE"
        );
    }
    for capability in &node.capabilities().mechanisms {
        let mechanism = capability.mechanism.name();
        if capability.supported {
            tracing::info!(mechanism, how = capability.reason, "available");
        } else {
            tracing::warn!(mechanism, reason = capability.reason, "not available");
        }
    }

    let ready = Ready::default();
    let mut servers = JoinSet::new();
    let unix = server::bind_unix(&socket)
        .with_context(|| format!("failed to listen on {}", socket.display()))?;
    servers.spawn(server::serve_unix(unix, node.clone()));
    if let Some(address) = args.metrics {
        let listener = health::bind(address)
            .await
            .with_context(|| format!("failed to listen on {address} (--metrics)"))?;
        let serve = health::serve(listener, node.clone(), ready.clone());
        servers.spawn(async { serve.await.map_err(anyhow::Error::from) });
    }
    match (args.listen, args.tls_dir) {
        (Some(address), Some(directory)) => {
            let listener = TcpListener::bind(address)
                .await
                .with_context(|| format!("failed to listen on {address} (--listen)"))?;
            let identity = Arc::new(Identity::new(directory));
            servers.spawn(server::serve_tls(
                listener,
                identity,
                node.clone(),
                ready.clone(),
            ));
        }
        _ => ready.set(true),
    }
    tracing::info!(node = name, version = env!("CARGO_PKG_VERSION"), "ready");

    let failed = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        ended = servers.join_next() => Some(match ended {
            Some(Ok(Err(error))) => error,
            Some(Err(error)) => error.into(),
            Some(Ok(Ok(()))) | None => anyhow::anyhow!("it stopped by itself"),
        }),
    };
    ready.set(false);
    // Before the lock is given up: a successor binds its own under the same name.
    let _ = std::fs::remove_file(&socket);
    node.hand_over().await;
    tracing::info!("stopped; running faults go on until their ends, or 120 s for a successor");
    match failed {
        Some(error) => Err(error.context("a server failed")),
        None => Ok(ExitCode::SUCCESS),
    }
}
