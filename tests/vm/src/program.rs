//! Programs that a test runs as a user would, above all `chaos-agent`.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;

use crate::process::{Place, wait_child};
use crate::wait::eventually;

/// Where the initramfs has the agent.
pub const AGENT: &str = "/bin/chaos-agent";

/// A command line to run.
#[derive(Debug)]
pub struct Program {
    command: Command,
    shown: String,
    limit: Duration,
}

impl Program {
    /// `chaos-agent` with these arguments.
    pub fn agent<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Program {
        Program::new(AGENT, args)
    }

    /// Any program with these arguments. It may run for 30 s.
    pub fn new<S: AsRef<OsStr>>(path: &str, args: impl IntoIterator<Item = S>) -> Program {
        let mut command = Command::new(path);
        command.args(args);
        Program::of(command)
    }

    /// A command that somebody else has made, as [`crate::runtimes::command`] does. It may run for 30 s.
    pub fn of(command: Command) -> Program {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words = words.map(|word| word.to_string_lossy());
        let shown = words.collect::<Vec<_>>().join(" ");
        Program {
            command,
            shown,
            limit: Duration::from_secs(30),
        }
    }

    /// It may run for this time.
    pub fn within(mut self, limit: Duration) -> Program {
        self.limit = limit;
        self
    }

    /// With this variable in its environment.
    pub fn env(mut self, name: &str, value: &str) -> Program {
        self.command.env(name, value);
        self
    }

    /// Runs it to its end, whatever that is.
    ///
    /// # Errors
    /// It could not be started, or ran longer than it may: then it was killed.
    pub fn run(self) -> Result<Finished> {
        let limit = self.limit;
        let mut running = self.start(Place::host())?;
        let status = wait_child(&mut running.child, limit)
            .with_context(|| format!("`{}` did not end:\n{}", running.shown, running.output()))?;
        let (stdout, stderr) = (running.stdout(), running.stderr());
        Ok(Finished {
            shown: running.shown.clone(),
            status,
            stdout,
            stderr,
        })
    }

    /// Runs it to its end, which must be a success.
    ///
    /// # Errors
    /// See [`Program::run`]; or it failed: then with all that it printed.
    pub fn succeed(self) -> Result<Finished> {
        let finished = self.run()?;
        ensure!(finished.status.success(), "{finished}");
        Ok(finished)
    }

    /// Starts it in the background.
    ///
    /// # Errors
    /// It could not be started.
    pub fn start(mut self, place: Place<'_>) -> Result<Running> {
        let output = Scratch::new()?;
        let create = |name: &str| File::create(output.path.join(name)).context("no output file");
        self.command.stdin(Stdio::null());
        self.command
            .stdout(create("stdout")?)
            .stderr(create("stderr")?);
        place.apply(&mut self.command)?;
        let child = self.command.spawn();
        let child = child.with_context(|| format!("failed to start `{}`", self.shown))?;
        Ok(Running {
            child,
            shown: self.shown,
            output,
        })
    }
}

/// A program that has ended.
#[derive(Clone, Debug)]
pub struct Finished {
    shown: String,
    /// How.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Finished {
    /// What it printed, as JSON.
    ///
    /// # Errors
    /// It is none, or not a `T`; with the text.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_str(&self.stdout).with_context(|| format!("not the JSON expected: {self}"))
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "`{}`: {}\n{}{}",
            self.shown, self.status, self.stdout, self.stderr
        )
    }
}

/// A program in the background. Killed on drop.
#[derive(Debug)]
pub struct Running {
    child: Child,
    shown: String,
    output: Scratch,
}

impl Running {
    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal: SIGKILL for a crash, SIGSTOP to freeze it, SIGTERM to ask it to go.
    ///
    /// # Errors
    /// It is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, signal).with_context(|| format!("failed to send {signal} to `{}`", self.shown))
    }

    /// Waits until it ends.
    ///
    /// # Errors
    /// It still runs after `limit`; with what it printed.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let status = wait_child(&mut self.child, limit);
        status.with_context(|| format!("`{}`:\n{}", self.shown, self.output()))
    }

    /// Kills it as `kill -9` does and waits until it is gone.
    ///
    /// # Errors
    /// It was gone before.
    pub fn crash(&mut self) -> Result<()> {
        ensure!(
            self.child.try_wait()?.is_none(),
            "`{}` is gone:\n{}",
            self.shown,
            self.output()
        );
        self.signal(Signal::SIGKILL)?;
        self.child.wait().context("failed to wait for it")?;
        Ok(())
    }

    /// Waits until its output (either stream) contains `text`.
    ///
    /// # Errors
    /// It ended before, or `limit` has passed; with what it printed.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<()> {
        eventually(&format!("`{}` prints {text:?}", self.shown), limit, || {
            ensure!(
                self.output().contains(text),
                "it printed:\n{}",
                self.output()
            );
            Ok(())
        })
    }

    /// What it printed so far.
    pub fn stdout(&self) -> String {
        fs::read_to_string(self.output.path.join("stdout")).unwrap_or_default()
    }

    /// What it complained about so far.
    pub fn stderr(&self) -> String {
        fs::read_to_string(self.output.path.join("stderr")).unwrap_or_default()
    }

    fn output(&self) -> String {
        format!("{}{}", self.stdout(), self.stderr())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already; nobody could be told here anyway.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory for files of a test. Removed on drop.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// A new, empty one.
    ///
    /// # Errors
    /// /tmp is not writable.
    pub fn new() -> Result<Scratch> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(format!("/tmp/vm-{}-{count}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("failed to make {}", path.display()))?;
        Ok(Scratch { path })
    }

    /// Writes a file into it and returns its path.
    ///
    /// # Errors
    /// /tmp is full.
    pub fn file(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::write(&path, content).with_context(|| format!("failed to write {}", path.display()))?;
        Ok(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It is a tmpfs that ends with the machine.
        let _ = fs::remove_dir_all(&self.path);
    }
}
