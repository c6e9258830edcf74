//! Numbers that rules, peer sets and devices are found by in the kernel.

use std::collections::{BTreeMap, BTreeSet};

use chaos_abi::CANARY_RULE;
use chaos_abi::network::MAX_TARGETS;

use super::ArmError;
use crate::kernel::clock;

/// Rule ids and peer sets in use.
#[derive(Default)]
pub(super) struct Ids {
    /// Id -> generation: an id that was given back may be another fault's by now.
    rules: BTreeMap<u32, u32>,
    peer_set: u32,
    generation: u32,
}

impl Ids {
    /// Those of a fault that was adopted, with their generations.
    pub(super) fn take(&mut self, rules: impl Iterator<Item = (u32, u32)>, peer_set: u32) {
        self.rules.extend(rules);
        self.peer_set = self.peer_set.max(peer_set);
    }

    /// A free rule, and a generation that this slot has not had.
    pub(super) fn rule(&mut self) -> Result<(u32, u32), ArmError> {
        if self.generation == 0 {
            self.generation = first_generation(clock::now_ns());
        }
        let id = (0..CANARY_RULE)
            .find(|id| !self.rules.contains_key(id))
            .ok_or(ArmError::Full {
                what: "rules",
                limit: CANARY_RULE as usize,
            })?;
        // 0 means free; after four billion faults the count begins anew.
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        self.rules.insert(id, self.generation);
        Ok((id, self.generation))
    }

    pub(super) fn peer_set(&mut self) -> u32 {
        self.peer_set = self.peer_set.checked_add(1).unwrap_or(1);
        self.peer_set
    }

    /// Safe to repeat.
    pub(super) fn give_back(&mut self, rules: impl Iterator<Item = (u32, u32)>) {
        for (id, generation) in rules {
            if self.rules.get(&id) == Some(&generation) {
                self.rules.remove(&id);
            }
        }
    }
}

/// Later than all that predecessors have given, unless they armed a thousand rules a second all the time:
/// milliseconds since the node booted. To ask each of the kernel's rules would take a while.
fn first_generation(now_ns: u64) -> u32 {
    // After 50 days it begins anew, when nobody remembers who had them.
    ((now_ns / 1_000_000) as u32).max(1)
}

/// Slots of devices in use.
pub(super) struct Slots<I>(pub(super) I);

impl<I: Iterator<Item = u16>> Slots<I> {
    /// The lowest that is free.
    pub(super) fn free(self) -> Result<u16, ArmError> {
        self.all_free().next().ok_or(ArmError::Full {
            what: "devices",
            limit: MAX_TARGETS as usize - 1,
        })
    }

    /// All of them, in the order in which they are given out: 0 means none, and `WAITING` has no more.
    pub(super) fn all_free(self) -> impl Iterator<Item = u16> {
        let used: BTreeSet<_> = self.0.collect();
        (1..MAX_TARGETS as u16).filter(move |slot| !used.contains(slot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_gives_other_generations_than_those_before_it() {
        let (first, hour) = (30_000_000_000, 3_600_000_000_000);
        assert_eq!(first_generation(first), 30_000);
        assert!(first_generation(first + hour) > first_generation(first) + 3_000_000);
        assert_eq!(first_generation(0), 1);
        let mut ids = Ids::default();
        let (one, two) = (ids.rule().expect("free"), ids.rule().expect("free"));
        assert!(one.0 != two.0 && one.1 != two.1, "{one:?} {two:?}");
    }

    #[test]
    fn the_lowest_free_slot_is_taken() {
        assert_eq!(Slots([1, 2, 4].into_iter()).free().ok(), Some(3));
        assert_eq!(Slots(std::iter::empty()).free().ok(), Some(1));
        assert!(Slots(1..=u16::MAX).free().is_err());
    }
}
