//! The stage that boots a machine with each kernel.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use anyhow::{Result, anyhow};
use vm_tests::report::Outcome;

use super::{Context, failed, matrix, result};
use crate::{
    image::Profile,
    out::note,
    setup::kernels::Series,
    vmtest::{self, Binaries, KernelRun, Options, Share, TestResult},
};

/// Tests that must fail, and a part of how.
const SABOTAGE: [(&str, &str); 5] = [
    ("sabotage::hangs", "hung"),
    ("sabotage::leaves_a_cgroup_behind", "left cgroups behind"),
    (
        "sabotage::makes_the_kernel_complain",
        "the kernel complained",
    ),
    ("sabotage::panics", "on purpose"),
    ("sabotage::takes_the_machine_down", "the machine went down"),
];

/// Machines at a time. A machine waits more than it works, and each has two CPUs as the smallest
/// host that tests are meant for.
const MACHINES: usize = 2;

/// How many failed tests are run once more, alone: two emulated machines on two cores stall each
/// other for seconds, and many failures are not that.
const SECOND_TRIES: usize = 5;

/// Runs the tests of `tests/vm` on all kernels.
///
/// # Errors
/// If the binaries do not build. A kernel that does not boot is a failed test.
pub(super) fn run(context: &Context<'_>) -> Result<Vec<TestResult>> {
    let binaries = vmtest::build(context.root, Profile::Image)?;
    let only = (!context.only.is_empty()).then(|| context.only.to_owned());
    let options = Options {
        only,
        ..Options::default()
    };
    let mut results = Vec::new();
    if context.only.is_empty() {
        results.push(sabotage(context, &binaries)?);
    }
    results.extend(on_all_kernels(context, &binaries, &options)?);
    // A part of the tests says nothing about the table.
    if context.only.is_empty() {
        let started = Instant::now();
        let compared = matrix::compare_or_write(context.root, &results, context.bless);
        results.push(compared.unwrap_or_else(|error| failed(matrix::TEST, &error, started)));
    }
    Ok(results)
}

/// What the machines run, in this order: a kernel that is left over when each machine has had as many as the others
/// is shared by two, so that none idles.
fn jobs(options: &Options, until: Option<Instant>) -> Vec<(Series, Options)> {
    let with = |series, share| {
        let share = Some(share);
        (
            series,
            Options {
                share,
                ..options.clone()
            },
        )
    };
    let whole = |series| with(series, Share::until(until));
    // A few tests are not worth another boot.
    if options.only.is_some() {
        return Series::ALL.map(whole).into();
    }
    let even = Series::ALL.len() / MACHINES * MACHINES;
    let (each, left) = Series::ALL.split_at(even);
    let halves = left.iter().flat_map(|&series| {
        let share = Share::until(until);
        [share.other(), share].map(|share| with(series, share))
    });
    each.iter().copied().map(whole).chain(halves).collect()
}

/// Results in the order of the kernels, whichever was done first.
fn on_all_kernels(
    context: &Context<'_>,
    binaries: &Binaries,
    options: &Options,
) -> Result<Vec<TestResult>> {
    let until = context.time.map(|time| time.machines);
    let (jobs, next) = (jobs(options, until), AtomicUsize::new(0));
    let mut runs = std::thread::scope(|scope| {
        let worker = || {
            let mut runs = Vec::new();
            while let Some((series, options)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                runs.push((*series, on(*series, context, binaries, options)));
            }
            runs
        };
        let workers: Vec<_> = (0..MACHINES).map(|_| scope.spawn(worker)).collect();
        let ended = workers.into_iter().filter_map(|worker| worker.join().ok());
        ended.flatten().collect::<Vec<_>>()
    });
    runs.sort_by_key(|(series, _)| *series);
    let results = runs
        .into_iter()
        .flat_map(|(series, results)| results.into_iter().map(move |result| (series, result)));
    let mut again = SECOND_TRIES;
    let mut results: Vec<_> = results
        .map(|(series, result)| match &result.outcome {
            Outcome::Failed(why) if again > 0 && result.kernel.is_some() => {
                again -= 1;
                second_try(series, context, binaries, &result, why).unwrap_or(result)
            }
            _ => result,
        })
        .collect();
    if context.only.is_empty() && until.is_some_and(|until| Instant::now() > until) {
        results.extend(matrix::without_time(context.root, &results)?);
    }
    for series in Series::ALL {
        let name = Some(series.name());
        if context.only.is_empty() && !results.iter().any(|r| r.kernel.as_deref() == name) {
            results.push(vmtest::boot_failed(series, &anyhow!("it has no results")));
        }
    }
    Ok(results)
}

/// Runs one test again, with the host to itself; its good result, if it is one. The first failure
/// is told all the same.
fn second_try(
    series: Series,
    context: &Context<'_>,
    binaries: &Binaries,
    failed: &TestResult,
    why: &str,
) -> Option<TestResult> {
    let options = Options {
        only: Some(failed.test.clone()),
        ..Options::default()
    };
    let results = on(series, context, binaries, &options);
    let good = results
        .into_iter()
        .find(|result| result.test == failed.test && result.is_good())?;
    let name = series.name();
    note!("VM {name}: {} passed alone, after: {why}", failed.test);
    Some(good)
}

fn on(
    series: Series,
    context: &Context<'_>,
    binaries: &Binaries,
    options: &Options,
) -> Vec<TestResult> {
    match vmtest::boot(context.root, series, binaries, options) {
        Ok(run) => {
            let name = series.name();
            note!("VM {name}: Linux {} in {:.1} s", run.release, run.seconds);
            run.results
        }
        Err(error) => vec![vmtest::boot_failed(series, &error)],
    }
}

/// A harness that cannot fail proves nothing: runs the tests that must.
fn sabotage(context: &Context<'_>, binaries: &Binaries) -> Result<TestResult> {
    let started = Instant::now();
    let only = Some("sabotage::".to_owned());
    let options = Options {
        only,
        ..Options::default()
    };
    let run = vmtest::boot(context.root, Series::V6_12, binaries, &options)?;
    let missed = missed(&run);
    let outcome = if missed.is_empty() {
        Outcome::Passed
    } else {
        Outcome::Failed(format!("not noticed: {}", missed.join(", ")))
    };
    Ok(result("vm::the_harness_notices_sabotage", outcome, started))
}

/// Those that did not fail as they must.
fn missed(run: &KernelRun) -> Vec<&'static str> {
    let failed_as = |test: &str, how: &str| {
        run.results.iter().any(|result| {
            let why = if let Outcome::Failed(why) = &result.outcome {
                why.as_str()
            } else {
                ""
            };
            result.test == test && why.contains(how)
        })
    };
    SABOTAGE
        .iter()
        .filter(|(test, how)| !failed_as(test, how))
        .map(|(test, _)| *test)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_runs_every_test_once() {
        let machines = |only: Option<&str>| {
            let options = Options {
                only: only.map(str::to_owned),
                ..Options::default()
            };
            let jobs = jobs(&options, None);
            Series::ALL.map(|series| {
                let mine = jobs.iter().filter(|(job, _)| *job == series);
                mine.map(|(_, options)| options.is_backwards())
                    .collect::<Vec<_>>()
            })
        };
        assert_eq!(
            machines(None),
            [vec![false], vec![false], vec![true, false]]
        );
        assert_eq!(machines(Some("loss")), [[false]; 3]);
    }
}
