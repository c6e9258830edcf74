//! Child processes of a test: the runner itself in a role, put into a namespace and a cgroup
//! *before* it runs.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sched::{CloneFlags, setns};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cgroup::Cgroup;
use crate::netns::Namespace;
use crate::wait::eventually;

/// Does this on a thread of its own, for what a thread cannot take back.
///
/// # Errors
/// What `act` fails with.
pub(crate) fn on_a_thread(act: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    std::thread::scope(|scope| scope.spawn(act).join().expect("a panic of the test"))
}

/// The first line of a role: it is set up, its sockets are open.
const READY: &str = "ready";

/// A role has to be ready by then.
const START_LIMIT: Duration = Duration::from_secs(20);

/// Where a process runs. By default: where the test does.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place<'a> {
    namespace: Option<&'a Namespace>,
    cgroup: Option<&'a Cgroup>,
}

impl<'a> Place<'a> {
    /// The network namespace and the cgroup of the test: the host's.
    pub fn host() -> Place<'a> {
        Place::default()
    }

    /// In this network namespace.
    pub fn in_namespace(mut self, namespace: &'a Namespace) -> Place<'a> {
        self.namespace = Some(namespace);
        self
    }

    /// In this cgroup, from before it opens its first socket.
    pub fn in_cgroup(mut self, cgroup: &'a Cgroup) -> Place<'a> {
        self.cgroup = Some(cgroup);
        self
    }

    /// Makes `command` run here when it is started. The place has to live until then.
    ///
    /// # Errors
    /// The cgroup is gone.
    pub fn apply(&self, command: &mut Command) -> Result<()> {
        let procs = match self.cgroup {
            Some(cgroup) => {
                let file = cgroup.path().join("cgroup.procs");
                let opened = std::fs::OpenOptions::new().write(true).open(&file);
                Some(opened.with_context(|| format!("failed to open {}", file.display()))?)
            }
            None => None,
        };
        let namespace = match self.namespace {
            Some(namespace) => Some(namespace.as_fd().try_clone_to_owned()?),
            None => None,
        };
        let before_exec = move || {
            if let Some(procs) = &procs {
                // 0 is the writer.
                (&mut &*procs).write_all(b"0")?;
            }
            if let Some(namespace) = &namespace {
                setns(namespace, CloneFlags::CLONE_NEWNET)?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec it only does system calls on descriptors opened before.
        unsafe { command.pre_exec(before_exec) };
        Ok(())
    }

    /// Starts the runner in the role `role` ([`vm_role!`](crate::vm_role)) here and waits until it
    /// is ready.
    ///
    /// # Errors
    /// It could not be started, or ended before it was ready.
    pub fn spawn<E>(&self, role: &str, args: &impl Serialize) -> Result<Process<E>>
    where
        E: DeserializeOwned + Send + 'static,
    {
        let mut command = Command::new("/proc/self/exe");
        command
            .arg("role")
            .arg(role)
            .arg(serde_json::to_string(args)?);
        self.start(role, command, START_LIMIT)
    }

    /// Starts a program here that talks as a role does, a line `ready` and then events, and waits until
    /// it is ready.
    ///
    /// # Errors
    /// It could not be started, ended before it was ready, or was not within `limit`.
    pub fn start<E>(&self, name: &str, mut command: Command, limit: Duration) -> Result<Process<E>>
    where
        E: DeserializeOwned + Send + 'static,
    {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        self.apply(&mut command)?;
        let child = command
            .spawn()
            .with_context(|| format!("failed to start role {name}"))?;
        Process::attach(name, child, limit)
    }
}

/// A child in a role that tells events of type `E`. Killed on drop.
#[derive(Debug)]
pub struct Process<E> {
    name: String,
    child: Child,
    events: Arc<Mutex<Vec<E>>>,
    reader: Option<JoinHandle<Result<()>>>,
}

impl<E: DeserializeOwned + Send + 'static> Process<E> {
    fn attach(name: &str, mut child: Child, limit: Duration) -> Result<Process<E>> {
        let stdout = child
            .stdout
            .take()
            .context("the role has no standard output")?;
        let events = Arc::new(Mutex::new(Vec::new()));
        let (ready, is_ready) = channel();
        let sink = Arc::clone(&events);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let line = line?;
                if line == READY {
                    let _ = ready.send(());
                    continue;
                }
                let event = serde_json::from_str(&line)
                    .with_context(|| format!("not an event of this role: {line}"))?;
                sink.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(event);
            }
            Ok(())
        });
        let mut process = Process {
            name: name.to_owned(),
            child,
            events,
            reader: Some(reader),
        };
        process.wait_ready(&is_ready, limit)?;
        Ok(process)
    }

    fn wait_ready(&mut self, ready: &Receiver<()>, limit: Duration) -> Result<()> {
        if ready.recv_timeout(limit).is_ok() {
            return Ok(());
        }
        match self.child.try_wait()? {
            Some(status) => bail!("role {} ended before it was ready: {status}", self.name),
            None => bail!("role {} was not ready within {limit:?}", self.name),
        }
    }

    /// Pid, for `chaos-agent apply --pid`.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Calls `read` with what it has told so far.
    pub fn with_events<T>(&self, read: impl FnOnce(&[E]) -> T) -> T {
        read(&self.events.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What it answers to any line on its standard input: the next event. It is one that reads lines.
    ///
    /// # Errors
    /// It is gone, or says nothing within `limit`.
    pub fn ask(&mut self, limit: Duration) -> Result<E>
    where
        E: Clone,
    {
        self.ask_for(&(), limit)
    }

    /// What it answers to this, as a line of JSON.
    ///
    /// # Errors
    /// It is gone, or says nothing within `limit`.
    pub fn ask_for(&mut self, question: &impl Serialize, limit: Duration) -> Result<E>
    where
        E: Clone,
    {
        let question = serde_json::to_string(question)?;
        let told = self.with_events(<[E]>::len);
        let questions = self.child.stdin.as_mut().context("nobody can ask it")?;
        writeln!(questions, "{question}").with_context(|| format!("role {} is gone", self.name))?;
        eventually(&format!("role {} answers", self.name), limit, || {
            let answer = self.with_events(|events| events.get(told).cloned());
            answer.context("it is silent")
        })
    }

    /// Ends it by closing its standard input, waits for it, and returns all it told.
    ///
    /// # Errors
    /// It failed, told something that is not an event, or did not end within `limit`.
    pub fn finish(mut self, limit: Duration) -> Result<Vec<E>> {
        drop(self.child.stdin.take());
        let status = wait_child(&mut self.child, limit)
            .with_context(|| format!("role {} did not end", self.name))?;
        self.collect(status)
    }

    /// Waits until it ends by itself, and returns all it told.
    ///
    /// # Errors
    /// See [`Process::finish`].
    pub fn join(mut self, limit: Duration) -> Result<Vec<E>> {
        // Its standard input has to stay open: closing it would end it.
        let stdin = self.child.stdin.take();
        let status = wait_child(&mut self.child, limit)
            .with_context(|| format!("role {} did not end", self.name))?;
        drop(stdin);
        self.collect(status)
    }

    fn collect(mut self, status: std::process::ExitStatus) -> Result<Vec<E>> {
        ensure!(status.success(), "role {} failed: {status}", self.name);
        if let Some(reader) = self.reader.take() {
            reader
                .join()
                .map_err(|_| anyhow!("a thread of the harness panicked"))??;
        }
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(std::mem::take(&mut *events))
    }
}

impl<E> Drop for Process<E> {
    fn drop(&mut self) {
        // It may have ended already; nobody could be told here anyway.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a child with a limit.
///
/// # Errors
/// It still runs.
pub fn wait_child(child: &mut Child, limit: Duration) -> Result<std::process::ExitStatus> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().context("failed to wait for a child")? {
            return Ok(status);
        }
        ensure!(
            Instant::now() < end,
            "pid {} still runs after {limit:?}",
            child.id()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What a role uses to talk to its test.
pub mod role {
    use super::*;

    /// Says that the sockets are open. Call it once, before the first [`tell`].
    ///
    /// # Errors
    /// The test is gone.
    pub fn ready() -> Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{READY}")
            .and_then(|()| out.flush())
            .context("the test is gone")
    }

    /// Sends an event.
    ///
    /// # Errors
    /// The test is gone.
    pub fn tell(event: &impl Serialize) -> Result<()> {
        let line = serde_json::to_string(event)?;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}")
            .and_then(|()| out.flush())
            .context("the test is gone")
    }

    /// Waits until the test asks the role to end, or is gone.
    pub fn wait_for_end() {
        let mut rest = Vec::new();
        // An error ends the role as well.
        let _ = std::io::Read::read_to_end(&mut std::io::stdin(), &mut rest);
    }

    /// True when the test has asked the role to end.
    pub fn ended() -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let stdin = std::io::stdin();
        let fd: BorrowedFd<'_> = stdin.as_fd();
        let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
        debug_assert_eq!(fd.as_raw_fd(), 0);
        // Nothing is ever written to it: readable means closed.
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }
}
