//! A role that is killed at one of its system calls: a crash between any two steps, without a hook
//! in the program that is tested.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// A system call that changes what outlives the process that makes it.
fn is_step(call: u64, argument: u64) -> bool {
    // linux/bpf.h, enum bpf_cmd
    const MAP_UPDATE_ELEM: u64 = 2;
    const MAP_DELETE_ELEM: u64 = 3;
    const OBJ_PIN: u64 = 6;
    const PROG_TEST_RUN: u64 = 10;
    const LINK_CREATE: u64 = 28;
    let of_bpf = [
        MAP_UPDATE_ELEM,
        MAP_DELETE_ELEM,
        OBJ_PIN,
        PROG_TEST_RUN,
        LINK_CREATE,
    ];
    let of_files = [
        libc::SYS_mkdir,
        libc::SYS_rename,
        libc::SYS_unlink,
        libc::SYS_rmdir,
    ];
    call == libc::SYS_bpf as u64 && of_bpf.contains(&argument)
        || of_files.iter().any(|&file| call == file as u64)
}

/// How many steps a role takes from its beginning to its end.
///
/// # Errors
/// It could not be started or traced, or it failed.
pub(crate) fn steps(role: &str) -> Result<usize> {
    traced(role, None)
}

/// Runs the runner in this role and kills it as it is about to take this step; the first is 0.
///
/// # Errors
/// It could not be started or traced, or it ended before.
pub(crate) fn kill_before(step: usize, role: &str) -> Result<()> {
    let taken = traced(role, Some(step))?;
    ensure!(taken == step, "role {role} ended after {taken} steps");
    Ok(())
}

fn traced(role: &str, end: Option<usize>) -> Result<usize> {
    // A tracer is a thread; one of its own waits for no children of the test.
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| trace(role, end));
        thread
            .join()
            .unwrap_or_else(|_| Err(anyhow::anyhow!("the tracer panicked")))
    })
}

/// Steps that it took until it ended, or was killed.
fn trace(role: &str, end: Option<usize>) -> Result<usize> {
    let mut command = Command::new("/proc/self/exe");
    command.args(["role", role, "null"]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    // SAFETY: between fork and exec it does one system call.
    unsafe { command.pre_exec(|| Ok(ptrace::traceme()?)) };
    let child = command
        .spawn()
        .with_context(|| format!("failed to start role {role}"))?;
    let main = Pid::from_raw(child.id().cast_signed());
    let any = Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD);
    waitpid(main, any).context("failed to wait for its exec")?;
    let options =
        Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(main, options)?;
    ptrace::syscall(main, None)?;
    let mut taken = 0;
    let mut killed = false;
    loop {
        let (thread, signal) = match waitpid(Pid::from_raw(-1), any)? {
            WaitStatus::Exited(pid, code) if pid == main => {
                ensure!(code == 0, "role {role} failed: see above");
                return Ok(taken);
            }
            WaitStatus::Signaled(pid, signal, _) if pid == main => {
                ensure!(killed, "role {role} was ended by {signal}");
                return Ok(taken);
            }
            WaitStatus::PtraceSyscall(pid) => {
                if let Ok(registers) = ptrace::getregs(pid)
                    // The kernel has this in place of a result until the call returns.
                    && registers.rax.cast_signed() == -i64::from(libc::ENOSYS)
                    && is_step(registers.orig_rax, registers.rdi)
                {
                    if end == Some(taken) {
                        killed = true;
                        kill(main, Signal::SIGKILL)?;
                        continue;
                    }
                    taken += 1;
                }
                (pid, None)
            }
            WaitStatus::Stopped(pid, Signal::SIGSTOP | Signal::SIGTRAP) => (pid, None),
            WaitStatus::Stopped(pid, signal) => (pid, Some(signal)),
            WaitStatus::PtraceEvent(pid, ..) => (pid, None),
            _ => continue,
        };
        // It may have been killed meanwhile.
        let _ = ptrace::syscall(thread, signal);
    }
}
