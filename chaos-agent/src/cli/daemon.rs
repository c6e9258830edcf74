//! The daemon of this node, seen from the command line.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, bail};
use chaos_planner::observed::Observed;
use chaos_proto::agent::agent_client::AgentClient;
use chaos_proto::local::LocalFault;
use chaos_proto::local::local_client::LocalClient;
use tonic::transport::{Channel, Endpoint};

use crate::node::Options;
use crate::wire;

/// How long an answer may take: longer than the agent itself waits for a recovery. One that is
/// stopped (SIGSTOP, a frozen cgroup) accepts connections and says nothing.
const ANSWER: Duration = Duration::from_secs(15);

/// A daemon that answers.
#[derive(Clone, Debug)]
pub(super) struct Daemon {
    channel: Channel,
}

impl Daemon {
    /// The daemon of this node; `None` when there is none.
    ///
    /// # Errors
    /// When there is one that cannot be spoken to.
    pub(super) async fn find(options: &Options) -> anyhow::Result<Option<Self>> {
        let path = options.run_dir.join("agent.sock");
        match UnixStream::connect(&path) {
            Ok(_) => {}
            // No daemon, or one that was killed and left its socket.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::ConnectionRefused
                ) =>
            {
                return Ok(None);
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                bail!(
                    "{}: only root may speak to the agent; run as root",
                    path.display()
                );
            }
            Err(error) => {
                return Err(error).with_context(|| format!("failed to open {}", path.display()));
            }
        }
        let channel = Endpoint::from_shared(format!("unix://{}", path.display()))?
            .connect_timeout(ANSWER)
            .timeout(ANSWER)
            .connect()
            .await
            .with_context(|| format!("failed to speak to the agent by {}", path.display()))?;
        Ok(Some(Self { channel }))
    }

    pub(super) fn agent(&self) -> AgentClient<Channel> {
        AgentClient::new(self.channel.clone()).max_decoding_message_size(64 << 20)
    }

    pub(super) fn local(&self) -> LocalClient<Channel> {
        LocalClient::new(self.channel.clone()).max_decoding_message_size(64 << 20)
    }
}

/// What a daemon says of faults; those that only a newer version knows are left out.
pub(super) fn observed(faults: Vec<LocalFault>) -> Vec<Observed> {
    faults
        .into_iter()
        .filter_map(|fault| {
            let who = [fault.kind, fault.namespace, fault.name, fault.record];
            wire::observed_from(fault.observed?, who)
        })
        .collect()
}

/// The text of a refusal, without gRPC's words.
pub(super) fn refused(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{}", status.message())
}
