//! The thread that owns the node: whatever changes or reads the kernel goes through its queue, so
//! that there is one writer and no lock. Servers hold a [`NodeHandle`].
//!
//! What is decided here is only whom to tell what and when; see `desk.rs`. What to do to the
//! kernel is the node's.

mod desk;
#[cfg(test)]
pub(crate) mod fake;
mod live;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use chaos_planner::capabilities::Capabilities;
use chaos_planner::fault::{Fault, FaultId};
use chaos_planner::observed::Observed;
use chaos_proto::agent::ObservedSet;
use tokio::sync::{oneshot, watch};

use crate::metrics::Hits;
use crate::wire::Refusal;
use desk::Desk;

pub use crate::node::Owner;
pub use desk::{OPERATOR, Which};
pub use live::{LiveNode, open};

/// What the thread needs of the node. The node of a running agent is `node::Node`; tests have one
/// without a kernel.
pub trait NodePort {
    /// What this node can do.
    fn capabilities(&self) -> &Capabilities;
    /// What a predecessor armed, and for whom. None of these clients is connected yet.
    fn adopted(&self) -> Vec<(Owner, Fault)>;
    /// Replaces what `owner` wants; `reconcile` does the work.
    fn set_desired(&mut self, owner: Owner, faults: Vec<Fault>);
    /// The client of this owner is gone: its faults go on until their own ends.
    fn orphan(&mut self, owner: Owner);
    /// Brings the kernel closer to what is desired; returns when to call again at the latest.
    fn reconcile(&mut self) -> Duration;
    /// Does a part of what the next faults would wait for; whether there was anything to do.
    fn load_ahead(&mut self) -> bool;
    /// Read back from the kernel; `None` is everybody's.
    fn observed(&mut self, owner: Option<&Owner>) -> Vec<Observed>;
    /// Extends the leases for the successor and leaves everything as it is.
    fn hand_over(&mut self);
    /// Everything off and removed, programs and maps included.
    ///
    /// # Errors
    /// What is left, and why.
    fn purge(self) -> Result<(), String>;
    /// Whether the kernel's halt word is set. Then `reconcile` takes everything off and arms
    /// nothing, and `observed` says so.
    fn halted(&self) -> bool;
    /// Sets or clears the kernel's halt word.
    ///
    /// # Errors
    /// What the kernel answers.
    fn set_halted(&mut self, halted: bool) -> Result<(), String>;
}

/// How long a caller waits for faults to leave the kernel before it is told what is left.
pub const RECOVER_TIMEOUT: Duration = Duration::from_secs(10);

/// Everything that the kernel holds, and what it has counted.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Faults of all owners.
    pub faults: Vec<Observed>,
    /// Hits since this agent started, those of faults that have ended included.
    pub hits: Hits,
    /// `chaos-agent panic` is in force.
    pub halted: bool,
}

/// What became of a request to take faults off.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// Faults that it was about.
    pub ids: Vec<FaultId>,
    /// Those that have not left the kernel yet.
    pub left: Vec<Observed>,
}

/// The thread has ended: the agent is shutting down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the agent is shutting down; try again when it is back")]
pub struct Stopped;

#[derive(Debug)]
enum Command {
    Desired(Desired),
    Gone {
        owner: Owner,
        session: u64,
    },
    Report(oneshot::Sender<Report>),
    Recover {
        which: Which,
        reply: oneshot::Sender<Result<Recovered, String>>,
    },
    Panic(oneshot::Sender<Result<Recovered, String>>),
    Resume(oneshot::Sender<Result<(), String>>),
    HandOver(oneshot::Sender<()>),
    Purge(oneshot::Sender<Result<(), String>>),
}

/// One set of a client, converted.
#[derive(Debug)]
pub struct Desired {
    /// Whose set it is.
    pub owner: Owner,
    /// Stream that it came by; of one owner the highest counts.
    pub session: u64,
    /// Comes back in the answer.
    pub generation: u64,
    /// To carry out.
    pub faults: Vec<Fault>,
    /// To answer with the reason.
    pub refused: Vec<Refusal>,
    /// Where the answers go. A reader that is slow sees only the newest.
    pub answers: watch::Sender<Option<ObservedSet>>,
}

/// Speaks to the thread; cheap to clone.
#[derive(Clone, Debug)]
pub struct NodeHandle {
    commands: mpsc::Sender<Command>,
    capabilities: Arc<Capabilities>,
    name: Arc<str>,
    started: Instant,
    beat_ms: Arc<AtomicU64>,
    sessions: Arc<AtomicU64>,
}

/// Starts the thread, opens the node on it, and waits until that has succeeded or failed.
///
/// # Errors
/// What `open` answers, or that the system cannot start a thread.
pub fn spawn<P: NodePort>(
    name: &str,
    open: impl FnOnce() -> anyhow::Result<P> + Send + 'static,
) -> anyhow::Result<NodeHandle> {
    let (commands, queue) = mpsc::channel();
    let (opened, wait) = mpsc::channel();
    let beat_ms = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let node_name: Arc<str> = name.into();
    let (thread_name, thread_beat) = (Arc::clone(&node_name), Arc::clone(&beat_ms));
    thread::Builder::new()
        .name("node".to_owned())
        .spawn(move || {
            let port = match open() {
                Ok(port) => port,
                Err(error) => {
                    let _ = opened.send(Err(error));
                    return;
                }
            };
            let _ = opened.send(Ok(port.capabilities().clone()));
            run(Desk::new(&thread_name, port), &queue, || {
                let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
                thread_beat.store(ms, Ordering::Relaxed);
            });
        })
        .context("failed to start the node's thread")?;
    let capabilities = wait
        .recv()
        .context("the node's thread ended while it was opening")??;
    Ok(NodeHandle {
        commands,
        capabilities: Arc::new(capabilities),
        name: node_name,
        started,
        beat_ms,
        sessions: Arc::default(),
    })
}

fn run<P: NodePort>(mut desk: Desk<P>, queue: &mpsc::Receiver<Command>, beat: impl Fn()) {
    let mut due = Instant::now();
    loop {
        let Ok(mut next) = next(&mut desk, queue, due) else {
            // Every handle is gone without a word: leave things as for a restart.
            desk.hand_over();
            return;
        };
        // A burst of sets is one change.
        while let Some(command) = next {
            match command {
                Command::HandOver(reply) => {
                    desk.hand_over();
                    // The host's lock goes with it; who asked may open the node again.
                    drop(desk);
                    let _ = reply.send(());
                    return;
                }
                Command::Purge(reply) => {
                    let _ = reply.send(desk.purge());
                    return;
                }
                command => desk.accept(command),
            }
            next = queue.try_recv().ok();
        }
        due = Instant::now() + desk.work();
        beat();
    }
}

/// The next command; nothing when another round is `due`. While nobody asks for anything, work is done
/// ahead, little by little.
fn next<P: NodePort>(
    desk: &mut Desk<P>,
    queue: &mpsc::Receiver<Command>,
    due: Instant,
) -> Result<Option<Command>, mpsc::RecvError> {
    loop {
        match queue.try_recv() {
            Ok(command) => return Ok(Some(command)),
            Err(mpsc::TryRecvError::Disconnected) => return Err(mpsc::RecvError),
            Err(mpsc::TryRecvError::Empty) if Instant::now() < due && desk.work_ahead() => {}
            Err(mpsc::TryRecvError::Empty) => break,
        }
    }
    match queue.recv_timeout(due.saturating_duration_since(Instant::now())) {
        Ok(command) => Ok(Some(command)),
        Err(mpsc::RecvTimeoutError::Timeout) => Ok(None),
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(mpsc::RecvError),
    }
}

impl NodeHandle {
    /// Name of the node.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the node can do, as found when it was opened.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// How long ago the thread last finished a round. It does one at least every 10 s.
    pub fn silence(&self) -> Duration {
        let beat = Duration::from_millis(self.beat_ms.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(beat)
    }

    /// A number for a new stream, higher than all before.
    pub fn next_session(&self) -> u64 {
        self.sessions.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Replaces what the owner wants.
    ///
    /// # Errors
    /// [`Stopped`]
    pub fn desire(&self, desired: Desired) -> Result<(), Stopped> {
        self.commands
            .send(Command::Desired(desired))
            .map_err(|_| Stopped)
    }

    /// The stream has ended. Without effect when a newer one has taken over.
    pub fn gone(&self, owner: Owner, session: u64) {
        // A thread that has ended has handed everything over: nothing to tell.
        let _ = self.commands.send(Command::Gone { owner, session });
    }

    /// What the kernel holds now.
    ///
    /// # Errors
    /// [`Stopped`]
    pub async fn report(&self) -> Result<Report, Stopped> {
        self.ask(Command::Report).await
    }

    /// Takes faults off and waits, at most [`RECOVER_TIMEOUT`], until the kernel shows them gone.
    ///
    /// # Errors
    /// What went wrong, for the user.
    pub async fn recover(&self, which: Which) -> Result<Recovered, String> {
        self.ask(|reply| Command::Recover { which, reply })
            .await
            .map_err(|e| e.to_string())?
    }

    /// Everything off now, and nothing on until [`Self::resume`].
    ///
    /// # Errors
    /// What went wrong, for the user.
    pub async fn panic(&self) -> Result<Recovered, String> {
        self.ask(Command::Panic).await.map_err(|e| e.to_string())?
    }

    /// Lifts [`Self::panic`] and what [`Self::recover`] holds back.
    ///
    /// # Errors
    /// What went wrong, for the user.
    pub async fn resume(&self) -> Result<(), String> {
        self.ask(Command::Resume).await.map_err(|e| e.to_string())?
    }

    /// Leaves running faults to the successor, and ends the thread.
    pub async fn hand_over(&self) {
        let _ = self.ask(Command::HandOver).await;
    }

    /// Removes everything from the kernel, programs and maps included, and ends the thread.
    ///
    /// # Errors
    /// What is left, and why.
    pub async fn purge(&self) -> Result<(), String> {
        self.ask(Command::Purge).await.map_err(|e| e.to_string())?
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }
}
