//! What a fault on clocks is compared with: a debugger that stops its program before and after each
//! system call, and changes what clock_gettime has left in its memory. Tools that inject by ptrace alone
//! do at least this much; one with a seccomp filter could answer the call itself, with one stop.

use std::sync::mpsc::channel;

use anyhow::{Context, Result, bail};
use nix::libc;
use nix::sys::ptrace::{self, AddressType, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::reads::{Reader, Shown, Way};
use super::{AHEAD_S, REALTIME};
use crate::process::Place;
use crate::registry::note;

/// A program with a debugger of its own. The debugger goes with it.
pub(super) struct Traced {
    reader: Reader,
}

impl Traced {
    pub(super) fn start() -> Result<Traced> {
        let reader = Reader::start(Place::host())?;
        let pid = Pid::from_raw(reader.pid().cast_signed());
        let (tell, told) = channel();
        std::thread::spawn(move || {
            let seized = seize(pid);
            let is_ours = seized.is_ok();
            let _ = tell.send(seized);
            if is_ours && let Err(error) = follow(pid) {
                note(format!("the debugger of {pid}: {error:#}"));
            }
        });
        told.recv().context("the debugger is gone")??;
        Ok(Traced { reader })
    }

    /// Nanoseconds of a call.
    pub(super) fn time(&mut self, calls: u32) -> Result<f64> {
        self.reader
            .time(REALTIME, Way::SystemCall, calls, Shown::Ahead)
            .context("behind a debugger")
    }
}

fn seize(pid: Pid) -> Result<()> {
    let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL;
    ptrace::seize(pid, options).context("failed to trace it")?;
    ptrace::interrupt(pid).context("failed to stop it")
}

/// Goes from system call to system call, until the program ends. As little as this can be: of the
/// registers only at the beginning of a call, of the memory one word.
fn follow(pid: Pid) -> Result<()> {
    // Others of this process wait for its other children.
    let mine = Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD);
    let mut inside = false;
    // Where the call that it is in leaves the time.
    let mut result: Option<u64> = None;
    loop {
        let status = match waitpid(pid, mine) {
            // Who ends it may also be quicker to wait for it.
            Err(nix::Error::ECHILD) => return Ok(()),
            status => status?,
        };
        let signal = match status {
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => return Ok(()),
            WaitStatus::PtraceSyscall(_) => {
                inside = !inside;
                if inside {
                    let registers = ptrace::getregs(pid)?;
                    let reads = registers.orig_rax == libc::SYS_clock_gettime as u64
                        && registers.rdi == u64::from(REALTIME);
                    result = reads.then_some(registers.rsi);
                } else if let Some(address) = result {
                    // Seconds come first in a timespec.
                    let address = address as AddressType;
                    let right = ptrace::read(pid, address)?;
                    ptrace::write(pid, address, right + AHEAD_S)?;
                }
                None
            }
            WaitStatus::PtraceEvent(..) | WaitStatus::Stopped(_, Signal::SIGTRAP) => None,
            WaitStatus::Stopped(_, signal) => Some(signal),
            other => bail!("it is {other:?}"),
        };
        match ptrace::syscall(pid, signal) {
            // Killed meanwhile: the next wait tells.
            Err(nix::Error::ESRCH) => {}
            done => done?,
        }
    }
}
