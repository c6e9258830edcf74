//! Everything but partition, on what leaves by a device of the target: which packets are lost,
//! duplicated, corrupted, delayed or shaped is said by `chaos_ebpf::effects`, and done by
//! `chaos_ebpf::detour`; here is what is peculiar to this direction.
//!
//! ```text
//!  socket -> dev egress: tc_egress -> fla egress: tc_egress_stamp -> fq -> VLAN
//!                    dev egress (passes: it has our tag, which is taken off) <-
//! ```
//!
//! and where there can be no VLAN device
//!
//! ```text
//!  socket -> dev egress: tc_egress -> fla egress: tc_egress_stamp -> fq -> veth
//!                    dev egress (passes: it came in by flb) <- flb ingress: tc_egress_return
//! ```
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(
    missing_docs,
    unreachable_pub,
    reason = "aya's attributes write each entry point anew, public and without its comment"
)]

use aya_ebpf::bindings::TC_ACT_SHOT;
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::ProgramArray;
use aya_ebpf::programs::TcContext;
use chaos_abi::control::GENERATIONS;
use chaos_ebpf::detour::{arrived, let_go, stamp, target, treat};
use chaos_ebpf::generation::go_on;
use chaos_ebpf::hook::{NEXT, dispatch, go_on_with_slot, take_slot};
use chaos_ebpf::network::Direction;
use chaos_ebpf::tag::came_back;

/// Bodies of [`tc_egress`].
#[map]
static TC_EGRESS_BODY: ProgramArray = ProgramArray::pinned(GENERATIONS, 0);

/// Bodies of [`tc_egress_stamp`].
#[map]
static TC_EGRESS_STAMP_BODY: ProgramArray = ProgramArray::pinned(GENERATIONS, 0);

/// Bodies of [`tc_egress_return`].
#[map]
static TC_EGRESS_RETURN_BODY: ProgramArray = ProgramArray::pinned(GENERATIONS, 0);

/// Egress of the target's device.
#[classifier]
pub fn tc_egress(ctx: TcContext) -> i32 {
    dispatch(&ctx, &TC_EGRESS_BODY)
}

#[classifier]
pub fn tc_egress_body(mut ctx: TcContext) -> i32 {
    let slot = take_slot(&ctx);
    if came_back(&ctx.skb) {
        return let_go(&ctx, slot);
    }
    let Some(target) = target(slot) else {
        return NEXT;
    };
    // SAFETY: `skb` is the context that the kernel gave to this program.
    let came_in_by = unsafe { (*ctx.skb.skb).ingress_ifindex };
    if target.detour_out != 0 && came_in_by == target.detour_out {
        // It has had its treatment.
        return NEXT;
    }
    treat(&mut ctx, slot, target, Direction::Egress)
}

/// Egress of `fla`: tells fq when the packet may go on.
#[classifier]
pub fn tc_egress_stamp(ctx: TcContext) -> i32 {
    go_on(&ctx, &TC_EGRESS_STAMP_BODY);
    TC_ACT_SHOT
}

#[classifier]
pub fn tc_egress_stamp_body(ctx: TcContext) -> i32 {
    stamp(&ctx)
}

/// Ingress of `flb`: on to the real device.
#[classifier]
pub fn tc_egress_return(ctx: TcContext) -> i32 {
    go_on_with_slot(&ctx, &TC_EGRESS_RETURN_BODY);
    TC_ACT_SHOT
}

#[classifier]
pub fn tc_egress_return_body(ctx: TcContext) -> i32 {
    match arrived(&ctx, take_slot(&ctx)) {
        // SAFETY: the helper only notes where the packet shall go.
        Some(target) => unsafe { bpf_redirect(target.device, 0) as i32 },
        None => TC_ACT_SHOT,
    }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
