//! What a fault on clocks changes beside maps: the vDSO of the target's programs.

use aya::maps::MapError;
use chaos_planner::capabilities::Mechanism;
use chaos_planner::fault::TargetRef;

use super::{Armed, ArmedRule, Executor};
use crate::kernel::maps::TargetKind;
use crate::mechanism::MechanismError;
use crate::mechanism::clock_shift::{ClockShift, Stubs};
use crate::target::{Finder, Resolved};

impl Executor {
    /// Takes the clocks out of the vDSO of every program of the target.
    pub(super) fn change_clocks(&mut self, armed: &Armed) -> Result<(), MechanismError> {
        let finder = &self.finder;
        if let Some((clock_shift, key)) = clocks(&mut self.clock_shift, armed) {
            clock_shift.enter(key, || programs(finder, &armed.fault.target))?;
        }
        Ok(())
    }

    /// The same for those who have come since, of a target that was just found; what fails is told by [`Self::clock_problem`].
    pub fn look_at_clocks(&mut self, armed: &Armed, found: &Resolved) {
        if let Some((clock_shift, key)) = clocks(&mut self.clock_shift, armed) {
            clock_shift.refresh(key, &pids(found));
        }
    }

    /// Puts the bytes back, unless another fault is on the same clocks. What cannot be done now is
    /// tried again by [`Self::restore_clocks_again`].
    pub(super) fn restore_clocks(&mut self, armed: &Armed) -> Result<(), MapError> {
        let finder = &self.finder;
        if let Some((clock_shift, key)) = clocks(&mut self.clock_shift, armed)
            && self.maps.target(TargetKind::Clock, key)?.is_none()
        {
            let stubs = &mut clock_shift.stubs;
            stubs.leave(key, &programs(finder, &armed.fault.target));
            let known = self
                .unrestored
                .iter()
                .any(|other| clock_key(other) == Some(key));
            if stubs.remain(key) && !known {
                let pids = stubs.pids(key);
                tracing::warn!(fault = %armed.fault.id, ?pids, "the vDSO of these programs cannot be put back now; will try again");
                self.unrestored.push(armed.clone());
            }
        }
        Ok(())
    }

    /// Tries again where bytes could not be put back when their fault ended. Whether there are fewer
    /// such faults now.
    pub fn restore_clocks_again(&mut self) -> bool {
        let waiting = std::mem::take(&mut self.unrestored);
        let before = waiting.len();
        for armed in waiting {
            // Where another fault is on the same clocks by now, its end puts the bytes back.
            if let Err(error) = self.restore_clocks(&armed) {
                tracing::warn!(fault = %armed.fault.id, %error, "failed to look whether its clocks are to be put back");
                self.unrestored.push(armed);
            }
        }
        self.unrestored.len() < before
    }

    /// Faults that have ended, with programs whose vDSO could not be put back yet.
    pub fn unrestored(&self) -> &[Armed] {
        &self.unrestored
    }

    /// Pids of programs whose vDSO is still changed, as far as is known.
    pub fn changed_programs(&self) -> Vec<u32> {
        let stubs = self
            .clock_shift
            .as_ref()
            .map(|clock_shift| &clock_shift.stubs);
        stubs.map_or_else(Vec::new, Stubs::all_pids)
    }

    /// Whether bytes that no fault needs any more are still to be put back.
    pub(super) fn clocks_remain(&self, rule: &ArmedRule) -> Result<bool, MapError> {
        let remain = rule.mechanism == Mechanism::ClockShift
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

/// Who changes programs, and those of which cgroup, if the fault is about clocks.
fn clocks<'a>(
    clock_shift: &'a mut Option<ClockShift>,
    armed: &Armed,
) -> Option<(&'a mut ClockShift, u64)> {
    let key = clock_key(armed)?;
    Some((clock_shift.as_mut()?, key))
}

/// The cgroup whose clocks a fault is about.
fn clock_key(armed: &Armed) -> Option<u64> {
    let mut rules = armed.rules.iter();
    let rule = rules.find(|rule| rule.mechanism == Mechanism::ClockShift)?;
    Some(rule.key)
}

/// Pids of the target; none when it is gone.
fn programs(finder: &Finder, target: &TargetRef) -> Vec<u32> {
    let found = super::find(finder, target);
    found.map_or_else(|_| Vec::new(), |found| pids(&found))
}

fn pids(found: &Resolved) -> Vec<u32> {
    let containers = found.containers.iter();
    containers.flat_map(|c| c.pids.iter().copied()).collect()
}
