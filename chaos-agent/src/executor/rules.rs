//! What the kernel is told: a rule from a fault, a target's list, a peer's key. No map is touched
//! here.

use chaos_abi::clock::ClockRule;
use chaos_abi::network::{Rule, RuleRef, Target, flag};
use chaos_abi::sample::{ALWAYS, threshold_ppm};
use chaos_planner::capabilities::Mechanism;
use chaos_planner::clock::ClockEffect;
use chaos_planner::fault::{Mode, NetworkEffect, TargetRef};

use super::{Armed, ArmedRule};
use crate::kernel::clock;
use crate::kernel::netlink::Netlink;
use crate::mechanism::MechanismError;
use crate::mechanism::cgroup_drop::CgroupDrop;
use crate::mechanism::clock_shift::ClockShift;
use crate::mechanism::links;
use crate::mechanism::tc::Way;
use crate::mechanism::tc_egress::TcEgress;
use crate::mechanism::tc_ingress;

/// What the kernel is told of one rule.
pub(super) fn kernel_rule(
    armed: &Armed,
    rule: &ArmedRule,
    effect: &NetworkEffect,
    root_netns: u64,
) -> Rule {
    let mut made = match rule.mechanism {
        Mechanism::CgroupDrop => CgroupDrop::rule(effect, rule.ifindex),
        // Never one of a network effect: `choose` says so.
        Mechanism::ClockShift => Rule::default(),
        Mechanism::TcIngress => tc_ingress::rule(effect),
        Mechanism::TcEgress => TcEgress::rule(effect),
    };
    let place = &armed.place;
    if Way::of(rule.mechanism).is_some()
        && is_shared(&armed.fault.target, place.netns_inode, root_netns)
    {
        made.cgroup_id = place.cgroup_id;
        made.cgroup_depth = place.depth;
    }
    if let Some(peers) = &effect.peers {
        made.flags |= flag::PEERS;
        if peers.iter().any(|peer| peer.address().is_none()) {
            made.flags |= flag::NETS;
        }
    }
    if armed.fault.mode == Mode::Observe {
        made.flags |= flag::OBSERVE;
    }
    let sample = &armed.fault.sample;
    made.sample_threshold = sample.ppm.map_or(ALWAYS, threshold_ppm);
    made.sample_first = sample.first;
    made.sample_every = sample.every;
    made.seed = armed.seed;
    made.peer_set = armed.peer_set;
    made.generation = rule.generation;
    made.deadline_ns = armed.deadline_ns;
    if made.draws() {
        made.flags |= flag::DRAWS;
    }
    made
}

/// Whether a target's devices may be those of others, too: a pod owns its network namespace, unless that
/// is the host's.
pub(super) fn is_shared(target: &TargetRef, netns_inode: u64, root_netns: u64) -> bool {
    !matches!(target, TargetRef::Pod { .. }) || netns_inode == root_netns
}

/// What the kernel is told of a rule about clocks, which begins now.
pub(super) fn clock_rule(armed: &Armed, rule: &ArmedRule, effect: &ClockEffect) -> ClockRule {
    ClockRule {
        generation: rule.generation,
        deadline_ns: armed.deadline_ns,
        ..ClockShift::rule(effect, armed.fault.mode, clock::now_ns(), clock::bases_ns())
    }
}

/// Ids and generations of a fault's rules.
pub(super) fn lives(armed: &Armed) -> impl Iterator<Item = (u32, u32)> {
    armed.each_rule().map(|rule| (rule.id, rule.generation))
}

/// Removes references from a target's list and closes the gap; whether there were any.
pub(super) fn retain(target: &mut Target, keep: impl Fn(&RuleRef) -> bool) -> bool {
    let old = target.rules;
    target.rules = Default::default();
    let kept = old.iter().filter(|r| r.generation != 0 && keep(r));
    for (place, kept) in target.rules.iter_mut().zip(kept) {
        *place = *kept;
    }
    target.rules != old
}

/// The device that a partition is limited to: as named; eth0 of a pod that has one; else any.
/// `netlink` is of the target's namespace; `None`: it has none yet.
pub(super) fn cgroup_device(
    netlink: Option<&mut Netlink>,
    device: Option<&str>,
    pod: bool,
) -> Result<u32, MechanismError> {
    match (netlink, device) {
        (Some(netlink), Some(name)) => links::link(netlink, name).map(|link| link.index),
        (Some(netlink), None) if pod => Ok(links::of_pod(netlink).unwrap_or(0)),
        _ => Ok(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_removed_without_a_gap() {
        let reference = |id| RuleRef { id, generation: 9 };
        let mut target = Target::default();
        for (place, id) in target.rules.iter_mut().zip(1..=3) {
            *place = reference(id);
        }
        assert!(retain(&mut target, |r| r.id != 2));
        assert_eq!(
            target.rules[..3],
            [reference(1), reference(3), RuleRef::default()]
        );
        assert!(
            !retain(&mut target, |r| r.id != 2),
            "nothing to remove any more"
        );
    }
}
