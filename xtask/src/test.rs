//! `cargo xtask test`: everything that must hold before a change is merged. `.ci/run` calls it.
//!
//! Stages go from cheap to dear; all run, also after a failure, so that one run shows all that is
//! wrong. Not here: what a stage does (`tidy.rs`, `codegen.rs`, `vmtest.rs`, `test/*.rs`).

mod cargo;
pub(crate) mod matrix;
mod summary;
mod vms;

use std::{path::Path, process::ExitCode, time::Instant};

use anyhow::Result;
use vm_tests::report::Outcome;

use crate::{cluster_tests, codegen, out::note, setup, tidy, vmtest::TestResult};

/// What to test.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Options {
    /// Run only this stage (format, tidy, codegen, lints, alone, unit, vm, cluster), or the tests whose name
    /// contains this
    #[arg(long, value_name = "STAGE|PART")]
    only: Option<String>,
    /// Leave this stage out; it counts as skipped
    #[arg(long, value_name = "STAGE")]
    without: Vec<String>,
    /// Take what the VM tests say as the new tests/vm/matrix.json, and write README.md's table
    #[arg(long)]
    bless: bool,
}

impl Options {
    fn leaves_out(&self, stage: &str) -> bool {
        self.without.iter().any(|name| name == stage)
    }
}

/// What a stage gets.
pub(crate) struct Context<'a> {
    /// The root of the repository.
    pub(crate) root: &'a Path,
    /// Part of the names of the tests to run; empty runs all.
    pub(crate) only: &'a str,
    /// See [`Options::bless`].
    pub(crate) bless: bool,
}

/// A part of the run.
struct Stage {
    name: &'static str,
    /// It has tests to choose from by name; other stages are left out when a name is asked for.
    has_tests: bool,
    /// An error counts as one failed test with the name of the stage.
    run: fn(&Context<'_>) -> Result<Vec<TestResult>>,
}

/// In this order.
const STAGES: &[Stage] = &[
    Stage {
        name: "format",
        has_tests: false,
        run: |c| cargo::format(c.root),
    },
    Stage {
        name: "tidy",
        has_tests: true,
        run: |c| tidy::check(c.root, c.only),
    },
    Stage {
        name: "codegen",
        has_tests: false,
        run: |_| generated_files_are_current(),
    },
    Stage {
        name: "lints",
        has_tests: false,
        run: |c| cargo::lints(c.root),
    },
    Stage {
        name: "alone",
        has_tests: false,
        run: |c| cargo::crates_alone(c.root),
    },
    Stage {
        name: "unit",
        has_tests: true,
        run: |c| cargo::unit_tests(c.root, c.only),
    },
    Stage {
        name: "vm",
        has_tests: true,
        run: vms::run,
    },
    Stage {
        name: "cluster",
        has_tests: true,
        run: cluster_tests::run,
    },
];

/// The operator's tests among those of this stage run an API server, and skip themselves without one.
const FIRST_WITH_KUBERNETES: &str = "unit";

/// `cargo xtask test`.
///
/// # Errors
/// If something is missing that cannot be installed from here, or the report cannot be written; failed tests are in the
/// exit code.
pub(crate) fn run(root: &Path, options: &Options) -> Result<ExitCode> {
    let only = options.only.as_deref().unwrap_or_default();
    let named = STAGES.iter().any(|stage| stage.name == only);
    let mut results = Vec::new();
    let mut times = Vec::new();
    // What is missing is told now rather than in half an hour, and the longest part of it is made while
    // the cheap stages run.
    let mut building = if only.is_empty() {
        setup::apt::ensure()?;
        if !options.leaves_out("cluster") {
            setup::rootfs::check_root()?;
        }
        Some(setup::kube::start(root)?)
    } else {
        None
    };
    setup::rust::ensure()?;
    for stage in STAGES {
        let chosen = only.is_empty()
            || if named {
                stage.name == only
            } else {
                stage.has_tests
            };
        if !chosen {
            continue;
        }
        if options.leaves_out(stage.name) {
            let reason = format!("left out by --without {}", stage.name);
            results.push(result(stage.name, Outcome::Skipped(reason), Instant::now()));
            continue;
        }
        if stage.name == FIRST_WITH_KUBERNETES
            && let Some(Err(error)) = building.take().map(setup::kube::Building::wait)
        {
            let outcome = Outcome::Failed(format!("{error:#}"));
            results.push(result("setup::kubernetes", outcome, Instant::now()));
        }
        let part = if named { "" } else { only };
        let context = Context {
            root,
            only: part,
            bless: options.bless,
        };
        note!("stage {}", stage.name);
        let started = Instant::now();
        let done = (stage.run)(&context).unwrap_or_else(|error| {
            vec![result(
                stage.name,
                Outcome::Failed(format!("{error:#}")),
                started,
            )]
        });
        for failed in done.iter().filter(|result| !result.is_good()) {
            note!("{}", failed.line());
        }
        let seconds = started.elapsed().as_secs_f64();
        note!(
            "stage {}: {} in {seconds:.1} s",
            stage.name,
            summary::Counts::of(&done)
        );
        times.push((stage.name, seconds));
        results.extend(done);
    }
    summary::write(root, &results, &times)?;
    summary::print(&results, &times);
    let good = !results.is_empty() && results.iter().all(TestResult::is_good);
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// A result of something that runs on the host, started at `started`.
pub(crate) fn result(test: &str, outcome: Outcome, started: Instant) -> TestResult {
    let seconds = started.elapsed().as_secs_f64();
    TestResult {
        test: test.to_owned(),
        kernel: None,
        outcome,
        seconds,
    }
}

fn generated_files_are_current() -> Result<Vec<TestResult>> {
    let started = Instant::now();
    codegen::run(true)?;
    Ok(vec![result(
        "codegen::generated_files_are_current",
        Outcome::Passed,
        started,
    )])
}
