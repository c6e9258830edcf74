//! What a fault on clocks changes beside maps: the vDSO of the target's programs.

use aya::maps::MapError;
use chaos_planner::fault::TargetRef;

use super::{Armed, ArmedRule, Executor, MechanismName};
use crate::kernel::maps::TargetKind;
use crate::mechanism::MechanismError;
use crate::mechanism::clock_shift::{ClockShift, Stubs};
use crate::target::Finder;

impl Executor {
    /// Takes the clocks out of the vDSO of every program of the target.
    pub(super) fn change_clocks(&mut self, armed: &Armed) -> Result<(), MechanismError> {
        let finder = &self.finder;
        if let Some((stubs, key)) = stubs(&mut self.clock_shift, armed) {
            stubs.enter(key, || programs(finder, &armed.fault.target))?;
        }
        Ok(())
    }

    /// The same for those who have come since; what fails is told by [`Self::clock_problem`].
    pub fn look_at_clocks(&mut self, armed: &Armed) {
        let finder = &self.finder;
        if let Some((stubs, key)) = stubs(&mut self.clock_shift, armed) {
            stubs.refresh(key, &programs(finder, &armed.fault.target));
        }
    }

    /// Puts the bytes back, unless another fault is on the same clocks.
    pub(super) fn restore_clocks(&mut self, armed: &Armed) -> Result<(), MapError> {
        let finder = &self.finder;
        if let Some((stubs, key)) = stubs(&mut self.clock_shift, armed)
            && self.maps.target(TargetKind::Clock, key)?.is_none()
        {
            stubs.leave(key, &programs(finder, &armed.fault.target));
        }
        Ok(())
    }

    /// Whether bytes that no fault needs any more are still to be put back.
    pub(super) fn clocks_remain(&self, rule: &ArmedRule) -> Result<bool, MapError> {
        let remain = rule.mechanism == MechanismName::ClockShift
            && self
                .clock_shift
                .as_ref()
                .is_some_and(|clock_shift| clock_shift.stubs.remain(rule.key));
        Ok(remain && self.maps.target(TargetKind::Clock, rule.key)?.is_none())
    }

    /// Why not every program of the target sees what it should, or has always seen it.
    pub fn clock_problem(&self, armed: &Armed) -> Option<String> {
        let stubs = &self.clock_shift.as_ref()?.stubs;
        let keys = || armed.rules.iter().map(|rule| rule.key);
        if let Some(problem) = keys().find_map(|key| stubs.problem(key)) {
            return Some(format!("not every program sees another time: {problem}"));
        }
        let skipped = keys().map(|key| stubs.skipped(key)).max().unwrap_or(0);
        (skipped > 0).then(|| {
            format!(
                "up to {skipped} reads of a clock on this node saw the right time: this kernel \
                 interrupts programs like ours, and shows them no other call meanwhile"
            )
        })
    }
}

/// Who keeps the stubs, and of which cgroup, if the fault is about clocks.
fn stubs<'a>(
    clock_shift: &'a mut Option<ClockShift>,
    armed: &Armed,
) -> Option<(&'a mut Stubs, u64)> {
    let rule = armed
        .rules
        .iter()
        .find(|rule| rule.mechanism == MechanismName::ClockShift)?;
    Some((&mut clock_shift.as_mut()?.stubs, rule.key))
}

/// Pids of the target; none when it is gone.
fn programs(finder: &Finder, target: &TargetRef) -> Vec<u32> {
    let found = super::find(finder, target);
    found.map_or_else(
        |_| Vec::new(),
        |found| found.containers.into_iter().flat_map(|c| c.pids).collect(),
    )
}
