//! Random packets that rules mean, and every now and then damage.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use chaos_agent::mechanism::tc::Way;

use super::random::{Random, address};

/// Where the target listens.
pub(super) const PORT: u16 = 12_345;

/// An Ethernet frame of 15 bytes at least: that much the kernel wants. The target sends it, or gets it.
pub(super) fn packet(random: &mut Random, way: Way) -> Vec<u8> {
    if random.chance(50) {
        // Noise.
        let length = 15 + random.below(100);
        return (0..length).map(|_| random.next() as u8).collect();
    }
    let mut frame = vec![2; 12];
    if !random.chance(4) {
        // To the device that it is on, which is the loopback device.
        frame[..6].fill(0);
    }
    if random.chance(30) {
        // A VLAN's tag in front: what is behind is not looked at.
        frame.extend([0x81, 0x00, 0x00, 0x07]);
    }
    let to = address(random);
    let kind: u16 = match to {
        _ if random.chance(20) => random.one_of(&[0x0806, 0x8100, 0x88cc, 0x0001]),
        IpAddr::V4(_) => 0x0800,
        IpAddr::V6(_) => 0x86dd,
    };
    frame.extend(kind.to_be_bytes());
    match to {
        IpAddr::V4(to) => ipv4(&mut frame, to, random, way),
        IpAddr::V6(to) => ipv6(&mut frame, to, random, way),
    }
    if random.chance(4) {
        for _ in 0..=random.below(3) {
            let place = random.below(frame.len() as u32) as usize;
            frame[place] = random.next() as u8;
        }
    }
    if random.chance(8) {
        frame.truncate(15 + random.below(frame.len() as u32 - 15) as usize);
    }
    frame
}

/// It says IP and does not hold a whole header.
pub(super) fn is_cut(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.len() < 14 + 20,
        Some([0x86, 0xdd]) => frame.len() < 14 + 40,
        _ => false,
    }
}

fn protocol(random: &mut Random) -> u8 {
    random.one_of(&[6, 17, 17, 33, 132, 136, 1, 58, 50])
}

/// The two ends of a packet, source first; `other` is the one that rules are about.
fn ends<T>(own: T, other: T, way: Way) -> [T; 2] {
    match way {
        Way::Egress => [own, other],
        Way::Ingress => [other, own],
    }
}

fn transport(frame: &mut Vec<u8>, random: &mut Random, way: Way) {
    let port = random.below(6) as u16;
    for port in ends(PORT, port, way) {
        frame.extend(port.to_be_bytes());
    }
    let payload = random.below(40) as usize;
    frame.extend(std::iter::repeat_n(0x5a, 4 + payload));
}

fn ipv4(frame: &mut Vec<u8>, to: Ipv4Addr, random: &mut Random, way: Way) {
    let words = random.one_of(&[5_u8, 5, 5, 6, 15]);
    let mut header = vec![0; usize::from(words) * 4];
    header[0] = 0x40 | words;
    header[8] = 64;
    header[9] = protocol(random);
    if random.chance(8) {
        let fragment = random.one_of(&[0x2000_u16, 0x2001, 0x00b9, 0x4000]);
        header[6..8].copy_from_slice(&fragment.to_be_bytes());
    }
    let [from, to] = ends(Ipv4Addr::new(10, 9, 9, 9), to, way);
    header[12..16].copy_from_slice(&from.octets());
    header[16..20].copy_from_slice(&to.octets());
    frame.extend(header);
    transport(frame, random, way);
}

fn ipv6(frame: &mut Vec<u8>, to: Ipv6Addr, random: &mut Random, way: Way) {
    let extensions: Vec<u8> = (0..random.below(8).saturating_sub(3))
        .map(|_| random.one_of(&[0, 43, 44, 51, 60]))
        .collect();
    let last = protocol(random);
    let mut chain = extensions.iter().copied().chain([last]);
    let mut header = vec![0; 40];
    header[0] = 0x60;
    header[6] = chain.next().unwrap_or(last);
    header[7] = 64;
    let [from, to] = ends(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0), to, way);
    header[8..24].copy_from_slice(&from.octets());
    header[24..40].copy_from_slice(&to.octets());
    frame.extend(header);
    for (kind, next) in extensions.iter().zip(chain) {
        let units = random.below(3) as u8;
        let length = match kind {
            44 => 8,
            51 => (usize::from(units) + 2) * 4,
            _ => (usize::from(units) + 1) * 8,
        };
        let mut extension = vec![0; length];
        extension[0] = next;
        if *kind == 44 {
            let offset = random.one_of(&[0_u16, 0, 1, 0x0008, 0xfff8]);
            extension[2..4].copy_from_slice(&offset.to_be_bytes());
        } else {
            extension[1] = units;
        }
        frame.extend(extension);
    }
    transport(frame, random, way);
}
