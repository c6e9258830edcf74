//! Which rules of the network family apply to a packet.

use aya_ebpf::helpers::generated::bpf_skb_ancestor_cgroup_id;
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use aya_ebpf::programs::sk_buff::SkBuff;
use chaos_abi::MAX_RULES;
use chaos_abi::network::{Rule, RuleRef, flag};

use crate::peers::{is_meant, peer};

/// All rules of the node's network faults.
#[map]
static RULES: Array<Rule> = Array::pinned(MAX_RULES, 0);

/// The rule with this id, whatever it is now.
#[inline(always)]
pub fn rule<'a>(id: u32) -> Option<&'a Rule> {
    RULES.get(id)
}

/// Which way a packet goes, seen from the target.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The target sends it.
    Egress,
    /// The target receives it.
    Ingress,
}

impl Direction {
    #[inline(always)]
    const fn flag(self) -> u32 {
        match self {
            Self::Egress => flag::EGRESS,
            Self::Ingress => flag::INGRESS,
        }
    }
}

/// The rule that a reference means, if it applies to a packet at CLOCK_MONOTONIC nanoseconds `now`:
/// not if the slot is another rule's by now, nor past its deadline, nor if it is not the packet's
/// (`is_its`).
#[inline(always)]
pub fn applicable<'a>(
    skb: &SkBuff,
    reference: RuleRef,
    direction: Direction,
    now: u64,
    is_its: impl FnOnce(&Rule) -> bool,
) -> Option<&'a Rule> {
    let RuleRef { id, generation } = reference;
    let rule = RULES.get(id)?;
    // SAFETY: a load of an aligned word of the map's value, which user space may be writing.
    let deadline = unsafe { core::ptr::read_volatile(&raw const rule.deadline_ns) };
    if rule.generation != generation || now >= deadline || rule.flags & direction.flag() == 0 {
        return None;
    }
    // SAFETY: `skb` is the context that the kernel gave to this program.
    if rule.ifindex != 0 && rule.ifindex != unsafe { (*skb.skb).ifindex } {
        return None;
    }
    if !is_its(rule) {
        return None;
    }
    let addr = peer(skb, direction)?;
    (rule.flags & flag::PEERS == 0 || is_meant(rule, skb, addr)).then_some(rule)
}

/// Id of the cgroup at `depth` above the socket of a packet; 0 if there is none.
#[inline(always)]
pub fn ancestor(skb: &SkBuff, depth: u32) -> u64 {
    // SAFETY: `skb` is the context that the kernel gave to this program.
    unsafe { bpf_skb_ancestor_cgroup_id(skb.skb, depth as i32) }
}
