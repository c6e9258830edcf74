//! Looks, every so often, whether armed targets are still where their faults were armed.

use chaos_planner::fault::Effect;
use chaos_planner::observed::Phase;
use chaos_planner::plan::nanos;

use super::entry::{Outcome, State};
use super::{LOOK_EVERY, Node};
use crate::target::TargetError;

impl Node {
    /// A pod whose cgroup is gone takes its faults along; one with another network namespace, or
    /// another cgroup, has lost them and gets them anew. Whether any has gone.
    pub(super) fn look_at_targets(&mut self, now: u64) -> bool {
        if now.saturating_sub(self.looked_ns) < nanos(LOOK_EVERY) {
            return false;
        }
        self.looked_ns = now;
        self.executor.relieve();
        let mut changed = self.executor.restore_clocks_again();
        for entry in self.entries.values_mut() {
            let State::Armed(armed) = &mut entry.state else {
                continue;
            };
            let outcome = match self.executor.find(&entry.fault.target) {
                Ok(found) => {
                    let place = &armed.place;
                    let same = found.pod_cgroup_id == place.cgroup_id
                        // Between two containers a pod may have no process for a moment.
                        && (matches!(armed.fault.effect, Effect::Clock(_))
                            || found.netns.is_none()
                            || found.netns_inode == place.netns_inode
                                && (found.netns == place.netns
                                    || self.executor.is_there(armed, &found)));
                    if same {
                        self.executor.look_at_clocks(armed, &found);
                        if found.netns.is_some() {
                            armed.place.netns = found.netns;
                        }
                        continue;
                    }
                    Outcome::Moved
                }
                Err(TargetError::Gone { .. }) => Outcome::Ended(Phase::TargetGone, String::new()),
                Err(_) => continue,
            };
            let armed = armed.clone();
            match self.executor.disarm(&armed) {
                Ok(()) => {
                    changed = true;
                    entry.conclude(&self.executor, &armed, outcome);
                }
                Err(error) => {
                    tracing::warn!(fault = %armed.fault.id, %error, "failed to remove the rules of a target that is gone; will try again");
                }
            }
        }
        changed
    }
}
