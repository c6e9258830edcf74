//! What is on a target's device where the kernel has tcx: the dispatchers of `tc_egress` and `tc_ingress`
//! once more, alone. Each device gets one of its own, with its slot as a constant, while a fault waits to
//! begin, so they are in an object that is quickly read.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(
    missing_docs,
    unreachable_pub,
    reason = "aya's attributes write each entry point anew, public and without its comment"
)]

use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::ProgramArray;
use aya_ebpf::programs::TcContext;
use chaos_abi::control::GENERATIONS;
use chaos_ebpf::hook::dispatch;

/// Bodies of [`tc_egress`].
#[map]
static TC_EGRESS_BODY: ProgramArray = ProgramArray::pinned(GENERATIONS, 0);

/// Bodies of [`tc_ingress`].
#[map]
static TC_INGRESS_BODY: ProgramArray = ProgramArray::pinned(GENERATIONS, 0);

/// Egress of the target's device.
#[classifier]
pub fn tc_egress(ctx: TcContext) -> i32 {
    dispatch(&ctx, &TC_EGRESS_BODY)
}

/// Ingress of the target's device.
#[classifier]
pub fn tc_ingress(ctx: TcContext) -> i32 {
    dispatch(&ctx, &TC_INGRESS_BODY)
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
