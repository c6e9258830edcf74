//! The first act of `cargo xtask demo`: a fault on one of two processes, on a machine without
//! Kubernetes. It runs only when asked for by name, asserts that the fault was armed and recovered,
//! and tells the host what every datagram saw.

use std::fs::OpenOptions;
use std::io::Write;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cgroup::Cgroup;
use crate::clock::Stamp;
use crate::machine::release;
use crate::netns::Pair;
use crate::process::Place;
use crate::program::{Program, Scratch};
use crate::report::exhibit::{Datagram, Exhibit};
use crate::runner::EVENTS;
use crate::udp::{Echo, Prober, Probes, Probing};
use crate::vm_test;

/// Part of the names of what is here.
pub(crate) const NAME: &str = "demo::";

const DOCUMENT: &str = "\
apiVersion: chaos-mesh.org/v1alpha1
kind: NetworkChaos
metadata:
  name: slow
spec:
  action: delay
  delay:
    latency: 100ms
  duration: 5s
";

/// Each of the spans before and after the fault.
const SPAN: Duration = Duration::from_secs(2);

vm_test!(one_process_is_slowed_and_its_neighbour_is_not, limit = 90);
fn one_process_is_slowed_and_its_neighbour_is_not() -> Result<()> {
    let pair = Pair::new()?;
    let (target, bystander) = (Cgroup::new()?, Cgroup::new()?);
    let _echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let probe = |cgroup| {
        let place = Place::host().in_namespace(&pair.a).in_cgroup(cgroup);
        Prober::start(place, &Probing::of(Pair::B4))
    };
    let (slowed, spared) = (probe(&target)?, probe(&bystander)?);
    sleep(SPAN);

    let files = Scratch::new()?;
    let file = files.file("delay.yaml", DOCUMENT)?.display().to_string();
    let cgroup = target.path().display().to_string();
    let started = Stamp::now();
    let applied = Program::agent(["apply", "-f", &file, "--cgroup", &cgroup, "--json"]).run()?;
    let ended = Stamp::now();
    ensure!(applied.status.success(), "{applied}");
    sleep(SPAN);

    let exhibit = Exhibit {
        release: release()?,
        document: DOCUMENT.to_owned(),
        command: format!("chaos-agent apply -f delay.yaml --cgroup {cgroup}"),
        output: applied.stdout.lines().map(str::to_owned).collect(),
        started_ns: started.0,
        ended_ns: ended.0,
        target: datagrams(&slowed.stop()?),
        bystander: datagrams(&spared.stop()?),
    };
    let mut host = OpenOptions::new()
        .write(true)
        .open(EVENTS)
        .context("failed to open the console of events")?;
    writeln!(host, "{}", exhibit.line()).context("failed to tell the host")
}

fn datagrams(probes: &Probes) -> Vec<Datagram> {
    probes
        .0
        .iter()
        .map(|probe| Datagram {
            sent_ns: probe.sent.0,
            answered_ns: probe.answered.map(|at| at.0),
        })
        .collect()
}
