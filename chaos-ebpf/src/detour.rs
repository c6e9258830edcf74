//! What `tc_egress` and `tc_ingress` do to packets of a device: one walk over its rules, and the way
//! around for those that cannot go on as they are.
//!
//! A lost packet is taken away, and the sender is not told. One that waits, a copy, and one that
//! is corrupted take a detour: a clone, which no longer counts against its socket (else TCP small
//! queues would throttle the sender), is sent into our own device `fla`, whose fq holds it until its
//! time. Where `fla` is one end of a pair it comes out of `flb` and goes on where it was; where `fla` is a VLAN device on
//! the real one it is there again, with our tag. Either way it is past the real device's own queueing. The
//! pictures are in the programs.
//!
//! What the packet has to tell the later programs is in `skb->cb`: redirecting clears `tstamp`, and
//! the mark belongs to others. fq keeps its own data in the first three words (`fq_skb_cb`,
//! net/sched/sch_fq.c), so only the last two are still there behind it; segments inherit them.
//!
//! Not here: what the effects are (`effects.rs`), and where a packet goes on, which the programs
//! know. As in `effects.rs`, functions with a name that is exported land in every object.

use aya_ebpf::bindings::{
    __sk_buff, BPF_CSUM_LEVEL_RESET, BPF_F_RECOMPUTE_CSUM, TC_ACT_OK, TC_ACT_SHOT,
};
use aya_ebpf::helpers::generated::{
    bpf_clone_redirect, bpf_csum_level, bpf_set_hash, bpf_set_hash_invalid,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};
use aya_ebpf::programs::TcContext;
use aya_ebpf::programs::sk_buff::SkBuff;
use chaos_abi::network::{MAX_TARGETS, Rule, RuleRef, Target, target_flag, waiting_units};
use chaos_abi::verdict::{Verdict, bit_at};
use chaos_abi::{RULES_PER_TARGET, late};

use crate::effects::{self, Said};
use crate::hook::{NEXT, take_away};
use crate::network::{Direction, ancestor, applicable};
use crate::peers::{ETH_P_IP, ETH_P_IPV6, ethertype, load};
use crate::receiver::{NO_ADDRESS, ancestor_id, receiver};
use crate::tag;
use crate::{
    Draw, Outcome, compare_exchange, count, count_failed, count_over_budget, done, fetch_add,
    now_ns,
};

/// Slot of a device -> its rules and its detour.
#[map]
static DEVICE_TARGETS: HashMap<u64, Target> = HashMap::pinned(MAX_TARGETS, 0);

/// Slot of a device -> what waits in its detour, in [`waiting_units`].
#[map]
static WAITING: Array<u64> = Array::pinned(MAX_TARGETS, 0);

/// Slot of a device -> how late its detour is, a word of [`chaos_abi::late`]. CPUs write over each other: a
/// packet more or less does not matter.
#[map]
static LATENESS: Array<u64> = Array::pinned(MAX_TARGETS, 0);

/// Says that the rest of `cb` is ours. Only `fla` looks for it, which nothing else sends to.
const CB_OURS: u32 = 0x4661_756c;

/// What leaves within 2^18 nanoseconds, a quarter of a millisecond, is one flow of fq: 32 bits tell
/// more of these apart than there are in the longest wait, and they are not too many to allocate.
const FLOW_SHIFT: u32 = 18;

/// Length of an Ethernet header; the detour is a pair of Ethernet devices.
const ETH_HLEN: u32 = 14;

/// Does what the rules of the device say to a packet that has not had its treatment yet; the answer
/// is the program's.
#[inline(always)]
pub fn treat(ctx: &mut TcContext, slot: u32, target: &Target, direction: Direction) -> i32 {
    let Some(decision) = decide(ctx, target, direction) else {
        return NEXT;
    };
    if decision.verdict.drops() {
        return take_away();
    }
    if !decision.verdict.detours() {
        return NEXT;
    }
    carry_out(ctx, slot, target, &decision)
}

/// Egress of `fla`: tells fq when the packet may go on.
#[inline(always)]
pub fn stamp(ctx: &TcContext) -> i32 {
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

/// Ingress of `flb` of this slot: the packet has waited, and gets its wrong bit. Where it belongs; `None`
/// if that is gone.
#[inline(always)]
pub fn arrived<'a>(ctx: &TcContext, slot: u32) -> Option<&'a Target> {
    // Else the real device would choose a queue by it.
    // SAFETY: the helper changes a word of the packet's metadata.
    unsafe { bpf_set_hash_invalid(ctx.skb.skb) };
    // fq has kept the time here that it was told (`fq_skb_cb`).
    // SAFETY: `skb` is the context that the kernel gave to this program.
    let [low, high, _, _, carried] = unsafe { (*ctx.skb.skb).cb };
    came_late(slot, u64::from(high) << 32 | u64::from(low));
    leave(slot, u64::from(carried >> 16));
    let spot = carried as u16;
    if spot != 0 {
        flip(ctx, spot);
    }
    target(slot)
}

/// The packet has waited and goes on where it is, as it came.
#[inline(always)]
pub fn let_go(ctx: &TcContext, slot: u32) -> i32 {
    let skb: *mut __sk_buff = ctx.skb.skb;
    if !tag::take_off(skb) {
        return TC_ACT_SHOT;
    }
    arrived(ctx, slot);
    // A time in the past would be taken for when it was received.
    // SAFETY: `skb` is the context that the kernel gave to this program; tc programs may write tstamp.
    unsafe { (*skb).tstamp = 0 };
    NEXT
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
        // A sum that a network card has made of the packet goes on being that of its bytes.
        let recompute = u64::from(BPF_F_RECOMPUTE_CSUM);
        // Where that fails the packet stays whole: there is nobody left to tell.
        let _ = ctx.skb.store(place, &(value ^ 1 << bit), recompute);
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
fn decide(ctx: &TcContext, target: &Target, direction: Direction) -> Option<Decision> {
    // SAFETY: `skb` is the context that the kernel gave to this program.
    if unsafe { (*ctx.skb.skb).ifindex } != target.device {
        // A filter that was left behind somewhere: its slot is another device's by now.
        return None;
    }
    let now = now_ns();
    let mut decision = Decision {
        verdict: Verdict::PASS,
        now,
        last: 0,
    };
    let mut how = 0;
    if target.detour_in != 0 {
        how |= CAN_DETOUR;
    }
    if direction == Direction::Ingress {
        how |= RECEIVED;
        if target.flags & target_flag::SHARED != 0 {
            how |= receiver(ctx.skb.skb) & !NO_ADDRESS;
        }
    }
    for reference in &target.rules {
        if reference.generation == 0 {
            break;
        }
        let said = decision.verdict.to_bits();
        let says = weigh(ctx.skb.skb, reference.to_bits(), how, now, said);
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

/// Bits of [`weigh`]'s `how`: the device has a detour; without one only loss can be done.
const CAN_DETOUR: u64 = 1 << 0;
/// The packet comes in. What is above [`NO_ADDRESS`] says whom it is for.
const RECEIVED: u64 = 1 << 1;
const _: () = assert!((CAN_DETOUR | RECEIVED) & !NO_ADDRESS == 0);

/// What a rule says of a packet beside what earlier rules `said`, and counts it. For the verifier: a
/// global function is verified once, on its own, and not once for every path through the loop over
/// rules. `how` is three arguments in one, of which there can be five.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weigh(skb: *mut __sk_buff, reference: u64, how: u64, now: u64, said: u64) -> u64 {
    let skb = SkBuff::new(skb);
    let reference = RuleRef::from_bits(reference);
    let direction = if how & RECEIVED == 0 {
        Direction::Egress
    } else {
        Direction::Ingress
    };
    let is_its = |rule: &Rule| {
        let id = match direction {
            _ if rule.cgroup_id == 0 => return true,
            Direction::Egress => ancestor(&skb, rule.cgroup_depth),
            Direction::Ingress => ancestor_id(how & !NO_ADDRESS, rule.cgroup_depth),
        };
        id == rule.cgroup_id
    };
    let Some(rule) = applicable(&skb, reference, direction, now, is_its) else {
        return said;
    };
    if rule.cgroup_id != 0 {
        if was_elsewhere(&skb, direction) {
            return said;
        }
        looked_at(&skb, direction);
    }
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
        Said::Done(verdict) if how & CAN_DETOUR == 0 && !verdict.drops() && verdict.detours() => {
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

/// The upper half of the last word of `cb` of a packet that rules of a cgroup have looked at; the
/// lower one is the device. A packet can pass two devices that carry routes: one of a VLAN or tunnel
/// and the one below, and has its socket on both. Another word for each direction: `cb` goes along from
/// one end of a veth pair to the other, where the rules of another namespace begin.
const fn cb_looked_at(direction: Direction) -> u32 {
    match direction {
        Direction::Egress => 0x4661,
        Direction::Ingress => 0x4662,
    }
}

/// Tells devices that the packet passes later that rules of a cgroup have had it on this one.
#[inline(always)]
pub fn looked_at(skb: &SkBuff, direction: Direction) {
    // SAFETY: `skb` is the context that the kernel gave to this program, and cb is its scratch.
    let skb = unsafe { &mut *skb.skb };
    skb.cb[4] = cb_looked_at(direction) << 16 | skb.ifindex & 0xffff;
}

/// Whether the rules of another device have had this packet.
#[inline(always)]
fn was_elsewhere(skb: &SkBuff, direction: Direction) -> bool {
    // SAFETY: as in `looked_at`.
    let skb = unsafe { &*skb.skb };
    let (word, device) = (skb.cb[4], skb.ifindex);
    word >> 16 == cb_looked_at(direction) && word & 0xffff != device & 0xffff
}

/// Sends the copies, and the packet itself unless that can go on as it is.
#[inline(always)]
fn carry_out(ctx: &mut TcContext, slot: u32, target: &Target, decision: &Decision) -> i32 {
    let verdict = decision.verdict;
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
    let wait_ns = verdict.wait_ns().saturating_sub(lateness(slot));
    let way = Way {
        slot,
        detour_in: target.detour_in,
        budget: u64::from(target.budget),
        units,
        all_units: u64::from(units) * u64::from(segments),
        release_at: decision.now.saturating_add(wait_ns),
        last: decision.last,
    };
    let before = context.cb[4];
    let mut worst = Sent::Gone;
    for copy in 0..RULES_PER_TARGET as u64 {
        if copy == verdict.copies() {
            break;
        }
        worst = worst.max(way.send(skb, 0));
    }
    let mut stays = true;
    if verdict.wait_ns() != 0 || verdict.spot() != 0 {
        let sent = way.send(skb, verdict.spot());
        stays = sent == Sent::Failed;
        worst = worst.max(sent);
    }
    // A packet is counted once, however many copies of it there should have been.
    match worst {
        Sent::Gone => {}
        Sent::OverBudget => count_over_budget(way.last),
        Sent::Failed => count_failed(way.last),
    }
    if !stays {
        return take_away();
    }
    if [Direction::Egress, Direction::Ingress]
        .map(cb_looked_at)
        .contains(&(before >> 16))
    {
        // The copies have taken its place.
        // SAFETY: as in `looked_at`.
        unsafe { (*skb).cb[4] = before };
    }
    NEXT
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
        cb[3] = tag::CB_TAG;
        cb[4] = self.units << 16 | u32::from(spot);
        // SAFETY: the helper clones the packet; no packet pointer is held across it.
        if unsafe { bpf_clone_redirect(skb, self.detour_in, 0) } != 0 {
            leave(self.slot, self.all_units);
            return Sent::Failed;
        }
        Sent::Gone
    }
}

/// 1 if so much more may wait in the detour; then it does. A global function, as [`weigh`].
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
/// detour that has been replaced must not add up. A global function, as [`weigh`].
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

/// Takes note of a packet that has come out and should have at `time`.
#[inline(always)]
fn came_late(slot: u32, time: u64) {
    let now = now_ns();
    if let Some(word) = LATENESS.get_ptr_mut(slot)
        && time <= now
    {
        // SAFETY: an aligned word of an array map.
        let before = unsafe { word.read_volatile() };
        // SAFETY: as above; whoever reads it can use any value.
        unsafe { word.write_volatile(late::seen(before, now - time)) };
    }
}

/// How much earlier packets have to be sent through this detour.
#[inline(always)]
fn lateness(slot: u32) -> u64 {
    LATENESS.get(slot).map_or(0, |&word| late::known_ns(word))
}

/// The device of a slot; `None` without rules, and without packets in its detour.
#[inline(always)]
pub fn target<'a>(slot: u32) -> Option<&'a Target> {
    // SAFETY: elements are only ever replaced whole; a stale rule is told by its generation.
    unsafe { DEVICE_TARGETS.get(u64::from(slot)) }
}
