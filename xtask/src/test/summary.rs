//! What a run of `cargo xtask test` says at its end, and the report for programs.

use std::{fmt, fs, path::Path};

use anyhow::{Context, Result};
use serde::Serialize;
use vm_tests::report::Outcome;

use crate::{out::say, vmtest::TestResult};

/// How many of what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Counts {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Counts {
    /// Counts these.
    pub(crate) fn of(results: &[TestResult]) -> Counts {
        let mut counts = Counts::default();
        for result in results {
            match result.outcome {
                Outcome::Passed => counts.passed += 1,
                Outcome::Failed(_) => counts.failed += 1,
                Outcome::Skipped(_) => counts.skipped += 1,
            }
        }
        counts
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

/// Writes `target/test/report.json`: each test with kernel, outcome and seconds.
///
/// # Errors
/// If it cannot be written.
pub(super) fn write(root: &Path, results: &[TestResult], times: &[(&str, f64)]) -> Result<()> {
    #[derive(Serialize)]
    struct Stage<'a> {
        stage: &'a str,
        seconds: f64,
    }
    #[derive(Serialize)]
    struct Report<'a> {
        counts: Counts,
        stages: Vec<Stage<'a>>,
        results: &'a [TestResult],
    }
    let stages = times
        .iter()
        .map(|&(stage, seconds)| Stage { stage, seconds })
        .collect();
    let report = Report {
        counts: Counts::of(results),
        stages,
        results,
    };
    let directory = root.join("target/test");
    fs::create_dir_all(&directory)
        .and_then(|()| {
            let json = serde_json::to_vec_pretty(&report)?;
            fs::write(directory.join("report.json"), json)
        })
        .with_context(|| format!("failed to write {}/report.json", directory.display()))
}

/// Prints times, what failed, what was skipped and why, and closes with the line of counts.
pub(super) fn print(results: &[TestResult], times: &[(&str, f64)]) {
    say!("");
    for (stage, seconds) in times {
        say!("{stage:10} {seconds:7.1} s");
    }
    let failed = |result: &&TestResult| !result.is_good();
    let skipped = |result: &&TestResult| matches!(result.outcome, Outcome::Skipped(_));
    for result in results
        .iter()
        .filter(skipped)
        .chain(results.iter().filter(failed))
    {
        say!("{}", result.line());
    }
    say!("{}", Counts::of(results));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_line_counts_every_result_once() {
        let outcomes = [
            Outcome::Passed,
            Outcome::Skipped("x".into()),
            Outcome::Failed("y".into()),
            Outcome::Passed,
        ];
        let results: Vec<_> = outcomes
            .into_iter()
            .map(|outcome| TestResult {
                test: "t".into(),
                kernel: None,
                outcome,
                seconds: 0.0,
            })
            .collect();
        assert_eq!(
            Counts::of(&results).to_string(),
            "2 passed, 1 failed, 1 skipped"
        );
    }
}
