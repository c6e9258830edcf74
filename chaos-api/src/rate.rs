//! Rates as this API writes them: a whole number and a unit, in upper or lower case.
//!
//! `bit` and its multiples are bits a second, by thousands; `bps` and its multiples are bytes a
//! second, by 1024, as Chaos Mesh reads them (`convertUnitToBytes`).

/// Why a text is no rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RateError {
    /// No number, or no unit.
    #[error(
        "must be a whole number and a unit: bit, kbit, mbit, gbit, tbit, bps, kbps, mbps, gbps or tbps"
    )]
    Form,
    /// Less than a byte a second.
    #[error("must be at least 8bit, which is 1bps")]
    Nothing,
}

/// The most digits: what is written has a meaning within 64 bits, or is as good as no limit.
const MAX_DIGITS: usize = 18;

/// Reads a rate in bytes a second, at least 1. What exceeds 64 bits is their maximum.
///
/// # Errors
/// See [`RateError`].
pub fn parse(text: &str) -> Result<u64, RateError> {
    let text = text.trim().to_ascii_lowercase();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    if digits > MAX_DIGITS {
        return Err(RateError::Form);
    }
    let number: u128 = number.parse().map_err(|_| RateError::Form)?;
    let (bits, prefix) = match unit.trim_start().strip_suffix("bit") {
        Some(prefix) => (true, prefix),
        None => match unit.trim_start().strip_suffix("bps") {
            Some(prefix) => (false, prefix),
            None => return Err(RateError::Form),
        },
    };
    let power = match prefix {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return Err(RateError::Form),
    };
    let bytes = if bits {
        number * 1_000_u128.pow(power) / 8
    } else {
        number * 1_024_u128.pow(power)
    };
    match u64::try_from(bytes).unwrap_or(u64::MAX) {
        0 => Err(RateError::Nothing),
        rate => Ok(rate),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rates_become_bytes_a_second() {
        for (text, expected) in [
            ("8bit", 1),
            ("1bps", 1),
            ("80kbit", 10_000),
            ("1mbit", 125_000),
            ("1mbps", 1_048_576),
            ("10 MBPS", 10_485_760),
            (" 2Gbit ", 250_000_000),
            ("1tbps", 1 << 40),
            ("999999999999999999tbit", u64::MAX),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_rate_is_refused() {
        use RateError::{Form, Nothing};
        for (text, expected) in [
            ("", Form),
            ("10", Form),
            ("mbit", Form),
            ("-1mbit", Form),
            ("1.5mbit", Form),
            ("1mb", Form),
            ("1pbit", Form),
            ("1kkbit", Form),
            ("1 k bit", Form),
            ("1000000000000000000bit", Form),
            ("0mbit", Nothing),
            ("7bit", Nothing),
        ] {
            assert_eq!(parse(text), Err(expected), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*") {
            prop_assert_ne!(parse(&text), Ok(0));
        }
    }
}
