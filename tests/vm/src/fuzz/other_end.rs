//! Whom a packet goes to or comes from, read from the frame by the RFCs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use chaos_agent::mechanism::tc::Way;
use chaos_planner::fault::Peer;

/// The other end of a packet, seen from the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OtherEnd {
    address: IpAddr,
    port: Option<u16>,
}

impl OtherEnd {
    /// Whether it is one of them.
    pub(super) fn is(&self, peer: &Peer) -> bool {
        peer.net().contains(&self.address) && peer.port().is_none_or(|port| self.port == Some(port))
    }
}

/// Of an Ethernet frame on its way; `None` of what is not IP, and of what is too short to say.
pub(super) fn other_end(frame: &[u8], way: Way) -> Option<OtherEnd> {
    let kind = u16::from_be_bytes(bytes(frame, 12)?);
    let packet = frame.get(14..)?;
    let (ipv4, ipv6) = match way {
        Way::Egress => (16, 24),
        Way::Ingress => (12, 8),
    };
    let (address, transport) = match kind {
        0x0800 => (
            IpAddr::V4(Ipv4Addr::from(bytes::<4>(packet, ipv4)?)),
            transport_of_ipv4(packet),
        ),
        0x86dd => (
            IpAddr::V6(Ipv6Addr::from(bytes::<16>(packet, ipv6)?)),
            transport_of_ipv6(packet),
        ),
        _ => return None,
    };
    let port = transport.and_then(|(protocol, offset)| {
        let has_ports = matches!(protocol, 6 | 17 | 33 | 132 | 136);
        // A packet that is cut between its ports has neither.
        let [s0, s1, d0, d1] = bytes(packet, offset).filter(|_| has_ports)?;
        let port = u16::from_be_bytes(match way {
            Way::Egress => [d0, d1],
            Way::Ingress => [s0, s1],
        });
        (port != 0).then_some(port)
    });
    Some(OtherEnd { address, port })
}

/// Whether a socket for UDP or new TCP connections gets it that is bound to this port and to no address, on the
/// loopback device of a namespace that forwards nothing.
pub(super) fn is_for_port(frame: &[u8], port: u16) -> bool {
    let to_us = || {
        let packet = frame.get(14..)?;
        let (is_for_many, transport) = match bytes(frame, 12).map(u16::from_be_bytes)? {
            0x0800 => (*packet.get(16)? >= 224, transport_of_ipv4(packet)),
            0x86dd => (*packet.get(24)? == 0xff, transport_of_ipv6(packet)),
            _ => return None,
        };
        let (protocol, offset) = transport?;
        let [.., d0, d1] = bytes::<4>(packet, offset)?;
        // That device's own address.
        let to_the_device = frame.get(..6)? == [0; 6];
        let has_socket = matches!(protocol, 6 | 17) && u16::from_be_bytes([d0, d1]) == port;
        Some(to_the_device && !is_for_many && has_socket)
    };
    to_us().unwrap_or(false)
}

/// RFC 791: protocol and where its header is; not in fragments after the first.
fn transport_of_ipv4(packet: &[u8]) -> Option<(u8, usize)> {
    let length = usize::from(packet.first()? & 0xf) * 4;
    let fragment = u16::from_be_bytes(bytes(packet, 6)?) & 0x1fff;
    (fragment == 0 && length >= 20).then_some((*packet.get(9)?, length))
}

/// RFC 8200, section 4: behind at most six extension headers.
fn transport_of_ipv6(packet: &[u8]) -> Option<(u8, usize)> {
    let mut next = *packet.get(6)?;
    let mut at = 40;
    for _ in 0..6 {
        let length = match next {
            0 | 43 | 60 => (usize::from(*packet.get(at + 1)?) + 1) * 8,
            51 => (usize::from(*packet.get(at + 1)?) + 2) * 4,
            44 if u16::from_be_bytes(bytes(packet, at + 2)?) & 0xfff8 != 0 => return None,
            44 => 8,
            _ => return Some((next, at)),
        };
        next = *packet.get(at)?;
        at += length;
    }
    None
}

fn bytes<const N: usize>(packet: &[u8], at: usize) -> Option<[u8; N]> {
    packet.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u16, packet: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend(kind.to_be_bytes());
        frame.extend(packet);
        frame
    }

    #[test]
    fn ports_are_found_behind_options_and_extension_headers() {
        let mut v4 = vec![0; 32];
        v4[0] = 0x46;
        v4[9] = 17;
        v4[12..16].copy_from_slice(&[10, 0, 0, 2]);
        v4[16..20].copy_from_slice(&[10, 0, 0, 1]);
        v4[24..28].copy_from_slice(&[1, 0, 0, 80]);
        let end = |last, port| {
            Some(OtherEnd {
                address: IpAddr::from([10, 0, 0, last]),
                port,
            })
        };
        let v4_frame = frame(0x0800, &v4);
        assert_eq!(other_end(&v4_frame, Way::Egress), end(1, Some(80)));
        assert_eq!(other_end(&v4_frame, Way::Ingress), end(2, Some(256)));
        v4[7] = 1;
        assert_eq!(
            other_end(&frame(0x0800, &v4), Way::Egress),
            end(1, None),
            "a later fragment"
        );
        let mut v6 = vec![0; 40 + 16 + 8];
        v6[6] = 60;
        v6[40] = 6;
        v6[41] = 1;
        v6[58..60].copy_from_slice(&[1, 0]);
        let found = other_end(&frame(0x86dd, &v6), Way::Egress).and_then(|to| to.port);
        assert_eq!(found, Some(256));
    }

    #[test]
    fn what_is_no_ip_packet_goes_nowhere_and_comes_from_nowhere() {
        for way in [Way::Egress, Way::Ingress] {
            assert_eq!(other_end(&frame(0x0806, &[0; 60]), way), None);
            assert_eq!(other_end(&frame(0x0800, &[0; 15]), way), None);
            assert_eq!(other_end(&[], way), None);
        }
        let cut = frame(0x0800, &[0; 19]);
        assert!(other_end(&cut, Way::Egress).is_none() && other_end(&cut, Way::Ingress).is_some());
    }
}
