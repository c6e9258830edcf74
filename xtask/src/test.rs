//! `cargo xtask test`: everything that must hold before a change is merged. `.ci/run` calls it.
//!
//! Stages go from cheap to dear; all run, also after a failure, so that one run shows all that is
//! wrong. Compilers work in the time that emulated machines wait. Not here: what a stage does
//! (`tidy.rs`, `codegen.rs`, `vmtest.rs`, `test/*.rs`).

mod cargo;
pub(crate) mod matrix;
mod summary;
mod vms;

use std::{
    path::Path,
    process::{Command, ExitCode},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Result;
use vm_tests::report::Outcome;

use crate::{
    cluster_tests, codegen,
    image::Profile,
    out::note,
    setup, step, tidy,
    vmtest::{self, TestResult},
};

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
    /// Begin no test in a machine when half of so many minutes are over, and none in a cluster when all
    /// are; what is left out counts as skipped. For a slow machine and a limit that is not ours
    #[arg(long, value_name = "MINUTES")]
    within: Option<u32>,
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
    /// See [`Options::within`].
    pub(crate) time: Option<Time>,
}

/// Until when tests may begin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Time {
    /// In a machine that is made for them.
    pub(crate) machines: Instant,
    /// In a cluster.
    pub(crate) cluster: Instant,
}

impl Time {
    fn within(minutes: u32) -> Time {
        let (now, all) = (Instant::now(), Duration::from_mins(minutes.into()));
        Time {
            machines: now + all / 2,
            cluster: now + all,
        }
    }
}

/// A part of the run.
struct Stage {
    name: &'static str,
    /// It has tests to choose from by name; other stages are left out when a name is asked for.
    has_tests: bool,
    /// When it runs if all do.
    turn: Turn,
    /// An error counts as one failed test with the name of the stage.
    run: fn(&Context<'_>) -> Result<Vec<TestResult>>,
}

/// When a stage runs in a complete run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// It takes a moment.
    First,
    /// It compiles, at the lowest priority, beside the machines: those wait more than they work.
    Compilers,
    /// It runs what has been compiled so, beside the machines.
    Compiled,
    /// It is the emulated machines.
    Machines,
    /// It needs the whole host.
    Last,
}

/// As they run when only some do, and as they are told of.
const STAGES: &[Stage] = &[
    Stage {
        name: "format",
        has_tests: false,
        turn: Turn::First,
        run: |c| cargo::format(c.root),
    },
    Stage {
        name: "tidy",
        has_tests: true,
        turn: Turn::First,
        run: |c| tidy::check(c.root, c.only),
    },
    Stage {
        name: "codegen",
        has_tests: false,
        turn: Turn::Compilers,
        run: |c| generated_files_are_current(c.root),
    },
    Stage {
        name: "lints",
        has_tests: false,
        turn: Turn::Compilers,
        run: |c| cargo::lints(c.root),
    },
    Stage {
        name: "alone",
        has_tests: false,
        turn: Turn::Compilers,
        run: |c| cargo::crates_alone(c.root),
    },
    Stage {
        name: "unit",
        has_tests: true,
        turn: Turn::Compiled,
        run: |c| cargo::unit_tests(c.root, c.only),
    },
    Stage {
        name: "vm",
        has_tests: true,
        turn: Turn::Machines,
        run: vms::run,
    },
    Stage {
        name: "cluster",
        has_tests: true,
        turn: Turn::Last,
        run: cluster_tests::run,
    },
];

/// What stages have said so far.
struct Run<'a> {
    root: &'a Path,
    options: &'a Options,
    /// What was asked for is a stage, not a part of a test's name.
    is_stage: bool,
    time: Option<Time>,
    done: Mutex<Vec<Done>>,
}

/// A stage that has ended.
struct Done {
    stage: &'static str,
    /// Nothing if it was left out.
    seconds: Option<f64>,
    results: Vec<TestResult>,
}

impl Run<'_> {
    fn only(&self) -> &str {
        self.options.only.as_deref().unwrap_or_default()
    }

    fn is_chosen(&self, stage: &Stage) -> bool {
        match self.only() {
            "" => true,
            only if self.is_stage => stage.name == only,
            _ => stage.has_tests,
        }
    }

    /// Runs those of one turn, one after the other.
    fn turn(&self, turn: Turn) {
        for stage in STAGES.iter().filter(|stage| stage.turn == turn) {
            self.add(self.run(stage));
        }
    }

    fn run(&self, stage: &Stage) -> Done {
        let started = Instant::now();
        if self.options.leaves_out(stage.name) {
            let reason = format!("left out by --without {}", stage.name);
            return Done {
                stage: stage.name,
                seconds: None,
                results: vec![result(stage.name, Outcome::Skipped(reason), started)],
            };
        }
        note!("stage {}", stage.name);
        let context = Context {
            root: self.root,
            only: if self.is_stage { "" } else { self.only() },
            bless: self.options.bless,
            time: self.time,
        };
        let results =
            (stage.run)(&context).unwrap_or_else(|error| vec![failed(stage.name, &error, started)]);
        for failed in results.iter().filter(|result| !result.is_good()) {
            note!("{}", failed.line());
        }
        let seconds = started.elapsed().as_secs_f64();
        note!(
            "stage {}: {} in {seconds:.1} s",
            stage.name,
            summary::Counts::of(&results)
        );
        Done {
            stage: stage.name,
            seconds: Some(seconds),
            results,
        }
    }

    fn add(&self, done: Done) {
        let mut all = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(done);
    }

    /// All stages. What is missing is told now rather than in half an hour, and the longest part of it is
    /// made while other things run.
    fn complete(&self) -> Result<()> {
        setup::apt::ensure()?;
        if !self.options.leaves_out("cluster") {
            setup::rootfs::check_root()?;
        }
        let kubernetes = setup::kube::start(self.root)?;
        setup::rust::ensure()?;
        self.turn(Turn::First);
        if !self.options.leaves_out("vm") {
            // Before cargo is busy with the rest. An error is told by the stage, which builds them again.
            let _binaries = vmtest::build(self.root, Profile::Image);
        }
        std::thread::scope(|scope| {
            let compilers = scope.spawn(|| {
                let started = Instant::now();
                if let Err(error) = lowest_priority() {
                    note!("compilers have the usual priority: {error:#}");
                }
                // The operator's tests run an API server, and skip themselves without one.
                if let Err(error) = kubernetes.wait() {
                    self.add(Done {
                        stage: "setup",
                        seconds: None,
                        results: vec![failed("setup::kubernetes", &error, started)],
                    });
                }
                self.turn(Turn::Compilers);
                if !self.options.leaves_out("unit") {
                    // As with the binaries above.
                    let _compiled = cargo::compile_unit_tests(self.root);
                }
                if !self.options.leaves_out("cluster") {
                    let _made = cluster_tests::prepare(self.root);
                }
            });
            scope.spawn(|| {
                if let Err(panic) = compilers.join() {
                    std::panic::resume_unwind(panic);
                }
                self.turn(Turn::Compiled);
            });
            self.turn(Turn::Machines);
        });
        self.turn(Turn::Last);
        Ok(())
    }
}

/// Of this thread, and of what it starts from now on.
fn lowest_priority() -> Result<()> {
    let thread = nix::unistd::gettid().to_string();
    step::output(Command::new("chrt").args(["--idle", "--pid", "0", &thread]))?;
    Ok(())
}

/// `cargo xtask test`.
///
/// # Errors
/// If something is missing that cannot be installed from here, or the report cannot be written; failed tests are in the
/// exit code.
pub(crate) fn run(root: &Path, options: &Options) -> Result<ExitCode> {
    let run = Run {
        root,
        options,
        is_stage: STAGES
            .iter()
            .any(|stage| Some(stage.name) == options.only.as_deref()),
        time: options.within.map(Time::within),
        done: Mutex::default(),
    };
    if run.only().is_empty() {
        run.complete()?;
    } else {
        setup::rust::ensure()?;
        for stage in STAGES.iter().filter(|stage| run.is_chosen(stage)) {
            run.add(run.run(stage));
        }
    }
    let mut done = run
        .done
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|done| STAGES.iter().position(|stage| stage.name == done.stage));
    let times: Vec<_> = done
        .iter()
        .filter_map(|done| Some((done.stage, done.seconds?)))
        .collect();
    let results: Vec<_> = done.into_iter().flat_map(|done| done.results).collect();
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

/// The same of something that ended with an error.
pub(crate) fn failed(test: &str, error: &anyhow::Error, started: Instant) -> TestResult {
    result(test, Outcome::Failed(format!("{error:#}")), started)
}

fn generated_files_are_current(root: &Path) -> Result<Vec<TestResult>> {
    let started = Instant::now();
    codegen::run(root, true)?;
    Ok(vec![result(
        "codegen::generated_files_are_current",
        Outcome::Passed,
        started,
    )])
}
