//! `chaos-agent` as somebody at the node uses it: with and without a daemon, and after one that was
//! killed. What the faults themselves do is tested in `faults`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::cgroup::Cgroup;
use crate::clock::Stamp;
use crate::machine::release;
use crate::netns::{Namespace, Pair, Uplink, loopback_up};
use crate::node::{nothing_is_pinned, resident};
use crate::process::Place;
use crate::program::{Finished, Program, Running, Scratch};
use crate::udp::{self, Echo, Prober, Probing};
use crate::vm_test;

const PATIENCE: Duration = Duration::from_secs(45);

fn document(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: chaos-mesh.org/v1alpha1\nkind: {kind}\nmetadata:\n  name: {name}\n\
         spec:\n{spec}"
    )
}

/// Two namespaces, and a prober in the target's cgroup.
struct Stage {
    pair: Pair,
    cgroup: Cgroup,
    _echo: Echo,
    files: Scratch,
}

impl Stage {
    fn new() -> Result<Stage> {
        let pair = Pair::new()?;
        let _echo = Echo::start(Place::host().in_namespace(&pair.b))?;
        Ok(Stage {
            pair,
            cgroup: Cgroup::new()?,
            _echo,
            files: Scratch::new()?,
        })
    }

    fn probe(&self) -> Result<Prober> {
        let place = Place::host()
            .in_namespace(&self.pair.a)
            .in_cgroup(&self.cgroup);
        Prober::start(place, &Probing::of(Pair::B4).per_second(50))
    }

    fn apply(&self, name: &str, spec: &str) -> Result<Program> {
        self.apply_of("NetworkChaos", name, spec)
    }

    fn apply_of(&self, kind: &str, name: &str, spec: &str) -> Result<Program> {
        let file = self.files.file(name, &document(kind, name, spec))?;
        let (file, cgroup) = (
            file.display().to_string(),
            self.cgroup.path().display().to_string(),
        );
        Ok(Program::agent(["apply", "-f", &file, "--cgroup", &cgroup]))
    }
}

/// What a user would see, for the console of the machine.
#[expect(
    clippy::print_stderr,
    reason = "the runner keeps it beside the outcome"
)]
fn show(text: std::fmt::Arguments<'_>) {
    eprintln!("{text}");
}

fn agent<const N: usize>(args: [&str; N]) -> Result<Finished> {
    Program::agent(args).within(PATIENCE).run()
}

const METRICS: &str = "127.0.0.1:31766";

fn daemon() -> Result<Running> {
    loopback_up()?;
    let args = ["run", "--node-name", "vm", "--metrics", METRICS];
    let mut daemon = Program::agent(args).start(Place::host())?;
    daemon.wait_for("ready", PATIENCE)?;
    Ok(daemon)
}

/// The faults that `faults --json` lists.
fn faults() -> Result<Vec<Value>> {
    let listed = agent(["faults", "--json"])?;
    ensure!(listed.status.success(), "{listed}");
    listed.json()
}

/// A page of the daemon's.
fn get(path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(METRICS).context("no metrics")?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: vm\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

vm_test!(doctor_tries_each_mechanism_and_leaves_nothing, limit = 120);
fn doctor_tries_each_mechanism_and_leaves_nothing() -> Result<()> {
    let table = agent(["doctor"])?;
    show(format_args!("{table}"));
    let said: Value = agent(["doctor", "--json"])?.json()?;
    let mechanisms = said["mechanisms"].as_array().context("no mechanisms")?;
    ensure!(mechanisms.len() == 4, "{said}");
    let all = mechanisms.iter().all(|m| m["supported"] == true);
    ensure!(all && table.status.success(), "{said}");
    let hook = if release()?.starts_with("6.1.") {
        "works by clsact"
    } else {
        "works by tcx"
    };
    ensure!(table.stdout.contains(hook), "not {hook}: {table}");
    nothing_is_pinned()
}

vm_test!(
    apply_acts_on_what_comes_from_an_external_target,
    limit = 150,
    once
);
fn apply_acts_on_what_comes_from_an_external_target() -> Result<()> {
    let stage = Stage::new()?;
    let prober = stage.probe()?;
    let spec = "  action: delay\n  direction: from\n  externalTargets: ['10.9.0.2:7000']\n  \
                delay: {latency: 100ms}\n  duration: 8s\n";
    let mut apply = stage.apply("slow", spec)?.start(Place::host())?;
    apply.wait_for("armed by tc_ingress", PATIENCE)?;
    let armed = Stamp::now();
    std::thread::sleep(Duration::from_secs(2));
    let probes = prober.stop()?.after(armed);
    // The least of many: what is delayed is hardly early, and what is not is on time at least once.
    let (there, back) = (probes.there().min()?, probes.back().min()?);
    ensure!((99..190).contains(&back.as_millis()), "back {back:?}");
    ensure!(there.as_millis() < 80, "there {there:?}");
    ensure!(probes.lost() == 0, "lost {:?}", probes.lost_seqs());
    let status = apply.wait(PATIENCE)?;
    ensure!(
        status.success() && apply.stdout().contains("recovered, kernel verified clean"),
        "{status}: {}",
        apply.stdout()
    );
    nothing_is_pinned()
}

vm_test!(
    apply_alone_ends_at_its_deadline_and_cleans_up,
    limit = 150,
    once
);
fn apply_alone_ends_at_its_deadline_and_cleans_up() -> Result<()> {
    let stage = Stage::new()?;
    let prober = stage.probe()?;
    let spec = "  action: delay\n  delay: {latency: 100ms}\n  duration: 4s\n";
    let mut apply = stage.apply("slow", spec)?.start(Place::host())?;
    apply.wait_for("armed by tc_egress", PATIENCE)?;
    let armed = Stamp::now();
    // The same process serves the other commands meanwhile.
    let listed = faults()?;
    ensure!(
        listed.len() == 1 && listed[0]["name"] == "slow",
        "{listed:?}"
    );
    let status = apply.wait(PATIENCE)?;
    let ended = Stamp::now();
    show(format_args!("{}{}", apply.stdout(), apply.stderr()));
    ensure!(status.success(), "{status}");
    ensure!(
        apply.stdout().contains("ended at its deadline"),
        "why it ended"
    );
    ensure!(
        apply.stdout().contains("recovered, kernel verified clean"),
        "the verdict"
    );
    std::thread::sleep(Duration::from_millis(500));
    let probes = prober.stop()?;
    let during = probes.between(armed, ended).there().median()?;
    ensure!(
        (99..130).contains(&during.as_millis()),
        "delayed by {during:?}"
    );
    let after = probes.after(ended).there().median()?;
    ensure!(after.as_millis() < 30, "{after:?} after the end");
    // Without tcx, taking clsact away takes the queue away for a moment: until then nothing is lost.
    let held = probes.between(armed, armed + Duration::from_millis(3500));
    ensure!(held.lost() == 0, "lost {:?}", held.lost_seqs());
    nothing_is_pinned()
}

vm_test!(a_signal_ends_apply_and_its_fault, limit = 120, once);
fn a_signal_ends_apply_and_its_fault() -> Result<()> {
    let stage = Stage::new()?;
    let prober = stage.probe()?;
    let mut apply = stage
        .apply("apart", "  action: partition\n")?
        .start(Place::host())?;
    apply.wait_for("armed by cgroup_drop, until Ctrl-C", PATIENCE)?;
    let armed = Stamp::now();
    std::thread::sleep(Duration::from_secs(1));
    apply.signal(Signal::SIGINT)?;
    let status = apply.wait(PATIENCE)?;
    let ended = Stamp::now();
    show(format_args!("{}{}", apply.stdout(), apply.stderr()));
    ensure!(status.success(), "{status}");
    std::thread::sleep(Duration::from_millis(500));
    let probes = prober.stop()?;
    let during = probes.between(armed, armed + Duration::from_millis(900));
    ensure!(
        during.refused(nix::errno::Errno::EPERM) == during.len(),
        "{during:?}"
    );
    let after = probes.after(ended);
    ensure!(
        after.len() > 5 && after.answered() == after.len(),
        "{after:?}"
    );
    nothing_is_pinned()
}

vm_test!(
    a_bad_document_is_answered_by_file_and_line,
    limit = 30,
    once
);
fn a_bad_document_is_answered_by_file_and_line() -> Result<()> {
    let stage = Stage::new()?;
    let refused = stage
        .apply("typo", "  action: delay\n  delay: {latenzy: 100ms}\n")?
        .run()?;
    show(format_args!("{refused}"));
    ensure!(refused.status.code() == Some(1), "{refused}");
    ensure!(
        refused
            .stderr
            .contains("typo:7: spec.delay.latenzy: 100ms:"),
        "{refused}"
    );
    let usage = agent(["apply"])?;
    ensure!(usage.status.code() == Some(2), "{usage}");
    nothing_is_pinned()
}

vm_test!(the_daemon_holds_what_apply_asks_for, limit = 150, once);
fn the_daemon_holds_what_apply_asks_for() -> Result<()> {
    let stage = Stage::new()?;
    let prober = stage.probe()?;
    let mut daemon = daemon()?;
    let mut apply = stage
        .apply("lossy", "  action: loss\n  loss: {loss: '100'}\n")?
        .start(Place::host())?;
    apply.wait_for("armed by tc_egress", PATIENCE)?;
    show(format_args!("{}", agent(["faults"])?));
    let listed = agent(["maps", "list"])?;
    show(format_args!("{listed}"));
    ensure!(listed.status.success(), "{listed}");
    show(format_args!("{}", agent(["maps", "dump", "RULES"])?));
    show(format_args!(
        "{}",
        agent(["maps", "dump", "DEVICE_TARGETS", "--raw"])?
    ));
    let recovered = agent(["recover", "lossy"])?;
    show(format_args!("{recovered}"));
    ensure!(recovered.status.success(), "{recovered}");
    ensure!(faults()?.is_empty(), "it is off");
    let status = apply.wait(PATIENCE)?;
    show(format_args!("{}{}", apply.stdout(), apply.stderr()));
    ensure!(status.success(), "{status}");
    ensure!(
        apply
            .stdout()
            .contains("taken off by `chaos-agent recover`"),
        "why it ended"
    );
    let off = Stamp::now();
    std::thread::sleep(Duration::from_millis(500));
    let after = prober.stop()?.after(off);
    ensure!(after.len() > 5 && after.lost() == 0, "{after:?}");
    // What ended is still counted.
    let metrics = get("/metrics")?;
    let hits = metrics.lines().find(|line| {
        line.starts_with("faultline_hits_total{") && line.contains("outcome=\"injected\"")
    });
    let hits = hits.with_context(|| format!("no hits in {metrics}"))?;
    show(format_args!("{hits}"));
    ensure!(
        hits.contains("name=\"lossy\",mechanism=\"tc_egress\"") && !hits.ends_with(" 0"),
        "{hits}"
    );
    ensure!(get("/readyz")?.starts_with("HTTP/1.1 200"), "ready");
    daemon.signal(Signal::SIGTERM)?;
    ensure!(daemon.wait(PATIENCE)?.success(), "it stops when told to");
    let purged = agent(["recover", "--purge"])?;
    show(format_args!("{purged}"));
    ensure!(purged.status.success(), "{purged}");
    nothing_is_pinned()
}

vm_test!(
    the_commands_work_after_the_daemon_was_killed,
    limit = 150,
    once
);
fn the_commands_work_after_the_daemon_was_killed() -> Result<()> {
    let stage = Stage::new()?;
    let prober = stage.probe()?;
    let mut daemon = daemon()?;
    let spec = "  action: partition\n  duration: 60s\n";
    let mut apply = stage.apply("apart", spec)?.start(Place::host())?;
    apply.wait_for("armed by cgroup_drop", PATIENCE)?;
    daemon.crash()?;
    ensure!(
        !apply.wait(PATIENCE)?.success(),
        "it cannot vouch for the fault any more"
    );
    show(format_args!("{}", apply.stderr()));
    let listed = faults()?;
    ensure!(
        listed.len() == 1 && listed[0]["name"] == "apart",
        "{listed:?}"
    );
    let held = Stamp::now();
    std::thread::sleep(Duration::from_millis(500));
    let panicked = agent(["panic"])?;
    show(format_args!("{panicked}"));
    ensure!(panicked.status.success(), "{panicked}");
    let off = Stamp::now();
    std::thread::sleep(Duration::from_millis(500));
    let probes = prober.stop()?;
    let during = probes.between(held, held + Duration::from_millis(400));
    ensure!(!during.is_empty() && during.answered() == 0, "{during:?}");
    let after = probes.after(off);
    ensure!(
        after.len() > 5 && after.answered() == after.len(),
        "{after:?}"
    );

    // Nothing is armed while the halt is in force.
    let refused = stage.apply("again", spec)?.run()?;
    ensure!(
        !refused.status.success() && refused.stderr.contains("panic"),
        "{refused}"
    );
    ensure!(agent(["panic", "--resume"])?.status.success(), "resumed");
    let purged = agent(["recover", "--purge"])?;
    ensure!(purged.status.success(), "{purged}");
    ensure!(faults()?.is_empty(), "nothing is left");
    nothing_is_pinned()
}

vm_test!(
    each_fault_is_listed_once_and_whole_without_a_daemon,
    limit = 150,
    once
);
fn each_fault_is_listed_once_and_whole_without_a_daemon() -> Result<()> {
    const SENT: u64 = 20;
    let stage = Stage::new()?;
    // In the host's namespace a fault is on every device that carries routes.
    let uplinks = [Uplink::new("near0", 31)?, Uplink::new("far0", 32)?];
    let _resident = resident(&Namespace::host()?, &stage.cgroup)?;
    let mut daemon = daemon()?;
    let ends = "  duration: 60s\n";
    let lossy = format!("  action: loss\n  loss: {{loss: '100'}}\n{ends}");
    let mut lossy = stage.apply("lossy", &lossy)?.start(Place::host())?;
    lossy.wait_for("armed by tc_egress", PATIENCE)?;
    let late = format!("  timeOffset: -1h\n{ends}");
    let late = stage.apply_of("TimeChaos", "late", &late)?;
    let mut late = late.start(Place::host())?;
    late.wait_for("armed by clock_shift", PATIENCE)?;
    for uplink in &uplinks {
        let probing = Probing::of(uplink.v4()).per_second(50);
        let inside = Place::host().in_cgroup(&stage.cgroup);
        let probes = udp::probe(inside, &probing, SENT / 2)?;
        ensure!(probes.answered() == 0, "{probes:?}");
    }
    daemon.crash()?;

    let mut listed = faults()?;
    listed.sort_by_key(|fault| fault["name"].to_string());
    show(format_args!("{}", agent(["faults"])?));
    let shown = |name: &str, mechanism: &str| {
        let of = |fault: &&Value| {
            let mechanisms = fault["mechanisms"].as_array();
            fault["name"] == name
                && fault["phase"] == "Injected"
                && mechanisms.is_some_and(|all| all.len() == 1 && all[0] == mechanism)
        };
        listed.iter().filter(of).count() == 1
    };
    ensure!(
        listed.len() == 2 && shown("late", "clock_shift") && shown("lossy", "tc_egress"),
        "{listed:?}"
    );
    ensure!(
        listed[1]["matched"] == SENT && listed[1]["injected"] == SENT,
        "{listed:?}"
    );
    let mut watch = Program::agent(["maps", "watch"]).start(Place::host())?;
    for column in ["LOSS", "OFFSET"] {
        watch.wait_for(column, PATIENCE)?;
    }
    drop(watch);
    // What the journal does not tell of is listed by its rules.
    let journal = Path::new("/run/faultline/journal.json");
    let aside = journal.with_extension("aside");
    std::fs::rename(journal, &aside)?;
    let unnamed = faults()?;
    ensure!(
        unnamed.len() == 2 && unnamed.iter().all(|fault| fault["phase"] == "Injected"),
        "{unnamed:?}"
    );
    std::fs::rename(&aside, journal)?;
    ensure!(agent(["recover", "--purge"])?.status.success(), "purged");
    nothing_is_pinned()
}

vm_test!(
    a_new_daemon_goes_on_with_what_the_old_one_left,
    limit = 120,
    once
);
fn a_new_daemon_goes_on_with_what_the_old_one_left() -> Result<()> {
    let stage = Stage::new()?;
    let prober = stage.probe()?;
    let mut old = daemon()?;
    let spec = "  action: partition\n  duration: 20s\n";
    let asked = Stamp::now(); // Its deadline is 20 s later, or more.
    let mut apply = stage.apply("apart", spec)?.start(Place::host())?;
    apply.wait_for("armed by cgroup_drop", PATIENCE)?;
    let armed = Stamp::now();
    old.signal(Signal::SIGTERM)?;
    ensure!(old.wait(PATIENCE)?.success(), "it stops when told to");
    let new = daemon()?;
    let listed = faults()?;
    show(format_args!("{}", agent(["faults"])?));
    ensure!(
        listed.len() == 1 && listed[0]["phase"] == "Injected",
        "{listed:?}"
    );
    std::thread::sleep(Duration::from_secs(20).saturating_sub(armed.elapsed()));
    std::thread::sleep(Duration::from_secs(1));
    ensure!(
        faults()?.is_empty(),
        "its deadline has passed, and nobody asks for it any more"
    );
    let probes = prober.stop()?;
    let during = probes.between(armed, asked + Duration::from_secs(20));
    ensure!(during.answered() == 0, "no gap: {during:?}");
    let after = probes.after(armed + Duration::from_millis(20_100));
    ensure!(
        after.len() > 5 && after.answered() == after.len(),
        "{after:?}"
    );
    drop(new);
    ensure!(agent(["recover", "--purge"])?.status.success(), "purged");
    nothing_is_pinned()
}

vm_test!(panic_works_while_the_daemon_is_frozen, limit = 150, once);
fn panic_works_while_the_daemon_is_frozen() -> Result<()> {
    let stage = Stage::new()?;
    let prober = stage.probe()?;
    let daemon = daemon()?;
    let mut apply = stage
        .apply("apart", "  action: partition\n")?
        .start(Place::host())?;
    apply.wait_for("armed by cgroup_drop", PATIENCE)?;
    daemon.signal(Signal::SIGSTOP)?;
    let mut panic = Program::agent(["panic"]).start(Place::host())?;
    panic.wait_for("every fault on this node is off", PATIENCE)?;
    let off = Stamp::now();
    std::thread::sleep(Duration::from_secs(1));
    let after = prober.stop()?.after(off);
    ensure!(
        after.len() > 20 && after.answered() == after.len(),
        "{after:?}"
    );
    daemon.signal(Signal::SIGCONT)?;
    ensure!(panic.wait(PATIENCE)?.success(), "{}", panic.stderr());
    show(format_args!("{}{}", panic.stdout(), panic.stderr()));
    ensure!(agent(["panic", "--resume"])?.status.success(), "resumed");
    drop((apply, daemon));
    ensure!(agent(["recover", "--purge"])?.status.success(), "purged");
    nothing_is_pinned()
}
