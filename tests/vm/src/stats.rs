//! Medians and percentiles of measured times.

use std::time::Duration;

use anyhow::{Result, bail};

/// Measured times, sorted.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<Duration>);

impl FromIterator<Duration> for Samples {
    fn from_iter<I: IntoIterator<Item = Duration>>(times: I) -> Samples {
        let mut times: Vec<_> = times.into_iter().collect();
        times.sort_unstable();
        Samples(times)
    }
}

impl Samples {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The one in the middle.
    ///
    /// # Errors
    /// There are no samples.
    pub fn median(&self) -> Result<Duration> {
        self.percentile(50.0)
    }

    /// The smallest sample that `percent` (0 to 100) of all do not exceed.
    ///
    /// # Errors
    /// There are no samples.
    pub fn percentile(&self, percent: f64) -> Result<Duration> {
        let rank = (percent / 100.0 * self.0.len() as f64).ceil() as usize;
        match self.0.get(rank.saturating_sub(1)) {
            Some(time) => Ok(*time),
            None => bail!("no samples: nothing was measured"),
        }
    }

    /// The largest.
    ///
    /// # Errors
    /// There are no samples.
    pub fn max(&self) -> Result<Duration> {
        self.percentile(100.0)
    }

    /// The smallest.
    ///
    /// # Errors
    /// There are no samples.
    pub fn min(&self) -> Result<Duration> {
        self.percentile(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(times: &[u64]) -> Samples {
        times.iter().map(|t| Duration::from_millis(*t)).collect()
    }

    #[test]
    fn percentiles_take_the_nearest_rank() {
        let samples = millis(&[4, 1, 3, 2]);
        for (percent, expected) in [
            (0.0, 1),
            (25.0, 1),
            (26.0, 2),
            (50.0, 2),
            (75.0, 3),
            (99.0, 4),
            (100.0, 4),
        ] {
            let got = samples.percentile(percent).unwrap();
            assert_eq!(got, Duration::from_millis(expected), "p{percent}");
        }
    }

    #[test]
    fn nothing_measured_is_an_error_and_not_zero() {
        assert!(millis(&[]).median().is_err());
    }
}
