//! How many of the eligible pods are taken, and which. Pure and seeded.
//!
//! Each pod gets a rank from a hash of the seed, the round, the side and its own name; those with
//! the lowest ranks are taken. So a draw does not depend on the order in which pods were seen, the
//! same seed takes the same pods again, and one pod more or less changes at most one choice: an
//! operator that dies between drawing and writing down draws the same again.

use std::collections::BTreeSet;

use chaos_api::v1alpha1::{Mode, PodSelector};
use sha2::{Digest, Sha256};

/// Seeds stay below 2^53: a JSON number is read exactly by everybody.
const SEED_MASK: u64 = (1 << 53) - 1;

/// What makes one draw differ from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw<'a> {
    /// Given by the user, or [`seed_of`] the object.
    pub seed: u64,
    /// Number of the round of a legacy scheduler; 0 without one.
    pub round: u64,
    /// `.` or `.Target`.
    pub selector_key: &'a str,
}

/// The seed of an object that gives none: the same each time it is looked at.
#[must_use]
pub fn seed_of(uid: &str) -> u64 {
    hash(&[b"seed", uid.as_bytes()]) & SEED_MASK
}

impl Draw<'_> {
    /// The ids that are taken from `eligible`, sorted.
    ///
    /// Those in `avoid` are taken only when no others are left; `mode: all` takes them too. A mode
    /// whose value cannot be read takes nobody: validation has refused it before.
    #[must_use]
    pub fn take(
        &self,
        selector: &PodSelector,
        eligible: &[String],
        avoid: &BTreeSet<String>,
    ) -> Vec<String> {
        let count = self.count(selector, eligible.len());
        let mut ranked: Vec<(bool, u64, &String)> = eligible
            .iter()
            .map(|id| (avoid.contains(id), self.rank(id), id))
            .collect();
        ranked.sort_unstable();
        ranked.dedup();
        ranked.truncate(count);
        let mut taken: Vec<String> = ranked.into_iter().map(|(_, _, id)| id.clone()).collect();
        taken.sort_unstable();
        taken
    }

    fn count(&self, selector: &PodSelector, eligible: usize) -> usize {
        let value = selector.value.as_deref().unwrap_or_default();
        let percent = || value.parse::<u64>().ok().filter(|percent| *percent <= 100);
        match selector.mode {
            Mode::One => 1.min(eligible),
            Mode::All => eligible,
            Mode::Fixed => value.parse().unwrap_or(0_usize).min(eligible),
            Mode::FixedPercent => share(eligible, percent().unwrap_or(0)),
            Mode::RandomMaxPercent => {
                let most = percent().unwrap_or(0);
                share(eligible, self.rank("percent") % (most + 1))
            }
        }
    }

    fn rank(&self, what: &str) -> u64 {
        hash(&[
            &self.seed.to_be_bytes(),
            &self.round.to_be_bytes(),
            self.selector_key.as_bytes(),
            what.as_bytes(),
        ])
    }
}

/// So many percent of `count`, rounded up.
fn share(count: usize, percent: u64) -> usize {
    usize::try_from((count as u64 * percent).div_ceil(100)).unwrap_or(count)
}

fn hash(parts: &[&[u8]]) -> u64 {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    let digest = digest.finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(first)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn selector(mode: Mode, value: Option<&str>) -> PodSelector {
        PodSelector {
            mode,
            value: value.map(str::to_owned),
            ..PodSelector::default()
        }
    }

    fn ids(count: usize) -> Vec<String> {
        (0..count).map(|n| format!("shop/web-{n}")).collect()
    }

    fn draw(seed: u64) -> Draw<'static> {
        Draw {
            seed,
            round: 0,
            selector_key: ".",
        }
    }

    #[test]
    fn each_mode_takes_its_number() {
        for (mode, value, eligible, expected) in [
            (Mode::One, None, 5, 1),
            (Mode::One, None, 0, 0),
            (Mode::All, None, 5, 5),
            (Mode::All, Some("2"), 5, 5),
            (Mode::Fixed, Some("2"), 5, 2),
            (Mode::Fixed, Some("9"), 5, 5),
            (Mode::Fixed, Some("x"), 5, 0),
            (Mode::Fixed, None, 5, 0),
            (Mode::FixedPercent, Some("50"), 5, 3),
            (Mode::FixedPercent, Some("1"), 5, 1),
            (Mode::FixedPercent, Some("100"), 5, 5),
            (Mode::FixedPercent, Some("50"), 0, 0),
            (Mode::FixedPercent, Some("101"), 5, 0),
        ] {
            let taken = draw(7).take(&selector(mode, value), &ids(eligible), &BTreeSet::new());
            assert_eq!(taken.len(), expected, "{mode:?} {value:?} of {eligible}");
        }
    }

    #[test]
    fn random_max_percent_takes_from_none_to_the_share_and_both_happen() {
        let selector = selector(Mode::RandomMaxPercent, Some("40"));
        let counts: BTreeSet<usize> = (0..400)
            .map(|seed| draw(seed).take(&selector, &ids(10), &BTreeSet::new()).len())
            .collect();
        assert_eq!(counts, BTreeSet::from([0, 1, 2, 3, 4]));
    }

    #[test]
    fn every_pod_is_drawn_about_as_often() {
        let mut hits = std::collections::BTreeMap::new();
        for seed in 0..6000 {
            let taken = draw(seed).take(&selector(Mode::One, None), &ids(3), &BTreeSet::new());
            *hits.entry(taken[0].clone()).or_insert(0_u32) += 1;
        }
        assert!(
            hits.values().all(|count| (1850..2150).contains(count)),
            "{hits:?}"
        );
    }

    #[test]
    fn rounds_and_sides_draw_apart() {
        let one = selector(Mode::One, None);
        let of = |round, selector_key| {
            let draw = Draw {
                seed: 1,
                round,
                selector_key,
            };
            draw.take(&one, &ids(1000), &BTreeSet::new())
        };
        assert_ne!(of(1, "."), of(2, "."));
        assert_ne!(of(1, "."), of(1, ".Target"));
    }

    proptest! {
        #[test]
        fn a_draw_takes_only_eligible_ones_once_and_is_repeatable(
            seed: u64, count in 0_usize..40, value in 1_u64..=100,
            mode in prop::sample::select(vec![Mode::One, Mode::All, Mode::Fixed, Mode::FixedPercent, Mode::RandomMaxPercent]),
        ) {
            let selector = selector(mode, Some(&value.to_string()));
            let eligible = ids(count);
            let taken = draw(seed).take(&selector, &eligible, &BTreeSet::new());
            prop_assert!(taken.iter().all(|id| eligible.contains(id)));
            prop_assert_eq!(taken.iter().collect::<BTreeSet<_>>().len(), taken.len());
            let backwards: Vec<String> = eligible.iter().rev().cloned().collect();
            prop_assert_eq!(draw(seed).take(&selector, &backwards, &BTreeSet::new()), taken);
        }

        #[test]
        fn the_avoided_are_taken_only_when_all_others_are(
            seed: u64, count in 1_usize..20, avoided in 0_usize..20, value in 1_usize..20,
        ) {
            let eligible = ids(count);
            let avoid: BTreeSet<String> = eligible.iter().take(avoided).cloned().collect();
            let taken = draw(seed).take(&selector(Mode::Fixed, Some(&value.to_string())), &eligible, &avoid);
            let others = eligible.len() - avoid.len();
            let of_the_avoided = taken.iter().filter(|id| avoid.contains(*id)).count();
            prop_assert_eq!(of_the_avoided, taken.len().saturating_sub(others));
        }

        #[test]
        fn one_pod_more_replaces_at_most_one(seed: u64, count in 1_usize..20, value in 1_usize..10) {
            let selector = selector(Mode::Fixed, Some(&value.to_string()));
            let before: BTreeSet<String> = draw(seed).take(&selector, &ids(count), &BTreeSet::new()).into_iter().collect();
            let after: BTreeSet<String> = draw(seed).take(&selector, &ids(count + 1), &BTreeSet::new()).into_iter().collect();
            prop_assert!(before.difference(&after).count() <= 1);
        }
    }
}
