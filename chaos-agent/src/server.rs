//! Who may speak to the agent and how: gRPC over mutual TLS for the operator, and over a unix
//! socket for the command line of the node. What is said is handled in `server/agent.rs` and
//! `server/local.rs`; what it means, in `node_thread`.

mod agent;
mod local;
#[cfg(test)]
mod tests;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chaos_proto::agent::agent_server::AgentServer;
use chaos_proto::local::local_server::LocalServer;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::Server;

use crate::health::Ready;
use crate::identity::Identity;
use crate::node_thread::NodeHandle;
use crate::wire::Origin;
use agent::AgentService;
use local::LocalService;

/// How often the certificate's files are read again. The kubelet takes up to a minute to swap
/// them; certificates are renewed weeks before they end.
const REFRESH: Duration = Duration::from_secs(10);
/// A client that does not finish its handshake in this time is dropped.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at a time: strangers must not eat the node's memory.
const HANDSHAKES: usize = 64;
/// A connection that is silent for this long is asked whether it lives, and dropped if it does
/// not say so as quickly: then its faults are orphans.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// 16 384 faults with some peers each.
const MAX_MESSAGE: usize = 64 << 20;

/// Serves the operator on this listener, until it fails. `ready` follows whether there is a
/// certificate to show.
///
/// # Errors
/// When the listener fails.
pub async fn serve_tls(
    listener: TcpListener,
    identity: Arc<Identity>,
    node: NodeHandle,
    ready: Ready,
) -> anyhow::Result<()> {
    tokio::spawn(keep_fresh(Arc::clone(&identity), ready));
    let (accepted, incoming) = mpsc::channel(HANDSHAKES);
    tokio::spawn(accept(listener, identity, accepted));
    let service = AgentServer::new(AgentService::new(node, Origin::Network))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    server()
        .add_service(service)
        .serve_with_incoming(ReceiverStream::new(incoming))
        .await?;
    Ok(())
}

/// Serves the command line on this listener, until it fails.
///
/// # Errors
/// When the listener fails.
pub async fn serve_unix(listener: UnixListener, node: NodeHandle) -> anyhow::Result<()> {
    let agent = AgentServer::new(AgentService::new(node.clone(), Origin::Local))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let local = LocalServer::new(LocalService::new(node)).max_encoding_message_size(MAX_MESSAGE);
    server()
        .add_service(agent)
        .add_service(local)
        .serve_with_incoming(UnixListenerStream::new(listener))
        .await?;
    Ok(())
}

/// Binds the socket for root alone, in the place of one that a predecessor left. The caller holds
/// the host's lock: nobody else listens there.
///
/// # Errors
/// What the kernel answers.
pub fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Between bind and chmod the umask counts. Other threads make no files meanwhile.
    let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    nix::sys::stat::umask(before);
    let listener = listener?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(64)
}

/// Loads the certificate as soon as it is there, and again when it has changed.
async fn keep_fresh(identity: Arc<Identity>, ready: Ready) {
    let mut complained = None;
    loop {
        match identity.refresh() {
            Ok(true) => {
                tracing::info!(directory = %identity.directory().display(), "certificate loaded");
                complained = None;
            }
            Ok(false) => complained = None,
            Err(error) => {
                let text = error.to_string();
                if complained.as_ref() != Some(&text) {
                    tracing::error!("{text}");
                    complained = Some(text);
                }
            }
        }
        let loaded = identity.config().is_some();
        ready.set(loaded);
        // The first one is waited for by somebody.
        tokio::time::sleep(if loaded {
            REFRESH
        } else {
            Duration::from_millis(500)
        })
        .await;
    }
}

async fn accept(
    listener: TcpListener,
    identity: Arc<Identity>,
    accepted: mpsc::Sender<io::Result<TlsStream<TcpStream>>>,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(pair) => pair,
            Err(error) => {
                // Out of descriptors, most likely: existing connections go on.
                tracing::warn!(%error, "failed to accept a connection");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let Some(config) = identity.config() else {
            tracing::warn!(%peer, "connection refused: no certificate yet");
            continue;
        };
        let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else {
            return;
        };
        let accepted = accepted.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let _ = stream.set_nodelay(true);
            let handshake = TlsAcceptor::from(config).accept(stream);
            match tokio::time::timeout(HANDSHAKE, handshake).await {
                Ok(Ok(stream)) => drop(accepted.send(Ok(stream)).await),
                Ok(Err(error)) => tracing::warn!(%peer, %error, "TLS handshake failed"),
                Err(_) => tracing::warn!(%peer, "TLS handshake timed out"),
            }
        });
    }
}
