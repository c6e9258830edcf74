//! Programs that wait until a time of a clock that is ahead or behind for them.

use std::sync::Barrier;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::libc;

use super::reader::library;
use super::waiter::{Page, Task, Waited, Way, timespec};
use super::{HOUR, MONOTONIC, REALTIME};
use crate::cgroup::Cgroup;
use crate::clock::Stamp;
use crate::node::{Host, clock_fault, moved, nothing_is_pinned};
use crate::process::{Place, Process, role};
use crate::vm_test;

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
        let task = Task::all_on(clock)?;
        host.arm(clock_fault("c", &target, moved(offset, &[clock])))?;
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
        host.arm(clock_fault("c", &target, moved(offset, &[REALTIME])))?;
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
    host.arm(clock_fault("c", &target, moved(-HOUR, &[REALTIME])))?;
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
    host.arm(clock_fault("c", &target, moved(-HOUR, &[REALTIME])))?;
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
