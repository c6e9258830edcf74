//! House rules as checks, each with its reason: `cargo xtask tidy`, and a stage of the tests.
//!
//! A rule looks at the text of the tree and nothing else. Not here: what clippy and rustfmt see.

mod layout;
mod links;
mod text;
mod tree;

use std::{path::Path, process::ExitCode, time::Instant};

use anyhow::Result;
use vm_tests::report::Outcome;

use crate::{out::say, test::matrix, vmtest::TestResult};

pub(crate) use tree::Tree;

/// A rule of the house.
pub(crate) struct Rule {
    /// A sentence that is true of a tidy tree.
    pub(crate) name: &'static str,
    /// Why it is a rule; printed with what breaks it.
    pub(crate) why: &'static str,
    /// What breaks it, one line each: `<file>: <what>`.
    pub(crate) check: fn(&Tree) -> Vec<String>,
}

/// All of them.
fn rules() -> impl Iterator<Item = &'static Rule> {
    layout::RULES
        .iter()
        .chain(text::RULES)
        .chain(links::RULES)
        .chain(matrix::RULES)
}

/// `cargo xtask tidy`.
///
/// # Errors
/// If the tree cannot be read.
pub(crate) fn run(root: &Path) -> Result<ExitCode> {
    let results = check(root, "")?;
    for result in &results {
        say!("{}", result.line());
    }
    let good = results.iter().all(TestResult::is_good);
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Checks the rules whose name contains `only`.
///
/// # Errors
/// If the tree cannot be read.
pub(crate) fn check(root: &Path, only: &str) -> Result<Vec<TestResult>> {
    let tree = Tree::read(root)?;
    let judge = |rule: &Rule| {
        let started = Instant::now();
        let broken = (rule.check)(&tree);
        let outcome = if broken.is_empty() {
            Outcome::Passed
        } else {
            Outcome::Failed(format!("{}\n  (why: {})", broken.join("\n  "), rule.why))
        };
        let seconds = started.elapsed().as_secs_f64();
        TestResult {
            test: format!("tidy::{}", rule.name),
            kernel: None,
            outcome,
            seconds,
        }
    };
    Ok(rules()
        .filter(|rule| rule.name.contains(only))
        .map(judge)
        .collect())
}
