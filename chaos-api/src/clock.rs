//! TimeChaos in numbers: how many nanoseconds, how fast, when, and which clocks.

use crate::duration;
use crate::v1alpha1::{ClockJump, TimeChaosSpec};
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

/// The ids of clocks that count the CPU's time.
pub const OF_CPU_TIME: [&str; 2] = ["CLOCK_PROCESS_CPUTIME_ID", "CLOCK_THREAD_CPUTIME_ID"];

/// The most jumps of one TimeChaos.
pub const MAX_JUMPS: usize = 8;

/// The most decimals of a rate.
const RATE_DECIMALS: usize = 6;

const MILLION: i32 = 1_000_000;

/// Why a text is no rate of a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClockRateError {
    /// It is no decimal number.
    #[error("must be a number from 0.01 to 100 with at most six decimals")]
    Form,
    /// Too slow, or too fast.
    #[error("must be from 0.01 to 100")]
    OutOfRange,
}

/// Reads a rate: the parts per million by which a clock is faster, or slower if negative.
///
/// # Errors
/// See [`ClockRateError`].
pub fn parse_rate(text: &str) -> Result<i32, ClockRateError> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty()
        || !digits(whole)
        || !digits(decimals)
        || decimals.len() > RATE_DECIMALS
        || text.ends_with('.')
    {
        return Err(ClockRateError::Form);
    }
    let whole: i32 = whole.parse().map_err(|_| ClockRateError::OutOfRange)?;
    let parts: i32 = format!("{decimals:0<RATE_DECIMALS$}")
        .parse()
        .map_err(|_| ClockRateError::Form)?;
    let ppm = whole
        .checked_mul(MILLION)
        .and_then(|ppm| ppm.checked_add(parts));
    match ppm {
        Some(ppm) if (MILLION / 100..=100 * MILLION).contains(&ppm) => Ok(ppm - MILLION),
        _ => Err(ClockRateError::OutOfRange),
    }
}

/// The rate of a clock that is faster by so many parts per million, as [`parse_rate`] reads it.
#[must_use]
pub fn format_rate(drift_ppm: i32) -> String {
    let ppm = drift_ppm + MILLION;
    let text = format!("{}.{:06}", ppm / MILLION, ppm % MILLION);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// What a TimeChaos asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skew {
    /// Nanoseconds that the clocks are ahead, or behind if negative.
    pub offset_ns: i64,
    /// Bit n: clock id n.
    pub clocks: u32,
    /// Parts per million by which they are faster, or slower if negative.
    pub drift_ppm: i32,
    /// Steps on the way.
    pub jumps: Vec<Jump>,
}

/// A step of a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jump {
    /// Nanoseconds after the beginning.
    pub after_ns: u64,
    /// Nanoseconds ahead from then on, or behind if negative.
    pub by_ns: i64,
}

impl Skew {
    /// That of a spec.
    ///
    /// # Errors
    /// The first field that cannot be read.
    pub fn of(spec: &TimeChaosSpec) -> Result<Self, FieldError> {
        let offset_ns = nanos("spec.timeOffset", &spec.time_offset)?;
        let faultline = spec.lifecycle.faultline.as_ref();
        let drift_ppm = match faultline.and_then(|faultline| faultline.rate.as_ref()) {
            None => 0,
            Some(rate) => parse_rate(rate)
                .map_err(|error| FieldError::unreadable("spec.faultline.rate", rate, &error))?,
        };
        let jumps = faultline.map_or(&[][..], |faultline| &faultline.jumps);
        let jumps = jumps.iter().enumerate();
        let jumps = jumps.map(|(index, jump)| Jump::of(index, jump));
        let jumps = jumps.collect::<Result<_, _>>()?;
        let named = spec.clock_ids.iter().map(String::as_str);
        let default = spec.clock_ids.is_empty().then_some(DEFAULT_CLOCK);
        let mut clocks = 0;
        for (index, name) in named.chain(default).enumerate() {
            let field = format!("spec.clockIds[{index}]");
            let unknown = || FieldError::unreadable(&field, name, &NO_CLOCK);
            clocks |= 1 << id(name).ok_or_else(unknown)?;
        }
        Ok(Self {
            offset_ns,
            clocks,
            drift_ppm,
            jumps,
        })
    }
}

impl Jump {
    fn of(index: usize, jump: &ClockJump) -> Result<Self, FieldError> {
        let field = |name: &str| format!("spec.faultline.jumps[{index}].{name}");
        let after_ns = nanos(&field("after"), &jump.after)?;
        Ok(Self {
            after_ns: after_ns.unsigned_abs(),
            by_ns: nanos(&field("by"), &jump.by)?,
        })
    }
}

/// A duration of either sign in nanoseconds.
fn nanos(field: &str, text: &str) -> Result<i64, FieldError> {
    let unreadable = |rule: &dyn std::fmt::Display| FieldError::unreadable(field, text, rule);
    let duration = duration::parse(text).map_err(|error| unreadable(&error))?;
    i64::try_from(duration.as_nanos())
        .map_err(|_| unreadable(&"a clock is off by at most 292 years"))
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
    fn rates_are_read_to_the_millionth_and_written_as_they_were() {
        for (text, expected) in [
            ("1", 0),
            ("1.1", 100_000),
            ("0.5", -500_000),
            ("0.01", -990_000),
            ("100", 99_000_000),
            ("1.00005", 50),
            ("0.999999", -1),
        ] {
            assert_eq!(parse_rate(text), Ok(expected), "{text}");
            assert_eq!(format_rate(expected), text);
        }
        assert_eq!(parse_rate("01.10"), Ok(100_000));
        use ClockRateError::{Form, OutOfRange};
        for (text, expected) in [
            ("", Form),
            (".5", Form),
            ("1.", Form),
            ("-1", Form),
            ("+1", Form),
            ("1e1", Form),
            ("10%", Form),
            ("1.0000001", Form),
            ("0", OutOfRange),
            ("0.009999", OutOfRange),
            ("100.000001", OutOfRange),
            ("99999999999999999999", OutOfRange),
        ] {
            assert_eq!(parse_rate(text), Err(expected), "{text}");
        }
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
                drift_ppm: 0,
                jumps: Vec::new(),
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
