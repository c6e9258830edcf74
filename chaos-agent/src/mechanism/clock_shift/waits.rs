//! Waits until a time: which functions of the kernel our programs stand at, and what they have to
//! know of this kernel. What they do is in `chaos-ebpf/src/bin/clock_shift/waits.rs`.

use nix::libc;

use crate::kernel::btf::Field;

/// Programs that run when a function of the kernel is called: names and functions. All architectures
/// and all ways into the kernel share this one.
pub(super) const ENTRIES: [(&str, &str); 2] = [
    ("clock_shift_timespec", "get_timespec64"),
    ("clock_shift_itimer", "get_itimerspec64"),
];

/// The same, when it returns.
pub(super) const EXITS: [(&str, &str); 2] = [
    ("clock_shift_timespec_read", "get_timespec64"),
    ("clock_shift_itimer_read", "get_itimerspec64"),
];

/// From a task to the clock of one of its timers.
pub(super) const FIELDS: [(&str, Field); 11] = [
    ("TASK_FILES", ("task_struct", "files")),
    ("FILES_TABLE", ("files_struct", "fdt")),
    ("TABLE_LENGTH", ("fdtable", "max_fds")),
    ("TABLE_FILES", ("fdtable", "fd")),
    ("FILE_DATA", ("file", "private_data")),
    ("TIMERFD_CLOCK", ("timerfd_ctx", "clockid")),
    ("TASK_SIGNAL", ("task_struct", "signal")),
    ("SIGNAL_TIMERS", ("signal_struct", "posix_timers")),
    ("TIMER_LIST", ("k_itimer", "list")),
    ("TIMER_ID", ("k_itimer", "it_id")),
    ("TIMER_CLOCK", ("k_itimer", "it_clock")),
];

/// Numbers of system calls. One that this kernel does not have yet is never called.
const CALLS: [(&str, libc::c_long); 8] = [
    ("CLOCK_NANOSLEEP", libc::SYS_clock_nanosleep),
    ("FUTEX", libc::SYS_futex),
    // futex_wait, include/uapi/asm-generic/unistd.h: the same on all architectures.
    ("FUTEX_WAIT", 455),
    ("FUTEX_WAITV", libc::SYS_futex_waitv),
    ("MQ_TIMEDSEND", libc::SYS_mq_timedsend),
    ("MQ_TIMEDRECEIVE", libc::SYS_mq_timedreceive),
    ("TIMER_SETTIME", libc::SYS_timer_settime),
    ("TIMERFD_SETTIME", libc::SYS_timerfd_settime),
];

/// Constants of the programs that are the same on each kernel of this architecture.
pub(super) fn numbers() -> impl Iterator<Item = (&'static str, u32)> {
    // Numbers of system calls are small.
    CALLS
        .into_iter()
        .map(|(name, number)| (name, number as u32))
}
