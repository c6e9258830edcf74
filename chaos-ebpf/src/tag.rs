//! The VLAN tag of what comes out of a detour that is a VLAN device on the target's device. A tag that a packet had before
//! is inside of it by then: a VLAN device has no place beside the packet for another one (`validate_xmit_vlan`,
//! net/core/dev.c).

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_skb_vlan_pop;
use aya_ebpf::programs::sk_buff::SkBuff;
use chaos_abi::network::DETOUR_VLAN;

/// The fourth word of `cb` of a packet on a detour. fq leaves it alone.
pub(crate) const CB_TAG: u32 = 0x7461_6721;

/// Whether the packet comes out of such a detour. It has to lose the tag then, also after a panic.
#[inline(always)]
pub fn came_back(skb: &SkBuff) -> bool {
    let (protocol, id) = DETOUR_VLAN;
    // SAFETY: `skb` is the context that the kernel gave to this program.
    let skb = unsafe { &*skb.skb };
    skb.vlan_present != 0
        && skb.vlan_proto == u32::from(protocol.to_be())
        && skb.vlan_tci & 0xfff == u32::from(id)
        && skb.cb[3] == CB_TAG
}

/// Takes the tag off; one that the packet had before is in its place then. Whether that could be done.
#[inline(always)]
pub(crate) fn take_off(skb: *mut __sk_buff) -> bool {
    // SAFETY: `skb` is the context that the kernel gave to this program, and cb is its scratch.
    unsafe { (*skb).cb[3] = 0 };
    // SAFETY: the helper changes the packet's metadata; no packet pointer is held across it.
    unsafe { bpf_skb_vlan_pop(skb) == 0 }
}
