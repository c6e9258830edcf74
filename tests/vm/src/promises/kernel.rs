//! A kernel without something that faults need: what can be done is done, and the rest is refused
//! before anything is touched, with the reason.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_agent::node::{Node, Options};
use chaos_planner::fault::{Chance, NetworkEffect};
use chaos_planner::observed::Phase;

use crate::cgroup::Cgroup;
use crate::machine::Without;
use crate::netns::Pair;
use crate::node::{Host, delayed, egress, fault, nothing_is_pinned, resident};
use crate::process::Place;
use crate::program::Program;
use crate::udp::{self, Echo, Probing};
use crate::vm_test;

vm_test!(
    without_fq_packets_are_lost_and_everything_else_is_refused,
    limit = 60
);
fn without_fq_packets_are_lost_and_everything_else_is_refused() -> Result<()> {
    let pair = Pair::new()?;
    let target = Cgroup::new()?;
    let _echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let _resident = resident(&pair.a, &target)?;
    let before = (pair.a.devices()?, pair.a.qdiscs()?);
    let _without = Without::module("sch_fq")?;
    let said = Program::agent(["doctor"]).run()?;
    let text = said.to_string();
    let row = |name: &str| {
        let row = text.lines().find(|line| line.contains(name));
        row.with_context(|| format!("no {name} in {text}"))
    };
    for (name, expected) in [("NetworkChaos loss", "yes"), ("NetworkChaos delay", "no")] {
        let row = row(name)?;
        let fits = row.split_whitespace().any(|word| word == expected);
        ensure!(fits, "{row}");
    }
    ensure!(row("NetworkChaos delay")?.contains("sch_fq"), "{text}");

    let mut host = Host::of(Node::open(Options::default())?);
    let slow = delayed(Duration::from_millis(100));
    let refused = host.settle(fault("d", &target, slow))?;
    ensure!(
        refused.phase == Phase::NotSupported
            && refused.reason.contains("cannot do delay")
            && refused.reason.contains("sch_fq"),
        "{refused:?}"
    );
    ensure!(
        before == (pair.a.devices()?, pair.a.qdiscs()?),
        "something was touched"
    );
    host.recover("d")?;
    let effect = NetworkEffect {
        loss: Some(Chance::of(1_000_000)),
        ..egress()
    };
    host.arm(fault("l", &target, effect))?;
    let from = Place::host().in_namespace(&pair.a).in_cgroup(&target);
    let probes = udp::probe(from, &Probing::of(Pair::B4).per_second(100), 20)?;
    ensure!(probes.lost() == 20, "lost {}", probes.lost());
    drop(host);
    nothing_is_pinned()
}
