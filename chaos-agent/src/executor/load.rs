//! What all faults of a node together mean for the words and depths that every program reads.

use std::collections::BTreeSet;

use aya::maps::MapError;
use chaos_abi::control;
use chaos_abi::network::MAX_DEPTHS;
use chaos_planner::fault::Effect;

use super::{ArmError, Armed, Executor};

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
        depths.insert(armed.place.depth);
    }
}

impl Executor {
    pub(super) fn tell_armed(&mut self, load: &Load) -> Result<(), MapError> {
        self.maps.set_control(control::ARMED, load.rules)?;
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
        let depths = load.depths.iter().copied().chain(std::iter::repeat(0));
        for (index, depth) in (0..MAX_DEPTHS).zip(depths) {
            self.maps.set_depth(index, depth)?;
        }
        let held = self.maps.clock_depths()?;
        for (index, depth) in (0..).zip(in_place(&held, &load.clock_depths)) {
            self.maps.set_clock_depth(index, depth)?;
        }
        Ok(())
    }
}

/// The depths that are wanted, each where it is held already, new ones in free places; 0 is a free
/// one.
fn in_place(held: &[u32], wanted: &BTreeSet<u32>) -> Vec<u32> {
    let mut new = wanted.iter().filter(|depth| !held.contains(depth));
    held.iter()
        .map(|depth| {
            if wanted.contains(depth) {
                *depth
            } else {
                new.next().copied().unwrap_or(0)
            }
        })
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
            assert_eq!(in_place(&held, &wanted), expected, "{held:?}");
        }
    }
}
