//! TimeChaos in numbers: how many nanoseconds, and which clocks.

use crate::duration;
use crate::v1alpha1::TimeChaosSpec;
use crate::validate::{FieldError, NO_CLOCK};

/// The clocks that can be named, with their ids in clock_gettime(2) (uapi/linux/time.h).
pub const CLOCKS: [(&str, u32); 10] = [
    ("CLOCK_REALTIME", 0),
    ("CLOCK_MONOTONIC", 1),
    ("CLOCK_PROCESS_CPUTIME_ID", 2),
    ("CLOCK_THREAD_CPUTIME_ID", 3),
    ("CLOCK_MONOTONIC_RAW", 4),
    ("CLOCK_REALTIME_COARSE", 5),
    ("CLOCK_MONOTONIC_COARSE", 6),
    ("CLOCK_BOOTTIME", 7),
    ("CLOCK_REALTIME_ALARM", 8),
    ("CLOCK_BOOTTIME_ALARM", 9),
];

/// The clock that is meant where none is named.
pub const DEFAULT_CLOCK: &str = CLOCKS[0].0;

/// The id of a clock; `None` for a name that is none of [`CLOCKS`].
#[must_use]
pub fn id(name: &str) -> Option<u32> {
    CLOCKS
        .iter()
        .find(|(clock, _)| *clock == name)
        .map(|(_, id)| *id)
}

/// What a TimeChaos asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skew {
    /// Nanoseconds that the clocks are ahead, or behind if negative.
    pub offset_ns: i64,
    /// Bit n: clock id n.
    pub clocks: u32,
}

impl Skew {
    /// That of a spec.
    ///
    /// # Errors
    /// The first field that cannot be read.
    pub fn of(spec: &TimeChaosSpec) -> Result<Self, FieldError> {
        let unreadable = |rule: &dyn std::fmt::Display| {
            FieldError::unreadable("spec.timeOffset", &spec.time_offset, rule)
        };
        let offset = duration::parse(&spec.time_offset).map_err(|error| unreadable(&error))?;
        let offset_ns = i64::try_from(offset.as_nanos())
            .map_err(|_| unreadable(&"a clock is off by at most 292 years"))?;
        let named = spec.clock_ids.iter().map(String::as_str);
        let default = spec.clock_ids.is_empty().then_some(DEFAULT_CLOCK);
        let mut clocks = 0;
        for (index, name) in named.chain(default).enumerate() {
            let field = format!("spec.clockIds[{index}]");
            let unknown = || FieldError::unreadable(&field, name, &NO_CLOCK);
            clocks |= 1 << id(name).ok_or_else(unknown)?;
        }
        Ok(Self { offset_ns, clocks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skew(offset: &str, clocks: &[&str]) -> Result<Skew, String> {
        let spec = TimeChaosSpec {
            time_offset: offset.to_owned(),
            clock_ids: clocks.iter().map(|&name| name.to_owned()).collect(),
            source: Default::default(),
            container_names: Vec::new(),
            lifecycle: Default::default(),
        };
        Skew::of(&spec).map_err(|error| error.to_string())
    }

    #[test]
    fn offsets_are_read_with_their_sign_and_clocks_by_name() {
        let minute = 60_000_000_000;
        for (offset, clocks, expected) in [
            ("1m", &[][..], (minute, 0b1)),
            ("-90s", &["CLOCK_REALTIME"], (-minute * 3 / 2, 0b1)),
            (
                "1ns",
                &["CLOCK_MONOTONIC", "CLOCK_BOOTTIME_ALARM"],
                (1, 0b10_0000_0010),
            ),
            ("-2562047h", &[], (-2_562_047 * 60 * minute, 0b1)),
        ] {
            let (offset_ns, clocks_read) = expected;
            let expected = Skew {
                offset_ns,
                clocks: clocks_read,
            };
            assert_eq!(skew(offset, clocks), Ok(expected), "{offset}");
        }
        assert!(
            skew("soon", &[])
                .unwrap_err()
                .contains("spec.timeOffset: soon")
        );
        assert_eq!(
            skew("1s", &["CLOCK_REALTIME", "CLOCK_TAI"]).unwrap_err(),
            "spec.clockIds[1]: CLOCK_TAI: there is no such clock; correct it"
        );
    }
}
