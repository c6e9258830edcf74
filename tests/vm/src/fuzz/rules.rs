//! Random rules: few addresses, few ports, and all effects.

use std::net::IpAddr;

use chaos_abi::RULES_PER_TARGET;
use chaos_abi::network::{Rule, State};
use chaos_abi::pace::Bucket;
use chaos_abi::sample::{ALWAYS, Chance};
use chaos_planner::fault::Peer;
use ipnet::IpNet;

use super::model::{Counted, ModelRule, NOBODY};
use super::random::{Random, address};

const US: u64 = 1_000;
const MS: u64 = 1_000 * US;
const SECOND: u64 = 1_000 * MS;

/// The rule that tells what time it was when a packet was looked at: it hits every packet of IP and does
/// nothing to it, because what it would delay always overtakes.
pub(super) fn clock() -> ModelRule {
    let chance = Chance {
        threshold: ALWAYS,
        correlation: 0,
    };
    ModelRule {
        rule: Rule {
            deadline_ns: u64::MAX,
            delay_ns: 1,
            reorder: chance,
            sample_threshold: ALWAYS,
            generation: 1,
            ..Rule::default()
        },
        ..untouched(1)
    }
}

fn untouched(id: u32) -> ModelRule {
    ModelRule {
        id,
        rule: Rule::default(),
        is_void: false,
        observe: false,
        peers: None,
        state: State::default(),
        counted: Counted::default(),
    }
}

/// As many as fit on a target behind the [`clock`], at CLOCK_MONOTONIC nanoseconds `now`. Some are about the
/// packets of one of the `cgroups`, by id and depth, and some about nobody's.
pub(super) fn rules(random: &mut Random, now: u64, cgroups: &[(u64, u32)]) -> Vec<ModelRule> {
    let count = random.below(RULES_PER_TARGET as u32);
    (2..2 + count)
        .map(|id| {
            let (cgroup_id, cgroup_depth) = match random.below(16) {
                0 => (NOBODY, 1),
                1..6 if !cgroups.is_empty() => random.one_of(cgroups),
                _ => (0, 0),
            };
            ModelRule {
                rule: Rule {
                    cgroup_id,
                    cgroup_depth,
                    ..rule(random, now)
                },
                is_void: random.chance(8),
                observe: random.chance(5),
                peers: (!random.chance(6)).then(|| {
                    let peers = random.below(6);
                    (0..peers).map(|_| peer(random)).collect()
                }),
                ..untouched(id)
            }
        })
        .collect()
}

fn peer(random: &mut Random) -> Peer {
    let address = address(random);
    let most: u8 = match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    };
    let length = random.one_of(&[most, most, most - 1, most - 3, most - 20, 7, 0]);
    let net = IpNet::new(address, length).unwrap_or_else(|_| address.into());
    Peer::new(net, random.chance(2).then(|| random.below(4) as u16 + 1))
}

fn rule(random: &mut Random, now: u64) -> Rule {
    // One that ends while its packets come is worth as much as all others.
    let soon = now + u64::from(random.below(20)) * MS;
    let mut rule = Rule {
        deadline_ns: random.one_of(&[1, u64::MAX, u64::MAX, u64::MAX, now + 60 * SECOND, soon]),
        generation: 1 + random.below(1000),
        seed: u64::from(random.next()),
        sample_threshold: random.one_of(&[ALWAYS, ALWAYS, ALWAYS, ALWAYS / 2, 0]),
        sample_first: random.one_of(&[0, 0, 0, 5]),
        sample_every: random.one_of(&[0, 0, 1, 3]),
        loss: chance(random, 3, ALWAYS / 4),
        duplicate: chance(random, 4, ALWAYS),
        corrupt: chance(random, 4, ALWAYS),
        ..Rule::default()
    };
    if random.chance(2) {
        rule.delay_ns = random.one_of(&[1, 50 * US, 10 * MS, 3 * SECOND, 3_600 * SECOND]);
        rule.jitter_ns = random.one_of(&[0, 0, 1, 10 * US, 20 * MS, 3_600 * SECOND]);
        rule.jitter_correlation = random.one_of(&[0, 0, ALWAYS / 4, ALWAYS / 10 * 9, ALWAYS]);
        rule.reorder = chance(random, 2, ALWAYS);
        rule.reorder_gap = random.one_of(&[0, 1, 2, 5]);
    }
    if random.chance(4) {
        rule.buckets[0] = bucket(random, 0);
    }
    if random.chance(4) {
        let burst = random.one_of(&[0, 100, 3_000, 100_000]);
        rule.buckets[1] = bucket(random, burst);
        if random.chance(2) {
            rule.buckets[2] = bucket(random, 1_514);
        }
    }
    rule
}

/// Something that happens to one rule in `one_in`, at most so often.
fn chance(random: &mut Random, one_in: u32, most: u64) -> Chance {
    if !random.chance(one_in) {
        return Chance::default();
    }
    Chance {
        threshold: random.one_of(&[most, most / 2, most / 10]),
        correlation: random.one_of(&[0, 0, ALWAYS / 4, ALWAYS / 10 * 9]),
    }
}

fn bucket(random: &mut Random, burst: u64) -> Bucket {
    let rate = random.one_of(&[1_000, 125_000, 10_000_000, 1_250_000_000]);
    let limit = random.one_of(&[1, 3_000, 1_514_000, u64::MAX]);
    Bucket::new(rate, burst, limit, 600 * SECOND)
}
