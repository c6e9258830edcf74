//! Loss and delay on a device of the target.
//!
//! A lost packet is STOLEN, not SHOT: the sender is not told. A delayed one takes a detour: a
//! clone, which no longer counts against its socket (else TCP small queues would throttle the
//! sender), is sent into our own device `fla`, whose fq holds it until its time; it comes out of
//! `flb` and goes on to the real device, whose own queueing is left alone:
//!
//! ```text
//!  socket -> dev egress: tc_egress -> fla egress: tc_egress_stamp -> fq -> veth
//!                    dev egress (passes: it came in by flb) <- flb ingress: tc_egress_return
//! ```
//!
//! The time travels from the first to the second program in `skb->cb`: redirecting clears
//! `tstamp`, and the mark belongs to others.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(
    missing_docs,
    unreachable_pub,
    reason = "aya's attributes write each entry point anew, public and without its comment"
)]

use aya_ebpf::bindings::{__sk_buff, TC_ACT_OK, TC_ACT_SHOT, TC_ACT_STOLEN, TC_ACT_UNSPEC};
use aya_ebpf::helpers::generated::{bpf_clone_redirect, bpf_redirect};
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::HashMap;
use aya_ebpf::programs::TcContext;
use chaos_abi::network::{MAX_TARGETS, Target};
use chaos_ebpf::network::{Direction, Verdict, consider};
use chaos_ebpf::{armed, count_failed, now_ns};

/// Slot of a device -> its rules and its detour.
#[map]
static DEVICE_TARGETS: HashMap<u64, Target> = HashMap::pinned(MAX_TARGETS, 0);

/// Slot for a program that serves one device only, where the filter has no classid (tcx, and
/// BPF_PROG_TEST_RUN); 0 takes the filter's.
#[unsafe(no_mangle)]
static SLOT: u32 = 0;

/// Says that the rest of `cb` is ours. Only `fla` looks for it, which nothing else sends to.
const CB_OURS: u32 = 0x4661_756c;

/// Egress of the target's device.
#[classifier]
pub fn tc_egress(mut ctx: TcContext) -> i32 {
    // UNSPEC lets the filters behind ours have the packet.
    if !armed() {
        return TC_ACT_UNSPEC;
    }
    match decide(&ctx) {
        Some(Decision { lose: true, .. }) => TC_ACT_STOLEN,
        Some(Decision {
            delay: 1..,
            release_at,
            detour_in,
            last,
            ..
        }) => detour(&mut ctx, detour_in, release_at, last),
        _ => TC_ACT_UNSPEC,
    }
}

/// Egress of `fla`: tells fq when the packet may go on.
#[classifier]
pub fn tc_egress_stamp(ctx: TcContext) -> i32 {
    let skb: *mut __sk_buff = ctx.skb.skb;
    // SAFETY: `skb` is the context that the kernel gave to this program.
    let [low, high, ours, ..] = unsafe { (*skb).cb };
    if ours != CB_OURS {
        // Whatever the kernel itself sends on a new device must not come out at the target's.
        return TC_ACT_SHOT;
    }
    // SAFETY: as above; tc programs may write tstamp.
    unsafe { (*skb).tstamp = u64::from(high) << 32 | u64::from(low) };
    TC_ACT_OK
}

/// Ingress of `flb`: on to the real device.
#[classifier]
pub fn tc_egress_return(ctx: TcContext) -> i32 {
    match target(&ctx) {
        // SAFETY: the helper only notes where the packet shall go.
        Some(target) => unsafe { bpf_redirect(target.device, 0) as i32 },
        None => TC_ACT_SHOT,
    }
}

/// What all rules of the device say together.
struct Decision {
    lose: bool,
    /// Delays of several faults add up.
    delay: u64,
    release_at: u64,
    detour_in: u32,
    /// The last rule that delays.
    last: u32,
}

#[inline(always)]
fn decide(ctx: &TcContext) -> Option<Decision> {
    let target = target(ctx)?;
    // SAFETY: `skb` is the context that the kernel gave to this program.
    let skb = unsafe { &*ctx.skb.skb };
    let (device, came_in_by) = (skb.ifindex, skb.ingress_ifindex);
    if device != target.device {
        // A filter that was left behind somewhere: its slot is another device's by now.
        return None;
    }
    if target.detour_out != 0 && came_in_by == target.detour_out {
        // It has had its delay.
        return None;
    }
    let detour_in = target.detour_in;
    let now = now_ns();
    let mut decision = Decision {
        lose: false,
        delay: 0,
        release_at: 0,
        detour_in,
        last: 0,
    };
    for reference in &target.rules {
        if reference.generation == 0 {
            break;
        }
        match consider(
            &ctx.skb,
            reference,
            Direction::Egress,
            detour_in != 0,
            now,
            decision.delay,
        ) {
            Verdict::Pass => {}
            Verdict::Drop => {
                decision.lose = true;
                break;
            }
            Verdict::Delay(delay) => {
                decision.delay += delay;
                decision.last = reference.id;
            }
        }
    }
    decision.release_at = now + decision.delay;
    Some(decision)
}

#[inline(always)]
fn detour(ctx: &mut TcContext, detour_in: u32, release_at: u64, last: u32) -> i32 {
    let skb: *mut __sk_buff = ctx.skb.skb;
    // SAFETY: `skb` is the context that the kernel gave to this program, and cb is its scratch.
    let cb = unsafe { &mut (*skb).cb };
    cb[0] = release_at as u32;
    cb[1] = (release_at >> 32) as u32;
    cb[2] = CB_OURS;
    // SAFETY: the helper clones the packet; no packet pointer is held across it.
    if unsafe { bpf_clone_redirect(skb, detour_in, 0) } != 0 {
        count_failed(last);
        return TC_ACT_UNSPEC;
    }
    TC_ACT_STOLEN
}

#[inline(always)]
fn target<'a>(ctx: &TcContext) -> Option<&'a Target> {
    // SAFETY: a load of read-only data that the loader may have replaced before the load.
    let mut slot = unsafe { core::ptr::read_volatile(&raw const SLOT) };
    if slot == 0 {
        // SAFETY: `skb` is the context that the kernel gave to this program.
        slot = unsafe { (*ctx.skb.skb).tc_classid };
    }
    // SAFETY: elements are only ever replaced whole; a stale rule is told by its generation.
    unsafe { DEVICE_TARGETS.get(u64::from(slot)) }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
