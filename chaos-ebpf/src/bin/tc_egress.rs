//! Everything but partition, on a device of the target: which packets are lost, duplicated,
//! corrupted, delayed or shaped is said by `chaos_ebpf::effects`; here it is done.
//!
//! A lost packet is STOLEN, not SHOT: the sender is not told. One that waits, a copy, and one that
//! is corrupted take a detour: a clone, which no longer counts against its socket (else TCP small
//! queues would throttle the sender), is sent into our own device `fla`, whose fq holds it until its
//! time; it comes out of `flb` and goes on to the real device, whose own queueing is left alone:
//!
//! ```text
//!  socket -> dev egress: tc_egress -> fla egress: tc_egress_stamp -> fq -> veth
//!                    dev egress (passes: it came in by flb) <- flb ingress: tc_egress_return
//! ```
//!
//! What the packet has to tell the later programs is in `skb->cb`: redirecting clears `tstamp`, and
//! the mark belongs to others. fq keeps its own data in the first four words (`fq_skb_cb`,
//! net/sched/sch_fq.c), so only the last one is still there behind it; segments inherit it.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(
    missing_docs,
    unreachable_pub,
    reason = "aya's attributes write each entry point anew, public and without its comment"
)]

use aya_ebpf::bindings::{
    __sk_buff, BPF_CSUM_LEVEL_RESET, TC_ACT_OK, TC_ACT_SHOT, TC_ACT_STOLEN, TC_ACT_UNSPEC,
};
use aya_ebpf::helpers::generated::{
    bpf_clone_redirect, bpf_csum_level, bpf_redirect, bpf_set_hash, bpf_set_hash_invalid,
};
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::{Array, HashMap, ProgramArray};
use aya_ebpf::programs::TcContext;
use aya_ebpf::programs::sk_buff::SkBuff;
use chaos_abi::RULES_PER_TARGET;
use chaos_abi::control::GENERATIONS;
use chaos_abi::network::{MAX_TARGETS, RuleRef, Target, target_flag, waiting_units};
use chaos_abi::verdict::{Verdict, bit_at};
use chaos_ebpf::effects::{self, Said};
use chaos_ebpf::generation::go_on;
use chaos_ebpf::network::{Direction, applicable};
use chaos_ebpf::peers::{ETH_P_IP, ETH_P_IPV6, ethertype, load};
use chaos_ebpf::{
    Draw, Outcome, armed, compare_exchange, count, count_failed, count_over_budget, done,
    fetch_add, now_ns,
};

/// Slot of a device -> its rules and its detour.
#[map]
static DEVICE_TARGETS: HashMap<u64, Target> = HashMap::pinned(MAX_TARGETS, 0);

/// Slot of a device -> what waits in its detour, in [`waiting_units`].
#[map]
static WAITING: Array<u64> = Array::pinned(MAX_TARGETS, 0);

/// Bodies of [`tc_egress`].
#[map]
static TC_EGRESS_BODY: ProgramArray = ProgramArray::pinned(GENERATIONS, 0);

/// Bodies of [`tc_egress_stamp`].
#[map]
static TC_EGRESS_STAMP_BODY: ProgramArray = ProgramArray::pinned(GENERATIONS, 0);

/// Bodies of [`tc_egress_return`].
#[map]
static TC_EGRESS_RETURN_BODY: ProgramArray = ProgramArray::pinned(GENERATIONS, 0);

/// Slot for a program that serves one device only, where the filter has no classid (tcx, and
/// BPF_PROG_TEST_RUN); 0 takes the filter's.
#[unsafe(no_mangle)]
static SLOT: u32 = 0;

/// Says that the rest of `cb` is ours. Only `fla` looks for it, which nothing else sends to.
const CB_OURS: u32 = 0x4661_756c;

/// What leaves within 2^18 nanoseconds, a quarter of a millisecond, is one flow of fq: 32 bits tell
/// more of these apart than there are in the longest wait, and they are not too many to allocate.
const FLOW_SHIFT: u32 = 18;

/// Length of an Ethernet header; the detour is a pair of Ethernet devices.
const ETH_HLEN: u32 = 14;

/// Egress of the target's device.
#[classifier]
pub fn tc_egress(ctx: TcContext) -> i32 {
    if armed() {
        go_on(&ctx, &TC_EGRESS_BODY);
    }
    // Lets the filters behind ours have the packet.
    TC_ACT_UNSPEC
}

#[classifier]
pub fn tc_egress_body(mut ctx: TcContext) -> i32 {
    let Some(target) = target(&ctx) else {
        return TC_ACT_UNSPEC;
    };
    let Some(decision) = decide(&ctx, target) else {
        return TC_ACT_UNSPEC;
    };
    if decision.verdict.drops() {
        return TC_ACT_STOLEN;
    }
    if !decision.verdict.detours() {
        return TC_ACT_UNSPEC;
    }
    carry_out(&mut ctx, target, &decision)
}

/// Egress of `fla`: tells fq when the packet may go on.
#[classifier]
pub fn tc_egress_stamp(ctx: TcContext) -> i32 {
    go_on(&ctx, &TC_EGRESS_STAMP_BODY);
    TC_ACT_SHOT
}

#[classifier]
pub fn tc_egress_stamp_body(ctx: TcContext) -> i32 {
    let skb: *mut __sk_buff = ctx.skb.skb;
    // SAFETY: `skb` is the context that the kernel gave to this program.
    let [low, high, ours, ..] = unsafe { (*skb).cb };
    if ours != CB_OURS {
        // Whatever the kernel itself sends on a new device must not come out at the target's.
        return TC_ACT_SHOT;
    }
    let release_at = u64::from(high) << 32 | u64::from(low);
    // SAFETY: as above; tc programs may write tstamp.
    unsafe { (*skb).tstamp = release_at };
    // fq holds back a whole flow until the time of its first packet, whatever comes in later for an
    // earlier time (`fq_dequeue`, net/sched/sch_fq.c). So packets of one time are a flow here.
    // SAFETY: the helper changes a word of the packet's metadata.
    unsafe { bpf_set_hash(skb, (release_at >> FLOW_SHIFT) as u32) };
    TC_ACT_OK
}

/// Ingress of `flb`: on to the real device.
#[classifier]
pub fn tc_egress_return(ctx: TcContext) -> i32 {
    go_on(&ctx, &TC_EGRESS_RETURN_BODY);
    TC_ACT_SHOT
}

#[classifier]
pub fn tc_egress_return_body(ctx: TcContext) -> i32 {
    // Else the real device would choose a queue by it.
    // SAFETY: the helper changes a word of the packet's metadata.
    unsafe { bpf_set_hash_invalid(ctx.skb.skb) };
    // SAFETY: `skb` is the context that the kernel gave to this program.
    let carried = unsafe { (*ctx.skb.skb).cb[4] };
    leave(slot(&ctx), u64::from(carried >> 16));
    let spot = carried as u16;
    if spot != 0 {
        flip(&ctx, spot);
    }
    match target(&ctx) {
        // SAFETY: the helper only notes where the packet shall go.
        Some(target) => unsafe { bpf_redirect(target.device, 0) as i32 },
        None => TC_ACT_SHOT,
    }
}

/// Flips a bit behind the IP header, whose checksum covers no more than itself. The checksum of
/// what follows has been computed on the way through the detour, so the receiver finds out.
#[inline(always)]
fn flip(ctx: &TcContext, spot: u16) {
    let header = match ethertype(&ctx.skb) {
        ETH_P_IP => match load::<1>(&ctx.skb, 0) {
            Some([first]) => u32::from(first & 0x0f) * 4,
            None => return,
        },
        ETH_P_IPV6 => 40,
        _ => return,
    };
    let start = ETH_HLEN + header;
    let bytes = ctx.len().saturating_sub(start);
    if bytes == 0 {
        return;
    }
    let (byte, bit) = bit_at(spot, bytes);
    let place = (start + byte) as usize;
    if let Ok(value) = ctx.load::<u8>(place) {
        // One that fails is corrupted no more: there is nobody left to tell.
        let _ = ctx.skb.store(place, &(value ^ 1 << bit), 0);
    }
    // A packet that was forwarded may say that its checksum has been verified already.
    // SAFETY: the helper changes a word of the packet's metadata.
    unsafe { bpf_csum_level(ctx.skb.skb, u64::from(BPF_CSUM_LEVEL_RESET)) };
}

/// What all rules of the device say together.
struct Decision {
    verdict: Verdict,
    now: u64,
    /// The last rule that does anything.
    last: u32,
}

#[inline(always)]
fn decide(ctx: &TcContext, target: &Target) -> Option<Decision> {
    // SAFETY: `skb` is the context that the kernel gave to this program.
    let skb = unsafe { &*ctx.skb.skb };
    let (device, came_in_by) = (skb.ifindex, skb.ingress_ifindex);
    if device != target.device {
        // A filter that was left behind somewhere: its slot is another device's by now.
        return None;
    }
    if target.detour_out != 0 && came_in_by == target.detour_out {
        // It has had its treatment.
        return None;
    }
    let now = now_ns();
    let mut decision = Decision {
        verdict: Verdict::PASS,
        now,
        last: 0,
    };
    let can_detour = u64::from(target.detour_in != 0);
    for reference in &target.rules {
        if reference.generation == 0 {
            break;
        }
        let said = decision.verdict.to_bits();
        let says = consider_rule(ctx.skb.skb, reference.to_bits(), can_detour, now, said);
        if says != said {
            decision.verdict = Verdict::from_bits(says);
            decision.last = reference.id;
        }
        if decision.verdict.drops() {
            break;
        }
    }
    Some(decision)
}

/// What a rule says of a packet beside what earlier rules `said`, and counts it. Without a detour
/// only loss can be done. For the verifier: a global function is verified once, on its own, and not
/// once for every path through the loop over rules.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn consider_rule(
    skb: *mut __sk_buff,
    reference: u64,
    can_detour: u64,
    now: u64,
    said: u64,
) -> u64 {
    let skb = SkBuff::new(skb);
    let reference = RuleRef::from_bits(reference);
    let Some(rule) = applicable(&skb, reference, Direction::Egress, now) else {
        return said;
    };
    let id = reference.id;
    let draw = Draw::next(id, rule);
    if !draw.sampled(rule) {
        count(id, Outcome::Passed, now);
        return said;
    }
    let before = Verdict::from_bits(said);
    let (verdict, outcome) = match effects::consider(id, rule, &draw, before, now, skb.len()) {
        Said::Nothing => (before, Outcome::Passed),
        Said::Overflow => (before.dropped(), Outcome::Overflowed),
        Said::Done(verdict) if can_detour == 0 && !verdict.drops() && verdict.detours() => {
            (before, Outcome::Failed)
        }
        Said::Done(verdict) => (verdict, Outcome::Injected),
    };
    let observes = done(rule) == Outcome::WouldInject;
    let outcome = match outcome {
        Outcome::Injected | Outcome::Overflowed if observes => Outcome::WouldInject,
        outcome => outcome,
    };
    count(id, outcome, now);
    if observes { said } else { verdict.to_bits() }
}

/// Sends the copies, and the packet itself unless that can go on as it is.
#[inline(always)]
fn carry_out(ctx: &mut TcContext, target: &Target, decision: &Decision) -> i32 {
    let verdict = decision.verdict;
    let slot = slot(ctx);
    let skb: *mut __sk_buff = ctx.skb.skb;
    // SAFETY: `skb` is the context that the kernel gave to this program.
    let context = unsafe { &*skb };
    let (bytes, segments) = (context.len, context.gso_segs);
    // What comes out again tells how much it was: of each segment, where they are cut on the way.
    let segments = if target.flags & target_flag::SEGMENTS != 0 && segments > 1 {
        segments
    } else {
        1
    };
    let units = waiting_units(bytes / segments);
    let way = Way {
        slot,
        detour_in: target.detour_in,
        budget: u64::from(target.budget),
        units,
        all_units: u64::from(units) * u64::from(segments),
        release_at: decision.now.saturating_add(verdict.wait_ns()),
        last: decision.last,
    };
    let mut worst = Sent::Gone;
    for copy in 0..RULES_PER_TARGET as u64 {
        if copy == verdict.copies() {
            break;
        }
        worst = worst.max(way.send(skb, 0));
    }
    let mut action = TC_ACT_UNSPEC;
    if verdict.wait_ns() != 0 || verdict.spot() != 0 {
        let sent = way.send(skb, verdict.spot());
        if sent != Sent::Failed {
            action = TC_ACT_STOLEN;
        }
        worst = worst.max(sent);
    }
    // A packet is counted once, however many copies of it there should have been.
    match worst {
        Sent::Gone => {}
        Sent::OverBudget => count_over_budget(way.last),
        Sent::Failed => count_failed(way.last),
    }
    action
}

/// Into the detour of a device.
struct Way {
    slot: u32,
    detour_in: u32,
    budget: u64,
    /// What one of its segments counts.
    units: u32,
    all_units: u64,
    release_at: u64,
    /// The rule to tell of a failure.
    last: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Sent {
    /// It is on its way.
    Gone,
    /// It is dropped: too much is waiting already.
    OverBudget,
    /// It has to go on without.
    Failed,
}

impl Way {
    /// Sends a clone of the packet, if it fits.
    #[inline(always)]
    fn send(&self, skb: *mut __sk_buff, spot: u16) -> Sent {
        if enter(self.slot, self.all_units, self.budget) == 0 {
            return Sent::OverBudget;
        }
        // SAFETY: `skb` is the context that the kernel gave to this program, and cb is its scratch.
        let cb = unsafe { &mut (*skb).cb };
        cb[0] = self.release_at as u32;
        cb[1] = (self.release_at >> 32) as u32;
        cb[2] = CB_OURS;
        cb[4] = self.units << 16 | u32::from(spot);
        // SAFETY: the helper clones the packet; no packet pointer is held across it.
        if unsafe { bpf_clone_redirect(skb, self.detour_in, 0) } != 0 {
            leave(self.slot, self.all_units);
            return Sent::Failed;
        }
        Sent::Gone
    }
}

/// 1 if so much more may wait in the detour; then it does. A global function, as [`consider_rule`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn enter(slot: u32, units: u64, budget: u64) -> u64 {
    let Some(waiting) = WAITING.get_ptr_mut(slot) else {
        return 0;
    };
    // SAFETY: an aligned word of an array map that is only changed atomically here; user space
    // writes zeroes while nothing waits.
    let before = unsafe { fetch_add(waiting, units) };
    if before.saturating_add(units) > budget {
        leave(slot, units);
        return 0;
    }
    1
}

/// So much has come out; 0 if that could not be counted. Never below zero: what was lost on the way and what was counted for a
/// detour that has been replaced must not add up. A global function, as [`consider_rule`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn leave(slot: u32, units: u64) -> u64 {
    const TRIES: u32 = 8;
    let Some(waiting) = WAITING.get_ptr_mut(slot) else {
        return 0;
    };
    // SAFETY: as in `enter`.
    let mut before = unsafe { waiting.read_volatile() };
    for _ in 0..TRIES {
        // SAFETY: as in `enter`.
        let found = unsafe { compare_exchange(waiting, before, before.saturating_sub(units)) };
        if found == before {
            return 1;
        }
        before = found;
    }
    0
}

/// Slot of the device that the packet is on.
#[inline(always)]
fn slot(ctx: &TcContext) -> u32 {
    // SAFETY: a load of read-only data that the loader may have replaced before the load.
    let slot = unsafe { core::ptr::read_volatile(&raw const SLOT) };
    if slot != 0 {
        return slot;
    }
    // SAFETY: `skb` is the context that the kernel gave to this program.
    unsafe { (*ctx.skb.skb).tc_classid }
}

#[inline(always)]
fn target<'a>(ctx: &TcContext) -> Option<&'a Target> {
    // SAFETY: elements are only ever replaced whole; a stale rule is told by its generation.
    unsafe { DEVICE_TARGETS.get(u64::from(slot(ctx))) }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
