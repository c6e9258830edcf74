//! The stages that cargo does: format, lints, each pure crate by itself, unit tests.

use std::{path::Path, process::Command, time::Instant};

use anyhow::Result;
use vm_tests::report::Outcome;

use super::{failed, result};
use crate::{ebpf, setup::rust, step::step, vmtest::TestResult};

/// Crates that must build without what the rest of the workspace switches on in their dependencies.
const PURE: [&str; 5] = [
    "chaos-abi",
    "chaos-api",
    "chaos-crd",
    "chaos-planner",
    "chaos-ebpf",
];

/// `cargo fmt --check`.
///
/// # Errors
/// What is not formatted.
pub(super) fn format(root: &Path) -> Result<Vec<TestResult>> {
    let started = Instant::now();
    step("format", |step| {
        step.run(cargo(root).args(["fmt", "--all", "--check"]))
    })?;
    Ok(vec![result(
        "format::sources_are_formatted",
        Outcome::Passed,
        started,
    )])
}

/// Clippy without a single warning.
///
/// # Errors
/// The warnings.
pub(super) fn lints(root: &Path) -> Result<Vec<TestResult>> {
    let started = Instant::now();
    let env = ebpf::cargo_env()?;
    step("clippy", |step| {
        step.run(
            cargo(root)
                .args([
                    "clippy",
                    "--workspace",
                    "--all-targets",
                    "--",
                    "--deny",
                    "warnings",
                ])
                .envs(env),
        )
    })?;
    Ok(vec![result(
        "lints::clippy_has_nothing_to_say",
        Outcome::Passed,
        started,
    )])
}

/// Each of the pure crates builds by itself.
///
/// # Errors
/// If cargo cannot be started.
pub(super) fn crates_alone(root: &Path) -> Result<Vec<TestResult>> {
    let check = |krate: &&str| {
        let started = Instant::now();
        let built = step(&format!("{krate} alone"), |step| {
            step.run(cargo(root).args(["check", "--package", krate]))
        });
        let outcome =
            built.map_or_else(|e| Outcome::Failed(format!("{e:#}")), |()| Outcome::Passed);
        result(&format!("alone::{krate}"), outcome, started)
    };
    Ok(PURE.iter().map(check).collect())
}

/// Compiles what [`unit_tests`] runs.
///
/// # Errors
/// If it does not compile.
pub(super) fn compile_unit_tests(root: &Path) -> Result<()> {
    let mut command = test_workspace(root)?;
    step("unit tests, compiled", |step| {
        step.run(command.arg("--no-run"))
    })
}

fn test_workspace(root: &Path) -> Result<Command> {
    let env = ebpf::cargo_env()?;
    let mut command = cargo(root);
    command.args(["test", "--workspace"]).envs(env);
    Ok(command)
}

/// The tests that need no virtual machine, those whose name contains `only`.
///
/// # Errors
/// If they do not compile.
pub(super) fn unit_tests(root: &Path, only: &str) -> Result<Vec<TestResult>> {
    let mut command = test_workspace(root)?;
    let started = Instant::now();
    let mut output = String::new();
    let done = step("unit tests", |step| {
        command.arg("--no-fail-fast");
        if !only.is_empty() {
            command.args(["--", only]);
        }
        step.run_watched(&mut command, |line| {
            output.push_str(line);
            output.push('\n');
            Some(line.to_owned())
        })
    });
    let mut results = parse(&output);
    // Something else than a test went wrong: it did not compile, or a test binary crashed.
    if let Err(error) = done
        && results.iter().all(TestResult::is_good)
    {
        results.push(failed("unit::all_tests_run", &error, started));
    }
    Ok(results)
}

/// Reads what `cargo test` prints. The times of single tests are not in it.
fn parse(output: &str) -> Vec<TestResult> {
    let mut results: Vec<TestResult> = Vec::new();
    let mut binary = String::new();
    let mut failing = None;
    for line in output.lines() {
        if let Some(name) = binary_of(line) {
            binary = name;
            failing = None;
        } else if let Some((test, outcome)) = outcome_of(line) {
            let test = format!("{binary}::{test}");
            results.push(TestResult {
                test,
                kernel: None,
                outcome,
                seconds: 0.0,
            });
        } else if let Some(test) = line.strip_prefix("---- ") {
            let test = test.split(' ').next().unwrap_or_default();
            failing = Some(format!("{binary}::{test}"));
        } else if line == "failures:" {
            failing = None;
        } else if let Some(test) = &failing
            && let Some(result) = results.iter_mut().find(|r| r.test == *test)
            && let Outcome::Failed(why) = &mut result.outcome
        {
            why.push_str("\n  ");
            why.push_str(line);
        }
    }
    results
}

/// `Running unittests src/lib.rs (target/debug/deps/chaos_abi-0123456789abcdef)` is `chaos_abi`.
fn binary_of(line: &str) -> Option<String> {
    let line = line.trim_start();
    if let Some(krate) = line.strip_prefix("Doc-tests ") {
        return Some(krate.to_owned());
    }
    let path = line
        .strip_prefix("Running ")?
        .split_once('(')?
        .1
        .strip_suffix(')')?;
    let file = path.rsplit('/').next()?;
    Some(
        file.rsplit_once('-')
            .map_or(file, |(name, _hash)| name)
            .to_owned(),
    )
}

/// `test rule::tests::it_works ... ok`
fn outcome_of(line: &str) -> Option<(&str, Outcome)> {
    let (test, word) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let outcome = match word.split_once(", ").map_or((word, ""), |parts| parts) {
        ("ok", _) => Outcome::Passed,
        ("FAILED", _) => Outcome::Failed(String::new()),
        ("ignored", "") => Outcome::Skipped("ignored without a reason".to_owned()),
        ("ignored", reason) => Outcome::Skipped(reason.to_owned()),
        _ => return None,
    };
    Some((test.split(" - ").next().unwrap_or(test), outcome))
}

fn cargo(root: &Path) -> Command {
    let mut command = rust::cargo();
    command.current_dir(root);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
   Compiling chaos-abi v0.1.0
     Running unittests src/lib.rs (target/debug/deps/chaos_abi-61cc5ff47a11bd07)
running 3 tests
test sample::tests::same_seed_same_draw ... ok
test tests::needs_more ... ignored, only on big endian
test tests::breaks ... FAILED
failures:
---- tests::breaks stdout ----
thread 'tests::breaks' panicked at src/lib.rs:9:
assertion failed
failures:
    tests::breaks
test result: FAILED. 1 passed; 1 failed; 1 ignored
   Doc-tests chaos_agent
test chaos-agent/src/lib.rs - node (line 12) ... ok
";

    #[test]
    fn each_test_is_found_with_its_binary_and_its_reason() {
        let results = parse(OUTPUT);
        let seen: Vec<_> = results
            .iter()
            .map(|r| (r.test.as_str(), &r.outcome))
            .collect();
        assert_eq!(seen.len(), 4);
        assert_eq!(
            seen[0],
            (
                "chaos_abi::sample::tests::same_seed_same_draw",
                &Outcome::Passed
            )
        );
        assert_eq!(
            *seen[1].1,
            Outcome::Skipped("only on big endian".to_owned())
        );
        let Outcome::Failed(why) = seen[2].1 else {
            panic!("{:?}", seen[2])
        };
        assert!(
            why.contains("panicked") && !why.contains("test result"),
            "{why}"
        );
        assert_eq!(seen[3].0, "chaos_agent::chaos-agent/src/lib.rs");
    }
}
