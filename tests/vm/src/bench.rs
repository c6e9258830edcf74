//! Benchmarks: what faults cost and how exact they are. `cargo xtask bench` runs them and judges; a
//! test only sees that they run.
//!
//! Here is how things are compared; what is compared is in the modules. The rules are those of
//! [`crate::figures`].

pub(crate) mod agent;
mod empty;
mod lanes;
mod netem;
pub(crate) mod network;
pub mod packets;
pub(crate) mod time;

use std::fs::OpenOptions;
use std::io::Write;

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

use crate::figures::statistics::{median, median_with_interval};
use crate::figures::{FEWEST_PAIRS, Figure, Interval, PAIRS};
use crate::runner::EVENTS;

/// How often a comparison is begun anew after its control has failed: of good controls one in twenty
/// fails by chance.
const TRIES: u32 = 3;

/// How many pairs the host asks for.
fn asked_pairs() -> Result<usize> {
    let line = std::fs::read_to_string("/proc/cmdline").context("no kernel command line")?;
    let pairs = line
        .split_whitespace()
        .find_map(|word| word.strip_prefix(PAIRS));
    let pairs = pairs.with_context(|| format!("{PAIRS}: not there: run `cargo xtask bench`"))?;
    pairs
        .parse()
        .with_context(|| format!("{PAIRS}{pairs}: must be a number"))
}

/// Tells the host.
fn tell(figure: &Figure) -> Result<()> {
    let mut host = OpenOptions::new()
        .write(true)
        .open(EVENTS)
        .context("failed to open the console of events")?;
    writeln!(host, "{}", figure.line()).context("failed to tell the host")
}

/// Keeps this thread on the CPU that it is on: another one's caches are cold.
///
/// # Errors
/// What the kernel answers.
pub fn pin_to_this_cpu() -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(sched_getcpu()?)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).context("failed to stay on one CPU")
}

/// Something that gives one value each time.
pub trait Measure: FnMut() -> Result<f64> {}

impl<F: FnMut() -> Result<f64>> Measure for F {}

/// Copies of one side of a comparison, in turns: where a program is in memory makes a hundredth, and so the
/// control of two fail, however alike they are.
struct InTurns<T> {
    copies: Vec<T>,
    measured: usize,
}

impl<T> InTurns<T> {
    /// At least one copy, see [`copies`].
    fn new(copies: Vec<T>) -> Self {
        Self {
            copies,
            measured: 0,
        }
    }

    /// The one to measure next: both measurements of a pair are of the same.
    fn next(&mut self) -> Result<&mut T> {
        let turn = self.measured / 2 % self.copies.len().max(1);
        self.measured += 1;
        self.copies.get_mut(turn).context("there is no copy")
    }
}

/// How many copies a side of so many pairs has: fewer than [`FEWEST_PAIRS`] only try the benchmark.
const fn copies(pairs: usize) -> usize {
    if pairs < FEWEST_PAIRS { 1 } else { 5 }
}

/// The ratio of `ours` to `reference`, in pairs A B B A; between these the control, `reference` to its
/// `twin`, likewise.
///
/// # Errors
/// What measuring fails with.
pub fn compare(
    name: &str,
    unit: &str,
    pairs: usize,
    (mut ours, mut reference, mut twin): (impl Measure, impl Measure, impl Measure),
) -> Result<Figure> {
    let [figure] = compare_each(
        [(name, unit)],
        pairs,
        (|| Ok([ours()?]), || Ok([reference()?]), || Ok([twin()?])),
    )?;
    Ok(figure)
}

/// The same for several ratios, each with a name and a unit, whose sides are measured in one go. Those
/// whose controls failed are measured anew.
fn compare_each<const N: usize>(
    names: [(&str, &str); N],
    pairs: usize,
    (mut ours, mut reference, mut twin): (
        impl FnMut() -> Result<[f64; N]>,
        impl FnMut() -> Result<[f64; N]>,
        impl FnMut() -> Result<[f64; N]>,
    ),
) -> Result<[Figure; N]> {
    // Fewer pairs only try the benchmark.
    let earnest = pairs >= FEWEST_PAIRS;
    // Caches, and connections that are made once.
    for _ in 0..if earnest { 2 } else { 0 } {
        ours()?;
        reference()?;
        twin()?;
    }
    let mut round = |tries: u32| -> Result<[Figure; N]> {
        // Of each pair the four measurements of A B B A, and those of the control.
        let (mut sides, mut controls) = (Vec::new(), Vec::new());
        for _ in 0..pairs {
            sides.push([ours()?, reference()?, reference()?, ours()?]);
            controls.push([reference()?, twin()?, twin()?, reference()?]);
        }
        Ok(std::array::from_fn(|n| {
            let (name, unit) = names[n];
            let of = |turns: &[[[f64; N]; 4]]| -> Vec<[f64; 4]> {
                turns.iter().map(|turn| turn.map(|side| side[n])).collect()
            };
            let (sides, controls) = (of(&sides), of(&controls));
            let quotients = |turns: &[[f64; 4]]| -> Vec<f64> {
                let quotient = |[a, b, b2, a2]: &[f64; 4]| (a + a2) / (b + b2);
                turns.iter().map(quotient).collect()
            };
            let of_ours: Vec<f64> = sides.iter().flat_map(|[a, _, _, a2]| [*a, *a2]).collect();
            let of_reference: Vec<f64> = sides.iter().flat_map(|[_, b, b2, _]| [*b, *b2]).collect();
            ratio(name, unit, &quotients(&sides), &quotients(&controls), tries)
                .detail("ours", median(&of_ours))
                .detail("reference", median(&of_reference))
        }))
    };
    let mut figures = round(1)?;
    for tries in 2..=TRIES {
        if !earnest || !figures.iter().any(control_failed) {
            break;
        }
        for (figure, again) in figures.iter_mut().zip(round(tries)?) {
            if control_failed(figure) {
                *figure = again;
            }
        }
    }
    Ok(figures)
}

fn control_failed(figure: &Figure) -> bool {
    figure.control.is_some_and(|control| !control.contains(1.0))
}

/// A figure of ratios of pairs, and of those of the control.
fn ratio(name: &str, unit: &str, ratios: &[f64], control: &[f64], tries: u32) -> Figure {
    let control: Interval = median_with_interval(control).1;
    Figure {
        control: Some(control),
        tries,
        ..Figure::of(name, unit, ratios)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Judgement;

    /// Gives these in turns.
    fn gives(values: &[f64]) -> impl Measure {
        let mut next = values.iter().copied().cycle();
        move || Ok(next.next().unwrap_or(f64::NAN))
    }

    #[test]
    fn both_measurements_of_a_pair_are_of_one_copy() {
        let mut copies = InTurns::new(vec!['a', 'b', 'c']);
        let seen: String = (0..8).map(|_| *copies.next().unwrap()).collect();
        assert_eq!(seen, "aabbccaa");
    }

    #[test]
    fn a_drift_that_hits_both_is_no_difference() {
        // Each measurement is slower than the one before: A B B A cancels it.
        let clock = std::cell::Cell::new(100.0);
        let slower = || {
            clock.set(clock.get() + 1.0);
            Ok(clock.get())
        };
        let figure = compare("x", "", 20, (slower, slower, slower)).unwrap();
        assert_eq!((figure.value, figure.samples, figure.tries), (1.0, 20, 1));
        assert_eq!(
            figure.control.unwrap(),
            Interval {
                low: 1.0,
                high: 1.0
            }
        );
    }

    #[test]
    fn a_ratio_is_found_behind_noise() {
        let noise = [1.0, 1.1, 0.9, 1.05, 0.95, 1.0, 1.02];
        let double = noise.map(|x| 2.0 * x);
        let figure = compare("x", "", 20, (gives(&double), gives(&noise), gives(&noise))).unwrap();
        assert!(figure.interval.contains(2.0), "{figure:?}");
        assert_eq!(figure.judgement(), Judgement::Published);
    }

    #[test]
    fn a_control_that_is_not_its_twin_is_tried_again_and_then_void() {
        let figure = compare("x", "", 15, (gives(&[1.0]), gives(&[1.0]), gives(&[1.2]))).unwrap();
        assert_eq!(figure.tries, TRIES);
        assert_eq!(figure.judgement(), Judgement::Void);
    }

    #[test]
    fn of_several_ratios_only_those_whose_control_failed_are_measured_anew() {
        const PAIRS: usize = 15;
        let mut calls = 0;
        // Other than its twin until the first round, with what comes before it, is over.
        let twin = || {
            calls += 1;
            Ok([1.0, if calls <= 2 + 2 * PAIRS { 1.2 } else { 1.0 }])
        };
        let sides = (|| Ok([1.0, 3.0]), || Ok([1.0, 1.0]), twin);
        let [first, second] = compare_each([("a", ""), ("b", "")], PAIRS, sides).unwrap();
        assert_eq!((first.value, first.tries), (1.0, 1));
        assert_eq!((second.value, second.tries), (3.0, 2));
        assert_eq!(second.judgement(), Judgement::Published);
    }

    #[test]
    fn an_error_of_a_measurement_is_the_error_of_the_comparison() {
        let fails = || anyhow::bail!("gone");
        assert!(compare("x", "", 15, (gives(&[1.0]), fails, gives(&[1.0]))).is_err());
    }
}
