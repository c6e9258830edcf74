//! How quick the agent is, from a set of faults to packets that are hit, and how big.
//!
//! The agent's own thread and node are measured inside of this process, with nothing in front: no
//! stream, no command line. Only its memory is that of the whole program.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chaos_agent::kernel::clock;
use chaos_agent::kernel::maps::{Pinned, TargetKind};
use chaos_agent::node::{Options, Owner};
use chaos_agent::node_thread::{self, Desired, NodeHandle};
use chaos_planner::fault::{Chance, Fault, NetworkEffect};
use tokio::sync::watch;

use super::lanes::{Load, Stream};
use super::{asked_pairs, tell};
use crate::cgroup::Cgroup;
use crate::figures::statistics::percentile;
use crate::figures::{Aim, Figure};
use crate::netns::{DEVICE, Pair};
use crate::node::{delayed, egress, fault, pinned, resident};
use crate::process::Place;
use crate::program::{Program, Running, Scratch};
use crate::vm_test;

/// Part of the names of what is here.
pub(crate) const NAME: &str = "bench::agent::";

pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// For how long a fault has been over when the next one is asked for.
const QUIET: Duration = Duration::from_millis(300);

/// The agent's thread, with the node that it owns.
pub(super) struct Agent {
    handle: NodeHandle,
    maps: Pinned,
    generation: u64,
    session: u64,
}

impl Agent {
    pub(super) fn start() -> Result<Self> {
        let options = Options::default();
        let bpffs = options.bpffs.clone();
        let handle = node_thread::spawn("bench", move || node_thread::open(options))?;
        Ok(Self {
            session: handle.next_session(),
            maps: Pinned::open(&bpffs)?,
            handle,
            generation: 0,
        })
    }

    /// Hands it a set, as the server does that received one. When: CLOCK_MONOTONIC nanoseconds.
    pub(super) fn desire(&mut self, faults: Vec<Fault>) -> Result<u64> {
        self.generation += 1;
        let desired = Desired {
            owner: Owner("local:1".into()),
            session: self.session,
            generation: self.generation,
            faults,
            refused: Vec::new(),
            answers: watch::channel(None).0,
        };
        let now = clock::now_ns();
        self.handle.desire(desired)?;
        Ok(now)
    }

    /// Wants nothing, and waits until the kernel has nothing: no rule, and no device with a filter.
    pub(super) fn clear(&mut self) -> Result<()> {
        self.desire(Vec::new())?;
        let empty = |maps: &Pinned| -> Result<bool> {
            let mut targets = 0;
            for kind in [TargetKind::Device, TargetKind::Cgroup, TargetKind::Clock] {
                targets += maps.targets(kind)?.len();
            }
            // The counters of a rule that is still there would be those of the run before.
            let rules = maps.rules()?.len() + maps.clock_rules()?.len();
            Ok(targets + rules == 0)
        };
        self.until(empty)
    }

    fn until(&self, done: impl Fn(&Pinned) -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        while !done(&self.maps)? {
            ensure!(start.elapsed() < PATIENCE, "waited in vain");
            sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// When the first packet was hit by any rule.
    fn first_hit(&self) -> Result<u64> {
        let start = Instant::now();
        loop {
            for (id, _) in self.maps.rules()? {
                let first = self.maps.counters(id)?.first_ns;
                if first != 0 {
                    return Ok(first);
                }
            }
            ensure!(start.elapsed() < PATIENCE, "no packet was hit");
            // The kernel has noted when; the agent is to have the CPU meanwhile.
            sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().build() {
            // The machine goes down behind it.
            let _ = runtime.block_on(self.handle.purge());
        }
    }
}

fn delay() -> NetworkEffect {
    delayed(Duration::from_millis(10))
}

pub(super) fn milliseconds(from: u64, to: u64) -> f64 {
    to.saturating_sub(from) as f64 / 1e6
}

vm_test!(from_a_set_to_the_first_packet_hit, limit = 1200);
fn from_a_set_to_the_first_packet_hit() -> Result<()> {
    let runs = asked_pairs()?;
    let pair = Pair::new()?;
    let target = Cgroup::new()?;
    let _resident = resident(&pair.a, &target)?;
    // A packet comes every two milliseconds; more would keep an emulated CPU busy.
    let load = Load {
        count: 10_000_000,
        per_second: 500,
        size: 64,
    };
    let _stream = Stream::start(&[&pair], &target, load)?;
    let mut agent = Agent::start()?;
    let partition = NetworkEffect {
        drop: true,
        ..egress()
    };
    let loss = NetworkEffect {
        loss: Some(Chance::of(1_000_000)),
        ..egress()
    };
    // Of a pod the agent knows which device is meant; of a host's cgroup it looks for those with routes.
    let on_device = |effect| NetworkEffect {
        device: Some(DEVICE.into()),
        ..effect
    };
    for (name, effect) in [
        ("partition", partition),
        ("loss", on_device(loss)),
        ("delay", on_device(delay())),
    ] {
        let mut times = Vec::new();
        // The first is not counted: it makes what later ones find, such as clsact.
        for n in 0..=runs {
            // What the kernel shows as gone the agent goes on tidying up after.
            sleep(QUIET);
            let from = agent.desire(vec![fault("f", &target, effect.clone())])?;
            let hit = agent.first_hit()?;
            agent.clear()?;
            if n > 0 {
                times.push(milliseconds(from, hit));
            }
        }
        let name = format!("{name}: from the set to the first packet hit");
        let figure = Figure::of(name, "ms", &times);
        tell(
            &figure
                .aim(Aim::AtMost(20.0))
                .detail("p99", percentile(&times, 99.0)),
        )?;
    }
    Ok(())
}

vm_test!(arming_many_targets, limit = 1200);
fn arming_many_targets() -> Result<()> {
    const TARGETS: usize = 24;
    let runs = asked_pairs()?.min(10);
    let mut targets = Vec::new();
    for _ in 0..TARGETS {
        let (pair, cgroup) = (Pair::new()?, Cgroup::new()?);
        let process = resident(&pair.a, &cgroup)?;
        targets.push((pair, cgroup, process));
    }
    let mut agent = Agent::start()?;
    let armed = |maps: &Pinned| -> Result<usize> {
        let targets = maps.targets(TargetKind::Device)?;
        let is_armed = |(_, target): &&(u64, chaos_abi::network::Target)| {
            target.rules.iter().any(|rule| rule.generation != 0)
        };
        Ok(targets.iter().filter(is_armed).count())
    };
    let (mut first, mut all) = (Vec::new(), Vec::new());
    for n in 0..=runs {
        let faults = targets.iter().zip(0..);
        let faults = faults.map(|((_, cgroup, _), i)| fault(&format!("f{i}"), cgroup, delay()));
        let from = agent.desire(faults.collect())?;
        agent.until(|maps| Ok(armed(maps)? > 0))?;
        let one = clock::now_ns();
        agent.until(|maps| Ok(armed(maps)? == TARGETS))?;
        let last = clock::now_ns();
        agent.clear()?;
        if n > 0 {
            first.push(milliseconds(from, one));
            all.push(milliseconds(from, last));
        }
    }
    let name = format!("delay on {TARGETS} targets with a network each: until the");
    tell(&Figure::of(format!("{name} first is armed"), "ms", &first))?;
    let figure = Figure::of(format!("{name} last is armed"), "ms", &all);
    tell(&figure.aim(Aim::AtMost(1_000.0)))
}

vm_test!(resident_memory, limit = 120);
fn resident_memory() -> Result<()> {
    let mut daemon = Program::agent(["run", "--node-name", "vm"]).start(Place::host())?;
    daemon.wait_for("ready", PATIENCE)?;
    let aim = Aim::AtMost(25.0);
    let idle = resident_mib(&daemon)?;
    tell(
        &Figure::of(
            "memory of the agent, nothing armed",
            "MiB resident",
            &[idle],
        )
        .aim(aim),
    )?;

    const FAULTS: usize = 16;
    let pair = Pair::new()?;
    let target = Cgroup::new()?;
    let _resident = resident(&pair.a, &target)?;
    let document = |n: usize| {
        let peers: Vec<String> = (0..100).map(|i| format!("\"10.{n}.{i}.0/24\"")).collect();
        format!(
            "apiVersion: chaos-mesh.org/v1alpha1\nkind: NetworkChaos\nmetadata:\n  name: f{n}\n\
             spec:\n  action: delay\n  direction: to\n  delay: {{latency: 10ms}}\n  \
             externalTargets: [{}]\n  duration: 60s\n",
            peers.join(", ")
        )
    };
    let documents: Vec<String> = (0..FAULTS).map(document).collect();
    let files = Scratch::new()?;
    let file = files.file("faults.yaml", &documents.join("---\n"))?;
    let (file, cgroup) = (
        file.display().to_string(),
        target.path().display().to_string(),
    );
    let apply = Program::agent(["apply", "-f", &file, "--cgroup", &cgroup]).start(Place::host())?;
    let maps = pinned()?;
    let start = Instant::now();
    while maps.rules()?.len() < FAULTS {
        ensure!(
            start.elapsed() < PATIENCE,
            "not armed: {}{}",
            apply.stdout(),
            apply.stderr()
        );
        sleep(Duration::from_millis(100));
    }
    let busy = resident_mib(&daemon)?;
    let name = format!("memory of the agent, {FAULTS} faults on 100 networks each");
    tell(&Figure::of(name, "MiB resident", &[busy]).aim(aim))
}

/// What the kernel says of its memory.
fn resident_mib(of: &Running) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", of.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kilobytes: f64 = kilobytes.context("no VmRSS")?.trim().parse()?;
    Ok(kilobytes / 1024.0)
}
