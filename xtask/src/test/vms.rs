//! The stage that boots a machine with each kernel.

use anyhow::Result;

use super::{Context, matrix};
use crate::{
    out::note,
    setup::kernels::Series,
    vmtest::{self, TestResult},
};

/// Runs the tests of `tests/vm` on all kernels, one after the other: two machines at a time would
/// make the delays that they measure depend on each other.
///
/// # Errors
/// If the binaries do not build. A kernel that does not boot is a failed test.
pub(super) fn run(context: &Context<'_>) -> Result<Vec<TestResult>> {
    let binaries = vmtest::build(context.root)?;
    let only = (!context.only.is_empty()).then(|| context.only.to_owned());
    let options = vmtest::Options { only };
    let mut results = Vec::new();
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
