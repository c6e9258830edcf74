//! From measured values to medians and intervals. Pure: the same numbers give the same result.
//!
//! No library: the one that is kept best (statrs) brings a dozen crates of linear algebra along.

use std::ops::RangeInclusive;

use chaos_abi::sample::number;
use serde::{Deserialize, Serialize};

/// Resamples of a bootstrap.
const RESAMPLES: u64 = 2_000;

/// Where the random numbers of a bootstrap begin.
const SEED: u64 = 0x626f_6f74;

/// What the true value lies in with a probability of 95 %.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Its lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

impl Interval {
    /// Whether `value` is in it, ends included.
    pub fn contains(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }
}

/// The value in the middle; NaN of none.
pub fn median(values: &[f64]) -> f64 {
    percentile(values, 50.0)
}

/// The value that `percent` (0 to 100) of all do not exceed, between two of them in proportion
/// (Hyndman and Fan, 1996, definition 7); NaN of none.
pub fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = percent / 100.0 * sorted.len().saturating_sub(1) as f64;
    let at = |place: f64| sorted.get(place as usize).copied().unwrap_or(f64::NAN);
    let (low, high) = (at(place.floor()), at(place.ceil()));
    low + (high - low) * place.fract()
}

/// How far values are from their mean, as a standard deviation of a sample; NaN of less than two.
pub fn deviation(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (n - 1.0)).sqrt()
}

/// The median, and the interval that a percentile bootstrap gives it (Efron, 1979): the middle 95 %
/// of the medians of [`RESAMPLES`] samples drawn from these with replacement.
pub fn median_with_interval(values: &[f64]) -> (f64, Interval) {
    let n = values.len() as u64;
    let resample = |round: u64| {
        let draw = |i: u64| {
            let place = (u64::from(number(SEED, round * n + i)) * n) >> 32;
            values.get(place as usize).copied().unwrap_or(f64::NAN)
        };
        median(&(0..n).map(draw).collect::<Vec<_>>())
    };
    let medians: Vec<f64> = (0..RESAMPLES).map(resample).collect();
    let interval = Interval {
        low: percentile(&medians, 2.5),
        high: percentile(&medians, 97.5),
    };
    (median(values), interval)
}

/// How many of `n` happen with a probability of 99 % if each does with `probability` (more than 0 and
/// less than 1): at most half a percent are below, and at most half a percent above.
pub fn binomial_99(n: u64, probability: f64) -> RangeInclusive<u64> {
    // In logarithms: the first of these terms is too small for a number.
    let odds = (probability / (1.0 - probability)).ln();
    let mut term = n as f64 * (1.0 - probability).ln();
    let mut below = 0.0;
    let mut ends = [None, None];
    for k in 0..=n {
        below += term.exp();
        for (end, share) in ends.iter_mut().zip([0.005, 0.995]) {
            if below >= share && end.is_none() {
                *end = Some(k);
            }
        }
        term += ((n - k) as f64 / (k + 1) as f64).ln() + odds;
    }
    ends[0].unwrap_or(0)..=ends[1].unwrap_or(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_between_the_two_in_the_middle() {
        assert_eq!(median(&[4.0, 1.0, 3.0]), 3.0);
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn percentiles_go_from_the_smallest_to_the_largest() {
        let values: Vec<f64> = (0..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&values, 0.0), 0.0);
        assert_eq!(percentile(&values, 50.0), 50.0);
        assert_eq!(percentile(&values, 99.0), 99.0);
        assert_eq!(percentile(&[1.0, 2.0], 25.0), 1.25);
        assert_eq!(percentile(&values, 100.0), 100.0);
        assert!(percentile(&[], 50.0).is_nan());
    }

    #[test]
    fn a_deviation_is_that_of_a_sample() {
        assert!((deviation(&[1.0, 2.0, 3.0]) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_bootstrap_is_the_same_each_time_and_holds_the_median() {
        let values: Vec<f64> = (0..25).map(|i| 1.0 + f64::from(i % 7) / 100.0).collect();
        let (median, interval) = median_with_interval(&values);
        assert_eq!((median, interval), median_with_interval(&values));
        assert!(interval.contains(median), "{interval:?}");
        assert!(
            interval.low < interval.high && interval.high < 1.07,
            "{interval:?}"
        );
        let (_, none) = median_with_interval(&[5.0; 15]);
        assert_eq!((none.low, none.high), (5.0, 5.0));
    }

    #[test]
    fn the_interval_of_a_bootstrap_holds_the_true_median_about_as_often_as_it_says() {
        const RUNS: u64 = 400;
        let holds = |run: &u64| {
            let value = |i| f64::from(number(run * 77 + 1, i)) / f64::from(u32::MAX);
            let values: Vec<f64> = (0..25).map(value).collect();
            median_with_interval(&values).1.contains(0.5)
        };
        let share = (0..RUNS).filter(holds).count() as f64 / RUNS as f64;
        assert!((0.91..=0.99).contains(&share), "{share}");
    }

    #[test]
    fn binomial_intervals_are_those_of_the_tables() {
        // From exact fractions.
        assert_eq!(binomial_99(1_000, 0.1), 76..=125);
        assert_eq!(binomial_99(1_000, 0.5), 459..=541);
        assert_eq!(binomial_99(10, 0.01), 0..=1);
    }
}
