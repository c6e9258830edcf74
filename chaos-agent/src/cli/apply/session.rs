//! Who holds the faults of `apply`: the daemon of this host when there is one, else this process,
//! which then serves the other commands as a daemon would.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use chaos_planner::fault::Fault;
use chaos_planner::observed::Observed;
use chaos_proto::agent::{DesiredSet, ObservedSet, Phase};
use chaos_proto::local::FaultsRequest;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::cli::daemon::{self, Daemon};
use crate::cli::offline;
use crate::node::Options;
use crate::node_thread::{self, Desired, NodeHandle, Owner};
use crate::{server, wire};

/// How long an answer may take: a first load of programs under emulation takes seconds.
const ANSWER: Duration = Duration::from_secs(30);

/// Holds faults until it is closed.
pub(super) struct Session {
    options: Options,
    holder: Holder,
    /// Of faults that were refused or failed before they were armed.
    generation: u64,
}

enum Holder {
    Daemon {
        daemon: Daemon,
        sets: mpsc::Sender<DesiredSet>,
        answers: Box<Streaming<ObservedSet>>,
    },
    Own {
        node: NodeHandle,
        session: u64,
        answers: watch::Sender<Option<ObservedSet>>,
        received: watch::Receiver<Option<ObservedSet>>,
        socket: PathBuf,
        /// Nothing was pinned before: nothing shall be after.
        purge: bool,
    },
}

impl Session {
    /// Finds the daemon, or opens the node.
    ///
    /// # Errors
    /// What the daemon or the node says.
    pub(super) async fn open(options: &Options) -> anyhow::Result<Self> {
        let holder = match Daemon::find(options).await? {
            Some(daemon) => {
                let (sets, receiver) = mpsc::channel(4);
                let answers = daemon
                    .agent()
                    .sync(ReceiverStream::new(receiver))
                    .await
                    .map_err(daemon::refused)?
                    .into_inner();
                Holder::Daemon {
                    daemon,
                    sets,
                    answers: Box::new(answers),
                }
            }
            None => {
                let purge = offline::maps(options)?.is_none();
                let for_thread = options.clone();
                let host = nix::unistd::gethostname()?.to_string_lossy().into_owned();
                let node = node_thread::spawn(&host, move || node_thread::open(for_thread))?;
                let socket = options.run_dir.join("agent.sock");
                let listener = server::bind_unix(&socket)
                    .with_context(|| format!("failed to listen on {}", socket.display()))?;
                tokio::spawn(server::serve_unix(listener, node.clone()));
                let (answers, received) = watch::channel(None);
                let session = node.next_session();
                Holder::Own {
                    node,
                    session,
                    answers,
                    received,
                    socket,
                    purge,
                }
            }
        };
        Ok(Self {
            options: options.clone(),
            holder,
            generation: 0,
        })
    }

    /// Arms the faults; returns how each of them came out.
    ///
    /// # Errors
    /// When whoever holds them does not answer.
    pub(super) async fn arm(&mut self, faults: Vec<Fault>) -> anyhow::Result<Vec<Observed>> {
        let names: Vec<_> = faults
            .iter()
            .map(|f| {
                let who = [
                    f.kind.clone(),
                    f.namespace.clone(),
                    f.name.clone(),
                    f.record.clone(),
                ];
                (f.id.clone(), who)
            })
            .collect();
        self.desire(faults).await?;
        let generation = self.generation;
        let settled = |set: &ObservedSet| {
            set.generation == generation
                && set
                    .faults
                    .iter()
                    .all(|fault| fault.phase() != Phase::Pending)
        };
        let set = self
            .answer(settled)
            .await?
            .context("the agent did not answer in 30 s")?;
        Ok(set
            .faults
            .into_iter()
            .filter_map(|fault| {
                let (_, who) = names.iter().find(|(id, _)| *id == fault.id)?;
                wire::observed_from(fault, who.clone())
            })
            .collect())
    }

    /// What the kernel holds of these faults now.
    ///
    /// # Errors
    /// When whoever holds them has gone; the kernel ends them by itself.
    pub(super) async fn look(&mut self, ids: &[String]) -> anyhow::Result<Vec<Observed>> {
        let mut all = match &self.holder {
            Holder::Own { node, .. } => node.report().await?.faults,
            Holder::Daemon { daemon, .. } => {
                let reply = daemon
                    .local()
                    .faults(FaultsRequest {})
                    .await
                    .map_err(|status| {
                        daemon::refused(status)
                            .context("the agent has gone; the faults go on until their deadlines")
                    })?;
                daemon::observed(reply.into_inner().faults)
            }
        };
        all.retain(|fault| ids.contains(&fault.id));
        Ok(all)
    }

    /// Takes them off and waits until the kernel shows them gone; returns the ids of those that
    /// are still there after that.
    ///
    /// # Errors
    /// When whoever holds them does not answer.
    pub(super) async fn disarm(&mut self, ids: &[String]) -> anyhow::Result<Vec<String>> {
        self.desire(Vec::new()).await?;
        let generation = self.generation;
        let gone = |set: &ObservedSet| set.generation == generation && set.faults.is_empty();
        match self.answer(gone).await? {
            Some(_) => Ok(Vec::new()),
            None => Ok(self
                .look(ids)
                .await?
                .into_iter()
                .map(|fault| fault.id)
                .collect()),
        }
    }

    /// Leaves the host as it was found, unless somebody else has a fault on it.
    ///
    /// # Errors
    /// What could not be removed.
    pub(super) async fn close(self) -> anyhow::Result<()> {
        let Holder::Own {
            node,
            socket,
            purge,
            ..
        } = self.holder
        else {
            return Ok(());
        };
        let others = node
            .report()
            .await
            .is_ok_and(|report| !report.faults.is_empty());
        let _ = std::fs::remove_file(socket);
        if !purge || others {
            node.hand_over().await;
            return Ok(());
        }
        node.purge()
            .await
            .map_err(anyhow::Error::msg)
            .context("failed to remove everything")?;
        if offline::maps(&self.options)?.is_some() {
            bail!("maps are still pinned after everything was removed; use `recover --purge`");
        }
        Ok(())
    }

    async fn desire(&mut self, faults: Vec<Fault>) -> anyhow::Result<()> {
        self.generation += 1;
        let generation = self.generation;
        match &self.holder {
            Holder::Own {
                node,
                session,
                answers,
                ..
            } => node.desire(Desired {
                owner: Owner(format!("local:{}", std::process::id())),
                session: *session,
                generation,
                faults,
                refused: Vec::new(),
                answers: answers.clone(),
            })?,
            Holder::Daemon { sets, .. } => {
                let faults = faults.iter().map(wire::message).collect();
                let set = DesiredSet { generation, faults };
                sets.send(set)
                    .await
                    .context("the agent has closed the stream")?;
            }
        }
        Ok(())
    }

    /// The first answer that is as wanted; `None` after [`ANSWER`].
    async fn answer(
        &mut self,
        wanted: impl Fn(&ObservedSet) -> bool,
    ) -> anyhow::Result<Option<ObservedSet>> {
        let found = async {
            match &mut self.holder {
                Holder::Own { received, .. } => {
                    let set = received
                        .wait_for(|set| set.as_ref().is_some_and(&wanted))
                        .await?;
                    Ok(set.clone())
                }
                Holder::Daemon { answers, .. } => loop {
                    match answers.message().await.map_err(daemon::refused)? {
                        Some(set) if wanted(&set) => return Ok(Some(set)),
                        Some(_) => {}
                        None => bail!("the agent has closed the stream"),
                    }
                },
            }
        };
        tokio::time::timeout(ANSWER, found)
            .await
            .unwrap_or(Ok(None))
    }
}
