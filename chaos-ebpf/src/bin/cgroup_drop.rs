//! Partition at the socket: `cgroup_skb` on the root cgroup, keyed by cgroup id. A sender gets
//! EPERM, a receiver hears nothing.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(
    missing_docs,
    unreachable_pub,
    reason = "aya's attributes write each entry point anew, public and without its comment"
)]

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::macros::{cgroup_skb, map};
use aya_ebpf::maps::{Array, HashMap, ProgramArray};
use aya_ebpf::programs::SkBuffContext;
use aya_ebpf::programs::sk_buff::SkBuff;
use chaos_abi::control::GENERATIONS;
use chaos_abi::network::{MAX_DEPTHS, MAX_TARGETS, RuleRef, Target, flag};
use chaos_ebpf::generation::go_on_if_armed;
use chaos_ebpf::network::{Direction, ancestor, applicable};
use chaos_ebpf::{Draw, Outcome, count, done, now_ns};

/// Cgroup id -> its rules.
#[map]
static CGROUP_TARGETS: HashMap<u64, Target> = HashMap::pinned(MAX_TARGETS, 0);

/// Depths below the root at which target cgroups sit, each once; 0 is a free place. None ever
/// changes its place, or packets would pass meanwhile. A packet is looked up at each of them, so that
/// the sockets of sub-cgroups belong to the target too.
#[map]
static DEPTHS: Array<u32> = Array::pinned(MAX_DEPTHS, 0);

/// Bodies of [`cgroup_drop_egress`].
#[map]
static CGROUP_DROP_EGRESS_BODY: ProgramArray = ProgramArray::pinned(GENERATIONS, 0);

/// Bodies of [`cgroup_drop_ingress`].
#[map]
static CGROUP_DROP_INGRESS_BODY: ProgramArray = ProgramArray::pinned(GENERATIONS, 0);

const ALLOW: i32 = 1;
const DENY: i32 = 0;

/// Packets that sockets of the node send.
#[cgroup_skb(egress)]
pub fn cgroup_drop_egress(ctx: SkBuffContext) -> i32 {
    go_on_if_armed(&ctx, &CGROUP_DROP_EGRESS_BODY);
    ALLOW
}

/// Packets that sockets of the node receive.
#[cgroup_skb(ingress)]
pub fn cgroup_drop_ingress(ctx: SkBuffContext) -> i32 {
    go_on_if_armed(&ctx, &CGROUP_DROP_INGRESS_BODY);
    ALLOW
}

#[cgroup_skb(egress)]
pub fn cgroup_drop_egress_body(ctx: SkBuffContext) -> i32 {
    verdict(&ctx, Direction::Egress)
}

#[cgroup_skb(ingress)]
pub fn cgroup_drop_ingress_body(ctx: SkBuffContext) -> i32 {
    verdict(&ctx, Direction::Ingress)
}

#[inline(always)]
fn verdict(ctx: &SkBuffContext, direction: Direction) -> i32 {
    for i in 0..MAX_DEPTHS {
        let depth = DEPTHS.get(i).copied().unwrap_or(0);
        if depth == 0 {
            continue;
        }
        let cgroup = ancestor(&ctx.skb, depth);
        // SAFETY: elements are only ever replaced whole; a stale rule is told by its generation.
        let Some(target) = (unsafe { CGROUP_TARGETS.get(cgroup) }) else {
            continue;
        };
        let now = now_ns();
        for reference in &target.rules {
            if reference.generation == 0 {
                break;
            }
            let received = u64::from(direction == Direction::Ingress);
            if consider_rule(ctx.skb.skb, reference.to_bits(), received, now) != 0 {
                return DENY;
            }
        }
    }
    ALLOW
}

/// 1 if a rule drops this packet. For the verifier: a global function is verified once, on its own,
/// and not once for every path through the loops over depths and rules, which are more than a
/// million.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn consider_rule(skb: *mut __sk_buff, reference: u64, received: u64, now: u64) -> u64 {
    let skb = SkBuff::new(skb);
    let reference = RuleRef::from_bits(reference);
    let direction = if received == 0 {
        Direction::Egress
    } else {
        Direction::Ingress
    };
    // Whose packet it is has been asked before the rules.
    let Some(rule) = applicable(&skb, reference, direction, now, |_| true) else {
        return 0;
    };
    let draw = Draw::next(reference.id, rule);
    let drops = rule.flags & flag::DROP != 0 && draw.sampled(rule);
    let outcome = if drops { done(rule) } else { Outcome::Passed };
    count(reference.id, outcome, now);
    u64::from(outcome == Outcome::Injected)
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
