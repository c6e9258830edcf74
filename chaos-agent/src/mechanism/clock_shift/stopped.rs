//! All threads of a program stopped at once, by ptrace. The kernel lets them go when the thread that
//! stopped them ends, so none stays stopped, whatever happens to the agent.
//!
//! The system calls that they wait in go on afterwards; those that never do after a stop
//! (signal(7): epoll_wait and a few others) return EINTR.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::arch;

/// How long threads that wait in the kernel may take to stop, all together: the others stand still
/// meanwhile.
const PATIENCE: Duration = Duration::from_millis(100);

/// The same for one that runs: it stops when it is given a CPU, which its cgroup's quota may keep
/// from it for a while.
const PATIENCE_RUNNING: Duration = Duration::from_secs(2);

/// How many instructions a thread is taken to leave what is to be changed.
const STEPS: u32 = 64;

/// What ptrace(2) writes at once, in bytes.
const WORD: usize = size_of::<libc::c_long>();

/// Why not all threads were stopped. None is, then.
#[derive(Debug)]
pub(super) enum StopError {
    /// The program has ended.
    Gone,
    /// A debugger has it.
    Traced(u32),
    /// This thread does not stop.
    Restless(i32),
    /// The kernel says no.
    Kernel(Errno),
}

/// A program that stands still.
pub(super) struct Stopped {
    /// Each thread with the signal that it was about to get.
    threads: BTreeMap<Pid, Option<Signal>>,
}

impl Stopped {
    /// Stops a program; the caller's thread is then its tracer.
    ///
    /// # Errors
    /// [`StopError`]
    pub(super) fn stop(process: &Path) -> Result<Self, StopError> {
        let mut stopped = Self {
            threads: BTreeMap::new(),
        };
        let start = Instant::now();
        // A thread may have made others before it was stopped.
        loop {
            let mut seized = Vec::new();
            for thread in threads(process)? {
                if !stopped.threads.contains_key(&thread) && seize(process, thread)? {
                    seized.push(thread);
                }
            }
            if seized.is_empty() {
                break;
            }
            for thread in seized {
                if let Some(signal) = wait(process, thread, start)? {
                    stopped.threads.insert(thread, signal);
                }
            }
        }
        if stopped.threads.is_empty() {
            return Err(StopError::Gone);
        }
        Ok(stopped)
    }

    /// Lets each thread that goes on at a place that `within` is true of run on until it does not,
    /// instruction by instruction. Whether none is there any more.
    pub(super) fn leave(&mut self, process: &Path, within: impl Fn(u64) -> bool) -> bool {
        let start = Instant::now();
        self.threads.iter_mut().all(|(&thread, signal)| {
            for _ in 0..STEPS {
                let Ok(registers) = ptrace::getregs(thread) else {
                    // It has been killed meanwhile.
                    return true;
                };
                if !within(arch::instruction_pointer(&registers)) {
                    return true;
                }
                // One that is about to get a signal would go on in its handler, and come back.
                if signal.is_some() || ptrace::step(thread, None).is_err() {
                    return false;
                }
                match wait(process, thread, start) {
                    Ok(Some(Some(Signal::SIGTRAP))) => {}
                    Ok(Some(arrived)) => *signal = arrived,
                    Ok(None) => return true,
                    Err(_) => return false,
                }
            }
            false
        })
    }

    /// Writes into the program's memory, also where itself may not. By ptrace(2): /proc/PID/mem can be
    /// closed for that (`proc_mem.force_override=never`).
    ///
    /// # Errors
    /// The kernel's; a part may have been written.
    pub(super) fn write(&self, at: u64, bytes: &[u8]) -> nix::Result<()> {
        let mut result = Err(Errno::ESRCH);
        for &thread in self.threads.keys() {
            result = write(thread, at, bytes);
            // One that was killed meanwhile.
            if result != Err(Errno::ESRCH) {
                break;
            }
        }
        result
    }
}

/// Word by word.
fn write(thread: Pid, at: u64, bytes: &[u8]) -> nix::Result<()> {
    for (place, part) in (at..).step_by(WORD).zip(bytes.chunks(WORD)) {
        let place = place as ptrace::AddressType;
        let mut word = ptrace::read(thread, place)?.to_ne_bytes();
        word[..part.len()].copy_from_slice(part);
        ptrace::write(thread, place, libc::c_long::from_ne_bytes(word))?;
    }
    Ok(())
}

impl Drop for Stopped {
    fn drop(&mut self) {
        for (&thread, &signal) in &self.threads {
            // One that was killed meanwhile is gone.
            let _ = ptrace::detach(thread, signal);
        }
    }
}

/// Asks a thread to stop; false when it has ended.
fn seize(process: &Path, thread: Pid) -> Result<bool, StopError> {
    match ptrace::seize(thread, Options::empty()) {
        Ok(()) => {}
        Err(Errno::ESRCH) => return Ok(false),
        // Of a thread that has ended the kernel says EPERM as well.
        Err(_) if matches!(state(process, thread), None | Some('Z' | 'X')) => return Ok(false),
        Err(errno) => {
            return Err(match tracer(process, thread) {
                Some(by) => StopError::Traced(by),
                None => StopError::Kernel(errno),
            });
        }
    }
    match ptrace::interrupt(thread) {
        Ok(()) => Ok(true),
        Err(Errno::ESRCH) => Ok(false),
        Err(errno) => Err(StopError::Kernel(errno)),
    }
}

/// Waits until a thread has stopped: the signal that it was about to get, if that stopped it. `None`
/// when it has ended. Patience counts from `start`, when the first was waited for.
fn wait(process: &Path, thread: Pid, start: Instant) -> Result<Option<Option<Signal>>, StopError> {
    let goes_on = || {
        let waited = start.elapsed();
        waited < PATIENCE || waited < PATIENCE_RUNNING && state(process, thread) == Some('R')
    };
    loop {
        match waitpid(thread, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Stopped(_, signal)) => return Ok(Some(Some(signal))),
            Ok(WaitStatus::PtraceEvent(..)) => return Ok(Some(None)),
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::ECHILD) => {
                return Ok(None);
            }
            Ok(_) | Err(Errno::EINTR) if goes_on() => {
                std::thread::sleep(Duration::from_micros(50));
            }
            Ok(_) | Err(Errno::EINTR) => return Err(StopError::Restless(thread.as_raw())),
            Err(errno) => return Err(StopError::Kernel(errno)),
        }
    }
}

fn threads(process: &Path) -> Result<Vec<Pid>, StopError> {
    let entries = fs::read_dir(process.join("task")).map_err(|_| StopError::Gone)?;
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    let numbers = entries.flatten().filter_map(number);
    Ok(numbers.map(Pid::from_raw).collect())
}

/// As in proc(5): `R` for one that runs or wants to.
fn state(process: &Path, thread: Pid) -> Option<char> {
    let path = process.join("task").join(thread.to_string()).join("stat");
    let stat = fs::read_to_string(path).ok()?;
    // The name, in parentheses, may have anything in it.
    stat.rsplit_once(") ")?.1.chars().next()
}

/// A debugger may have some threads of a program only.
fn tracer(process: &Path, thread: Pid) -> Option<u32> {
    let path = process.join("task").join(thread.to_string()).join("status");
    let status = fs::read_to_string(path).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("TracerPid:"))?;
    line.trim().parse().ok().filter(|&pid| pid != 0)
}
