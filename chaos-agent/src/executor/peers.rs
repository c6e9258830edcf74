//! From the peers of a fault to the entries of `PEERS` and `NETS`.
//!
//! The kernel asks one entry: that of the address, else that of the longest prefix. So each entry
//! says what all peers that contain it say together.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;

use aya::maps::MapError;
use chaos_abi::network::{Net, NetKey, PeerKey, ports};
use chaos_planner::fault::Peer;
use ipnet::IpNet;

use crate::kernel::maps::Pinned;

/// Prefix length of an address in the space of IPv6.
const ADDRESS: u8 = 128;

/// What the maps hold for one set of peers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerEntries {
    /// Of `PEERS`.
    peers: BTreeMap<PeerKey, u8>,
    /// Of `NETS`, with the length of the prefix behind [`NetKey::EXACT`].
    nets: BTreeMap<(u32, NetKey), Net>,
}

/// Ports that are meant; `None` is every packet.
type Ports = Option<BTreeSet<u16>>;

/// Family, and prefix in the space of IPv6.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Prefix {
    family: u32,
    length: u8,
    addr: Ipv6Addr,
}

impl Prefix {
    fn of(peer: &Peer) -> Self {
        let (addr, length) = peer.mapped();
        let family = match peer.net() {
            IpNet::V4(_) => 4,
            IpNet::V6(_) => 6,
        };
        Self {
            family,
            length,
            addr,
        }
    }

    /// The one of this length that it is in.
    fn shortened(self, length: u8) -> Self {
        let mask = u128::MAX
            .checked_shl(u32::from(ADDRESS - length))
            .unwrap_or(0);
        Self {
            length,
            addr: Ipv6Addr::from(u128::from(self.addr) & mask),
            ..self
        }
    }
}

impl PeerEntries {
    /// Those of this set. The time is linear in the number of peers times the number of different
    /// prefix lengths.
    pub fn of(set: u32, peers: &[Peer]) -> Self {
        let mut said: BTreeMap<Prefix, Ports> = BTreeMap::new();
        for peer in peers {
            let ports = said
                .entry(Prefix::of(peer))
                .or_insert_with(|| Some(BTreeSet::new()));
            match peer.port() {
                Some(port) => ports.iter_mut().for_each(|ports| {
                    ports.insert(port);
                }),
                None => *ports = None,
            }
        }
        let lengths: BTreeSet<u8> = said.keys().map(|prefix| prefix.length).collect();
        let mut entries = Self::default();
        for prefix in said.keys() {
            let around = lengths.iter().filter(|length| **length <= prefix.length);
            let together = around
                .filter_map(|length| said.get(&prefix.shortened(*length)))
                .try_fold(BTreeSet::new(), |mut all, ports| {
                    all.extend(ports.as_ref()?);
                    Some(all)
                });
            entries.insert(set, *prefix, together);
        }
        entries
    }

    /// Writes what is in `new` and not, or otherwise, in these.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn enter(&self, new: &Self, maps: &mut Pinned) -> Result<(), MapError> {
        for (key, what) in &new.peers {
            if self.peers.get(key) != Some(what) {
                maps.set_peer(*key, *what)?;
            }
        }
        for ((prefix, key), net) in &new.nets {
            if self.nets.get(&(*prefix, *key)) != Some(net) {
                maps.set_net(*prefix, *key, *net)?;
            }
        }
        Ok(())
    }

    /// Removes what is in these and not in `new`.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn leave(&self, new: &Self, maps: &mut Pinned) -> Result<(), MapError> {
        for (prefix, key) in self.nets.keys() {
            if !new.nets.contains_key(&(*prefix, *key)) {
                maps.remove_net(*prefix, *key)?;
            }
        }
        for key in self.peers.keys() {
            if !new.peers.contains_key(key) {
                maps.remove_peer(*key)?;
            }
        }
        Ok(())
    }

    fn insert(&mut self, set: u32, prefix: Prefix, ports: Ports) {
        let addr = prefix.addr.octets();
        let what = if ports.is_some() {
            ports::SOME
        } else {
            ports::ALL
        };
        let key = |port| PeerKey {
            set,
            addr,
            port,
            prefix: u16::from(prefix.length),
        };
        if prefix.length == ADDRESS {
            self.peers.insert(key(0), what);
        } else {
            let net = NetKey {
                set,
                family: prefix.family,
                addr,
            };
            let value = Net {
                addr,
                prefix: u16::from(prefix.length),
                ports: u16::from(what),
            };
            self.nets.insert((u32::from(prefix.length), net), value);
        }
        for port in ports.into_iter().flatten() {
            self.peers.insert(key(port), ports::ALL);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn peer(net: &str, port: u16) -> Peer {
        Peer::new(net.parse().expect("a network"), (port != 0).then_some(port))
    }

    /// What the kernel answers, see `chaos-ebpf/src/peers.rs`.
    fn is_meant(entries: &PeerEntries, addr: std::net::IpAddr, port: u16) -> bool {
        let (family, addr) = match addr {
            std::net::IpAddr::V4(v4) => (4, v4.to_ipv6_mapped()),
            std::net::IpAddr::V6(v6) => (6, v6),
        };
        let mut key = PeerKey {
            set: 1,
            addr: addr.octets(),
            port: 0,
            prefix: 128,
        };
        let what = entries.peers.get(&key).copied().or_else(|| {
            let whole = Prefix {
                family,
                length: 128,
                addr,
            };
            let net = (0..128).rev().find_map(|length| {
                let net = NetKey {
                    set: 1,
                    family,
                    addr: whole.shortened(length).addr.octets(),
                };
                entries.nets.get(&(u32::from(length), net))
            })?;
            (key.addr, key.prefix) = (net.addr, net.prefix);
            Some(net.ports as u8)
        });
        key.port = port;
        match what {
            Some(ports::ALL) => true,
            Some(ports::SOME) => entries.peers.contains_key(&key),
            _ => false,
        }
    }

    #[test]
    fn an_address_is_one_entry_and_a_network_is_another() {
        let entries = PeerEntries::of(7, &[peer("10.0.0.1/32", 0), peer("10.0.0.0/8", 80)]);
        assert_eq!((entries.peers.len(), entries.nets.len()), (2, 1));
    }

    #[test]
    fn both_spellings_of_an_ipv4_peer_are_one() {
        let plain = PeerEntries::of(4, &[peer("10.0.0.1/32", 0)]);
        assert_eq!(plain, PeerEntries::of(4, &[peer("::ffff:10.0.0.1/128", 0)]));
    }

    #[test]
    fn a_wide_network_stays_open_beside_a_narrow_one_with_a_port() {
        let entries = PeerEntries::of(1, &[peer("10.0.0.0/8", 0), peer("10.1.0.0/16", 80)]);
        let addr = "10.1.2.3".parse().expect("an address");
        assert!(is_meant(&entries, addr, 443));
        assert!(!is_meant(
            &entries,
            "11.0.0.1".parse().expect("an address"),
            80
        ));
    }

    #[test]
    fn every_ipv6_address_is_no_ipv4_address() {
        let entries = PeerEntries::of(1, &[peer("::/0", 0)]);
        assert!(!is_meant(
            &entries,
            "10.0.0.1".parse().expect("an address"),
            1
        ));
        assert!(is_meant(
            &entries,
            "fd00::1".parse().expect("an address"),
            1
        ));
    }

    proptest! {
        /// Few bits, so that networks meet.
        #[test]
        fn the_kernel_means_whom_any_peer_means(
            peers in proptest::collection::vec((0_u32..16, 28_u8..=32, 0_u16..3), 0..8),
            addr in 0_u32..16, port in 1_u16..3,
        ) {
            let peers: Vec<Peer> = peers
                .into_iter()
                .map(|(addr, length, port)| peer(&format!("{}/{length}", std::net::Ipv4Addr::from(addr)), port))
                .collect();
            let addr = std::net::IpAddr::V4(addr.into());
            let expected = peers.iter().any(|peer| {
                peer.net().contains(&addr) && peer.port().is_none_or(|wanted| wanted == port)
            });
            prop_assert_eq!(is_meant(&PeerEntries::of(1, &peers), addr, port), expected);
        }
    }
}
