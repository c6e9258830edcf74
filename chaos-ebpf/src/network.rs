//! Which rules of the network family apply to a packet.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_skb_ancestor_cgroup_id;
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use aya_ebpf::programs::sk_buff::SkBuff;
use chaos_abi::MAX_RULES;
use chaos_abi::network::{Rule, RuleRef, flag, release_at};
use chaos_abi::sample::Stream;

use crate::peers::{is_meant, peer};
use crate::{Draw, Outcome, count, done};

/// All rules of the node's network faults.
#[map]
static RULES: Array<Rule> = Array::pinned(MAX_RULES, 0);

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

/// What a rule says of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes its way.
    Pass,
    /// It is dropped.
    Drop,
    /// It waits so many nanoseconds, at least 1.
    Delay(u64),
}

/// What the rule that `reference` means says of a packet, at CLOCK_MONOTONIC nanoseconds `now`.
/// Nothing, if it is not that rule any more, is past its deadline or does not apply. `can_delay`:
/// there is a detour; `waited`: nanoseconds that earlier rules make it wait already.
#[inline(always)]
pub fn consider(
    skb: &SkBuff,
    reference: &RuleRef,
    direction: Direction,
    can_delay: bool,
    now: u64,
    waited: u64,
) -> Verdict {
    let way = direction.flag() | if can_delay { CAN_DELAY } else { 0 };
    let reference = u64::from(reference.generation) << 32 | u64::from(reference.id);
    match consider_rule(skb.skb, reference, way, now, waited) {
        PASS => Verdict::Pass,
        DROP => Verdict::Drop,
        delay => Verdict::Delay(delay),
    }
}

const PASS: u64 = 0;
const DROP: u64 = u64::MAX;
/// Beside the bits of [`flag::EGRESS`] and [`flag::INGRESS`]: a BPF function has five arguments.
const CAN_DELAY: u32 = 1 << 31;

/// [`consider`] for the verifier: a global function is verified once, on its own, and not once
/// for every path through the loops over depths and rules, which are more than a million.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn consider_rule(
    skb: *mut __sk_buff,
    reference: u64,
    way: u32,
    now: u64,
    waited: u64,
) -> u64 {
    let direction = way & !CAN_DELAY;
    let (id, generation) = (reference as u32, (reference >> 32) as u32);
    let skb = SkBuff::new(skb);
    let Some(rule) = applicable(id, generation, &skb, direction, now) else {
        return PASS;
    };
    let draw = Draw::next(id, rule);
    let drop = rule.flags & flag::DROP != 0 || draw.hit(Stream::Loss, rule.loss_threshold);
    if !draw.sampled(rule) || (!drop && rule.delay_ns == 0) {
        count(id, Outcome::Passed, now);
        return PASS;
    }
    let outcome = if !drop && way & CAN_DELAY == 0 {
        Outcome::Failed
    } else {
        done(rule)
    };
    count(id, outcome, now);
    match outcome {
        Outcome::Injected if drop => DROP,
        // Nothing waits past the deadline of the rule that makes it wait.
        Outcome::Injected => {
            let from = now.saturating_add(waited);
            release_at(from, rule.delay_ns, rule.deadline_ns).saturating_sub(from)
        }
        _ => PASS,
    }
}

#[inline(always)]
fn applicable<'a>(
    id: u32,
    generation: u32,
    skb: &SkBuff,
    direction: u32,
    now: u64,
) -> Option<&'a Rule> {
    let rule = RULES.get(id)?;
    // SAFETY: a load of an aligned word of the map's value, which user space may be writing.
    let deadline = unsafe { core::ptr::read_volatile(&raw const rule.deadline_ns) };
    if rule.generation != generation || now >= deadline || rule.flags & direction == 0 {
        return None;
    }
    // SAFETY: `skb` is the context that the kernel gave to this program.
    if rule.ifindex != 0 && rule.ifindex != unsafe { (*skb.skb).ifindex } {
        return None;
    }
    if rule.cgroup_id != 0 && ancestor(skb, rule.cgroup_depth) != rule.cgroup_id {
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
