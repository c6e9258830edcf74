//! Whom a packet comes from or goes to, and whether a rule means them: an address by hash, a
//! network by its longest prefix, a port of either by hash again.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::bpf_skb_load_bytes_relative;
use aya_ebpf::macros::map;
use aya_ebpf::maps::HashMap;
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::programs::sk_buff::SkBuff;
use chaos_abi::network::{MAX_NETS, MAX_PEERS, Net, NetKey, PeerKey, Rule, flag, mapped, ports};

use crate::network::Direction;

/// Addresses that rules are limited to, and ports of addresses and networks.
#[map]
static PEERS: HashMap<PeerKey, u8> = HashMap::pinned(MAX_PEERS, 1 /* BPF_F_NO_PREALLOC */);

/// Networks that rules are limited to.
#[map]
static NETS: LpmTrie<NetKey, Net> = LpmTrie::pinned(MAX_NETS, 0);

/// EtherType of IPv4.
pub const ETH_P_IP: u32 = 0x0800;
/// EtherType of IPv6.
pub const ETH_P_IPV6: u32 = 0x86dd;
const BPF_HDR_START_NET: u32 = 1;

/// Whether the rule, which is limited to peers, means this address, and this packet's port.
#[inline(always)]
pub fn is_meant(rule: &Rule, skb: &SkBuff, addr: [u8; 16]) -> bool {
    let mut key = PeerKey {
        set: rule.peer_set,
        addr,
        port: 0,
        prefix: 128,
    };
    // SAFETY: a byte; a key that is removed at the same time is either answer.
    let mut of = unsafe { PEERS.get(key) }.copied().unwrap_or(0);
    if of == 0 && rule.flags & flag::NETS != 0 {
        let family = if is_ipv4(skb) { 4 } else { 6 };
        let data = NetKey {
            set: rule.peer_set,
            family,
            addr,
        };
        let Some(net) = NETS.get(Key::new(NetKey::EXACT + 128, data)) else {
            return false;
        };
        of = net.ports as u8;
        key.addr = net.addr;
        key.prefix = net.prefix;
    }
    match of {
        ports::ALL => true,
        ports::SOME => {
            key.port = if rule.flags & flag::SOURCE_PORT == 0 {
                ports_of(skb.skb)
            } else {
                ports_of(skb.skb) >> 16
            } as u16;
            // SAFETY: as above; the value says nothing here.
            key.port != 0 && unsafe { PEERS.get(key) }.is_some()
        }
        _ => false,
    }
}

#[inline(always)]
fn is_ipv4(skb: &SkBuff) -> bool {
    ethertype(skb) == ETH_P_IP
}

/// Source port (the upper half) and destination port of a TCP, UDP, UDP-Lite, DCCP or SCTP packet; 0
/// for others, and for a fragment that is not the first: it has none. A global function: verified once, on its own.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn ports_of(skb: *mut __sk_buff) -> u32 {
    let skb = SkBuff::new(skb);
    let found = if is_ipv4(&skb) {
        behind_ipv4(&skb)
    } else {
        behind_ipv6(&skb)
    };
    let Some((protocol, offset)) = found else {
        return 0;
    };
    match protocol {
        TCP | UDP | DCCP | SCTP | UDPLITE => load(&skb, offset).map_or(0, u32::from_be_bytes),
        _ => 0,
    }
}

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
const DCCP: u8 = 33;
const SCTP: u8 = 132;
const UDPLITE: u8 = 136;

/// Protocol and offset of what is behind an IPv4 header; `None` for a fragment that is not the first.
#[inline(always)]
pub(crate) fn behind_ipv4(skb: &SkBuff) -> Option<(u8, u32)> {
    let [version_and_length] = load(skb, 0)?;
    let [high, low] = load(skb, 6)?;
    if u16::from_be_bytes([high, low]) & 0x1fff != 0 {
        return None;
    }
    let [protocol] = load(skb, 9)?;
    let length = u32::from(version_and_length & 0xf) * 4;
    (length >= 20).then_some((protocol, length))
}

/// The same for IPv6, behind at most 6 extension headers (RFC 8200 section 4.1 has no more kinds
/// of them).
#[inline(always)]
pub(crate) fn behind_ipv6(skb: &SkBuff) -> Option<(u8, u32)> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;
    let [mut protocol] = load(skb, 6)?;
    let mut offset = 40_u32;
    for _ in 0..6 {
        let length = match protocol {
            HOP_BY_HOP | ROUTING | DESTINATION => {
                let [_, units] = load(skb, offset)?;
                (u32::from(units) + 1) * 8
            }
            AUTHENTICATION => {
                let [_, units] = load(skb, offset)?;
                (u32::from(units) + 2) * 4
            }
            FRAGMENT => {
                let [high, low] = load(skb, offset + 2)?;
                if u16::from_be_bytes([high, low]) & 0xfff8 != 0 {
                    return None;
                }
                8
            }
            _ => return Some((protocol, offset)),
        };
        [protocol] = load(skb, offset)?;
        offset += length;
    }
    None
}

/// What follows the Ethernet header.
#[inline(always)]
pub fn ethertype(skb: &SkBuff) -> u32 {
    u32::from_be(skb.protocol() << 16)
}

/// Address of the other side, IPv4-mapped for IPv4; `None` for anything but IPv4 and IPv6, and for
/// what is too short.
#[inline(always)]
pub fn peer(skb: &SkBuff, direction: Direction) -> Option<[u8; 16]> {
    let egress = direction == Direction::Egress;
    match ethertype(skb) {
        ETH_P_IP => load(skb, if egress { 16 } else { 12 }).map(mapped),
        ETH_P_IPV6 => load(skb, if egress { 24 } else { 8 }),
        _ => None,
    }
}

/// Bytes at `offset` of the network header, also from packets that are not linear.
#[inline(always)]
pub fn load<const N: usize>(skb: &SkBuff, offset: u32) -> Option<[u8; N]> {
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
