//! How soon programs see another time, and the right one again: from the moment that the agent is told
//! to the first call that shows it. The agent is in this process, as in the benchmark of packets.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use chaos_agent::kernel::clock;
use chaos_planner::fault::Fault;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::{AHEAD_S, Effort, REALTIME, Tell, ahead};
use crate::bench::agent::{Agent, PATIENCE, milliseconds};
use crate::cgroup::Cgroup;
use crate::figures::statistics::percentile;
use crate::figures::{Aim, Figure};
use crate::process::{Place, Process, role};

const WATCHER: &str = "bench-watcher";
crate::vm_role!(WATCHER, watch);

const STARTER: &str = "bench-starter";
crate::vm_role!(STARTER, start);

const STARTED: &str = "bench-started";
crate::vm_role!(STARTED, look);

/// Readings between two looks whether the program shall end.
const READINGS: u32 = 1_000;

/// A clock reading that was seen.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Seen {
    /// Seconds that the wall clock showed.
    wall: i64,
    /// CLOCK_MONOTONIC nanoseconds just after it.
    at: u64,
}

impl Seen {
    fn now() -> Result<Seen> {
        Ok(Seen {
            wall: clock_gettime(ClockId::CLOCK_REALTIME)?.tv_sec(),
            at: clock::now_ns(),
        })
    }

    /// Whether it is ahead of what the clock has shown to somebody else.
    fn is_ahead_of(&self, right: &Seen) -> bool {
        let between = (self.at as i64 - right.at as i64) / 1_000_000_000;
        self.wall - right.wall - between > AHEAD_S / 2
    }
}

/// Reads its clock without a pause, and tells each reading that is far from the one before.
fn watch(_: &str) -> Result<()> {
    let mut last = Seen::now()?;
    role::ready()?;
    while !role::ended() {
        for _ in 0..READINGS {
            let seen = Seen::now()?;
            if (seen.wall - last.wall).abs() > AHEAD_S / 2 {
                role::tell(&seen)?;
            }
            last = seen;
        }
    }
    Ok(())
}

/// Starts programs, one after the other. They tell what they see in its place.
fn start(_: &str) -> Result<()> {
    role::ready()?;
    while !role::ended() {
        let mut program = Command::new("/proc/self/exe");
        program.args(["role", STARTED, "null"]);
        let status = program.stdin(Stdio::null()).status()?;
        ensure!(status.success(), "a started program failed: {status}");
    }
    Ok(())
}

/// Reads its clock once.
fn look(_: &str) -> Result<()> {
    role::tell(&Seen::now()?)
}

/// Milliseconds from telling the agent to the first call that showed it, for each time.
#[derive(Default)]
struct Times {
    /// The agent has had no fault on a clock before: it attaches its programs first.
    first: Vec<f64>,
    /// The next one.
    again: Vec<f64>,
    /// The end of either.
    end: Vec<f64>,
}

impl Times {
    /// Turns the fault on and off, twice with each of several agents. `until` waits for the first call
    /// that is ahead, or that is not, and returns when it was, CLOCK_MONOTONIC nanoseconds.
    fn take(
        runs: usize,
        fault: &Fault,
        mut until: impl FnMut(bool) -> Result<u64>,
    ) -> Result<Times> {
        let mut times = Times::default();
        let mut turn = |agent: &mut Agent| -> Result<(f64, f64)> {
            let from = agent.desire(vec![fault.clone()])?;
            let on = milliseconds(from, until(true)?);
            let from = agent.desire(Vec::new())?;
            let off = milliseconds(from, until(false)?);
            agent.clear()?;
            Ok((on, off))
        };
        for _ in 0..runs {
            let mut agent = Agent::start()?;
            let (first, end) = turn(&mut agent)?;
            let (again, end_again) = turn(&mut agent)?;
            times.first.push(first);
            times.again.push(again);
            times.end.extend([end, end_again]);
        }
        Ok(times)
    }

    fn tell(&self, program: &str, tell: Tell<'_>) -> Result<()> {
        for (name, times) in [
            (
                "from an agent's first set to the first call that is ahead",
                &self.first,
            ),
            (
                "from its next set to the first call that is ahead",
                &self.again,
            ),
            ("from the end to the first call that is right", &self.end),
        ] {
            let figure = Figure::of(format!("{program}: {name}"), "ms", times);
            tell(
                figure
                    .aim(Aim::AtMost(100.0))
                    .detail("shortest", percentile(times, 0.0))
                    .detail("longest", percentile(times, 100.0)),
            )?;
        }
        Ok(())
    }
}

/// A program that runs, and does nothing but read its clock.
pub(super) fn of_running_programs(effort: Effort, tell: Tell<'_>) -> Result<()> {
    of_those_in(WATCHER, effort)?.tell("running program", tell)
}

/// Programs that are started one after the other, and read the clock once: of that kind the time holds
/// what is left of the start of one, and mostly the whole start of another. They are no children of
/// this process: one that waits for its children sees their stops, which are for the agent here.
pub(super) fn of_started_programs(effort: Effort, tell: Tell<'_>) -> Result<()> {
    of_those_in(STARTER, effort)?.tell("started program", tell)
}

/// What is seen by a program in this role, and by those that it starts.
fn of_those_in(role: &str, effort: Effort) -> Result<Times> {
    let target = Cgroup::new()?;
    let program: Process<Seen> = Place::host().in_cgroup(&target).spawn(role, &())?;
    let mut known = 0;
    let times = Times::take(effort.pairs, &ahead(&target, &[REALTIME]), |ahead| {
        // This process is in no target.
        let right = Seen::now()?;
        let start = Instant::now();
        loop {
            let new = program.with_events(|seen| seen.get(known..).map(<[Seen]>::to_vec));
            for seen in new.unwrap_or_default() {
                known += 1;
                if seen.is_ahead_of(&right) == ahead {
                    return Ok(seen.at);
                }
            }
            ensure!(start.elapsed() < PATIENCE, "nobody sees its clock change");
            std::thread::sleep(Duration::from_millis(1));
        }
    })?;
    program.finish(PATIENCE)?;
    Ok(times)
}
