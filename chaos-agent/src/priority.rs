//! The agent ahead of other programs. A node that is short of CPU is where a fault has to begin and end in
//! time: it may be a fault that keeps the CPUs busy, and a pod with small requests waits longest.

use std::fs;
use std::io;

use nix::libc;

/// The lowest of the real-time priorities: ahead of all ordinary programs, behind all others.
const PRIORITY: libc::c_int = 1;

/// `struct sched_param`, include/uapi/linux/sched/types.h
#[repr(C)]
struct Parameters {
    priority: libc::c_int,
}

/// Puts all threads of this process, and those that they start, ahead (`SCHED_RR`). The kernel keeps some
/// CPU for others whatever they do (sched_rt_runtime_us).
///
/// # Errors
/// EPERM without CAP_SYS_NICE; some of the threads may be ahead then.
pub fn raise() -> io::Result<()> {
    for thread in fs::read_dir("/proc/self/task")? {
        let id = thread?.file_name();
        // What is listed there are numbers.
        let id: Option<libc::pid_t> = id.to_str().and_then(|id| id.parse().ok());
        id.map_or(Ok(()), raise_thread)?;
    }
    Ok(())
}

/// One that has ended meanwhile needs nothing.
fn raise_thread(id: libc::pid_t) -> io::Result<()> {
    let parameters = Parameters { priority: PRIORITY };
    // musl has the function as a stub that always fails.
    // SAFETY: the kernel reads the parameters, which live as long as the call.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_sched_setscheduler,
            id,
            libc::SCHED_RR,
            &raw const parameters,
        )
    };
    match io::Error::last_os_error() {
        _ if answer == 0 => Ok(()),
        error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        error => Err(error),
    }
}
