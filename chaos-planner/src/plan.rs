//! Current x desired -> steps. The steps are what `executor.rs` of the agent can do; this is the
//! only place that decides which of them are due.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::choose::MAX_DELAY;
use crate::fault::{Effect, Fault, FaultId};

/// How long a fault without a duration lasts without renewal: a dead agent's faults end then. See
/// [`lease`].
pub const LEASE: Duration = Duration::from_secs(30);

/// How often such a lease is renewed.
pub const RENEW_EVERY: Duration = Duration::from_secs(10);

/// How long every lease lasts when the agent is told to stop, for its successor.
pub const HAND_OVER: Duration = Duration::from_secs(120);

/// Until when a fault is wanted; CLOCK_MONOTONIC nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Its own deadline.
    Deadline(u64),
    /// As long as somebody wants it.
    Leased,
    /// Its client has gone and it ends at this time unless the client is back.
    Orphaned(u64),
}

impl Until {
    /// The deadline that belongs into the kernel now.
    pub fn kernel_deadline(self, now_ns: u64, lease: Duration) -> u64 {
        let lease_end = now_ns.saturating_add(nanos(lease));
        match self {
            Self::Deadline(at) => at,
            Self::Leased => lease_end,
            Self::Orphaned(at) => at.min(lease_end),
        }
    }

    /// Whether it has ended for good.
    pub fn is_over(self, now_ns: u64) -> bool {
        match self {
            Self::Deadline(at) | Self::Orphaned(at) => at <= now_ns,
            Self::Leased => false,
        }
    }
}

/// A fault that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What.
    pub fault: Fault,
    /// Until when.
    pub until: Until,
}

/// A fault that the kernel holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// What.
    pub fault: Fault,
    /// What its rules say, CLOCK_MONOTONIC nanoseconds.
    pub deadline_ns: u64,
}

/// One change of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Remove all its traces.
    Disarm(FaultId),
    /// Only its peers have changed.
    SetPeers(FaultId),
    /// Give its rules this deadline.
    Renew(FaultId, u64),
    /// Make its rules, with this deadline.
    Arm(FaultId, u64),
}

/// The steps from `held` to `wanted`, those that take away first. Carrying them out and asking
/// again gives none.
///
/// - What is not wanted, or over, is disarmed; what is over is never armed.
/// - What is wanted otherwise than it is held is disarmed and armed, but for its peers.
/// - A lease is renewed when a third of it has passed; a deadline only ever moves earlier, because
///   each message that tells the time left has been under way for some time.
pub fn diff(
    held: &BTreeMap<FaultId, Held>,
    wanted: &BTreeMap<FaultId, Wanted>,
    now_ns: u64,
) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut arm = Vec::new();
    for (id, current) in held {
        match wanted.get(id) {
            Some(Wanted { fault, until }) if !until.is_over(now_ns) => {
                let deadline = until.kernel_deadline(now_ns, lease(fault));
                if same_but_for_peers(fault, &current.fault) {
                    if fault.effect != current.fault.effect {
                        steps.push(Step::SetPeers(id.clone()));
                    }
                    if renewal_is_due(*until, current.deadline_ns, deadline) {
                        steps.push(Step::Renew(id.clone(), deadline));
                    }
                } else {
                    steps.push(Step::Disarm(id.clone()));
                    arm.push(Step::Arm(id.clone(), deadline));
                }
            }
            _ => steps.push(Step::Disarm(id.clone())),
        }
    }
    for (id, Wanted { fault, until }) in wanted {
        if !held.contains_key(id) && !until.is_over(now_ns) {
            arm.push(Step::Arm(
                id.clone(),
                until.kernel_deadline(now_ns, lease(fault)),
            ));
        }
    }
    steps.sort_by_key(|step| !matches!(step, Step::Disarm(_)));
    steps.append(&mut arm);
    steps
}

/// How long a lease on this fault is: no packet waits past it, so it is at least twice the longest
/// wait.
pub fn lease(fault: &Fault) -> Duration {
    match &fault.effect {
        Effect::Network(network) => LEASE.max(network.longest_wait(MAX_DELAY).saturating_mul(2)),
        Effect::Clock(_) => LEASE,
    }
}

fn renewal_is_due(until: Until, held_ns: u64, new_ns: u64) -> bool {
    match until {
        Until::Deadline(_) => new_ns < held_ns,
        // Also after a hand-over, whose lease is longer than the usual one: it need not shrink.
        Until::Leased => held_ns.saturating_add(nanos(RENEW_EVERY)) <= new_ns,
        Until::Orphaned(at) => {
            new_ns < held_ns
                || held_ns.saturating_add(nanos(RENEW_EVERY)) <= new_ns
                // The last renewal, up to the end.
                || (new_ns == at && held_ns < at)
        }
    }
}

/// Lifetimes are compared by [`Until`], which knows when they began.
fn same_but_for_peers(a: &Fault, b: &Fault) -> bool {
    let plain = |fault: &Fault| {
        let mut effect = fault.effect.clone();
        if let Effect::Network(network) = &mut effect {
            // All peers and some peers differ in the rule itself, not only in the set.
            network.peers = network.peers.take().map(|_| Vec::new());
        }
        (fault.target.clone(), fault.mode, fault.sample, effect)
    };
    plain(a) == plain(b)
}

/// Nanoseconds as the kernel counts them; 584 years and more are all the same.
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::fault::{Bandwidth, Delay, Lifetime, Mode, NetworkEffect, Peer, Sample, TargetRef};

    const SECOND: u64 = 1_000_000_000;

    fn fault(id: &str) -> Fault {
        Fault {
            id: id.into(),
            kind: "NetworkChaos".into(),
            namespace: "ns".into(),
            name: "n".into(),
            record: "ns/pod".into(),
            target: TargetRef::Cgroup("/a".into()),
            lifetime: Lifetime::Leased {
                orphan_timeout: None,
            },
            mode: Mode::Inject,
            sample: Sample::default(),
            effect: Effect::Network(NetworkEffect {
                egress: true,
                drop: true,
                peers: Some(vec![]),
                ..NetworkEffect::default()
            }),
        }
    }

    fn peers(mut fault: Fault, peers: Option<Vec<IpAddr>>) -> Fault {
        let Effect::Network(network) = &mut fault.effect else {
            unreachable!("made above")
        };
        network.peers = peers.map(|peers| peers.into_iter().map(Peer::from).collect());
        fault
    }

    fn run(held: &[(Fault, u64)], wanted: &[(Fault, Until)], now: u64) -> Vec<Step> {
        let held = held
            .iter()
            .map(|(f, at)| {
                (
                    f.id.clone(),
                    Held {
                        fault: f.clone(),
                        deadline_ns: *at,
                    },
                )
            })
            .collect();
        let wanted = wanted
            .iter()
            .map(|(f, until)| {
                (
                    f.id.clone(),
                    Wanted {
                        fault: f.clone(),
                        until: *until,
                    },
                )
            })
            .collect();
        diff(&held, &wanted, now)
    }

    #[test]
    fn what_is_wanted_is_armed_and_what_is_not_is_disarmed_first() {
        let steps = run(&[(fault("z"), 99)], &[(fault("a"), Until::Deadline(50))], 1);
        assert_eq!(steps, [Step::Disarm("z".into()), Step::Arm("a".into(), 50)]);
    }

    #[test]
    fn what_is_over_is_never_armed_and_is_disarmed_when_held() {
        assert_eq!(run(&[], &[(fault("a"), Until::Deadline(50))], 50), []);
        let steps = run(
            &[(fault("a"), 50)],
            &[(fault("a"), Until::Deadline(50))],
            50,
        );
        assert_eq!(steps, [Step::Disarm("a".into())]);
    }

    #[test]
    fn a_deadline_only_moves_earlier() {
        let wanted = |at| [(fault("a"), Until::Deadline(at))];
        assert_eq!(run(&[(fault("a"), 500)], &wanted(520), 1), []);
        assert_eq!(
            run(&[(fault("a"), 500)], &wanted(480), 1),
            [Step::Renew("a".into(), 480)]
        );
    }

    #[test]
    fn a_lease_is_renewed_every_ten_seconds() {
        let held = |at| [(fault("a"), at)];
        let wanted = [(fault("a"), Until::Leased)];
        assert_eq!(run(&held(30 * SECOND), &wanted, 9 * SECOND), []);
        assert_eq!(
            run(&held(30 * SECOND), &wanted, 10 * SECOND),
            [Step::Renew("a".into(), 40 * SECOND)]
        );
        // handed over: 120 s
        assert_eq!(run(&held(130 * SECOND), &wanted, 10 * SECOND), []);
    }

    #[test]
    fn a_lease_is_twice_the_delay_or_more() {
        let mut slow = fault("a");
        slow.effect = Effect::Network(NetworkEffect {
            egress: true,
            delay: Some(Delay::of(Duration::from_secs(100))),
            ..NetworkEffect::default()
        });
        let wanted = [(slow.clone(), Until::Leased)];
        assert_eq!(
            run(&[], &wanted, SECOND),
            [Step::Arm("a".into(), 201 * SECOND)]
        );
        assert_eq!(
            run(&[(slow, 201 * SECOND)], &wanted, 11 * SECOND),
            [Step::Renew("a".into(), 211 * SECOND)]
        );
    }

    #[test]
    fn a_lease_is_twice_all_that_a_packet_can_wait() {
        let leased = |effect| {
            let mut fault = fault("a");
            fault.effect = Effect::Network(effect);
            lease(&fault)
        };
        let bandwidth = Some(Bandwidth {
            rate: 1_000,
            limit: 50_000,
            ..Bandwidth::default()
        });
        let slow = NetworkEffect {
            delay: Some(Delay {
                jitter: Duration::from_secs(5),
                ..Delay::of(Duration::from_secs(10))
            }),
            rate: Some(1_514_000),
            bandwidth,
            ..NetworkEffect::default()
        };
        assert_eq!(leased(slow), Duration::from_secs(2 * (10 + 5 + 1 + 50)));
        // However long the queue, what would wait longer is lost.
        let slowest = NetworkEffect {
            rate: Some(1),
            ..NetworkEffect::default()
        };
        assert_eq!(leased(slowest), MAX_DELAY * 2);
    }

    #[test]
    fn an_orphan_ends_at_its_timeout() {
        let wanted = [(fault("a"), Until::Orphaned(15 * SECOND))];
        let steps = run(&[(fault("a"), 30 * SECOND)], &wanted, SECOND);
        assert_eq!(steps, [Step::Renew("a".into(), 15 * SECOND)]);
        // Its lease ends a little before: not left to chance.
        let wanted_later = [(fault("a"), Until::Orphaned(35 * SECOND))];
        let steps = run(&[(fault("a"), 30 * SECOND)], &wanted_later, 20 * SECOND);
        assert_eq!(steps, [Step::Renew("a".into(), 35 * SECOND)]);
        let steps = run(&[(fault("a"), 15 * SECOND)], &wanted, 15 * SECOND);
        assert_eq!(steps, [Step::Disarm("a".into())]);
    }

    #[test]
    fn other_peers_are_set_in_place_but_all_peers_is_another_rule() {
        let one = peers(fault("a"), Some(vec![IpAddr::from([10, 0, 0, 1])]));
        let all = peers(fault("a"), None);
        let held = [(fault("a"), 30 * SECOND)];
        let steps = run(&held, &[(one, Until::Leased)], SECOND);
        assert_eq!(steps, [Step::SetPeers("a".into())]);
        let steps = run(&held, &[(all, Until::Leased)], SECOND);
        assert_eq!(
            steps,
            [Step::Disarm("a".into()), Step::Arm("a".into(), 31 * SECOND)]
        );
    }

    #[test]
    fn the_same_fault_for_a_longer_lifetime_is_the_same_fault() {
        let mut later = fault("a");
        later.lifetime = Lifetime::For(Duration::from_secs(5));
        let steps = run(&[(fault("a"), 500)], &[(later, Until::Deadline(500))], 1);
        assert_eq!(steps, []);
    }

    proptest! {
        #[test]
        fn carrying_the_steps_out_leaves_none(
            held in proptest::collection::btree_map(0..6_u8, 1..100_u64, 0..6),
            wanted in proptest::collection::btree_map(0..6_u8, 1..100_u64, 0..6),
            now in 0..100_u64,
        ) {
            let named = |(id, at): (u8, u64)| (fault(&id.to_string()), at);
            let held: Vec<_> = held.into_iter().map(named).collect();
            let wanted: Vec<_> =
                wanted.into_iter().map(named).map(|(f, at)| (f, Until::Deadline(at))).collect();
            let mut after: BTreeMap<FaultId, (Fault, u64)> =
                held.iter().map(|(f, at)| (f.id.clone(), (f.clone(), *at))).collect();
            for step in run(&held, &wanted, now) {
                match step {
                    Step::Disarm(id) => drop(after.remove(&id)),
                    Step::Arm(id, at) => {
                        prop_assert!(at > now, "what is over was armed");
                        after.insert(id.clone(), (fault(&id), at));
                    }
                    Step::Renew(id, at) => after.get_mut(&id).expect("held").1 = at,
                    Step::SetPeers(_) => {}
                }
            }
            let after: Vec<_> = after.into_values().collect();
            prop_assert_eq!(run(&after, &wanted, now), vec![]);
        }
    }
}
