//! What all faults of a node together mean for the words and depths that every program reads.

use std::collections::BTreeSet;

use aya::maps::MapError;
use chaos_abi::control;
use chaos_abi::network::MAX_DEPTHS;
use chaos_planner::fault::Effect;

use super::{ArmError, Armed, Executor};
use crate::mechanism::tc::Way;

/// What all faults together mean for the words that every program reads.
#[derive(Default)]
pub(super) struct Load {
    rules: u32,
    depths: BTreeSet<u32>,
    clock_rules: u32,
    clock_depths: BTreeSet<u32>,
}

impl Load {
    pub(super) fn of<'a>(all: impl Iterator<Item = &'a Armed>) -> Self {
        let mut load = Self::default();
        all.for_each(|armed| load.add(armed));
        load
    }

    pub(super) fn add(&mut self, armed: &Armed) {
        let (rules, depths) = match armed.fault.effect {
            Effect::Network(_) => (&mut self.rules, &mut self.depths),
            Effect::Clock(_) => (&mut self.clock_rules, &mut self.clock_depths),
        };
        *rules = rules.saturating_add(armed.each_rule().count() as u32);
        // On a device targets are found by its slot.
        if armed
            .each_rule()
            .any(|rule| Way::of(rule.mechanism).is_none())
        {
            depths.insert(armed.place.depth);
        }
    }
}

impl Executor {
    pub(super) fn tell_armed(&mut self, load: &Load) -> Result<(), MapError> {
        let armed = load.rules != 0 || self.devices.takes_tags_off();
        self.maps.set_armed(armed)?;
        self.maps.set_control(control::CLOCKS, load.clock_rules)
    }

    pub(super) fn tell_depths(&mut self, load: &Load) -> Result<(), ArmError> {
        let limit = MAX_DEPTHS as usize;
        if load.depths.len().max(load.clock_depths.len()) > limit {
            return Err(ArmError::Full {
                what: "different depths of target cgroups",
                limit,
            });
        }
        for (index, depth) in changes(&self.maps.depths()?, &load.depths) {
            self.maps.set_depth(index, depth)?;
        }
        for (index, depth) in changes(&self.maps.clock_depths()?, &load.clock_depths) {
            self.maps.set_clock_depth(index, depth)?;
        }
        Ok(())
    }
}

/// Places to write, so that the depths that are wanted are there: each stays where it is held, new
/// ones come into free places; 0 makes a place free. One that moved would be missing meanwhile.
fn changes(held: &[u32], wanted: &BTreeSet<u32>) -> Vec<(u32, u32)> {
    let mut new = wanted.iter().filter(|depth| !held.contains(depth));
    (0..)
        .zip(held)
        .filter(|(_, held)| !wanted.contains(held))
        .map(|(index, held)| (index, *held, new.next().copied().unwrap_or(0)))
        .filter(|(_, held, depth)| held != depth)
        .map(|(index, _, depth)| (index, depth))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_depth_changes_its_place() {
        for (held, wanted, expected) in [
            ([0, 0, 0, 0], &[3, 2][..], [2, 3, 0, 0]),
            ([3, 0, 0, 0], &[2, 3], [3, 2, 0, 0]),
            ([3, 2, 0, 0], &[2], [0, 2, 0, 0]),
            ([0, 2, 0, 0], &[1, 2, 4], [1, 2, 4, 0]),
            ([1, 2, 4, 5], &[], [0, 0, 0, 0]),
        ] {
            let wanted = wanted.iter().copied().collect();
            let mut found = held;
            for (index, depth) in changes(&held, &wanted) {
                assert_ne!(
                    found[index as usize], depth,
                    "written without need: {held:?}"
                );
                found[index as usize] = depth;
            }
            assert_eq!(found, expected, "{held:?}");
        }
    }
}
