//! A program that waits until a time of a clock, in every way that there is, and tells how that went.

use std::fs::File;
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::libc;
use serde::{Deserialize, Serialize};

use super::REALTIME;
use super::reader::library;
use crate::clock::Stamp;
use crate::machine::release;
use crate::process::{Place, Process, role};

const WAITER: &str = "clock-waiter";
crate::vm_role!(WAITER, run);

const SECOND: i64 = 1_000_000_000;

/// How a program waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Way {
    Nanosleep,
    Futex,
    /// futex_waitv(2).
    Futexes,
    /// futex_wait(2), of Linux 6.7.
    NewFutex,
    /// For a lock that another thread has; by CLOCK_REALTIME.
    Lock,
    /// For a message; by CLOCK_REALTIME.
    Message,
    Timerfd,
    Timer,
}

/// What a program is told to do.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Task {
    pub(super) clock: u32,
    pub(super) ways: Vec<Way>,
    /// How far away each deadline is.
    pub(super) milliseconds: i64,
    /// Whether the deadline is in memory that cannot be written while it waits.
    pub(super) read_only: bool,
}

/// One wait.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Waited {
    pub(super) way: Way,
    /// True milliseconds from the reading of the clock to the return.
    pub(super) took: i64,
    /// Milliseconds by which the program's own clock was past the deadline then.
    pub(super) late: i64,
    /// Whether the deadline in its memory is what it was.
    pub(super) unchanged: bool,
}

impl Task {
    pub(super) const WAYS: [Way; 4] = [Way::Nanosleep, Way::Futex, Way::Timerfd, Way::Timer];

    /// All ways that this kernel has to wait by a clock.
    pub(super) fn all_on(clock: u32) -> Result<Task> {
        let mut task = Task::on(clock);
        task.ways.push(Way::Futexes);
        if !release()?.starts_with("6.1.") {
            task.ways.push(Way::NewFutex);
        }
        if clock == REALTIME {
            task.ways.extend([Way::Lock, Way::Message]);
        }
        Ok(task)
    }

    pub(super) fn on(clock: u32) -> Task {
        Task {
            clock,
            ways: Task::WAYS.to_vec(),
            milliseconds: 300,
            read_only: false,
        }
    }

    pub(super) fn start(&self, place: Place<'_>) -> Result<Process<Waited>> {
        place.spawn(WAITER, self)
    }

    /// What a program does here, which has to be right, and `changed` says how far its clock is moved
    /// while it waits.
    pub(super) fn is_right(&self, process: Process<Waited>, changed: i64) -> Result<()> {
        let all = process.join(Duration::from_secs(40))?;
        ensure!(all.len() == self.ways.len(), "{all:?}");
        for wait in &all {
            let took = self.milliseconds..self.milliseconds + 5_000;
            let late = wait.late - changed * 1_000;
            ensure!(
                took.contains(&wait.took) && (0..5_000).contains(&late) && wait.unchanged,
                "{wait:?} of {all:?}"
            );
        }
        Ok(())
    }
}

fn run(args: &str) -> Result<()> {
    let task: Task = serde_json::from_str(args)?;
    role::ready()?;
    let page = Page::new()?;
    for &way in &task.ways {
        let started = Stamp::now();
        let until = library(task.clock) + task.milliseconds * 1_000_000;
        let deadline = timespec(until);
        page.hold(deadline, task.read_only)?;
        way.wait(task.clock, page.0)?;
        let took = Stamp::now().since(started).as_millis() as i64;
        let late = (library(task.clock) - until).div_euclid(1_000_000);
        // SAFETY: the page holds an itimerspec.
        let after = unsafe { page.0.read_volatile() }.it_value;
        role::tell(&Waited {
            way,
            took,
            late,
            unchanged: after == deadline,
        })?;
    }
    Ok(())
}

/// Nanoseconds of a clock, as the kernel takes them.
pub(super) fn timespec(nanos: i64) -> libc::timespec {
    libc::timespec {
        tv_sec: nanos.div_euclid(SECOND),
        tv_nsec: nanos.rem_euclid(SECOND),
    }
}

/// A page of memory with a deadline, as a timer has it.
pub(super) struct Page(pub(super) *mut libc::itimerspec);

impl Page {
    const LENGTH: usize = 4_096;

    pub(super) fn new() -> Result<Page> {
        let writable = libc::PROT_READ | libc::PROT_WRITE;
        let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let none = std::ptr::null_mut();
        // SAFETY: a new mapping where nothing is.
        let page = unsafe { libc::mmap(none, Page::LENGTH, writable, private, -1, 0) };
        ensure!(page != libc::MAP_FAILED, "no memory");
        Ok(Page(page.cast()))
    }

    pub(super) fn hold(&self, deadline: libc::timespec, read_only: bool) -> Result<()> {
        let timer = libc::itimerspec {
            it_interval: timespec(0),
            it_value: deadline,
        };
        // SAFETY: the page is ours, writable, and larger.
        unsafe { self.0.write_volatile(timer) };
        if read_only {
            // SAFETY: the page is ours, and only read from here on.
            let done = unsafe { libc::mprotect(self.0.cast(), Page::LENGTH, libc::PROT_READ) };
            ensure!(done == 0, "mprotect: {}", std::io::Error::last_os_error());
        }
        Ok(())
    }
}

impl Way {
    pub(super) fn wait(self, clock: u32, timer: *const libc::itimerspec) -> Result<()> {
        // SAFETY: the timer is in a page that the caller has.
        let deadline = unsafe { &raw const (*timer).it_value };
        match self {
            Way::Nanosleep => {
                let (clock, none) = (clock as i32, std::ptr::null_mut());
                // SAFETY: a timespec to read.
                let error =
                    unsafe { libc::clock_nanosleep(clock, libc::TIMER_ABSTIME, deadline, none) };
                ensure!(error == 0, "clock_nanosleep: error {error}");
            }
            Way::Futex => {
                let flag = if clock == REALTIME {
                    libc::FUTEX_CLOCK_REALTIME
                } else {
                    0
                };
                let operation = libc::FUTEX_WAIT_BITSET | libc::FUTEX_PRIVATE_FLAG | flag;
                let (word, none, any) = (0_u32, std::ptr::null::<u32>(), u32::MAX);
                let word = &raw const word;
                // SAFETY: a futex that nobody wakes, and a timespec to read.
                let result = unsafe {
                    libc::syscall(libc::SYS_futex, word, operation, 0, deadline, none, any)
                };
                timed_out("futex", result)?;
            }
            Way::Futexes => {
                let word = 0_u32;
                let one = OneFutex {
                    value: 0,
                    word: &raw const word as u64,
                    flags: NEW_FUTEX,
                    reserved: 0,
                };
                // SAFETY: one futex that nobody wakes, and a timespec to read.
                let result = unsafe {
                    libc::syscall(libc::SYS_futex_waitv, &raw const one, 1, 0, deadline, clock)
                };
                timed_out("futex_waitv", result)?;
            }
            Way::NewFutex => {
                let (word, any) = (0_u32, u64::from(u32::MAX));
                let word = &raw const word;
                // SAFETY: a futex that nobody wakes, and a timespec to read.
                let result = unsafe {
                    libc::syscall(SYS_FUTEX_WAIT, word, 0_u64, any, NEW_FUTEX, deadline, clock)
                };
                timed_out("futex_wait", result)?;
            }
            Way::Lock => lock(deadline)?,
            Way::Message => receive(deadline)?,
            Way::Timerfd => {
                // SAFETY: takes numbers.
                let descriptor = unsafe { libc::timerfd_create(clock as i32, 0) };
                ensure!(descriptor >= 0, "timerfd_create");
                // SAFETY: just opened, and nobody else's.
                let mut file = unsafe { File::from_raw_fd(descriptor) };
                let none = std::ptr::null_mut();
                // SAFETY: a descriptor that is open, and an itimerspec to read.
                let result = unsafe {
                    libc::timerfd_settime(descriptor, libc::TFD_TIMER_ABSTIME, timer, none)
                };
                ensure!(result == 0, "timerfd_settime");
                let mut expirations = [0; 8];
                file.read_exact(&mut expirations)?;
                ensure!(u64::from_ne_bytes(expirations) == 1, "{expirations:?}");
            }
            Way::Timer => {
                // SAFETY: all bytes are a sigevent.
                let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
                event.sigev_notify = libc::SIGEV_NONE;
                // One that is younger than that which is set.
                let mut timers = [std::ptr::null_mut(); 2];
                for id in &mut timers {
                    // SAFETY: an event to read and an id to write.
                    let result = unsafe { libc::timer_create(clock as i32, &raw mut event, id) };
                    ensure!(result == 0, "timer_create");
                }
                let (id, none) = (timers[0], std::ptr::null_mut());
                // SAFETY: a timer that is there, and an itimerspec to read.
                let result = unsafe { libc::timer_settime(id, libc::TIMER_ABSTIME, timer, none) };
                ensure!(result == 0, "timer_settime");
                while is_running(id)? {
                    std::thread::sleep(Duration::from_millis(5));
                }
                for id in timers {
                    // SAFETY: a timer that is there.
                    unsafe { libc::timer_delete(id) };
                }
            }
        }
        Ok(())
    }
}

/// An element of futex_waitv(2): `struct futex_waitv`, include/uapi/linux/futex.h.
#[repr(C)]
struct OneFutex {
    value: u64,
    word: u64,
    flags: u32,
    reserved: u32,
}

/// `FUTEX2_SIZE_U32 | FUTEX2_PRIVATE`, include/uapi/linux/futex.h.
const NEW_FUTEX: u32 = 2 | 128;

/// include/uapi/asm-generic/unistd.h: the same on all architectures.
const SYS_FUTEX_WAIT: libc::c_long = 455;

/// Whether a call has come back because its time was over.
fn timed_out(call: &str, result: libc::c_long) -> Result<()> {
    let error = std::io::Error::last_os_error();
    ensure!(
        result == -1 && error.raw_os_error() == Some(libc::ETIMEDOUT),
        "{call}: {result}, {error}"
    );
    Ok(())
}

/// Waits for a lock with priority inheritance that another thread has.
fn lock(deadline: *const libc::timespec) -> Result<()> {
    let word = AtomicU32::new(0);
    let (locked, released) = (Barrier::new(2), Barrier::new(2));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: takes nothing.
            let thread = unsafe { libc::gettid() };
            word.store(thread.cast_unsigned(), Ordering::SeqCst);
            locked.wait();
            released.wait();
        });
        locked.wait();
        let operation = libc::FUTEX_LOCK_PI | libc::FUTEX_PRIVATE_FLAG;
        // SAFETY: a futex that lives until the call is back, and a timespec to read.
        let result =
            unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, 0, deadline) };
        let result = timed_out("a lock", result);
        released.wait();
        result
    })
}

/// Waits for a message that nobody sends.
fn receive(deadline: *const libc::timespec) -> Result<()> {
    let name = std::ffi::CString::new(format!("/{}", std::process::id()))?;
    let flags = libc::O_CREAT | libc::O_RDONLY;
    let none = std::ptr::null_mut::<libc::mq_attr>();
    // SAFETY: a name, and the attributes that the system gives.
    let queue = unsafe { libc::mq_open(name.as_ptr(), flags, 0o600, none) };
    ensure!(queue >= 0, "mq_open: {}", std::io::Error::last_os_error());
    // SAFETY: just opened, and nobody else's.
    let _queue = unsafe { OwnedFd::from_raw_fd(queue) };
    // The size of messages of a queue without attributes, /proc/sys/fs/mqueue/msgsize_default.
    let mut message = [0_u8; 8_192];
    let (at, length) = (message.as_mut_ptr().cast(), message.len());
    // SAFETY: room for a message, no priority, and a timespec to read.
    let result =
        unsafe { libc::mq_timedreceive(queue, at, length, std::ptr::null_mut(), deadline) };
    let result = timed_out("mq_timedreceive", result as libc::c_long);
    // SAFETY: a name.
    unsafe { libc::mq_unlink(name.as_ptr()) };
    result
}

/// Whether a timer that goes off once has not done so yet.
fn is_running(timer: libc::timer_t) -> Result<bool> {
    // SAFETY: all bytes are an itimerspec.
    let mut left: libc::itimerspec = unsafe { std::mem::zeroed() };
    // SAFETY: a timer that is there, and an itimerspec to write.
    let result = unsafe { libc::timer_gettime(timer, &raw mut left) };
    ensure!(result == 0, "timer_gettime");
    Ok((left.it_value.tv_sec, left.it_value.tv_nsec) != (0, 0))
}
