//! What is done to clocks.

use serde::{Deserialize, Serialize};

/// What is done to the clocks of a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockEffect {
    /// Nanoseconds that they are ahead, or behind if negative; ±292 years.
    pub offset_ns: i64,
    /// Which: bit n is clock id n of `clock_gettime(2)`.
    pub clocks: u32,
}

impl ClockEffect {
    /// Why it makes no sense as it stands.
    pub const fn refusal(&self) -> Option<&'static str> {
        if self.clocks == 0 {
            Some("no clock is named; name one, such as CLOCK_REALTIME")
        } else if self.offset_ns == 0 {
            Some("an offset of 0 changes no clock; set one, such as 5m or -1h")
        } else {
            None
        }
    }
}
