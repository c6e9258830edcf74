//! The machine's second disk: language runtimes and servers of Debian, which tests run in a chroot.
//!
//! Not here: what is on it and how it is made (`xtask/src/setup/runtimes.rs`), and the small programs
//! (`tests/vm/runtimes`).

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

use crate::process::Place;
use crate::registry::skip;

const DISK: &str = "/dev/vda";
const ROOT: &str = "/srv";

/// A virtual machine starts them up to twenty times slower than a real one.
const START_LIMIT: Duration = Duration::from_secs(60);

/// What is asked of a running program is answered by then.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// Mounts the disk, if the machine has it.
///
/// # Errors
/// The kernel refuses.
pub fn mount_disk() -> Result<()> {
    if !Path::new(DISK).exists() {
        return Ok(());
    }
    let on = |kind: &str, from: &str, path: &Path, flags: MsFlags| {
        std::fs::create_dir_all(path).context("failed to make a directory")?;
        mount(Some(from), path, Some(kind), flags, None::<&str>)
            .with_context(|| format!("failed to mount {kind} on {}", path.display()))
    };
    let root = Path::new(ROOT);
    on("ext4", DISK, root, MsFlags::MS_RDONLY)?;
    on("proc", "proc", &root.join("proc"), MsFlags::empty())?;
    on("devtmpfs", "dev", &root.join("dev"), MsFlags::empty())?;
    on("tmpfs", "tmp", &root.join("tmp"), MsFlags::empty())
}

/// A command whose program and paths are those of the disk.
///
/// # Errors
/// The machine has no such disk: the test is skipped.
pub fn command(program: &str) -> Result<Command> {
    if !Path::new(ROOT).join("programs").exists() {
        return skip("this machine has no disk with runtimes");
    }
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", "/usr/bin")
        .env("HOME", "/tmp");
    let enter = || {
        chroot(ROOT)?;
        chdir("/")?;
        Ok(())
    };
    // SAFETY: two system calls on constants, between fork and exec.
    unsafe { command.pre_exec(enter) };
    Ok(command)
}

/// Where a path of the disk is for the test itself.
pub fn outside(path: &str) -> PathBuf {
    Path::new(ROOT).join(path.trim_start_matches('/'))
}

/// A program that says `ready`, and then answers each line by one. Killed on drop.
#[derive(Debug)]
pub struct Asked {
    child: Child,
    questions: ChildStdin,
    answers: Receiver<String>,
}

impl Asked {
    /// Starts `command` and waits until it is ready.
    ///
    /// # Errors
    /// It does not start, or is not ready within a minute.
    pub fn start(place: Place<'_>, mut command: Command) -> Result<Asked> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        place.apply(&mut command)?;
        let mut child = command
            .spawn()
            .with_context(|| format!("failed to start {command:?}"))?;
        let questions = child.stdin.take().context("no standard input")?;
        let stdout = child.stdout.take().context("no standard output")?;
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let asked = Asked {
            child,
            questions,
            answers,
        };
        let first = asked.answers.recv_timeout(START_LIMIT);
        let first = first.with_context(|| format!("{command:?} does not get ready"))?;
        ensure!(first == "ready", "{command:?}: {first}");
        Ok(asked)
    }

    /// Its answer.
    ///
    /// # Errors
    /// It is gone, or gives none.
    pub fn ask(&mut self) -> Result<String> {
        self.questions.write_all(b"?\n").context("it is gone")?;
        let answer = self.answers.recv_timeout(ANSWER_LIMIT);
        answer.with_context(|| format!("no answer within {ANSWER_LIMIT:?}"))
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        // It may have ended already; nobody could be told here anyway.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
