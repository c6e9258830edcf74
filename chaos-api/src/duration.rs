//! Durations as Go writes them: `100ms`, `1h30m`, `-1.5s`.
//!
//! What Go's `time.ParseDuration` takes is taken, with the same value to the nanosecond; what it
//! refuses is refused. The range is that of 64 bits of nanoseconds, about 292 years either way.

use jiff::SignedDuration;

/// Nanoseconds in each unit, and their spellings: both code points that look like a mu are `us`.
const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// The magnitude of the lowest duration: one more than that of the highest.
const LOWEST: u64 = 1 << 63;

/// Why a text is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Nothing, or nothing after the sign.
    #[error("a duration is a number and a unit (ns, us, ms, s, m, h)")]
    Empty,
    /// A unit without a number, or what is neither.
    #[error("a number is missing before {0:?}")]
    NumberMissing(String),
    /// A number without a unit.
    #[error("a unit (ns, us, ms, s, m, h) is missing after {0:?}")]
    UnitMissing(String),
    /// A unit that does not exist.
    #[error("{0:?} is no unit (ns, us, ms, s, m, h)")]
    UnknownUnit(String),
    /// More than 64 bits of nanoseconds.
    #[error("a duration is at most 2562047h (292 years)")]
    TooLong,
}

/// Reads a duration as Go does.
///
/// # Errors
/// See [`DurationError`].
pub fn parse(text: &str) -> Result<SignedDuration, DurationError> {
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(SignedDuration::ZERO);
    }
    if rest.is_empty() {
        return Err(DurationError::Empty);
    }
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let (nanos, tail) = parse_part(rest)?;
        total = total
            .checked_add(nanos)
            .filter(|total| *total <= LOWEST)
            .ok_or(DurationError::TooLong)?;
        rest = tail;
    }
    match (negative, i64::try_from(total)) {
        (false, Ok(nanos)) => Ok(SignedDuration::from_nanos(nanos)),
        (true, Ok(nanos)) => Ok(SignedDuration::from_nanos(-nanos)),
        // Two's complement has one more below zero than above.
        (true, Err(_)) => Ok(SignedDuration::from_nanos(i64::MIN)),
        (false, Err(_)) => Err(DurationError::TooLong),
    }
}

/// Reads a duration that must be above zero.
///
/// # Errors
/// A sentence that fits as the rule of a [`crate::validate::FieldError`].
pub fn parse_positive(text: &str) -> Result<std::time::Duration, String> {
    let duration = parse(text).map_err(|error| error.to_string())?;
    std::time::Duration::try_from(duration)
        .ok()
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| "must be above 0".to_owned())
}

/// Writes a duration as Go's `Duration.String` does: `1h0m0s`, `1.5s`, `100ms`, `0s`.
///
/// A duration beyond Go's range is written as the nearest one within it.
#[must_use]
pub fn format(duration: SignedDuration) -> String {
    let nanos = duration.as_nanos().clamp(i64::MIN.into(), i64::MAX.into());
    let sign = if nanos < 0 { "-" } else { "" };
    // The clamp above keeps the magnitude within 2^63.
    let nanos = u64::try_from(nanos.unsigned_abs()).unwrap_or(LOWEST);
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{sign}{nanos}ns"),
        1_000..1_000_000 => format!("{sign}{}µs", decimal(nanos, 1_000)),
        1_000_000..1_000_000_000 => format!("{sign}{}ms", decimal(nanos, 1_000_000)),
        _ => {
            let minute = 60_000_000_000;
            let (hours, minutes) = (nanos / (60 * minute), nanos / minute % 60);
            let seconds = decimal(nanos % minute, 1_000_000_000);
            match (hours, minutes) {
                (0, 0) => format!("{sign}{seconds}s"),
                (0, _) => format!("{sign}{minutes}m{seconds}s"),
                _ => format!("{sign}{hours}h{minutes}m{seconds}s"),
            }
        }
    }
}

/// The same of nanoseconds.
#[must_use]
pub fn format_nanos(nanos: i64) -> String {
    format(SignedDuration::from_nanos(nanos))
}

/// The same of nanoseconds by which something is moved, with its sign always: `+1h0m0s`, `-1.5s`.
#[must_use]
pub fn format_move(nanos: i64) -> String {
    let sign = if nanos < 0 { "" } else { "+" };
    format!("{sign}{}", format_nanos(nanos))
}

/// One number with its unit, in nanoseconds, and what follows it.
fn parse_part(text: &str) -> Result<(u64, &str), DurationError> {
    let whole_len = digits(text);
    let after_whole = &text[whole_len..];
    let fraction = after_whole
        .strip_prefix('.')
        .map(|tail| &tail[..digits(tail)]);
    let number_len = whole_len + fraction.map_or(0, |fraction| fraction.len() + 1);
    if whole_len == 0 && fraction.is_none_or(str::is_empty) {
        return Err(DurationError::NumberMissing(text.to_owned()));
    }
    let (number, tail) = text.split_at(number_len);
    let unit_len = tail
        .find(|c: char| c == '.' || c.is_ascii_digit())
        .unwrap_or(tail.len());
    let (unit, tail) = tail.split_at(unit_len);
    if unit.is_empty() {
        return Err(DurationError::UnitMissing(number.to_owned()));
    }
    let scale = UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .map(|(_, nanos)| *nanos)
        .ok_or_else(|| DurationError::UnknownUnit(unit.to_owned()))?;
    let whole: u64 = match &text[..whole_len] {
        "" => 0,
        digits => digits.parse().map_err(|_| DurationError::TooLong)?,
    };
    let nanos = whole
        .checked_mul(scale)
        .filter(|nanos| *nanos <= LOWEST)
        .and_then(|nanos| nanos.checked_add(fraction_nanos(fraction.unwrap_or(""), scale)))
        .ok_or(DurationError::TooLong)?;
    Ok((nanos, tail))
}

/// How many ASCII digits the text starts with.
fn digits(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_digit).count()
}

/// What the digits behind the point are worth. Go computes this in floating point and stops
/// reading digits when they no longer fit 63 bits; so do we, to land on the same nanosecond.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the same conversions as Go's; the result is below one unit and not negative"
)]
fn fraction_nanos(digits: &str, scale: u64) -> u64 {
    let (mut value, mut divisor) = (0_u64, 1_f64);
    for digit in digits.bytes() {
        let Some(next) = value
            .checked_mul(10)
            .and_then(|value| value.checked_add(u64::from(digit - b'0')))
            .filter(|next| *next <= LOWEST)
        else {
            break;
        };
        (value, divisor) = (next, divisor * 10.0);
    }
    (value as f64 * (scale as f64 / divisor)) as u64
}

/// `nanos / unit` with only the digits behind the point that say something.
fn decimal(nanos: u64, unit: u64) -> String {
    let (whole, fraction) = (nanos / unit, nanos % unit);
    if fraction == 0 {
        return whole.to_string();
    }
    let width = unit.ilog10() as usize;
    let fraction = format!("{fraction:0width$}");
    format!("{whole}.{}", fraction.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nanos(text: &str) -> Result<i128, DurationError> {
        parse(text).map(|duration| duration.as_nanos())
    }

    #[test]
    fn durations_read_as_in_go() {
        // The table of Go's time_test.go, and what users of this API write.
        for (text, expected) in [
            ("0", 0),
            ("5s", 5_000_000_000),
            ("30s", 30_000_000_000),
            ("1478s", 1_478_000_000_000),
            ("-5s", -5_000_000_000),
            ("+5s", 5_000_000_000),
            ("-0", 0),
            ("+0", 0),
            ("5.0s", 5_000_000_000),
            ("5.6s", 5_600_000_000),
            ("5.s", 5_000_000_000),
            (".5s", 500_000_000),
            ("1.0s", 1_000_000_000),
            ("1.004s", 1_004_000_000),
            ("100.00100s", 100_001_000_000),
            ("10ns", 10),
            ("11us", 11_000),
            ("12µs", 12_000),
            ("12μs", 12_000),
            ("13ms", 13_000_000),
            ("14s", 14_000_000_000),
            ("15m", 900_000_000_000),
            ("16h", 57_600_000_000_000),
            ("3h30m", 12_600_000_000_000),
            ("10.5s4m", 250_500_000_000),
            ("-2m3.4s", -123_400_000_000),
            ("1h2m3s4ms5us6ns", 3_723_004_005_006),
            ("39h9m14.425s", 140_954_425_000_000),
            ("52763797000ns", 52_763_797_000),
            ("0.3333333333333333333h", 1_200_000_000_000),
            ("9007199254740993ns", 9_007_199_254_740_993),
            ("9223372036854775807ns", i128::from(i64::MAX)),
            ("9223372036854775.807us", i128::from(i64::MAX)),
            ("-9223372036854775808ns", i128::from(i64::MIN)),
            ("-2562047h47m16.854775808s", i128::from(i64::MIN)),
            ("0.100000000000000000000h", 360_000_000_000),
            ("0.830103483285477580700h", 2_988_372_539_827),
        ] {
            assert_eq!(nanos(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_go_refuses_is_refused_with_the_reason() {
        use DurationError::{Empty, NumberMissing, TooLong, UnitMissing, UnknownUnit};
        for (text, expected) in [
            ("", Empty),
            ("-", Empty),
            ("3", UnitMissing("3".into())),
            ("1.5", UnitMissing("1.5".into())),
            ("s", NumberMissing("s".into())),
            (".", NumberMissing(".".into())),
            ("-.", NumberMissing(".".into())),
            (".s", NumberMissing(".s".into())),
            ("+.s", NumberMissing(".s".into())),
            ("1d", UnknownUnit("d".into())),
            ("1 s", UnknownUnit(" s".into())),
            ("10sec", UnknownUnit("sec".into())),
            ("1S", UnknownUnit("S".into())),
            ("1s ", UnknownUnit("s ".into())),
            ("\u{85}\u{85}", NumberMissing("\u{85}\u{85}".into())),
            ("3000000h", TooLong),
            ("9223372036854775808ns", TooLong),
            ("9223372036854775.808us", TooLong),
            ("9223372036854ms775us808ns", TooLong),
            ("-9223372036854775809ns", TooLong),
            ("99999999999999999999999s", TooLong),
        ] {
            assert_eq!(nanos(text), Err(expected), "{text}");
        }
    }

    #[test]
    fn durations_are_written_as_in_go() {
        for (nanos, expected) in [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1µs"),
            (2_200_000, "2.2ms"),
            (100_000_000, "100ms"),
            (3_300_000_000, "3.3s"),
            (60_000_000_000, "1m0s"),
            (245_000_000_000, "4m5s"),
            (245_001_000_000, "4m5.001s"),
            (18_367_001_000_000, "5h6m7.001s"),
            (3_600_000_000_000, "1h0m0s"),
            (-1_500_000_000, "-1.5s"),
            (i64::MAX, "2562047h47m16.854775807s"),
            (i64::MIN, "-2562047h47m16.854775808s"),
        ] {
            assert_eq!(format(SignedDuration::from_nanos(nanos)), expected);
        }
        assert_eq!(format(SignedDuration::MAX), "2562047h47m16.854775807s");
    }

    #[test]
    fn zero_and_less_are_not_positive() {
        assert_eq!(
            parse_positive("1ms"),
            Ok(std::time::Duration::from_millis(1))
        );
        assert!(parse_positive("0s").is_err());
        assert!(parse_positive("-1s").is_err());
        assert!(parse_positive("1").is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(nanos: i64) {
            let duration = SignedDuration::from_nanos(nanos);
            prop_assert_eq!(parse(&format(duration)), Ok(duration));
        }

        #[test]
        fn parts_add_up(hours in 0_i64..1000, minutes in 0_i64..1000, millis in 0_i64..100_000) {
            let expected = SignedDuration::from_millis((hours * 60 + minutes) * 60_000 + millis);
            prop_assert_eq!(parse(&format!("{hours}h{minutes}m{millis}ms")), Ok(expected));
        }

        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = parse(&text);
        }

        #[test]
        fn nothing_that_looks_like_a_duration_panics(text in "[-+]?([0-9.]{0,25}(ns|us|µs|ms|s|m|h|x)?){0,4}") {
            if let Ok(duration) = parse(&text) {
                prop_assert_eq!(parse(&format(duration)), Ok(duration));
            }
        }
    }
}
