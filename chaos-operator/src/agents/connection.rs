//! One stream to one agent: connects, sends sets (`sets.rs`), takes reports in, and again.
//!
//! The agent serves one certificate for all nodes, so its report must name the node that was
//! dialled.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use chaos_proto::agent::CapabilitiesRequest;
use chaos_proto::agent::agent_client::AgentClient;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Uri};

use crate::agents::Agents;
use crate::agents::sets::sets;

/// The name in the agents' certificate.
pub(super) const SERVER_NAME: &str = "chaos-agent.faultline";

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LAST_BACKOFF: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// An agent reports at least every 10 s; one that has been silent for longer is stuck.
const SILENCE: Duration = Duration::from_secs(35);
/// A report of 16 Ki faults is about 4 MiB.
const MAX_MESSAGE: usize = 16 << 20;

/// How the operator shows who it is; the newest value counts for new connections.
pub type Tls = watch::Receiver<Arc<rustls::ClientConfig>>;

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("failed to connect: {0}")]
    Connect(#[from] tonic::transport::Error),
    #[error("stream failed: {}: {}", .0.code(), .0.message())]
    Stream(#[source] Box<tonic::Status>),
    #[error("the agent ended the stream")]
    Ended,
    #[error("no report for {} s", SILENCE.as_secs())]
    Silent,
    #[error(
        "the agent at this address is the one of node {found:?}, not of {expected:?}: check \
         --node-name of the agents, and the EndpointSlices of their Service"
    )]
    WrongNode { expected: String, found: String },
}

/// Where an agent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) address: SocketAddr,
    /// The kubelet says that it is ready: worth another try at once.
    pub(super) serves: bool,
}

/// Keeps a stream to the agent of `node` until it is dropped. `endpoint` may change.
pub(super) async fn run(
    agents: Agents,
    node: String,
    mut endpoint: watch::Receiver<Endpoint>,
    tls: Tls,
) {
    let mut backoff = FIRST_BACKOFF;
    loop {
        let address = endpoint.borrow_and_update().address;
        let began = tokio::time::Instant::now();
        let result = tokio::select! {
            result = stream(&agents, &node, address, &tls) => Some(result),
            Ok(_) = endpoint.wait_for(|new| new.address != address) => None,
        };
        agents.lost(&node, Timestamp::now());
        let Some(Err(error)) = result else {
            tracing::info!(node, old = %address, "the agent has a new address");
            backoff = FIRST_BACKOFF;
            continue;
        };
        if began.elapsed() > LAST_BACKOFF {
            backoff = FIRST_BACKOFF;
        }
        let reason = error_chain(&error);
        tracing::warn!(node, %address, reason, retry_in = ?backoff, "no stream to agent");
        tokio::select! {
            () = tokio::time::sleep(backoff) => backoff = (backoff * 2).min(LAST_BACKOFF),
            Ok(()) = endpoint.changed() => backoff = FIRST_BACKOFF,
        }
    }
}

async fn stream(
    agents: &Agents,
    node: &str,
    address: SocketAddr,
    tls: &Tls,
) -> Result<std::convert::Infallible, Error> {
    let config = Arc::clone(&tls.borrow());
    let channel = connect(address, config).await?;
    agents.opened().await;
    let status = |status| Error::Stream(Box::new(status));
    let mut client = AgentClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    // Before the first set: one for another node would take that node's faults away.
    let known = tokio::time::timeout(SILENCE, client.capabilities(CapabilitiesRequest {}))
        .await
        .map_err(|_| Error::Silent)?
        .map_err(status)?
        .into_inner();
    if known.node != node {
        return Err(Error::WrongNode {
            expected: node.to_owned(),
            found: known.node,
        });
    }
    let mut reports = client
        .sync(sets(agents.clone(), node))
        .await
        .map_err(status)?
        .into_inner();
    tracing::info!(node, %address, "stream to agent");
    loop {
        let report = tokio::time::timeout(SILENCE, reports.message())
            .await
            .map_err(|_| Error::Silent)?
            .map_err(status)?
            .ok_or(Error::Ended)?;
        if report.node != node {
            return Err(Error::WrongNode {
                expected: node.to_owned(),
                found: report.node,
            });
        }
        tracing::debug!(
            node,
            generation = report.generation,
            faults = report.faults.len(),
            "report"
        );
        agents.observe(node, report, Timestamp::now());
    }
}

async fn connect(
    address: SocketAddr,
    config: Arc<rustls::ClientConfig>,
) -> Result<Channel, tonic::transport::Error> {
    // The scheme is that of what HTTP/2 sees: TLS is underneath, in the connector.
    tonic::transport::Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let connector = TlsConnector::from(Arc::clone(&config));
            async move {
                let tcp = TcpStream::connect(address).await?;
                tcp.set_nodelay(true)?;
                let name = ServerName::try_from(SERVER_NAME).map_err(io::Error::other)?;
                Ok::<_, io::Error>(TokioIo::new(connector.connect(name, tcp).await?))
            }
        }))
        .await
}

/// An error and what is behind it: tonic says only "transport error" by itself.
fn error_chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
