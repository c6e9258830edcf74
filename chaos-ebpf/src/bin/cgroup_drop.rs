//! Partition at the socket: `cgroup_skb` on the root cgroup, keyed by cgroup id. A sender gets
//! EPERM, a receiver hears nothing.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::macros::{cgroup_skb, map};
use aya_ebpf::maps::{Array, HashMap};
use aya_ebpf::programs::SkBuffContext;
use chaos_abi::RULES_PER_TARGET;
use chaos_abi::network::{MAX_DEPTHS, MAX_TARGETS, Target, flag};
use chaos_ebpf::network::{Direction, Packet, ancestor, applicable};
use chaos_ebpf::{Draw, Outcome, armed, count, done, now_ns};

/// Cgroup id -> its rules.
#[map]
static CGROUP_TARGETS: HashMap<u64, Target> = HashMap::pinned(MAX_TARGETS, 0);

/// Depths below the root at which target cgroups sit; 0 ends the list. A packet is looked up at
/// each of them, so that the sockets of sub-cgroups belong to the target too.
#[map]
static DEPTHS: Array<u32> = Array::pinned(MAX_DEPTHS, 0);

const ALLOW: i32 = 1;
const DENY: i32 = 0;

/// Packets that sockets of the node send.
#[cgroup_skb(egress)]
pub fn cgroup_drop_egress(ctx: SkBuffContext) -> i32 {
    verdict(&ctx, Direction::Egress)
}

/// Packets that sockets of the node receive.
#[cgroup_skb(ingress)]
pub fn cgroup_drop_ingress(ctx: SkBuffContext) -> i32 {
    verdict(&ctx, Direction::Ingress)
}

#[inline(always)]
fn verdict(ctx: &SkBuffContext, direction: Direction) -> i32 {
    if !armed() {
        return ALLOW;
    }
    let mut packet = None;
    for i in 0..MAX_DEPTHS {
        let depth = DEPTHS.get(i).copied().unwrap_or(0);
        if depth == 0 {
            break;
        }
        let cgroup = ancestor(&ctx.skb, depth);
        // SAFETY: elements are only ever replaced whole; a stale rule is told by its generation.
        let Some(target) = (unsafe { CGROUP_TARGETS.get(cgroup) }) else {
            continue;
        };
        // Addresses are read once, and only for the packets of a target.
        if packet.is_none() {
            packet = Packet::parse(&ctx.skb, direction);
        }
        let Some(packet) = &packet else { return ALLOW };
        if denied(ctx, target, packet) {
            return DENY;
        }
    }
    ALLOW
}

#[inline(always)]
fn denied(ctx: &SkBuffContext, target: &Target, packet: &Packet) -> bool {
    let now = now_ns();
    for i in 0..RULES_PER_TARGET {
        let reference = &target.rules[i];
        if reference.generation == 0 {
            break;
        }
        let Some(rule) = applicable(reference, &ctx.skb, packet, now) else {
            continue;
        };
        let hit = rule.flags & flag::DROP != 0 && Draw::next(reference.id, rule).sampled(rule);
        let outcome = if hit { done(rule) } else { Outcome::Passed };
        count(reference.id, outcome, now);
        if outcome == Outcome::Injected {
            return true;
        }
    }
    false
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
