//! Everything but partition, on what comes in by a device of the target: as `tc_egress`, the other
//! way round. A packet that has been through the detour comes in by the device once more:
//!
//! ```text
//!  driver -> dev ingress: tc_ingress -> fla egress: tc_ingress_stamp -> fq -> veth
//!   socket <- dev ingress (passes: it says so in cb) <- flb ingress: tc_ingress_return
//! ```
//!
//! Coming in again, a packet is told by nothing that the kernel writes: `skb_iif` is the device's
//! own (`__netif_receive_skb_core`, net/core/dev.c). So it carries a word in `skb->cb`, which nobody
//! writes between `flb` and the device, and which is taken off there.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(
    missing_docs,
    unreachable_pub,
    reason = "aya's attributes write each entry point anew, public and without its comment"
)]

use aya_ebpf::bindings::{BPF_F_INGRESS, TC_ACT_SHOT};
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::ProgramArray;
use aya_ebpf::programs::TcContext;
use chaos_abi::control::GENERATIONS;
use chaos_abi::network::target_flag;
use chaos_ebpf::detour::{arrived, looked_at, stamp, target, treat};
use chaos_ebpf::generation::go_on;
use chaos_ebpf::hook::{NEXT, dispatch, go_on_with_slot, take_slot};
use chaos_ebpf::network::Direction;

/// The first three words of `cb` of a packet that has had its treatment: this, the slot of the
/// device, and that inverted. What the kernel or others leave in `cb` does not look so.
const CB_TREATED: u32 = 0x7472_6561;

/// Bodies of [`tc_ingress`].
#[map]
static TC_INGRESS_BODY: ProgramArray = ProgramArray::pinned(GENERATIONS, 0);

/// Bodies of [`tc_ingress_stamp`].
#[map]
static TC_INGRESS_STAMP_BODY: ProgramArray = ProgramArray::pinned(GENERATIONS, 0);

/// Bodies of [`tc_ingress_return`].
#[map]
static TC_INGRESS_RETURN_BODY: ProgramArray = ProgramArray::pinned(GENERATIONS, 0);

/// Ingress of the target's device.
#[classifier]
pub fn tc_ingress(ctx: TcContext) -> i32 {
    dispatch(&ctx, &TC_INGRESS_BODY)
}

#[classifier]
pub fn tc_ingress_body(mut ctx: TcContext) -> i32 {
    let slot = take_slot(&ctx);
    let Some(target) = target(slot) else {
        return NEXT;
    };
    // SAFETY: `skb` is the context that the kernel gave to this program, and cb is its scratch.
    let cb = unsafe { &mut (*ctx.skb.skb).cb };
    if cb[0] == CB_TREATED && cb[1] == slot && cb[2] == !slot {
        // Another device that it is forwarded to may have rules of its own.
        cb[0] = 0;
        if target.flags & target_flag::SHARED != 0 {
            looked_at(&ctx.skb, Direction::Ingress);
        }
        return NEXT;
    }
    treat(&mut ctx, slot, target, Direction::Ingress)
}

/// Egress of `fla`: tells fq when the packet may go on.
#[classifier]
pub fn tc_ingress_stamp(ctx: TcContext) -> i32 {
    go_on(&ctx, &TC_INGRESS_STAMP_BODY);
    TC_ACT_SHOT
}

#[classifier]
pub fn tc_ingress_stamp_body(ctx: TcContext) -> i32 {
    stamp(&ctx)
}

/// Ingress of `flb`: in by the real device.
#[classifier]
pub fn tc_ingress_return(ctx: TcContext) -> i32 {
    go_on_with_slot(&ctx, &TC_INGRESS_RETURN_BODY);
    TC_ACT_SHOT
}

#[classifier]
pub fn tc_ingress_return_body(ctx: TcContext) -> i32 {
    let slot = take_slot(&ctx);
    let Some(target) = arrived(&ctx, slot) else {
        return TC_ACT_SHOT;
    };
    // SAFETY: `skb` is the context that the kernel gave to this program, and cb is its scratch.
    let cb = unsafe { &mut (*ctx.skb.skb).cb };
    cb[0] = CB_TREATED;
    cb[1] = slot;
    cb[2] = !slot;
    // SAFETY: the helper only notes where the packet shall go.
    unsafe { bpf_redirect(target.device, u64::from(BPF_F_INGRESS)) as i32 }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
