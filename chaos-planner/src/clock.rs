//! What is done to clocks.

use serde::{Deserialize, Serialize};

/// The most jumps of one effect.
pub const MAX_JUMPS: usize = 8;

/// How much faster clocks can run, in parts per million: from a hundredth of their speed to a hundred
/// times of it.
pub const DRIFTS_PPM: std::ops::RangeInclusive<i32> = -990_000..=99_000_000;

/// What is done to the clocks of a target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockEffect {
    /// Nanoseconds that they are ahead, or behind if negative; ±292 years.
    pub offset_ns: i64,
    /// Which: bit n is clock id n of `clock_gettime(2)`.
    pub clocks: u32,
    /// Parts per million by which they are faster from then on, or slower if negative: one of
    /// [`DRIFTS_PPM`].
    #[serde(default)]
    pub drift_ppm: i32,
    /// At most [`MAX_JUMPS`].
    #[serde(default)]
    pub jumps: Vec<Jump>,
}

/// A step of a clock some time after the fault has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jump {
    /// Nanoseconds after the beginning, by the true clock.
    pub after_ns: u64,
    /// Nanoseconds that the clocks are ahead from then on, beside all else, or behind if negative.
    pub by_ns: i64,
}

impl ClockEffect {
    /// Why it makes no sense as it stands.
    pub fn refusal(&self) -> Option<&'static str> {
        if self.clocks == 0 {
            Some("no clock is named; name one, such as CLOCK_REALTIME")
        } else if self.offset_ns == 0 && self.drift_ppm == 0 && self.jumps.is_empty() {
            Some("an offset of 0 changes no clock; set one, such as 5m or -1h, a rate or jumps")
        } else if !DRIFTS_PPM.contains(&self.drift_ppm) {
            Some("a clock runs from a hundredth of its speed to a hundred times of it")
        } else if self.jumps.len() > MAX_JUMPS {
            Some("a clock jumps at most 8 times in one fault; use several faults")
        } else {
            None
        }
    }
}
