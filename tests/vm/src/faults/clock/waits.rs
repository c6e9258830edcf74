//! Programs that wait until a time of a clock that is ahead or behind for them.

use std::fs::File;
use std::io::Read;
use std::os::fd::FromRawFd;
use std::sync::Barrier;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::libc;
use serde::{Deserialize, Serialize};

use super::reader::library;
use super::{HOUR, MONOTONIC, REALTIME, seconds};
use crate::cgroup::Cgroup;
use crate::clock::Stamp;
use crate::node::{Host, clock_fault, nothing_is_pinned};
use crate::process::{Place, Process, role};
use crate::vm_test;

const WAITER: &str = "clock-waiter";
crate::vm_role!(WAITER, run);

const SECOND: i64 = 1_000_000_000;

/// How a program waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Way {
    Nanosleep,
    Futex,
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
    fn is_right(&self, process: Process<Waited>, changed: i64) -> Result<()> {
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
fn timespec(nanos: i64) -> libc::timespec {
    libc::timespec {
        tv_sec: nanos.div_euclid(SECOND),
        tv_nsec: nanos.rem_euclid(SECOND),
    }
}

/// A page of memory with a deadline, as a timer has it.
struct Page(*mut libc::itimerspec);

impl Page {
    const LENGTH: usize = 4_096;

    fn new() -> Result<Page> {
        let writable = libc::PROT_READ | libc::PROT_WRITE;
        let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let none = std::ptr::null_mut();
        // SAFETY: a new mapping where nothing is.
        let page = unsafe { libc::mmap(none, Page::LENGTH, writable, private, -1, 0) };
        ensure!(page != libc::MAP_FAILED, "no memory");
        Ok(Page(page.cast()))
    }

    fn hold(&self, deadline: libc::timespec, read_only: bool) -> Result<()> {
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
    fn wait(self, clock: u32, timer: *const libc::itimerspec) -> Result<()> {
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
                let error = std::io::Error::last_os_error();
                if result != -1 || error.raw_os_error() != Some(libc::ETIMEDOUT) {
                    bail!("futex: {result}, {error}");
                }
            }
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

/// Whether a timer that goes off once has not done so yet.
fn is_running(timer: libc::timer_t) -> Result<bool> {
    // SAFETY: all bytes are an itimerspec.
    let mut left: libc::itimerspec = unsafe { std::mem::zeroed() };
    // SAFETY: a timer that is there, and an itimerspec to write.
    let result = unsafe { libc::timer_gettime(timer, &raw mut left) };
    ensure!(result == 0, "timer_gettime");
    Ok((left.it_value.tv_sec, left.it_value.tv_nsec) != (0, 0))
}

vm_test!(
    a_wait_until_a_time_ends_when_the_clock_of_the_program_shows_it,
    limit = 240
);
fn a_wait_until_a_time_ends_when_the_clock_of_the_program_shows_it() -> Result<()> {
    let (target, bystander) = (Cgroup::new()?, Cgroup::new()?);
    let inside = || Place::host().in_cgroup(&target);
    let mut host = Host::open()?;
    for (clock, offset) in [
        (REALTIME, HOUR),
        (REALTIME, -HOUR),
        (MONOTONIC, 10),
        (MONOTONIC, -10),
    ] {
        let case = || format!("clock {clock} moved by {offset} s");
        let task = Task::on(clock);
        host.arm(clock_fault("c", &target, seconds(offset, &[clock])))?;
        let outside = task.start(Place::host().in_cgroup(&bystander))?;
        task.is_right(task.start(inside())?, 0).with_context(case)?;
        task.is_right(outside, 0)
            .context("a bystander")
            .with_context(case)?;
        let counts = host.counts("c")?;
        // A reading before each wait, the wait, and a reading after it.
        let expected = 3 * task.ways.len() as u64;
        let exact = clock != REALTIME || counts.injected == expected;
        ensure!(
            exact && counts.injected >= expected && counts.failed == 0,
            "{counts:?}"
        );
        host.recover("c")?;
        task.is_right(task.start(inside())?, 0)
            .context("afterwards")
            .with_context(case)?;
    }
    drop(host);
    nothing_is_pinned()
}

vm_test!(
    who_sleeps_when_a_skew_begins_or_ends_wakes_at_its_time,
    limit = 120
);
fn who_sleeps_when_a_skew_begins_or_ends_wakes_at_its_time() -> Result<()> {
    let target = Cgroup::new()?;
    let inside = || Place::host().in_cgroup(&target);
    let mut host = Host::open()?;
    let task = |way| Task {
        ways: vec![way],
        milliseconds: 5_000,
        ..Task::on(REALTIME)
    };
    // All that sleep have begun to when this returns.
    let sleepers = || -> Result<Vec<_>> {
        let start = |way| Ok((way, task(way).start(inside())?));
        let all = Task::WAYS.into_iter().map(start).collect::<Result<_>>();
        std::thread::sleep(Duration::from_secs(1));
        all
    };
    let are_right = |sleepers: Vec<(Way, Process<Waited>)>, changed| -> Result<()> {
        for (way, sleeper) in sleepers {
            let right = task(way).is_right(sleeper, changed);
            right.with_context(|| format!("{way:?}"))?;
        }
        Ok(())
    };
    for offset in [HOUR, -HOUR] {
        let before = sleepers()?;
        host.arm(clock_fault("c", &target, seconds(offset, &[REALTIME])))?;
        are_right(before, offset).with_context(|| format!("{offset} s begins"))?;
        let during = sleepers()?;
        host.recover("c")?;
        are_right(during, -offset).with_context(|| format!("{offset} s ends"))?;
    }
    Ok(())
}

vm_test!(a_deadline_that_cannot_be_written_is_told_of, limit = 60);
fn a_deadline_that_cannot_be_written_is_told_of() -> Result<()> {
    let target = Cgroup::new()?;
    let mut host = Host::open()?;
    // An hour behind, so that a wait that goes by the right clock ends at once.
    host.arm(clock_fault("c", &target, seconds(-HOUR, &[REALTIME])))?;
    let task = Task {
        ways: vec![Way::Nanosleep],
        read_only: true,
        ..Task::on(REALTIME)
    };
    let waiter = task.start(Place::host().in_cgroup(&target))?;
    let waits = waiter.join(Duration::from_secs(20))?;
    ensure!(waits.len() == 1 && waits[0].unchanged, "{waits:?}");
    let seen = host.observe("c").context("gone")?;
    ensure!(
        seen.degraded && seen.counts.failed == 1 && seen.reason.contains("cannot be written"),
        "{seen:?}"
    );
    Ok(())
}

const CROWD: &str = "clock-crowd";

/// How often the crowd waits.
const ROUNDS: usize = 100;
crate::vm_role!(CROWD, crowd);

/// Threads that begin to wait by one deadline, all at the same moment, again and again. Tells how many
/// times the deadline was another afterwards, or the wait too short or too long.
fn crowd(_: &str) -> Result<()> {
    const THREADS: usize = 6;
    const AWAY: Duration = Duration::from_millis(30);
    role::ready()?;
    let page = Page::new()?;
    let address = page.0 as usize;
    let barrier = Barrier::new(THREADS + 1);
    let mut wrong = 0;
    std::thread::scope(|scope| -> Result<()> {
        let barrier = &barrier;
        for _ in 0..THREADS {
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    barrier.wait();
                    let deadline = address as *const libc::itimerspec;
                    Way::Nanosleep.wait(REALTIME, deadline).expect("waits");
                    barrier.wait();
                }
            });
        }
        for _ in 0..ROUNDS {
            let started = Stamp::now();
            let until = library(REALTIME) + AWAY.as_nanos() as i64;
            let deadline = timespec(until);
            page.hold(deadline, false)?;
            barrier.wait();
            barrier.wait();
            let took = Stamp::now().since(started);
            // SAFETY: the page holds an itimerspec, and all others have stopped to look at it.
            let after = unsafe { page.0.read_volatile() }.it_value;
            let right = after == deadline && took >= AWAY && took < Duration::from_secs(5);
            wrong += usize::from(!right);
        }
        Ok(())
    })?;
    role::tell(&wrong)
}

vm_test!(threads_can_wait_by_one_deadline, limit = 120);
fn threads_can_wait_by_one_deadline() -> Result<()> {
    let target = Cgroup::new()?;
    let mut host = Host::open()?;
    host.arm(clock_fault("c", &target, seconds(-HOUR, &[REALTIME])))?;
    let crowd: Process<usize> = Place::host().in_cgroup(&target).spawn(CROWD, &())?;
    let wrong = crowd.join(Duration::from_secs(50))?;
    let counts = host.counts("c")?;
    // A machine may stop one of them in the midst; who then waits by the right clock, waits too short
    // here and is counted.
    let told = counts.failed as usize;
    ensure!(
        wrong.len() == 1 && wrong[0] <= told && wrong[0] < ROUNDS / 4,
        "{wrong:?}, {counts:?}"
    );
    host.recover("c")?;
    Ok(())
}
