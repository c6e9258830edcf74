//! What works on which kernel: `tests/vm/matrix.json` is what the VM tests said last, committed, and
//! the table in README.md is made from it.
//!
//! A test that comes, goes, or is skipped where it ran before changes the matrix; the run then fails
//! and says so, until `cargo xtask test --bless` has written it anew and the change is committed. So
//! the README cannot claim what the tests do not show, and a skip cannot creep in. Nothing in the
//! matrix depends on times or on the exact release of a kernel.

use std::{collections::BTreeMap, fmt, fs, path::Path, time::Instant};

use anyhow::{Context, Result, bail, ensure};
use vm_tests::report::Outcome;

use super::result;
use crate::{
    setup::kernels::Series,
    tidy::{Rule, Tree},
    vmtest::TestResult,
};

/// Full name of a test -> name of a kernel -> `passed` or `skipped: <reason>`.
type Matrix = BTreeMap<String, BTreeMap<String, String>>;

const FILE: &str = "tests/vm/matrix.json";
const README: &str = "README.md";
const BEGIN: &str = "<!-- kernels: written by `cargo xtask test --bless` -->";
const END: &str = "<!-- end of kernels -->";

/// Name of the comparison among the results.
pub(super) const TEST: &str = "vm::results_are_those_of_the_matrix";

const PASSED: &str = "passed";
const SKIPPED: &str = "skipped: ";
const FAILED: &str = "failed";
/// Not compared, as a failure is not: it says something about the machine that the tests ran on.
const NO_TIME: &str = "no time was left (--within)";

/// The rules about it that need no test run.
pub(crate) const RULES: &[Rule] = &[Rule {
    name: "the_table_of_kernels_is_the_one_of_the_tests",
    why: "the README must not claim what no test shows; `cargo xtask test --bless` writes both",
    check: readme_is_current,
}];

fn readme_is_current(tree: &Tree) -> Vec<String> {
    let judge = || -> Result<()> {
        let readme = tree.get(README).context("there is none")?;
        let matrix = parse(
            tree.get(FILE)
                .with_context(|| format!("there is no {FILE}"))?,
        )?;
        ensure!(
            with_table(readme, &table(&matrix))? == readme,
            "the table is not that of {FILE}"
        );
        Ok(())
    };
    judge()
        .err()
        .map(|error| format!("{README}: {error:#}"))
        .into_iter()
        .collect()
}

/// Compares the results of a complete run with the matrix; or writes the matrix and the README's
/// table, if all has passed.
///
/// # Errors
/// If a file cannot be read or written.
pub(super) fn compare_or_write(
    root: &Path,
    results: &[TestResult],
    bless: bool,
) -> Result<TestResult> {
    let started = Instant::now();
    let now = of(results);
    let file = root.join(FILE);
    if bless {
        let is_complete = |r: &TestResult| r.is_good() && r.outcome != no_time();
        ensure!(
            results.iter().all(is_complete),
            "--bless: tests have failed or were left out; the matrix stays as it is"
        );
        fs::write(&file, serde_json::to_string_pretty(&now)? + "\n")
            .with_context(|| format!("failed to write {}", file.display()))?;
        let readme = root.join(README);
        let text = fs::read_to_string(&readme).context("failed to read README.md")?;
        fs::write(&readme, with_table(&text, &table(&now))?)
            .context("failed to write README.md")?;
    }
    let before = match fs::read_to_string(&file) {
        Ok(text) => parse(&text)?,
        Err(_) => Matrix::new(),
    };
    let changes = changes(&before, &now);
    let outcome = if changes.is_empty() {
        Outcome::Passed
    } else {
        Outcome::Failed(format!(
            "not what {FILE} says:\n  {}\n  if that is meant, run `cargo xtask test --bless`",
            changes.join("\n  ")
        ))
    };
    Ok(result(TEST, outcome, started))
}

/// Of a test that was left out because its time was over.
pub(crate) fn no_time() -> Outcome {
    Outcome::Skipped(NO_TIME.to_owned())
}

/// Tests of the matrix that have no result: there was no time for them.
///
/// # Errors
/// If the matrix cannot be read.
pub(super) fn without_time(root: &Path, results: &[TestResult]) -> Result<Vec<TestResult>> {
    let file = root.join(FILE);
    let text =
        fs::read_to_string(&file).with_context(|| format!("failed to read {}", file.display()))?;
    let (all, now) = (parse(&text)?, of(results));
    let mut missing = Vec::new();
    for (test, kernels) in all {
        for kernel in kernels.into_keys() {
            if now.get(&test).is_none_or(|ran| !ran.contains_key(&kernel)) {
                missing.push(TestResult {
                    test: test.clone(),
                    kernel: Some(kernel),
                    outcome: no_time(),
                    seconds: 0.0,
                });
            }
        }
    }
    Ok(missing)
}

fn parse(text: &str) -> Result<Matrix> {
    serde_json::from_str(text).with_context(|| format!("failed to understand {FILE}"))
}

fn of(results: &[TestResult]) -> Matrix {
    let mut matrix = Matrix::new();
    for result in results {
        let Some(kernel) = &result.kernel else {
            continue;
        };
        let outcome = match &result.outcome {
            Outcome::Passed => PASSED.to_owned(),
            Outcome::Skipped(why) => format!("{SKIPPED}{why}"),
            Outcome::Failed(_) => FAILED.to_owned(),
        };
        matrix
            .entry(result.test.clone())
            .or_default()
            .insert(kernel.clone(), outcome);
    }
    matrix
}

/// What differs. A failed test has failed as such; it is no change of the matrix, nor is one without time.
fn changes(before: &Matrix, now: &Matrix) -> Vec<String> {
    let mut changes = Vec::new();
    let mut names: Vec<_> = before.keys().chain(now.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        for series in Series::ALL {
            let of = |matrix: &Matrix| matrix.get(name)?.get(series.name()).cloned();
            let (before, now) = (of(before), of(now));
            let says_nothing =
                |now: &str| now == FAILED || now.strip_prefix(SKIPPED) == Some(NO_TIME);
            if before != now && !now.as_deref().is_some_and(says_nothing) {
                let show = |outcome: Option<String>| outcome.unwrap_or_else(|| "not there".into());
                let kernel = series.name();
                changes.push(format!(
                    "{name} on {kernel}: {}, was {}",
                    show(now),
                    show(before)
                ));
            }
        }
    }
    changes
}

/// A row for each fault and for what else is promised, a column for each kernel, and under it why
/// tests were skipped.
fn table(matrix: &Matrix) -> String {
    let mut rows: BTreeMap<Row<'_>, Vec<&BTreeMap<String, String>>> = BTreeMap::new();
    for (test, kernels) in matrix {
        if let Some(row) = Row::of(test) {
            rows.entry(row).or_default().push(kernels);
        }
    }
    let heads: Vec<_> = Series::ALL
        .iter()
        .map(|s| format!("Linux {}", s.name()))
        .collect();
    let mut lines = vec![
        format!("| | {} |", heads.join(" | ")),
        format!("|---|{}", "---|".repeat(heads.len())),
    ];
    for (row, tests) in &rows {
        let cells: Vec<_> = Series::ALL.iter().map(|&s| cell(tests, s)).collect();
        lines.push(format!("| {row} | {} |", cells.join(" | ")));
    }
    let mut skips = Vec::new();
    for (test, kernels) in matrix.iter().filter(|(test, _)| Row::of(test).is_some()) {
        for (kernel, outcome) in kernels {
            if let Some(why) = outcome.strip_prefix(SKIPPED) {
                skips.push(format!("- Linux {kernel}, {test}: {why}"));
            }
        }
    }
    if !skips.is_empty() {
        lines.push(String::new());
        lines.append(&mut skips);
    }
    lines.join("\n")
}

/// What a test says something about; in the order of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Row<'a> {
    Fault(&'a str),
    Other(&'a str),
}

impl<'a> Row<'a> {
    /// `None` for tests of the harness and of the kernel alone.
    fn of(test: &'a str) -> Option<Row<'a>> {
        let (module, rest) = test.split_once("::")?;
        let inner = rest.split_once("::").map(|(inner, _)| inner);
        match (module, inner) {
            ("faults", Some(fault)) => Some(Row::Fault(fault)),
            ("promises", Some(promise)) => Some(Row::Other(promise)),
            ("checks" | "boot" | "run", _) => None,
            _ => Some(Row::Other(module)),
        }
    }
}

impl fmt::Display for Row<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Row::Fault(fault) => write!(f, "[{fault}](docs/faults/{fault}.md)"),
            Row::Other(what) => f.write_str(&what.replace('_', " ")),
        }
    }
}

fn cell(tests: &[&BTreeMap<String, String>], series: Series) -> String {
    let outcomes = || {
        tests
            .iter()
            .filter_map(|kernels| kernels.get(series.name()))
    };
    let passed = outcomes().filter(|outcome| *outcome == PASSED).count();
    let skipped = outcomes().count() - passed;
    let tests = if passed == 1 { "test" } else { "tests" };
    match (passed, skipped) {
        (0, 0) => "not tested".to_owned(),
        (0, _) => "no".to_owned(),
        (_, 0) => format!("yes, {passed} {tests}"),
        _ => format!("partly, {passed} {tests}, {skipped} skipped"),
    }
}

/// The text with what stands between the markers replaced.
fn with_table(readme: &str, table: &str) -> Result<String> {
    let Some((head, rest)) = readme.split_once(BEGIN) else {
        bail!("the marker {BEGIN} is missing");
    };
    let Some((_, tail)) = rest.split_once(END) else {
        bail!("the marker {END} is missing")
    };
    Ok(format!("{head}{BEGIN}\n{table}\n{END}{tail}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(outcomes: &[(&str, &str, &str)]) -> Matrix {
        let mut matrix = Matrix::new();
        for (test, kernel, outcome) in outcomes {
            let kernels = matrix.entry((*test).to_owned()).or_default();
            kernels.insert((*kernel).to_owned(), (*outcome).to_owned());
        }
        matrix
    }

    #[test]
    fn the_table_says_yes_partly_no_and_why() {
        let table = table(&matrix(&[
            ("checks::x", "6.1", "passed"),
            ("faults::delay::a", "6.1", "passed"),
            ("faults::delay::b", "6.1", "skipped: no fq"),
            ("faults::delay::a", "6.12", "passed"),
            ("faults::loss::a", "6.1", "skipped: old"),
            ("command_line::a", "6.1", "passed"),
            ("command_line::b", "6.1", "passed"),
            ("promises::deadline::a", "6.12", "passed"),
        ]));
        assert_eq!(
            table,
            "| | Linux 6.1 | Linux 6.12 | Linux 7 |\n\
             |---|---|---|---|\n\
             | [delay](docs/faults/delay.md) | partly, 1 test, 1 skipped | yes, 1 test | not tested |\n\
             | [loss](docs/faults/loss.md) | no | not tested | not tested |\n\
             | command line | yes, 2 tests | not tested | not tested |\n\
             | deadline | not tested | yes, 1 test | not tested |\n\n\
             - Linux 6.1, faults::delay::b: no fq\n\
             - Linux 6.1, faults::loss::a: old"
        );
    }

    #[test]
    fn a_new_skip_a_new_test_and_a_lost_one_are_changes_and_a_failure_is_not() {
        let before = matrix(&[
            ("a", "6.1", "passed"),
            ("b", "6.1", "passed"),
            ("d", "6.1", "passed"),
            ("e", "6.1", "passed"),
        ]);
        let now = matrix(&[
            ("a", "6.1", "skipped: x"),
            ("c", "6.1", "passed"),
            ("d", "6.1", "failed"),
            ("e", "6.1", &format!("{SKIPPED}{NO_TIME}")),
        ]);
        assert_eq!(
            changes(&before, &now),
            [
                "a on 6.1: skipped: x, was passed",
                "b on 6.1: not there, was passed",
                "c on 6.1: passed, was not there"
            ]
        );
        assert!(changes(&before, &before).is_empty());
    }

    #[test]
    fn only_the_text_between_the_markers_is_replaced() {
        let readme = format!("head\n{BEGIN}\nold\n{END}\ntail\n");
        let expected = format!("head\n{BEGIN}\nnew\n{END}\ntail\n");
        assert_eq!(with_table(&readme, "new").unwrap(), expected);
        assert!(with_table("no markers", "new").is_err());
    }
}
