//! Who receives a packet that comes in by a device which others use too. It has no socket there yet,
//! so the one is looked up that the kernel will find for it, and asked for its cgroup.
//!
//! Nobody's is what is neither TCP nor UDP, a later fragment (it has no ports), what is for many
//! (broadcast, multicast), what is forwarded, what belongs to a device above this one (VLAN, macvlan,
//! tunnels: there it is looked at), and what no socket waits for.
//!
//! No helper tells a tc program the cgroup of a socket that it has looked up
//! (`bpf_sk_ancestor_cgroup_id` is there for cgroup_skb only, net/core/filter.c). So its fields are
//! read, at offsets that the loader fills in.

use aya_ebpf::bindings::{
    __sk_buff, BPF_F_CURRENT_NETNS, BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NOT_FWDED,
    BPF_TCP_LISTEN, bpf_fib_lookup as Route, bpf_sock,
};
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::{
    bpf_fib_lookup, bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release,
};
use aya_ebpf::programs::sk_buff::SkBuff;

use crate::kernel::{constant, kernel_field, read_kernel};
use crate::peers::{ETH_P_IP, ETH_P_IPV6, TCP, UDP, behind_ipv4, behind_ipv6, ethertype, load};

/// Offset in `sock` of its cgroup. This and what follows is filled in by the loader, from the BTF of
/// the kernel that runs; 0 where it could not: then every packet is nobody's, and the verifier does
/// not look at what would read.
#[unsafe(no_mangle)]
static SOCK_CGROUP: u32 = 0;
/// Offset in `sock` of its `socket`, and in that of its file.
#[unsafe(no_mangle)]
static SOCK_SOCKET: u32 = 0;
#[unsafe(no_mangle)]
static SOCKET_FILE: u32 = 0;
/// Offsets in `cgroup`: its depth, the cgroups above it and itself by their depths, its node.
#[unsafe(no_mangle)]
static CGROUP_LEVEL: u32 = 0;
#[unsafe(no_mangle)]
static CGROUP_ANCESTORS: u32 = 0;
#[unsafe(no_mangle)]
static CGROUP_KN: u32 = 0;
/// Offset in `kernfs_node` of its id, which is the cgroup's.
#[unsafe(no_mangle)]
static KN_ID: u32 = 0;

/// include/uapi/linux/if_packet.h: it was sent to this device, and to no other.
const PACKET_HOST: u32 = 0;
/// include/uapi/linux/socket.h
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// What of a [`receiver`] is not its address: a cgroup begins at a multiple of 8.
pub(crate) const NO_ADDRESS: u64 = 0b111;

/// Address of the cgroup of the socket that will receive the packet; 0 if that is nobody's. A global
/// function: verified once, on its own.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn receiver(skb: *mut __sk_buff) -> u64 {
    if constant(&SOCK_CGROUP) == 0 {
        return 0;
    }
    let skb = SkBuff::new(skb);
    // SAFETY: `skb` is the context that the kernel gave to this program.
    let context = unsafe { &*skb.skb };
    if context.pkt_type != PACKET_HOST || context.vlan_present != 0 {
        return 0;
    }
    let cgroup = match ethertype(&skb) {
        ETH_P_IP => of_ipv4(&skb),
        ETH_P_IPV6 => of_ipv6(&skb),
        _ => None,
    };
    cgroup.unwrap_or(0)
}

/// Id of the cgroup at `depth` above this one, a [`receiver`]; 0 if there is none.
#[inline(always)]
pub(crate) fn ancestor_id(cgroup: u64, depth: u32) -> u64 {
    if constant(&SOCK_CGROUP) == 0 || cgroup == 0 {
        return 0;
    }
    let find = || {
        let level: u32 = field(cgroup, &CGROUP_LEVEL)?;
        if depth > level {
            return None;
        }
        let place = cgroup.wrapping_add(u64::from(depth) * size_of::<u64>() as u64);
        let ancestor = field(place, &CGROUP_ANCESTORS)?;
        let node = field(ancestor, &CGROUP_KN)?;
        field(node, &KN_ID)
    };
    find().unwrap_or(0)
}

/// `bpf_sock_tuple`: addresses and ports are in it as they are in the packet.
#[repr(C)]
struct Tuple<const ADDRESSES: usize> {
    addresses: [u8; ADDRESSES],
    ports: [u8; 4],
}

#[inline(always)]
fn of_ipv4(skb: &SkBuff) -> Option<u64> {
    let (protocol, ports) = behind_ipv4(skb)?;
    let addresses: [u8; 8] = load(skb, 12)?;
    let [s0, s1, s2, s3, d0, d1, d2, d3] = addresses;
    // Multicast, and above it broadcast.
    if d0 >= 224 {
        return None;
    }
    let tuple = Tuple {
        addresses,
        ports: load(skb, ports)?,
    };
    let mut route = route(skb, AF_INET);
    route.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes([s0, s1, s2, s3]);
    route.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes([d0, d1, d2, d3]);
    find(skb, protocol, &tuple, &mut route)
}

#[inline(always)]
fn of_ipv6(skb: &SkBuff) -> Option<u64> {
    let (protocol, ports) = behind_ipv6(skb)?;
    let addresses: [u8; 32] = load(skb, 8)?;
    if addresses[16] == 0xff {
        return None;
    }
    let tuple = Tuple {
        addresses,
        ports: load(skb, ports)?,
    };
    let word = |n: usize| {
        let at = n * 4;
        u32::from_ne_bytes([
            addresses[at],
            addresses[at + 1],
            addresses[at + 2],
            addresses[at + 3],
        ])
    };
    let mut route = route(skb, AF_INET6);
    route.__bindgen_anon_3.ipv6_src = [word(0), word(1), word(2), word(3)];
    route.__bindgen_anon_4.ipv6_dst = [word(4), word(5), word(6), word(7)];
    find(skb, protocol, &tuple, &mut route)
}

/// Cgroup of the socket that this is for.
#[inline(always)]
fn find<const ADDRESSES: usize>(
    skb: &SkBuff,
    protocol: u8,
    tuple: &Tuple<ADDRESSES>,
    route: &mut Route,
) -> Option<u64> {
    let netns = BPF_F_CURRENT_NETNS as u64;
    let length = size_of::<Tuple<ADDRESSES>>() as u32;
    let key = (&raw const *tuple).cast_mut().cast();
    let context: *mut c_void = skb.skb.cast();
    let sk = match protocol {
        // SAFETY: the helper reads so many bytes of `tuple`; what it gives is released below.
        TCP => unsafe { bpf_sk_lookup_tcp(context, key, length, netns, 0) },
        // SAFETY: as above.
        UDP => unsafe { bpf_sk_lookup_udp(context, key, length, netns, 0) },
        _ => return None,
    };
    if sk.is_null() {
        return None;
    }
    let cgroup = cgroup_of(sk);
    // SAFETY: a field that programs may read of a socket that they have looked up.
    let state = unsafe { (*sk).state };
    // SAFETY: it was looked up here, and is not used from here on.
    unsafe { bpf_sk_release(sk.cast()) };
    // That of a connection has all of the packet's addresses, so it is here that it goes to.
    let connection = protocol == TCP && state != BPF_TCP_LISTEN;
    cgroup.filter(|_| connection || stays_here(context, route))
}

/// Cgroup of a socket of a process; `None` of one that the kernel has for itself. Those have the cgroup
/// of whoever made the kernel make them, and what a tunnel's receives comes in again by its device.
#[inline(always)]
fn cgroup_of(sk: *mut bpf_sock) -> Option<u64> {
    // The verifier lets nobody calculate with the address of a socket; what is read from memory is a
    // number to it.
    let sk: u64 = read_kernel((&raw const sk).cast())?;
    let socket: u64 = field(sk, &SOCK_SOCKET)?;
    // A connection that nobody has accepted yet has no `socket`; one of the kernel has no file.
    if socket != 0 && field::<u64>(socket, &SOCKET_FILE)? == 0 {
        return None;
    }
    field(sk, &SOCK_CGROUP)
}

/// What is asked of the routes.
#[inline(always)]
fn route(skb: &SkBuff, family: u8) -> Route {
    // SAFETY: integers, of which all may be 0.
    let mut route: Route = unsafe { core::mem::zeroed() };
    route.family = family;
    // SAFETY: `skb` is the context that the kernel gave to this program.
    route.ifindex = unsafe { (*skb.skb).ifindex };
    route
}

/// Whether the packet is not forwarded: a socket that is bound to no address is found for every one.
#[inline(always)]
fn stays_here(context: *mut c_void, route: &mut Route) -> bool {
    // SAFETY: the helper reads and writes `route` only.
    let answer = unsafe { bpf_fib_lookup(context, route, size_of::<Route>() as i32, 0) };
    // Where the device forwards nothing the kernel does not look further.
    answer == i64::from(BPF_FIB_LKUP_RET_NOT_FWDED)
        || answer == i64::from(BPF_FIB_LKUP_RET_FWD_DISABLED)
}

/// A field of an object whose address is known as a number.
#[inline(always)]
fn field<T>(object: u64, offset: &u32) -> Option<T> {
    kernel_field(object as *const u8, offset)
}
