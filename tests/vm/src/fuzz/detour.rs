//! The detour: what enters it, what comes out, and what it tells on the way. The model's side only.

use chaos_agent::mechanism::tc::Way;

use super::Lie;
use super::model::{Fate, Model};
use crate::programs::{AWAY, LOOPBACK, UNSPEC};

/// Opens the words that a packet carries.
pub(super) const OURS: u32 = u32::from_be_bytes(*b"Faul");
/// The word before the last: what comes back with the tag of a detour has it.
const TAGGED: u32 = u32::from_be_bytes(*b"tag!");

/// The detour of the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Detour {
    /// Whether there is a device where it should be.
    pub(super) works: bool,
    /// Kilobytes that may wait, and that do.
    pub(super) budget: u64,
    pub(super) waiting: u64,
    /// Segments are cut on the way, and counted one by one.
    pub(super) cuts: bool,
    /// How much earlier what waits is sent on its way, in nanoseconds.
    pub(super) earlier: u64,
}

/// A packet as the kernel has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) bytes: u32,
    pub(super) segments: u32,
}

/// What is to be seen of a packet that has been treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// What `tc_egress` returns.
    pub(super) verdict: u32,
    /// What the last one that was sent into the detour carries.
    pub(super) carried: [u32; 5],
    /// Kilobytes that wait.
    pub(super) waiting: u64,
}

impl Detour {
    /// Carries out what was decided at `now`, and counts for rule `last` what could not be done.
    pub(super) fn carry_out(
        &mut self,
        (fate, last): (Fate, u32),
        size: Size,
        now: u64,
        model: &mut Model,
    ) -> Seen {
        let mark = if model.looked_at {
            let word = match model.way {
                Way::Egress => 0x4661,
                Way::Ingress => 0x4662,
            };
            word << 16 | LOOPBACK
        } else {
            0
        };
        let mut seen = Seen {
            verdict: UNSPEC,
            carried: [0, 0, 0, 0, mark],
            waiting: self.waiting,
        };
        if fate.dropped {
            seen.verdict = AWAY;
            return seen;
        }
        let segments = if self.cuts { size.segments.max(1) } else { 1 };
        let each = 1 + (size.bytes / segments).div_ceil(1024);
        let all = u64::from(each) * u64::from(segments);
        let goes = fate.wait_ns > 0 || fate.spot > 0;
        let (mut failed, mut over_budget) = (false, false);
        let copies = std::iter::repeat_n(0, fate.copies as usize);
        for spot in copies.chain(goes.then_some(fate.spot)) {
            if self.waiting + all > self.budget {
                over_budget = true;
                continue;
            }
            let at = now.saturating_add(fate.wait_ns.saturating_sub(self.earlier));
            let [low, high] = [at as u32, (at >> 32) as u32];
            seen.carried = [low, high, OURS, TAGGED, each << 16 | u32::from(spot)];
            if self.works {
                self.waiting += all;
            } else {
                failed = true;
            }
        }
        // A packet that should go by a detour that is not there goes without.
        let own_fits = self.waiting + all <= self.budget;
        if goes && (self.works || !own_fits) {
            seen.verdict = AWAY;
        } else if mark != 0 {
            // It goes on, and says so to other devices.
            seen.carried[4] = mark;
        }
        if let Some(rule) = model.rule(last) {
            rule.counted.failed += u64::from(failed);
            rule.counted.injected -= u64::from(failed);
            rule.counted.over_budget += u64::from(over_budget && !failed);
        }
        if matches!(model.lie, Some(Lie::Waiting)) && fate.copies > 0 {
            self.waiting += 1;
        }
        seen.waiting = self.waiting;
        seen
    }

    /// One packet comes out: what it looks like then.
    pub(super) fn come_out(&mut self, frame: &[u8], carried: u32) -> Vec<u8> {
        self.waiting = self.waiting.saturating_sub(u64::from(carried >> 16));
        flipped(frame, carried as u16)
    }
}

/// The frame with the bit flipped that so many 65 536ths of what is behind the IP header mean.
fn flipped(frame: &[u8], spot: u16) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let header = match frame.get(12..15) {
        Some([0x08, 0x00, first]) => usize::from(first & 0xf) * 4,
        Some([0x86, 0xdd, _]) => 40,
        _ => return frame,
    };
    if spot == 0 {
        return frame;
    }
    let behind = frame.get_mut(14 + header..).unwrap_or_default();
    let bit = behind.len() * 8 * usize::from(spot) / 65_536;
    if let Some(byte) = behind.get_mut(bit / 8) {
        *byte ^= 1 << (bit % 8);
    }
    frame
}
