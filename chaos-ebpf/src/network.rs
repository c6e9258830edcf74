//! Which rules of the network family apply to a packet.

use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::{bpf_skb_ancestor_cgroup_id, bpf_skb_load_bytes_relative};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};
use aya_ebpf::programs::sk_buff::SkBuff;
use chaos_abi::MAX_RULES;
use chaos_abi::network::{MAX_PEERS, PeerKey, Rule, RuleRef, flag, mapped};

/// All rules of the node's network faults.
#[map]
static RULES: Array<Rule> = Array::pinned(MAX_RULES, 0);

/// Addresses that rules are limited to. The value says nothing.
#[map]
static PEERS: HashMap<PeerKey, u8> = HashMap::pinned(MAX_PEERS, 1 /* BPF_F_NO_PREALLOC */);

const ETH_P_IP: u32 = 0x0800;
const ETH_P_IPV6: u32 = 0x86dd;
const BPF_HDR_START_NET: u32 = 1;

/// Which way a packet goes, seen from the target.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The target sends it.
    Egress,
    /// The target receives it.
    Ingress,
}

/// What rules ask of a packet.
pub struct Packet {
    /// Address of the other side, IPv4-mapped for IPv4.
    pub peer: [u8; 16],
    direction: u32,
}

impl Packet {
    /// Reads the addresses; `None` for anything but IPv4 and IPv6, and for what is too short.
    #[inline(always)]
    pub fn parse(skb: &SkBuff, direction: Direction) -> Option<Self> {
        let peer = match (u32::from_be(skb.protocol() << 16), direction) {
            (ETH_P_IP, Direction::Ingress) => mapped(load(skb, 12)?),
            (ETH_P_IP, Direction::Egress) => mapped(load(skb, 16)?),
            (ETH_P_IPV6, Direction::Ingress) => load(skb, 8)?,
            (ETH_P_IPV6, Direction::Egress) => load(skb, 24)?,
            _ => return None,
        };
        let direction = match direction {
            Direction::Egress => flag::EGRESS,
            Direction::Ingress => flag::INGRESS,
        };
        Some(Self { peer, direction })
    }
}

/// The rule that `reference` means, if it still is that rule, is not past its deadline and
/// applies to this packet.
#[inline(always)]
pub fn applicable<'a>(
    reference: &RuleRef,
    skb: &SkBuff,
    packet: &Packet,
    now: u64,
) -> Option<&'a Rule> {
    let rule = RULES.get(reference.id)?;
    // SAFETY: a load of an aligned word of the map's value; user space writes it with one store
    // when it renews a lease.
    let deadline = unsafe { core::ptr::read_volatile(&raw const rule.deadline_ns) };
    if rule.generation != reference.generation || now >= deadline {
        return None;
    }
    if rule.flags & packet.direction == 0 {
        return None;
    }
    // SAFETY: `skb` is the context that the kernel gave to this program.
    if rule.ifindex != 0 && rule.ifindex != unsafe { (*skb.skb).ifindex } {
        return None;
    }
    if rule.cgroup_id != 0 && ancestor(skb, rule.cgroup_depth) != rule.cgroup_id {
        return None;
    }
    if rule.flags & flag::PEERS != 0 {
        let key = PeerKey {
            set: rule.peer_set,
            addr: packet.peer,
        };
        // SAFETY: the value is not read; a key that is removed at the same time is either answer.
        unsafe { PEERS.get(key) }?;
    }
    Some(rule)
}

/// Id of the cgroup at `depth` above the socket of a packet; 0 if there is none.
#[inline(always)]
pub fn ancestor(skb: &SkBuff, depth: u32) -> u64 {
    // SAFETY: `skb` is the context that the kernel gave to this program.
    unsafe { bpf_skb_ancestor_cgroup_id(skb.skb, depth as i32) }
}

/// Bytes at `offset` of the network header, also from packets that are not linear.
#[inline(always)]
fn load<const N: usize>(skb: &SkBuff, offset: u32) -> Option<[u8; N]> {
    let mut bytes = [0_u8; N];
    // SAFETY: the helper writes N bytes into a buffer of N bytes, or fails.
    let failed = unsafe {
        bpf_skb_load_bytes_relative(
            skb.skb.cast::<c_void>(),
            offset,
            bytes.as_mut_ptr().cast(),
            N as u32,
            BPF_HDR_START_NET,
        )
    };
    (failed == 0).then_some(bytes)
}
