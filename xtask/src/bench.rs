//! `cargo xtask bench`: what faults cost and how exact they are, beside netem or ptrace where that
//! does the same. What is measured is in `tests/vm/src/bench/`; here it is run, judged and written down.
//!
//! What ran on this machine's own kernel and what ran in an emulated one are reports of their own: only
//! the first has nanoseconds that mean something elsewhere.

mod cluster;
mod report;

use std::{
    fs,
    path::Path,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use vm_tests::figures::{FEWEST_PAIRS, Figure, PAIRS};

use self::report::{Origin, Report};
use crate::{
    ebpf,
    image::Profile,
    out::say,
    setup::{kernels::Series, rust},
    step,
    vmtest::{self, Binaries},
};

/// Of the emulated machines.
const KERNEL: Series = Series::V6_12;

/// An emulated machine measures no longer than this.
const TIME_LIMIT: Duration = Duration::from_secs(3600);

#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// Only this part; all without it
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// Of that part, in an emulated machine, but not in a cluster, only the measurement whose name begins so (a_delay, arming)
    #[arg(long, requires = "only", value_name = "NAME")]
    measure: Option<String>,
    /// Pairs of each comparison, or times that something is measured alone; fewer than 15 try the benchmark, and say nothing
    #[arg(long, default_value_t = FEWEST_PAIRS)]
    pairs: usize,
    /// Take the machines' binaries of the last build
    #[arg(long)]
    no_build: bool,
}

/// What can be asked for by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// What packets pay in the packet programs, on this machine's kernel, as root
    Native,
    /// How exact faults are, beside netem, in an emulated machine
    Network,
    /// How quick and how big the agent is, in an emulated machine
    Agent,
    /// What faults on clocks cost and how quick they are, beside ptrace, in an emulated machine
    Time,
    /// How quick faults are from `kubectl apply` to the kernel, in an emulated cluster
    Cluster,
}

impl Part {
    const ALL: [Self; 5] = [
        Self::Native,
        Self::Network,
        Self::Agent,
        Self::Time,
        Self::Cluster,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Network => "network",
            Self::Agent => "agent",
            Self::Time => "time",
            Self::Cluster => "cluster",
        }
    }
}

/// Runs the parts; writes `target/bench/<part>.json` and prints tables.
///
/// # Errors
/// If a part could not be measured. A figure whose control failed is in the exit code.
pub(crate) fn run(root: &Path, options: &Options) -> Result<ExitCode> {
    ensure!(
        options.pairs > 0,
        "--pairs 0: at least 1, and {FEWEST_PAIRS} for a report"
    );
    let mut binaries = None;
    let mut good = true;
    for part in Part::ALL {
        if options.only.is_some_and(|only| only != part) {
            continue;
        }
        let started = Instant::now();
        let (kernel, figures) = match part {
            Part::Native => native(root, options.pairs)?,
            Part::Cluster => cluster::measure(root, options.pairs)?,
            Part::Network | Part::Agent | Part::Time => {
                let binaries = match &binaries {
                    Some(binaries) => binaries,
                    None if options.no_build => {
                        binaries.insert(vmtest::built(root, Profile::Release))
                    }
                    None => binaries.insert(vmtest::build(root, Profile::Release)?),
                };
                emulated(root, part, binaries, options)?
            }
        };
        let report = Report::new(
            part.name(),
            if part == Part::Native {
                Origin::Native
            } else {
                Origin::Tcg
            },
            kernel,
            options.pairs < FEWEST_PAIRS,
            started.elapsed(),
            figures,
        );
        let file = report.write(&root.join("target/bench"))?;
        for line in report.lines() {
            say!("{line}");
        }
        say!("  written to {}", file.display());
        good &= report.is_valid();
    }
    if !good {
        say!(
            "A control failed: the run is void. Try again on a quieter machine, or with more --pairs."
        );
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// On this machine.
fn native(root: &Path, pairs: usize) -> Result<(String, Vec<Figure>)> {
    rust::ensure()?;
    let env = ebpf::cargo_env()?;
    step::step("packet-bench", |step| {
        let mut build = rust::cargo();
        build.current_dir(root);
        build.args(["build", "--package", "vm-tests", "--bin", "packet-bench"]);
        step.run(build.envs(env))?;
        let mut figures = Vec::new();
        let mut bench = Command::new(root.join("target/debug/packet-bench"));
        bench.arg(pairs.to_string());
        step.run_watched(&mut bench, |line| {
            let figure = Figure::parse(line)?;
            let name = figure.name.clone();
            figures.push(figure);
            Some(name)
        })
        .context(
            "packet-bench needs root and a kernel with BPF; `--only` network, agent, time or cluster do not",
        )?;
        let release = fs::read_to_string("/proc/sys/kernel/osrelease");
        Ok((release.unwrap_or_default().trim().to_owned(), figures))
    })
}

/// In a machine of its own.
fn emulated(
    root: &Path,
    part: Part,
    binaries: &Binaries,
    options: &Options,
) -> Result<(String, Vec<Figure>)> {
    let measure = options.measure.as_deref().unwrap_or_default();
    let pairs = options.pairs;
    let options = vmtest::Options {
        only: Some(format!("bench::{}::{measure}", part.name())),
        append: format!("{PAIRS}{pairs}"),
        no_runtimes: true,
        time_limit: Some(TIME_LIMIT),
        ..vmtest::Options::default()
    };
    let run = vmtest::boot(root, KERNEL, binaries, &options)?;
    if let Some(failed) = run.results.iter().find(|result| !result.is_good()) {
        bail!("{}", failed.line());
    }
    let lines = run.told.iter().map(String::as_str);
    let figures: Vec<Figure> = lines.filter_map(Figure::parse).collect();
    ensure!(
        !figures.is_empty(),
        "the machine told nothing: see {}",
        run.directory.display()
    );
    Ok((run.release, figures))
}
