//! The network family: `TARGETS`, `RULES` and `PEERS` of `cgroup_drop`, `tc_egress` and `tc_ingress`.

use bytemuck::{Pod, Zeroable};

use crate::RULES_PER_TARGET;
use crate::pace::Bucket;
use crate::sample::{ALWAYS, Chance};

/// Names a rule in `RULES` and says which life of that slot is meant: a slot that was freed and
/// handed out again has another generation, and then the reference is void.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct RuleRef {
    /// Index into `RULES`.
    pub id: u32,
    /// [`Rule::generation`] of the rule that is meant; 0 marks the end of the list.
    pub generation: u32,
}

impl RuleRef {
    /// As one argument of a BPF function.
    #[inline(always)]
    pub const fn to_bits(self) -> u64 {
        (self.generation as u64) << 32 | self.id as u64
    }

    /// The other way.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self {
            id: bits as u32,
            generation: (bits >> 32) as u32,
        }
    }
}

/// Value of `TARGETS`: the rules of one target.
///
/// The key is a `u64`: the cgroup id for `cgroup_drop`; for `tc_egress` and `tc_ingress` the slot of
/// a direction of a network device, which the filter carries as its classid (1 to [`MAX_TARGETS`] -
/// 1).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Target {
    /// Filled from the front; the first with generation 0 ends the list.
    pub rules: [RuleRef; RULES_PER_TARGET],
    /// tc: ifindex of the target's device, where the detour leads back to.
    pub device: u32,
    /// tc: ifindex of the end of the detour that packets are sent into; 0 without one.
    pub detour_in: u32,
    /// tc: ifindex of the end of the detour that they come out of; 0 without one, and where it has one end and
    /// packets come out by [`DETOUR_VLAN`].
    pub detour_out: u32,
    /// tc: the most that may wait in the detour, in [`waiting_units`].
    pub budget: u32,
    /// tc: bits of [`target_flag`].
    pub flags: u32,
    /// Always 0.
    pub reserved: u32,
}

/// The tag of what comes out of a detour that is a VLAN device on the target's device, which takes it off: a protocol
/// that hosts hardly use (IEEE 802.1ad), and a number.
pub const DETOUR_VLAN: (u16, u16) = (0x88a8, 4001);

/// Bits of [`Target::flags`].
pub mod target_flag {
    /// The detour computes checksums, for rules that corrupt; so it cuts segments as well.
    pub const SEGMENTS: u32 = 1 << 0;
    /// What comes in by the device is for others, too: a rule is limited to a cgroup
    /// ([`super::Rule::cgroup_id`]), so the receiving socket has to be looked for.
    pub const SHARED: u32 = 1 << 1;
}

/// Bits of [`Rule::flags`].
pub mod flag {
    /// Applies to packets that the target sends.
    pub const EGRESS: u32 = 1 << 0;
    /// Applies to packets that the target receives.
    pub const INGRESS: u32 = 1 << 1;
    /// Only packets to (egress) or from (ingress) an address in `PEERS` under [`super::Rule::peer_set`].
    pub const PEERS: u32 = 1 << 2;
    /// Count what would be done, do nothing (`spec.faultline.mode: Observe`).
    pub const OBSERVE: u32 = 1 << 3;
    /// The sender is told: `cgroup_drop` answers EPERM.
    pub const DROP: u32 = 1 << 4;
    /// Beside [`PEERS`]: also a network in `NETS` under [`super::Rule::peer_set`].
    pub const NETS: u32 = 1 << 5;
    /// Some packets are hit and others are not, see [`super::Rule::draws`].
    pub const DRAWS: u32 = 1 << 6;
    /// Beside [`PEERS`]: their ports are those that packets come from, not those that they go to.
    pub const SOURCE_PORT: u32 = 1 << 7;
}

/// One fault on one target.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Rule {
    /// CLOCK_MONOTONIC nanoseconds after which the rule does nothing. Written alone, with one
    /// aligned store, when a lease is renewed.
    pub deadline_ns: u64,
    /// Not zero and different for each life of this slot; 0 is a free slot.
    pub generation: u32,
    /// Bits of [`flag`].
    pub flags: u32,
    /// Only packets on this device; 0 is every device. `cgroup_drop` only.
    pub ifindex: u32,
    /// Key part of `PEERS`.
    pub peer_set: u32,
    /// Seed of all draws.
    pub seed: u64,
    /// `sample.percent` as a [`crate::sample::Threshold`].
    pub sample_threshold: u64,
    /// `sample.first`: only the first so many matching packets; 0 is no limit.
    pub sample_first: u64,
    /// `sample.every`: only each so many-th matching packet; 0 and 1 are all.
    pub sample_every: u64,
    /// Loss; this and what follows up to [`Self::buckets`] not by `cgroup_drop`.
    pub loss: Chance,
    /// A copy is sent, too.
    pub duplicate: Chance,
    /// A bit is flipped.
    pub corrupt: Chance,
    /// It is not delayed, and so overtakes others.
    pub reorder: Chance,
    /// Only each so many-th packet may overtake; 0 and 1 are all.
    pub reorder_gap: u64,
    /// Nanoseconds that a packet waits; 0 is no delay.
    pub delay_ns: u64,
    /// Nanoseconds that the delay varies to either side.
    pub jitter_ns: u64,
    /// Correlation of the jitter as a [`crate::sample::Threshold`].
    pub jitter_correlation: u64,
    /// `rate`, `bandwidth`, and the peak rate of `bandwidth`: a packet passes all three.
    pub buckets: [Bucket; BUCKETS],
    /// Only packets of sockets in this cgroup, and for them; 0 is all. For a device that others use too.
    pub cgroup_id: u64,
    /// Depth of [`Self::cgroup_id`] below the root of the hierarchy (the root is 0).
    pub cgroup_depth: u32,
    /// Always 0.
    pub reserved: u32,
}

impl Rule {
    /// Whether packets of this rule need a number, to be drawn for or counted by it. Without, an
    /// atomic add on a word that all CPUs share is spared.
    pub const fn draws(&self) -> bool {
        self.sample_threshold < ALWAYS
            || self.sample_first != 0
            || self.sample_every > 1
            || self.jitter_ns != 0
            || self.loss.is_drawn()
            || self.duplicate.is_drawn()
            || self.corrupt.threshold != 0
            || self.reorder.is_drawn()
    }
}

/// Value of `STATE`: what a rule's packets change, on all CPUs. Starts as zeroes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct State {
    /// Number of the next matching packet; counted for rules with [`flag::DRAWS`] only.
    pub sequence: u64,
    /// Packets that were delayed since the last that overtook; counted with a
    /// [`Rule::reorder_gap`] only.
    pub in_order: u64,
    /// The clocks of [`Rule::buckets`].
    pub clocks: [u64; BUCKETS],
}

/// Length of [`Rule::buckets`].
pub const BUCKETS: usize = 3;

/// What a packet that waits counts against [`Target::budget`]: its bytes and a kilobyte for the
/// kernel's own, in kilobytes.
#[inline(always)]
pub const fn waiting_units(bytes: u32) -> u32 {
    1 + bytes.div_ceil(1024)
}

/// Key of `PEERS`: one address of one set, or one port of an address or network that is limited to
/// ports. IPv4 addresses are IPv4-mapped IPv6 (RFC 4291, 2.5.5.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct PeerKey {
    /// [`Rule::peer_set`].
    pub set: u32,
    /// Network byte order.
    pub addr: [u8; 16],
    /// Destination port (source port with [`flag::SOURCE_PORT`]), host byte order; 0 for the entry
    /// that says what ports there are.
    pub port: u16,
    /// Length of the prefix of `addr`: 128 for an address, else it is about a port of a network.
    pub prefix: u16,
}

/// Values of `PEERS` under port 0, and [`Net::ports`].
pub mod ports {
    /// Every packet, of whatever protocol.
    pub const ALL: u8 = 1;
    /// Packets to the ports that `PEERS` has of it.
    pub const SOME: u8 = 2;
}

/// Data of a key of `NETS`, a trie of longest prefixes: first [`Self::EXACT`] bits that all must
/// agree, then the network.
///
/// What a network and those around it say together is worked out before: the longest prefix
/// decides alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct NetKey {
    /// [`Rule::peer_set`].
    pub set: u32,
    /// 4 or 6: `::/0` is not about IPv4, though IPv4 is mapped into it.
    pub family: u32,
    /// Network byte order, as in [`PeerKey`].
    pub addr: [u8; 16],
}

impl NetKey {
    /// Bits in front of the address.
    pub const EXACT: u32 = 64;
}

/// Value of `NETS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Net {
    /// Address of this network: key of its ports in `PEERS`.
    pub addr: [u8; 16],
    /// Length of its prefix in the space of IPv6.
    pub prefix: u16,
    /// One of [`ports`].
    pub ports: u16,
}

/// Length of `PEERS`: addresses, and ports of addresses and networks, of all rules of a node.
pub const MAX_PEERS: u32 = 262_144;

/// Length of `NETS`: networks of all rules of a node.
pub const MAX_NETS: u32 = 65_536;

/// Length of `TARGETS`, and of `WAITING`: slots of devices are below it.
pub const MAX_TARGETS: u32 = 4_096;

/// Length of `DEPTHS`: how many different depths of target cgroups a node can have at a time.
pub const MAX_DEPTHS: u32 = 4;

/// The IPv4-mapped form of an IPv4 address.
#[inline(always)]
pub const fn mapped(v4: [u8; 4]) -> [u8; 16] {
    [
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3],
    ]
}

/// A delay that varies by up to `jitter_ns` to either side, evenly over all draws; not below 0.
#[inline(always)]
pub const fn jittered(delay_ns: u64, jitter_ns: u64, draw: u32) -> u64 {
    let span = jitter_ns.saturating_mul(2);
    let draw = draw as u64;
    // span * draw / 2^32, which would not fit into 64 bits
    let above = (span >> 32) * draw + (((span & 0xffff_ffff) * draw) >> 32);
    delay_ns.saturating_add(above).saturating_sub(jitter_ns)
}

/// The deadline of a packet that is delayed now: never later than the rule's own deadline, so
/// that nothing is held back after the fault has ended. All in CLOCK_MONOTONIC nanoseconds.
#[inline(always)]
pub const fn release_at(now_ns: u64, delay_ns: u64, deadline_ns: u64) -> u64 {
    let at = now_ns.saturating_add(delay_ns);
    if at < deadline_ns { at } else { deadline_ns }
}

const _: () = {
    assert!(size_of::<Target>() == 8 * RULES_PER_TARGET + 24);
    assert!(size_of::<Rule>() == 240);
    assert!(size_of::<State>() == 40);
    assert!(size_of::<PeerKey>() == 24);
    assert!(size_of::<NetKey>() == 24);
    assert!(size_of::<Net>() == 20);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_address_is_the_one_the_standard_library_makes() {
        let v4 = core::net::Ipv4Addr::new(10, 244, 0, 7);
        assert_eq!(mapped(v4.octets()), v4.to_ipv6_mapped().octets());
    }

    #[test]
    fn no_packet_is_held_past_the_deadline() {
        assert_eq!(release_at(100, 50, 1000), 150);
        assert_eq!(release_at(980, 50, 1000), 1000);
        assert_eq!(release_at(u64::MAX - 1, 50, 1000), 1000);
    }

    #[test]
    fn a_jitter_is_even_and_never_negative() {
        const MS: u64 = 1_000_000;
        assert_eq!(jittered(100 * MS, 10 * MS, 0), 90 * MS);
        assert_eq!(jittered(100 * MS, 10 * MS, 1 << 31), 100 * MS);
        assert_eq!(
            jittered(100 * MS, 10 * MS, u32::MAX) / 1_000,
            110 * 1_000 - 1
        );
        assert_eq!(jittered(10 * MS, 30 * MS, 0), 0);
        let hour = 3_600_000 * MS;
        assert_eq!(jittered(hour, hour, 1 << 31), hour);
    }

    #[test]
    fn only_rules_that_choose_draw() {
        let all = Rule {
            sample_threshold: ALWAYS,
            loss: Chance::of_ppm(1_000_000, 0),
            delay_ns: 5,
            ..Rule::default()
        };
        assert!(!all.draws());
        let jitter = Rule {
            jitter_ns: 1,
            ..all
        };
        let first = Rule {
            sample_first: 3,
            ..all
        };
        let loss = Rule {
            loss: Chance::of_ppm(1, 0),
            ..all
        };
        assert!([jitter, first, loss].iter().all(Rule::draws));
    }
}
