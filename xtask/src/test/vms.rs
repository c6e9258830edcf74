//! The stage that boots a machine with each kernel.

use std::time::Instant;

use anyhow::Result;
use vm_tests::report::Outcome;

use super::{Context, matrix, result};
use crate::{
    out::note,
    setup::kernels::Series,
    vmtest::{self, Binaries, KernelRun, Options, TestResult},
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

/// Runs the tests of `tests/vm` on all kernels, one after the other: two machines at a time would
/// make the delays that they measure depend on each other.
///
/// # Errors
/// If the binaries do not build. A kernel that does not boot is a failed test.
pub(super) fn run(context: &Context<'_>) -> Result<Vec<TestResult>> {
    let binaries = vmtest::build(context.root)?;
    let only = (!context.only.is_empty()).then(|| context.only.to_owned());
    let options = Options {
        only,
        ..Options::default()
    };
    let mut results = Vec::new();
    if context.only.is_empty() {
        results.push(sabotage(context, &binaries)?);
    }
    for series in Series::ALL {
        match vmtest::boot(context.root, series, &binaries, &options) {
            Ok(run) => {
                note!(
                    "VM {}: Linux {} in {:.1} s",
                    series.name(),
                    run.release,
                    run.seconds
                );
                results.extend(run.results);
            }
            Err(error) => results.push(vmtest::boot_failed(series, &error)),
        }
    }
    // A part of the tests says nothing about the table.
    if context.only.is_empty() {
        results.extend(matrix::compare_or_write(
            context.root,
            &results,
            context.bless,
        )?);
    }
    Ok(results)
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
