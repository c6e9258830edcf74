//! What a fault on clocks costs, and how quick it is. Asked are three things: that it costs those whom it
//! is not about nothing, that it costs its target much less than a debugger would (what tools without
//! kernel programs take), and that it is there, and gone, at once.
//!
//! Emulated machines have no nanoseconds: see `docs/performance.md` for what these figures are worth.

mod cost;
mod quickness;
mod reads;
mod tracer;

use anyhow::{Context, Result, ensure};
use chaos_planner::fault::Fault;

use super::{asked_pairs, tell};
use crate::cgroup::Cgroup;
use crate::figures::{FEWEST_PAIRS, Figure};
use crate::node::{clock_fault, lasting, moved};
use crate::vm_test;

/// Part of the names of what is here.
pub(crate) const NAME: &str = "bench::time::";

const REALTIME: u32 = 0;
const MONOTONIC: u32 = 1;

/// How far clocks are ahead: more than anything else makes of them within a run.
const AHEAD_S: i64 = 3_600;

/// Longer than any of these runs.
const LONG: std::time::Duration = std::time::Duration::from_secs(7200);

/// What the kernel reads its clocks from. From `tsc` the vDSO can do so as well.
const CLOCK_SOURCE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Pairs of each comparison, and times that a fault is turned on and off.
    pub(crate) pairs: usize,
    /// Calls in a row; of those through a debugger a twentieth.
    pub(crate) calls: u32,
}

impl Effort {
    /// What the host asks for.
    ///
    /// # Errors
    /// If it asks for nothing, or the clocks of this kernel are not read from its vDSO: then there is
    /// nothing that a fault could make dearer.
    fn asked() -> Result<Effort> {
        let source = std::fs::read_to_string(CLOCK_SOURCE).context("no clock source")?;
        ensure!(
            source.trim() == "tsc",
            "{CLOCK_SOURCE}: {source}: must be tsc to measure; boot again"
        );
        let pairs = asked_pairs()?;
        let calls = if pairs < FEWEST_PAIRS { 50 } else { 500 };
        Ok(Effort { pairs, calls })
    }
}

/// What is done with a figure.
pub(crate) type Tell<'a> = &'a mut dyn FnMut(Figure) -> Result<()>;

/// All figures, each comparison's as soon as they are there.
///
/// # Errors
/// If something cannot be measured, or a program does not see the time that it should.
pub(crate) fn measure(effort: Effort, tell: Tell<'_>) -> Result<()> {
    cost::of_bystanders(effort, tell)?;
    cost::of_targets(effort, tell)?;
    quickness::of_running_programs(effort, tell)?;
    quickness::of_started_programs(effort, tell)
}

vm_test!(bystanders, limit = 2400);
fn bystanders() -> Result<()> {
    cost::of_bystanders(Effort::asked()?, &mut |figure| tell(&figure))
}

vm_test!(targets, limit = 2400);
fn targets() -> Result<()> {
    cost::of_targets(Effort::asked()?, &mut |figure| tell(&figure))
}

vm_test!(running_programs, limit = 600);
fn running_programs() -> Result<()> {
    quickness::of_running_programs(Effort::asked()?, &mut |figure| tell(&figure))
}

vm_test!(started_programs, limit = 600);
fn started_programs() -> Result<()> {
    quickness::of_started_programs(Effort::asked()?, &mut |figure| tell(&figure))
}

/// These clocks are ahead for the programs of this cgroup.
fn ahead(cgroup: &Cgroup, clocks: &[u32]) -> Fault {
    lasting(clock_fault("bench", cgroup, moved(AHEAD_S, clocks)), LONG)
}
