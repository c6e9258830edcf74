//! What is done to a packet, packed into the one word that a BPF function returns.

/// Nanoseconds to wait, copies to send, a bit to flip, or drop; the parts of several rules add up.
///
/// | bits | |
/// |---|---|
/// | 0 to 41 | nanoseconds that it waits |
/// | 42 to 57 | [`Verdict::spot`] |
/// | 58 to 62 | copies |
/// | 63 | drop |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict(u64);

const WAIT_BITS: u32 = 42;
const SPOT_BITS: u32 = 16;
const COPIES_SHIFT: u32 = WAIT_BITS + SPOT_BITS;
const COPIES: u64 = 0x1f;
const SPOT: u64 = 0xffff;
const DROP: u64 = 1 << 63;

impl Verdict {
    /// Nothing is done to it.
    pub const PASS: Self = Self(0);

    /// The longest wait: 70 minutes, which is less than fq's horizon (`u32::MAX` microseconds).
    pub const MAX_WAIT_NS: u64 = 70 * 60 * 1_000_000_000;

    /// As it is returned.
    #[inline(always)]
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// The other way.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// It is dropped; whatever else was to be done.
    #[inline(always)]
    pub const fn drops(self) -> bool {
        self.0 & DROP != 0
    }

    /// Nanoseconds that it and its copies wait.
    #[inline(always)]
    pub const fn wait_ns(self) -> u64 {
        self.0 & ((1 << WAIT_BITS) - 1)
    }

    /// How many more packets like it are sent.
    #[inline(always)]
    pub const fn copies(self) -> u64 {
        (self.0 >> COPIES_SHIFT) & COPIES
    }

    /// Where in the packet a bit is flipped: so many 65 536ths of what follows the IP header. 0 is
    /// nowhere.
    #[inline(always)]
    pub const fn spot(self) -> u16 {
        ((self.0 >> WAIT_BITS) & SPOT) as u16
    }

    /// Whether it has to take the detour, or copies of it.
    #[inline(always)]
    pub const fn detours(self) -> bool {
        self.0 & !DROP != 0
    }

    /// The same, dropped.
    #[inline(always)]
    pub const fn dropped(self) -> Self {
        Self(self.0 | DROP)
    }

    /// The same with another wait, at most [`Self::MAX_WAIT_NS`].
    #[inline(always)]
    pub const fn waiting(self, ns: u64) -> Self {
        let ns = if ns < Self::MAX_WAIT_NS {
            ns
        } else {
            Self::MAX_WAIT_NS
        };
        Self(self.0 & !((1 << WAIT_BITS) - 1) | ns)
    }

    /// The same with one copy more, up to 31.
    #[inline(always)]
    pub const fn duplicated(self) -> Self {
        if self.copies() == COPIES {
            self
        } else {
            Self(self.0 + (1 << COPIES_SHIFT))
        }
    }

    /// The same, with the bit flipped that a draw says. Only one of a packet is.
    #[inline(always)]
    pub const fn corrupted(self, draw: u32) -> Self {
        let spot = (draw >> 16) as u64;
        let spot = if spot == 0 { 1 } else { spot };
        Self(self.0 & !(SPOT << WAIT_BITS) | (spot << WAIT_BITS))
    }
}

/// The bit that [`Verdict::spot`] means in so many bytes: index of the byte, and of the bit in it.
#[inline(always)]
pub const fn bit_at(spot: u16, bytes: u32) -> (u32, u8) {
    let bit = (bytes as u64 * 8 * spot as u64) >> SPOT_BITS;
    ((bit >> 3) as u32, (bit & 7) as u8)
}

const _: () = {
    assert!(Verdict::MAX_WAIT_NS < 1 << WAIT_BITS);
    assert!(crate::RULES_PER_TARGET <= COPIES as usize);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_do_not_touch_each_other() {
        let all = Verdict::PASS
            .waiting(u64::MAX)
            .corrupted(u32::MAX)
            .duplicated()
            .duplicated();
        assert_eq!(all.wait_ns(), Verdict::MAX_WAIT_NS);
        assert_eq!((all.spot(), all.copies()), (u16::MAX, 2));
        assert!(all.detours() && !all.drops());
        assert_eq!(all.waiting(5).corrupted(1 << 20).wait_ns(), 5);
        assert_eq!(all.waiting(5).corrupted(1 << 20).spot(), 16);
        let dropped = all.dropped();
        assert!(dropped.drops());
        assert_eq!(dropped.copies(), 2);
        assert!(!Verdict::PASS.dropped().detours());
        assert_eq!(Verdict::from_bits(all.to_bits()), all);
        let full = (0..40).fold(Verdict::PASS, |verdict, _| verdict.duplicated());
        assert_eq!(
            (full.copies(), full.wait_ns(), full.drops()),
            (31, 0, false)
        );
    }

    #[test]
    fn each_draw_flips_a_bit_inside_the_packet() {
        for bytes in [1, 8, 1_480, 65_535] {
            assert_eq!(bit_at(1, bytes).0, bytes * 8 / 65_536 / 8);
            assert!(bit_at(u16::MAX, bytes).0 < bytes);
        }
        assert_eq!(bit_at(u16::MAX, 1), (0, 7));
        assert_eq!(Verdict::PASS.corrupted(0).spot(), 1, "0 would be nowhere");
    }
}
