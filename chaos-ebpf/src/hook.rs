//! How a packet program gets on with where it sits: a filter of clsact, or tcx (Linux 6.6). Both have
//! the same programs. A filter brings the slot of its device as classid. tcx has no such thing: there each
//! device has a dispatcher of its own, with the slot as a constant, which hands it on to the body.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{__sk_buff, TC_ACT_UNSPEC};
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::maps::ProgramArray;
use aya_ebpf::programs::TcContext;
use aya_ebpf::programs::sk_buff::SkBuff;

use crate::generation::{Kept, go_on};
use crate::kernel::constant;
use crate::tag::came_back;
use crate::{armed, halted};

/// Slot of the device of a dispatcher that is not in a filter: one of tcx, or of BPF_PROG_TEST_RUN. 0
/// takes the filter's.
#[unsafe(no_mangle)]
static SLOT: u32 = 0;

/// Lets the programs and filters behind ours have the packet: `TC_ACT_UNSPEC` is also `TCX_NEXT`.
pub const NEXT: i32 = TC_ACT_UNSPEC;

/// All that a dispatcher on a target's device does.
#[inline(always)]
pub fn dispatch(ctx: &TcContext, bodies: &ProgramArray) -> i32 {
    if armed() {
        let ctx = Kept::new(ctx);
        // What has our tag has waited already, and must lose it.
        if !halted() || came_back(&SkBuff::new(ctx.as_ptr().cast())) {
            go_on_with_slot(&ctx, bodies);
        }
    }
    NEXT
}

/// From a dispatcher to the body, and back where there is none.
#[inline(always)]
pub fn go_on_with_slot(ctx: &impl EbpfContext, bodies: &ProgramArray) {
    let slot = constant(&SLOT);
    if slot != 0 {
        set_classid(ctx, slot);
    }
    go_on(ctx, bodies);
    if slot != 0 {
        set_classid(ctx, 0);
    }
}

/// In a body: the slot of the device that the packet is on.
#[inline(always)]
pub fn take_slot(ctx: &TcContext) -> u32 {
    // SAFETY: `skb` is the context that the kernel gave to this program.
    let slot = unsafe { (*ctx.skb.skb).tc_classid };
    // `TCX_PASS` of a program behind ours would make it the packet's `tc_index` (`tcx_action_code`,
    // include/net/tcx.h), in which others keep marks. To a filter that lets pass it means nothing.
    set_classid(ctx, 0);
    slot
}

/// Takes the packet away, and its sender is not told. It is sent by a device that never is: so it is
/// dropped, and counts as sent (`skb_do_redirect`, net/core/filter.c; `sch_handle_egress`,
/// net/core/dev.c). `TC_ACT_STOLEN` is no verdict of tcx, and a sender hears of `TCX_DROP`.
#[inline(always)]
pub fn take_away() -> i32 {
    // SAFETY: the helper only notes where the packet shall go.
    unsafe { bpf_redirect(0, 0) as i32 }
}

#[inline(always)]
fn set_classid(ctx: &impl EbpfContext, classid: u32) {
    let skb: *mut __sk_buff = ctx.as_ptr().cast();
    // SAFETY: the context that the kernel gave to this program; tc programs may write this.
    unsafe { (*skb).tc_classid = classid };
}
