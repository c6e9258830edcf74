//! What stands in everybody's way on a node, because it is attached to all of it, is there only while a
//! fault needs it, and for a while afterwards. On devices of targets nothing stays at all (`devices`).

use std::time::Duration;

use chaos_abi::wait;
use chaos_planner::capabilities::Mechanism;
use chaos_planner::plan::nanos;

use super::{Armed, Executor};
use crate::mechanism::MechanismError;

/// For how long programs stay attached with nothing to do: so long that nobody has anything to finish
/// with them, and that faults in a row need not wait for them.
const REST_AFTER: Duration = Duration::from_secs(30);

const _: () = assert!(REST_AFTER.as_nanos() as u64 >= 2 * wait::UNFINISHED_NS);

/// Since when something has had nothing to do, CLOCK_MONOTONIC nanoseconds.
#[derive(Default)]
pub(super) struct Idle {
    cgroup_drop: Option<u64>,
    clock_shift: Option<u64>,
}

impl Executor {
    /// Attaches what this fault may be the first to need.
    pub(super) fn attach_to_node(&mut self, armed: &Armed) -> Result<(), MechanismError> {
        if uses(armed, Mechanism::CgroupDrop)
            && let Some(cgroup_drop) = &mut self.cgroup_drop
        {
            cgroup_drop.attach()?;
        }
        if uses(armed, Mechanism::ClockShift)
            && let Some(clock_shift) = &mut self.clock_shift
        {
            clock_shift.attach()?;
        }
        Ok(())
    }

    /// Detaches what none has needed for some time; `all` is everything that is armed now, at
    /// CLOCK_MONOTONIC nanoseconds `now`. When to ask again, if there is a reason.
    pub fn rest<'a>(&mut self, all: impl Iterator<Item = &'a Armed>, now: u64) -> Option<u64> {
        let (mut drops, mut shifts) = (false, false);
        for armed in all {
            drops |= uses(armed, Mechanism::CgroupDrop);
            shifts |= uses(armed, Mechanism::ClockShift);
        }
        let idle = &mut self.idle;
        let cgroup_drop = self.cgroup_drop.as_mut().filter(|p| p.is_attached());
        let clock_shift = self.clock_shift.as_mut().filter(|p| p.is_attached());
        let times = [
            cgroup_drop
                .and_then(|programs| look(&mut idle.cgroup_drop, drops, now, || programs.detach())),
            clock_shift
                .and_then(|programs| look(&mut idle.clock_shift, shifts, now, || programs.rest())),
        ];
        times.into_iter().flatten().min()
    }
}

fn uses(armed: &Armed, mechanism: Mechanism) -> bool {
    armed.rules.iter().any(|rule| rule.mechanism == mechanism)
}

/// Detaches what has been idle for long enough; until then, when that will be.
fn look(
    idle: &mut Option<u64>,
    used: bool,
    now: u64,
    detach: impl FnOnce() -> Result<(), MechanismError>,
) -> Option<u64> {
    if used {
        *idle = None;
        return None;
    }
    let rest_at = idle.get_or_insert(now).saturating_add(nanos(REST_AFTER));
    if now < rest_at {
        return Some(rest_at);
    }
    *idle = None;
    if let Err(error) = detach() {
        tracing::warn!(%error, "failed to detach programs; they stay, and do nothing");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_used_is_detached_after_a_while_and_once() {
        let mut idle = None;
        let mut detached = 0;
        let after = nanos(REST_AFTER);
        let mut at = |used, now| {
            look(&mut idle, used, now, || {
                detached += 1;
                Ok(())
            })
        };
        assert_eq!(at(false, 10), Some(10 + after));
        assert_eq!(at(false, 20), Some(10 + after));
        assert_eq!(at(true, 30), None);
        assert_eq!(at(false, 40), Some(40 + after));
        assert_eq!(at(false, 40 + after), None);
        assert_eq!(detached, 1);
    }
}
