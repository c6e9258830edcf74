//! Percentages as this API writes them: a string with a floating-point number.
//!
//! They are carried on as whole parts per million of the *share*: `"100"` is 1 000 000, the
//! smallest step is 0.0001 percent.

/// Parts per million of 100 percent.
pub const PPM_OF_ALL: u32 = 1_000_000;

/// Parts per million in one percent.
const PPM_PER_PERCENT: f64 = 10_000.0;

/// Why a text is no percentage.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PercentError {
    /// It is no number, or not a finite one.
    #[error("must be a number from 0 to 100")]
    NoNumber,
    /// Below 0 or above 100.
    #[error("must be from 0 to 100")]
    OutOfRange,
    /// Above 0 but less than half a step.
    #[error("must be 0 or at least 0.0001")]
    TooSmall,
}

/// Reads a percentage from 0 to 100, in parts per million, rounded to the nearest.
///
/// # Errors
/// See [`PercentError`].
pub fn parse_ppm(text: &str) -> Result<u32, PercentError> {
    let percent: f64 = text.parse().map_err(|_| PercentError::NoNumber)?;
    if !percent.is_finite() {
        return Err(PercentError::NoNumber);
    }
    if !(0.0..=100.0).contains(&percent) {
        return Err(PercentError::OutOfRange);
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "from 0 to 1 000 000, as checked above"
    )]
    let ppm = (percent * PPM_PER_PERCENT).round() as u32;
    if ppm == 0 && percent > 0.0 {
        return Err(PercentError::TooSmall);
    }
    Ok(ppm)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn percentages_become_parts_per_million() {
        for (text, expected) in [
            ("0", 0),
            ("0.0", 0),
            ("-0", 0),
            ("25", 250_000),
            ("30", 300_000),
            ("0.5", 5_000),
            (".5", 5_000),
            ("+12.5", 125_000),
            ("1e1", 100_000),
            ("0.001", 10),
            ("0.0001", 1),
            ("33.33333", 333_333),
            ("99.99999", 1_000_000),
            ("100", PPM_OF_ALL),
            ("100.0", PPM_OF_ALL),
        ] {
            assert_eq!(parse_ppm(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_percentage_is_refused_with_the_reason() {
        use PercentError::{NoNumber, OutOfRange, TooSmall};
        for (text, expected) in [
            ("", NoNumber),
            ("ten", NoNumber),
            ("30%", NoNumber),
            (" 30", NoNumber),
            ("1,5", NoNumber),
            ("NaN", NoNumber),
            ("inf", NoNumber),
            ("1e999", NoNumber),
            ("-0.1", OutOfRange),
            ("100.1", OutOfRange),
            ("1000", OutOfRange),
            ("0.00001", TooSmall),
            ("1e-300", TooSmall),
        ] {
            assert_eq!(parse_ppm(text), Err(expected), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_step_reads_back_exactly(ppm in 0..=PPM_OF_ALL) {
            let text = format!("{}.{:04}", ppm / 10_000, ppm % 10_000);
            prop_assert_eq!(parse_ppm(&text), Ok(ppm));
        }

        #[test]
        fn no_text_panics_or_exceeds_all(text in "\\PC*") {
            prop_assert!(parse_ppm(&text).unwrap_or(0) <= PPM_OF_ALL);
        }
    }
}
