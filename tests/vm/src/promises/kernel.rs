//! A kernel without something that faults need: what can be done is done, and the rest is refused
//! before anything is touched, with the reason.

use std::ffi::CString;
use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_agent::node::{Node, Options, Owner};
use chaos_planner::fault::{Chance, Delay, Fault, NetworkEffect};
use chaos_planner::observed::{Observed, Phase};
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module};

use crate::cgroup::Cgroup;
use crate::netns::Pair;
use crate::node::{egress, fault, resident};
use crate::process::Place;
use crate::program::Program;
use crate::udp::{self, Echo, Probing};
use crate::vm_test;
use crate::wait::eventually;

/// A module that is unloaded as long as this lives. There is nobody in the machine who would load it
/// when the kernel asks for it.
struct Without {
    path: String,
}

impl Without {
    fn module(name: &str) -> Result<Without> {
        let all = fs::read_to_string("/etc/modules").context("no list of modules")?;
        let file = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        let found = all
            .lines()
            .find(|path| file(path).starts_with(&format!("{name}.")));
        let path = found.with_context(|| format!("no {name}"))?.to_owned();
        let module = CString::new(name)?;
        // A qdisc of an earlier test may be on its way out.
        eventually("unloading a module", Duration::from_secs(10), || {
            delete_module(&module, DeleteModuleFlags::O_NONBLOCK)
                .with_context(|| format!("failed to unload {name}"))
        })?;
        Ok(Without { path })
    }
}

impl Drop for Without {
    fn drop(&mut self) {
        // `MODULE_INIT_COMPRESSED_FILE`, see `bin/init.rs`.
        let flags = if self.path.ends_with(".ko") {
            ModuleInitFlags::empty()
        } else {
            ModuleInitFlags::from_bits_retain(4)
        };
        let loaded = File::open(&self.path)
            .map_err(anyhow::Error::from)
            .and_then(|file| Ok(finit_module(&file, c"", flags)?));
        if let Err(error) = loaded
            && !std::thread::panicking()
        {
            panic!("failed to load {} again: {error}", self.path);
        }
    }
}

fn settled(node: &mut Node, faults: Vec<Fault>) -> Result<Observed> {
    node.set_desired(Owner("test".into()), faults);
    eventually("an answer", Duration::from_secs(10), || {
        node.reconcile();
        let seen = node.observed(None).pop().context("no fault")?;
        ensure!(seen.phase != Phase::Pending, "{seen:?}");
        Ok(seen)
    })
}

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

    let mut node = Node::open(Options::default())?;
    let effect = NetworkEffect {
        delay: Some(Delay::of(Duration::from_millis(100))),
        ..egress()
    };
    let refused = settled(&mut node, vec![fault("d", &target, effect)])?;
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
    let effect = NetworkEffect {
        loss: Some(Chance::of(1_000_000)),
        ..egress()
    };
    let armed = settled(&mut node, vec![fault("l", &target, effect)])?;
    ensure!(armed.phase == Phase::Injected, "{armed:?}");
    let from = Place::host().in_namespace(&pair.a).in_cgroup(&target);
    let probes = udp::probe(from, &Probing::of(Pair::B4).per_second(100), 20)?;
    ensure!(probes.lost() == 20, "lost {}", probes.lost());
    node.purge()?;
    ensure!(
        !Path::new("/sys/fs/bpf/faultline").exists(),
        "pins are left"
    );
    Ok(())
}
