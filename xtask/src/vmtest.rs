//! `cargo xtask vm`: boots a bare virtual machine and runs `tests/vm` in it.
//!
//! Not here: the tests and what runs inside (`tests/vm`), and the choice of kernels for a full run
//! (`test.rs`).

mod image;
mod outcome;
mod share;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use vm_tests::report::{Event, Outcome, THOROUGH};

use crate::{
    image::Profile,
    out::{note, say},
    qemu::{Drive, DriveFormat, Machine},
    setup::{
        kernels::{self, Series},
        runtimes,
    },
    step::{Step, step},
};

pub(crate) use image::{Binaries, build, built};
use outcome::HANGS;
pub(crate) use outcome::{KernelRun, TestResult};
pub(crate) use share::Share;

/// A machine that still runs after this time hangs: the runner inside has limits of its own.
const TIME_LIMIT: Duration = Duration::from_secs(2400);

/// QEMU's emulation of code that patches itself on another CPU fails now and then, as when a program is
/// attached to a system call that another CPU is about to enter: that one goes on with the breakpoint of
/// a patch that is long done. Newer kernels die of it (`Oops: int3`), Linux 6.1 believes that it has
/// just been removed and tries again for ever. The machine is booted again and goes on with the test
/// that it was at.
const BOOTS: u32 = 8;

/// They cost time, and nobody attacks these machines.
const MITIGATIONS: &str = "mitigations=off";

/// Where the console of the last boot that failed is kept.
const CRASHED: &str = "console.crashed.log";

/// What to run.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Options {
    /// Run only the tests whose name contains this
    #[arg(long, value_name = "PART")]
    pub(crate) only: Option<String>,
    /// Take the binaries of the last build
    #[arg(long)]
    pub(crate) no_build: bool,
    /// Tests that try a sample of what they could try everything, for up to an hour each
    #[arg(long)]
    pub(crate) thorough: bool,
    /// Not all of the tests are for this machine
    #[arg(skip)]
    pub(crate) share: Option<Share>,
    /// Appended to the kernel's command line, for those inside to read
    #[arg(skip)]
    pub(crate) append: String,
    /// The machine gets no disk with language runtimes; tests of them are skipped
    #[arg(skip)]
    pub(crate) no_runtimes: bool,
    /// The machine may run so long instead of [`TIME_LIMIT`]
    #[arg(skip)]
    pub(crate) time_limit: Option<Duration>,
}

impl Options {
    /// Whether it goes from the last test to the first.
    pub(crate) fn is_backwards(&self) -> bool {
        self.share.as_ref().is_some_and(|share| share.backwards)
    }
}

/// `cargo xtask vm`.
///
/// # Errors
/// If the machine could not be made; failed tests are in the exit code.
pub(crate) fn run(root: &Path, series: Series, options: &Options) -> Result<ExitCode> {
    let binaries = if options.no_build {
        built(root, Profile::Image)
    } else {
        build(root, Profile::Image)?
    };
    let run = boot(root, series, &binaries, options)?;
    say!("");
    for result in &run.results {
        say!("{}", result.line());
    }
    say!(
        "Linux {}: {:.1} s; console in {}",
        run.release,
        run.seconds,
        run.directory.display()
    );
    let failed = run.results.iter().filter(|r| !r.is_good()).count();
    ensure!(
        !run.results.is_empty(),
        "no test has {:?} in its name",
        options.only
    );
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Boots one kernel with these binaries and waits for its results.
///
/// # Errors
/// If the machine could not be made, or did not get as far as the runner.
pub(crate) fn boot(
    root: &Path,
    series: Series,
    binaries: &Binaries,
    options: &Options,
) -> Result<KernelRun> {
    let only = options.only.as_deref().unwrap_or_default();
    ensure!(
        only.chars()
            .all(|c| c.is_ascii_alphanumeric() || "_:".contains(c)),
        "--only {only}: letters, digits, `_` and `:` only; it is a part of a test's name"
    );
    let kernel = kernels::ensure(series)?;
    let runtimes = match options.no_runtimes {
        true => None,
        false => Some(Drive {
            path: runtimes::ensure()?,
            format: DriveFormat::Raw,
            read_only: true,
        }),
    };
    let name = match options.is_backwards() {
        true => format!("{}-backwards", series.name()),
        false => series.name().to_owned(),
    };
    let directory = root.join("target/vm").join(&name);
    fs::create_dir_all(&directory)
        .with_context(|| format!("failed to make {}", directory.display()))?;
    step(&format!("VM {name}"), |step| {
        step.progress("waiting for another run with this kernel");
        let lock = File::create(directory.join("lock")).context("failed to make a lock")?;
        lock.lock()
            .context("failed to take the lock of a test VM")?;
        step.progress("packing");
        let initrd = directory.join("initramfs.cpio");
        fs::write(&initrd, image::pack(&kernel, binaries)?)
            .with_context(|| format!("failed to write {}", initrd.display()))?;
        let console = directory.join("console.log");
        let process = format!("faultline-test-{name}");
        let usual = match options.thorough {
            true => TIME_LIMIT * THOROUGH,
            false => TIME_LIMIT,
        };
        let limit = options.time_limit.unwrap_or(usual);
        let mut machine = Machine::new(&process, &kernel.vmlinuz, &initrd, &console, limit);
        let parameters = format!("{MITIGATIONS} {}", options.append);
        machine.append = format!("{parameters}{}", arguments(options, None));
        let events = directory.join("events.jsonl");
        machine.report = Some(events.clone());
        machine.drives = runtimes.into_iter().collect();
        let mut boots = 1;
        let mut before: Vec<TestResult> = Vec::new();
        // Each boot begins its report anew.
        let mut told: Vec<String> = Vec::new();
        loop {
            let share = options.share.as_ref();
            match watch(step, series, share, &machine, &events, directory.clone()) {
                // A wrong result of a run is never an error here: no test has begun.
                Err(error) if boots < BOOTS => {
                    boots += 1;
                    let first = trouble(&machine.console);
                    note!("VM {name}: boot {boots} of {BOOTS}: {first}");
                    crate::cache::remove(&directory.join(CRASHED))?;
                    fs::rename(&machine.console, directory.join(CRASHED))
                        .with_context(|| format!("to boot again after: {error:#}"))?;
                }
                Ok(KernelRun {
                    broken_in: Some(test),
                    results,
                    told: lines,
                    ..
                }) if boots < BOOTS => {
                    boots += 1;
                    note!("VM {name}: boot {boots} of {BOOTS}: it broke down in {test}");
                    crate::cache::remove(&directory.join(CRASHED))?;
                    fs::rename(&machine.console, directory.join(CRASHED))
                        .context("failed to keep the console")?;
                    // What came before it stands; it and the end of the run come again.
                    let is_new = |r: &TestResult| r.test != test && r.test != outcome::CUT_SHORT;
                    before.extend(results.into_iter().filter(is_new));
                    told.extend(lines);
                    let rest = arguments(options, Some(&test));
                    machine.append = format!("{parameters}{rest}");
                }
                Ok(mut run) => {
                    before.append(&mut run.results);
                    run.results = before;
                    told.append(&mut run.told);
                    run.told = told;
                    return Ok(run);
                }
                Err(error) => return Err(error),
            }
        }
    })
}

/// The end of the kernel's command line: init passes everything after the dashes on to the runner.
fn arguments(options: &Options, first: Option<&str>) -> String {
    let only = options.only.as_ref().filter(|only| !only.is_empty());
    let only = only.map(|only| format!(" --only {only}"));
    let backwards = options.is_backwards().then(|| " --backwards".to_owned());
    let thorough = options.thorough.then(|| " --thorough".to_owned());
    let first = first.map(|first| format!(" --from {first}"));
    let words = [only, backwards, thorough, first];
    let words: String = words.into_iter().flatten().collect();
    if words.is_empty() {
        words
    } else {
        format!(" --{words}")
    }
}

/// The first line of a console that says what went wrong.
fn trouble(console: &Path) -> String {
    let text = fs::read(console).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let is_trouble = |line: &&str| {
        ["Oops", "panic", "BUG", "vm-init:"]
            .iter()
            .any(|t| line.contains(t))
    };
    text.lines()
        .find(is_trouble)
        .unwrap_or("it did not get to its first test")
        .to_owned()
}

/// A kernel that did not get as far as the runner, as the one result of its run.
pub(crate) fn boot_failed(series: Series, error: &anyhow::Error) -> TestResult {
    TestResult {
        test: "boot::the_runner_starts".to_owned(),
        kernel: Some(series.name().to_owned()),
        outcome: Outcome::Failed(format!("{error:#}")),
        seconds: 0.0,
    }
}

/// Whether a CPU of the machine has been in the kernel for half a minute, by its own account.
fn is_locked_up(console: &Path) -> bool {
    let console = fs::read(console).unwrap_or_default();
    String::from_utf8_lossy(&console).contains("BUG: soft lockup")
}

/// Runs the machine to its end and shows which test it is at. The end of a share is the first test that
/// is not in it.
fn watch(
    step: &Step,
    series: Series,
    share: Option<&Share>,
    machine: &Machine,
    events: &PathBuf,
    directory: PathBuf,
) -> Result<KernelRun> {
    let started = Instant::now();
    let mut vm = machine.spawn()?;
    let mut shown = 0;
    let mut spoke = Instant::now();
    let ended = loop {
        let running = vm.is_running();
        let seen = parse(&read(events)?, share);
        for event in seen.iter().skip(shown) {
            show(step, series, event);
        }
        if seen.len() > shown {
            spoke = Instant::now();
        }
        shown = seen.len();
        match running {
            // It is at a test that is not in its share by now, or about to power off.
            Ok(true) if share.is_some() && matches!(seen.last(), Some(Event::Ended { .. })) => {
                vm.kill();
                break None;
            }
            Ok(true)
                if outcome::patience(&seen).is_some_and(|time| spoke.elapsed() > time)
                    || is_locked_up(&machine.console) =>
            {
                let asked = vm.end_hung();
                let silent = spoke.elapsed().as_secs();
                let why = format!("{HANGS}: not a word for {silent} s");
                break Some(match asked {
                    Ok(()) => format!("{why}; its CPUs are at the end of its console"),
                    Err(error) => format!("{why}; and where its CPUs are is not known: {error:#}"),
                });
            }
            Ok(true) => std::thread::sleep(Duration::from_millis(100)),
            Ok(false) => break None,
            Err(error) => break Some(format!("{error:#}")),
        }
    };
    let report = read(events)?;
    let console = fs::read(&machine.console).unwrap_or_default();
    let console = String::from_utf8_lossy(&console);
    let seconds = started.elapsed().as_secs_f64();
    let mut run = outcome::conclude(
        series.name(),
        &parse(&report, share),
        ended.as_deref(),
        &console,
        seconds,
        directory,
    )?;
    run.told = outcome::told(&report, run.broken_in.as_deref());
    Ok(run)
}

fn show(step: &Step, series: Series, event: &Event) {
    match event {
        Event::Booted { release, tests } => step.progress(format!("{release}: {tests} tests")),
        Event::Started { test, .. } => step.progress(test.as_str()),
        Event::Finished {
            test,
            outcome: Outcome::Failed(why),
            ..
        } => {
            note!("VM {}: FAILED {test}: {why}", series.name());
        }
        Event::Finished { .. } | Event::Ended { .. } => {}
    }
}

fn read(report: &PathBuf) -> Result<String> {
    let text = fs::read(report).with_context(|| format!("failed to read {}", report.display()))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The events of a report, of a share only those before the first test that is not in it. Its last
/// line may be half written; it does not parse then, and comes again.
fn parse(report: &str, share: Option<&Share>) -> Vec<Event> {
    let events = report.lines().filter_map(Event::parse);
    match share {
        Some(share) => outcome::until_taken(events, |test| share.take(test)),
        None => events.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_is_booted_again_goes_on_where_it_was() {
        let options = Options {
            share: Some(Share::default().other()),
            ..Options::default()
        };
        assert_eq!(arguments(&options, Some("z")), " -- --backwards --from z");
    }
}
