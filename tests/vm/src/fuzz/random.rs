//! Random numbers that are the same for the same seed, and addresses that meet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use chaos_abi::sample::{Stream, draw};

/// Numbers that follow from a seed.
pub(super) struct Random {
    seed: u64,
    n: u64,
}

impl Random {
    pub(super) fn new(seed: u64, round: u64) -> Self {
        let [high, low] =
            [1, 2].map(|n| u64::from(draw(seed ^ round.rotate_left(32), Stream::Sample, n)));
        Self {
            seed: high << 32 | low,
            n: 0,
        }
    }

    pub(super) fn next(&mut self) -> u32 {
        self.n += 1;
        draw(self.seed, Stream::Sample, self.n)
    }

    pub(super) fn below(&mut self, limit: u32) -> u32 {
        self.next() % limit
    }

    pub(super) fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u32) as usize]
    }

    pub(super) fn chance(&mut self, one_in: u32) -> bool {
        self.below(one_in) == 0
    }
}

/// An address that others are near.
pub(super) fn address(random: &mut Random) -> IpAddr {
    let last = random.below(16);
    if random.chance(2) {
        IpAddr::V4(Ipv4Addr::from(
            random.one_of(&[0x0a00_0000, 0x0a01_0000]) + last,
        ))
    } else {
        let high = random.one_of(&[0xfd00_u128 << 112, 0xfd01 << 112]);
        IpAddr::V6(Ipv6Addr::from(high + u128::from(last)))
    }
}
