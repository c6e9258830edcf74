//! Processes that outlive this program: started in a session of their own, remembered by pid and
//! start time, so that a pid which the kernel gave to somebody else is never signalled.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

/// Lines of a log that an error repeats.
const LINES_IN_ERROR: usize = 15;

/// A process that was started, and may have ended since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Daemon {
    /// For messages.
    pub(crate) name: String,
    /// Leader of its session; every child of it is in there.
    pid: i32,
    /// When it started, in clock ticks since boot (proc_pid_stat(5), field 22).
    start_time: u64,
    /// Where its output goes.
    pub(crate) log: PathBuf,
}

impl Daemon {
    /// Starts `command` with its output going to `log`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(crate) fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let file =
            File::create(log).with_context(|| format!("failed to make {}", log.display()))?;
        let error_file = file.try_clone().context("failed to copy a descriptor")?;
        // A process group of its own keeps Ctrl-C away from it; without a terminal on any
        // descriptor nothing else ties it to this session.
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(error_file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("failed to start {name}: {:?}", command.get_program()))?;
        let pid = child.id().cast_signed();
        let stat = Stat::read(pid).with_context(|| format!("{name} ended at once"))?;
        Ok(Self {
            name: name.to_owned(),
            pid,
            start_time: stat.start_time,
            log: log.to_owned(),
        })
    }

    /// True while the very process that was started runs.
    pub(crate) fn is_alive(&self) -> bool {
        // If it was started by this process: take its exit code, so that it is no zombie.
        let _not_our_child = waitpid(Pid::from_raw(self.pid), Some(WaitPidFlag::WNOHANG));
        Stat::read(self.pid).is_some_and(|stat| stat.start_time == self.start_time && !stat.is_dead)
    }

    /// Fails, with the end of its log, if it has ended.
    ///
    /// # Errors
    /// If it has ended.
    pub(crate) fn check(&self) -> Result<()> {
        if self.is_alive() {
            return Ok(());
        }
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let end = lines
            .split_at(lines.len().saturating_sub(LINES_IN_ERROR))
            .1
            .join("\n  ");
        bail!(
            "{} has ended; the end of {}:\n  {end}",
            self.name,
            self.log.display()
        );
    }

    /// Asks it to end. Returns at once; [`Daemon::wait`] sees to it.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Waits until it has ended; kills it after `grace`.
    pub(crate) fn wait(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        let mut killed = false;
        while self.is_alive() {
            if Instant::now() > deadline && !killed {
                self.signal(Signal::SIGKILL);
                killed = true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self, signal: Signal) {
        if self.is_alive() {
            // The group: `timeout` and the QEMU under it.
            let _already_gone = kill(Pid::from_raw(-self.pid), signal);
        }
    }
}

struct Stat {
    is_dead: bool,
    start_time: u64,
}

impl Stat {
    fn read(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The name, in parentheses, may hold anything: fields are counted from its end.
    fn parse(stat: &str) -> Option<Self> {
        let (_, fields) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let state = *fields.first()?;
        Some(Self {
            is_dead: state == "Z" || state == "X",
            start_time: fields.get(19)?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let stat = "12 (a) b) S 1 12 12 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 2";
        let stat = Stat::parse(stat).unwrap();
        assert!(!stat.is_dead);
        assert_eq!(stat.start_time, 98765);
    }

    #[test]
    fn a_daemon_that_was_ended_is_not_alive_and_another_with_its_pid_is_not_touched() {
        let log = std::env::temp_dir().join(format!("daemon-test-{}", std::process::id()));
        let daemon = Daemon::start("sleep", Command::new("sleep").arg("60"), &log).unwrap();
        assert!(daemon.is_alive());
        let other = Daemon {
            start_time: daemon.start_time + 1,
            ..daemon.clone()
        };
        assert!(!other.is_alive());
        other.terminate();
        assert!(daemon.is_alive());
        daemon.terminate();
        daemon.wait(Duration::from_secs(5));
        assert!(!daemon.is_alive());
        assert!(daemon.check().is_err());
        fs::remove_file(log).unwrap();
    }
}
