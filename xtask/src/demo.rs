//! `cargo xtask demo`: a person sees a fault come, bite and go. Act one happens on a bare machine,
//! while Kubernetes still compiles or the cluster starts; act two in that cluster, with operator and
//! agent as pods.
//!
//! Here is the order of things and what is told to whom. Not here: what happens in an act
//! (`act_one.rs`, `act_two.rs`), what is made of it (`report.rs`), pods and peers (`lab.rs`).

mod act_one;
mod act_two;
mod report;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, anyhow};

use self::report::Report;
use crate::{
    cluster::Cluster,
    image::Profile,
    out::say,
    setup,
    vmtest::{self, Binaries},
};

/// What to show.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Options {
    /// Write the same as data, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only one of the two: `one` is a bare machine, `two` a cluster
    #[arg(long)]
    act: Option<Act>,
}

/// A part of the demo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Act {
    One,
    Two,
}

/// `cargo xtask demo`.
///
/// # Errors
/// If a part of setup fails (the error says what to install), or a fault does not do what it should.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let wants = |act| options.act.is_none_or(|only| only == act);
    setup::apt::ensure()?;
    if wants(Act::Two) {
        setup::rootfs::check_root()?;
        setup::kube::check(root)?;
    }
    let mut report = Report::default();
    let done = acts(root, &wants, &mut report);
    // What was seen before something failed is worth keeping.
    if let Some(file) = &options.json {
        let mut text = serde_json::to_string_pretty(&report)?;
        text.push('\n');
        fs::write(file, text).with_context(|| format!("failed to write {}", file.display()))?;
    }
    done
}

fn acts(root: &Path, wants: &impl Fn(Act) -> bool, report: &mut Report) -> Result<()> {
    // Where everything is in the cache, the cluster starts beside act one. Otherwise compilers run for
    // minutes, and act one need not wait for them, nor be disturbed by more than one.
    let beside = wants(Act::One) && wants(Act::Two) && setup::kube::is_built(root)?;
    let binaries = wants(Act::One).then(|| build(root)).transpose()?;
    if wants(Act::Two) {
        // It compiles from here on; who needs it waits for it (`cluster::up`). Not before: two compilers at
        // once take as long as one after the other, and act one needs nothing of this.
        let _building = setup::kube::start(root)?;
    }
    let prepared = std::thread::scope(|scope| {
        let preparing = beside.then(|| scope.spawn(|| act_two::prepare(root)));
        if let Some(binaries) = &binaries {
            say!("Act one: one process of two is slowed, by hand, for five seconds.");
            let fault = timed(report, "act one", |_| act_one::run(root, binaries))?;
            say!("{}", fault.render());
            report.bare_machine = Some(fault);
        }
        let joined = preparing.map(|thread| thread.join());
        joined
            .transpose()
            .map_err(|_| anyhow!("the thread that prepares act two panicked"))
    })?;
    if wants(Act::Two) {
        say!(
            "Act two: a cluster; three pods labelled app.kubernetes.io/component=tikv and a client \
             probe each other by UDP, 20 times a second each."
        );
        timed(report, "act two", |report| {
            let prepared = prepared.unwrap_or_else(|| act_two::prepare(root))?;
            let cluster = ("  cluster".to_owned(), prepared.seconds);
            report.seconds.push(cluster);
            act_two::run(root, &prepared.cluster, report)
        })?;
    }
    for (name, seconds) in &report.seconds {
        say!("{name:<24} {seconds:>6.1} s");
    }
    Ok(())
}

/// Builds what act one runs, and fetches meanwhile what it runs on.
fn build(root: &Path) -> Result<Binaries> {
    std::thread::scope(|scope| {
        // Who needs them waits for them, and has their errors.
        scope.spawn(|| setup::kernels::ensure(act_one::KERNEL));
        scope.spawn(setup::qemu::ensure);
        vmtest::build(root, Profile::Image)
    })
}

/// Act two in a cluster that runs, and nothing left of it: for the tests of the cluster.
///
/// # Errors
/// If a fault does not do what it should.
pub(crate) fn try_in(cluster: &Cluster, root: &Path) -> Result<()> {
    let shown = act_two::run(root, cluster, &mut Report::default());
    shown.and(act_two::clear(cluster))
}

/// Does a part of the work and notes how long it took.
fn timed<T>(
    report: &mut Report,
    name: &str,
    work: impl FnOnce(&mut Report) -> Result<T>,
) -> Result<T> {
    let started = Instant::now();
    let result = work(report);
    let seconds = started.elapsed().as_secs_f64();
    report.seconds.push((name.to_owned(), seconds));
    result
}
