//! The node of a test: opened as the agent opens it, with faults on cgroups, and read back.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use chaos_abi::late;
use chaos_abi::sample::{self, Stream};
use chaos_agent::kernel::links;
use chaos_agent::kernel::maps::{self, Pinned};
use chaos_agent::mechanism::clock_shift;
use chaos_agent::node::{Node, Options, Owner};
use chaos_planner::clock::ClockEffect;
use chaos_planner::fault::{
    Delay, Effect, Fault, Lifetime, Mode, NetworkEffect, Sample, TargetRef,
};
use chaos_planner::observed::{Counts, Observed, Phase};

use crate::cgroup::Cgroup;
use crate::machine::{BPFFS, PINS};
use crate::netns::Namespace;
use crate::process::{Place, Process, role};
use crate::wait::eventually;

/// How long a step of the node may take on an emulated machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// An opened node. Everything is removed on drop.
pub(crate) struct Host {
    node: Option<Node>,
    faults: Vec<Fault>,
}

impl Host {
    pub(crate) fn open() -> Result<Host> {
        Host::open_with(Options::default())
    }

    pub(crate) fn open_with(options: Options) -> Result<Host> {
        let node = Node::open(options).context("failed to open the node")?;
        for capability in &node.capabilities().mechanisms {
            ensure!(capability.supported, "{:?}", capability);
        }
        Ok(Host::of(node))
    }

    /// One that may lack mechanisms.
    pub(crate) fn of(node: Node) -> Host {
        Host {
            node: Some(node),
            faults: Vec::new(),
        }
    }

    pub(crate) fn node(&mut self) -> &mut Node {
        self.node.as_mut().expect("taken only on drop")
    }

    /// Whether programs come on devices by tcx.
    pub(crate) fn has_tcx(&mut self) -> bool {
        let mut mechanisms = self.node().capabilities().mechanisms.iter();
        mechanisms.all(|found| !found.reason.contains("by clsact"))
    }

    /// Wants one more fault and waits until the kernel has it.
    pub(crate) fn arm(&mut self, fault: Fault) -> Result<()> {
        let seen = self.settle(fault)?;
        ensure!(seen.phase == Phase::Injected, "{seen:?}");
        Ok(())
    }

    /// Wants one more fault and waits until the node says what becomes of it.
    pub(crate) fn settle(&mut self, fault: Fault) -> Result<Observed> {
        let id = fault.id.clone();
        self.want(fault);
        self.wait(&id, |seen| seen.phase != Phase::Pending)
    }

    /// Wants one more fault.
    pub(crate) fn want(&mut self, fault: Fault) {
        self.faults.push(fault);
        self.tell();
    }

    /// Wants it no more, and waits until the kernel has nothing of it. Returns what it did.
    pub(crate) fn recover(&mut self, id: &str) -> Result<Counts> {
        self.faults.retain(|fault| fault.id != id);
        self.tell();
        let start = Instant::now();
        let mut last = Counts::default();
        loop {
            match self.observe(id) {
                None => return Ok(last),
                Some(seen) => last = seen.counts,
            }
            ensure!(start.elapsed() < PATIENCE, "{id} is still there");
            self.turn();
        }
    }

    /// Wants it otherwise, and carries that out.
    pub(crate) fn change(&mut self, fault: Fault) {
        self.faults.retain(|old| old.id != fault.id);
        self.want(fault);
        self.node().reconcile();
    }

    /// What the node says of a fault.
    pub(crate) fn observe(&mut self, id: &str) -> Option<Observed> {
        self.node()
            .observed(None)
            .into_iter()
            .find(|seen| seen.id == id)
    }

    pub(crate) fn counts(&mut self, id: &str) -> Result<Counts> {
        self.observe(id)
            .map(|seen| seen.counts)
            .context("the fault is not there")
    }

    /// Goes on until `done` with what is seen of the fault.
    pub(crate) fn wait(&mut self, id: &str, done: impl Fn(&Observed) -> bool) -> Result<Observed> {
        let start = Instant::now();
        loop {
            self.node().reconcile();
            match self.observe(id) {
                Some(seen) if done(&seen) => return Ok(seen),
                seen if start.elapsed() > PATIENCE => bail!("waited in vain: {seen:?}"),
                _ => sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Goes on for some time, as the agent's thread does.
    pub(crate) fn run_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            let next = self.node().reconcile();
            sleep(next.min(left).min(Duration::from_millis(100)));
        }
    }

    fn turn(&mut self) {
        let next = self.node().reconcile();
        sleep(next.min(Duration::from_millis(5)));
    }

    fn tell(&mut self) {
        let faults = self.faults.clone();
        self.node().set_desired(Owner("test".into()), faults);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(node) = self.node.take()
            && let Err(error) = node.purge()
            && !std::thread::panicking()
        {
            panic!("failed to purge the node: {error}");
        }
    }
}

const IDLE: &str = "idle";
crate::vm_role!(IDLE, idle);

fn idle(_: &str) -> Result<()> {
    role::ready()?;
    role::wait_for_end();
    Ok(())
}

/// A process that does nothing: the target's network namespace is that of its processes.
pub(crate) fn resident(namespace: &Namespace, cgroup: &Cgroup) -> Result<Process<()>> {
    Place::host()
        .in_namespace(namespace)
        .in_cgroup(cgroup)
        .spawn(IDLE, &())
}

/// Nothing of ours is left under the pins.
pub(crate) fn nothing_is_pinned() -> Result<()> {
    ensure!(!Path::new(PINS).exists(), "{PINS} is still there");
    Ok(())
}

/// A fault on what the processes of a cgroup send; for a minute, without peers.
pub(crate) fn fault(id: &str, cgroup: &Cgroup, effect: NetworkEffect) -> Fault {
    Fault {
        id: id.into(),
        kind: "NetworkChaos".into(),
        namespace: "test".into(),
        name: id.into(),
        record: cgroup.path().display().to_string(),
        target: TargetRef::Cgroup(cgroup.path().to_owned()),
        lifetime: Lifetime::For(Duration::from_secs(60)),
        mode: Mode::Inject,
        sample: Sample::default(),
        effect: Effect::Network(effect),
    }
}

/// A fault on the clocks of a cgroup's processes; for a minute.
pub(crate) fn clock_fault(id: &str, cgroup: &Cgroup, effect: ClockEffect) -> Fault {
    Fault {
        kind: "TimeChaos".into(),
        effect: Effect::Clock(effect),
        ..fault(id, cgroup, NetworkEffect::default())
    }
}

/// These clocks are ahead by so many seconds.
pub(crate) fn moved(seconds: i64, clocks: &[u32]) -> ClockEffect {
    ClockEffect {
        offset_ns: seconds * 1_000_000_000,
        clocks: clocks.iter().fold(0, |bits, clock| bits | 1 << clock),
        ..ClockEffect::default()
    }
}

/// The same on a pod, which is found by its uid.
pub(crate) fn of_pod(mut fault: Fault, uid: &str, host_network: bool) -> Fault {
    fault.target = TargetRef::Pod {
        uid: uid.to_owned(),
        container_ids: Vec::new(),
        host_network,
    };
    fault
}

/// The same for so long.
pub(crate) fn lasting(mut fault: Fault, time: Duration) -> Fault {
    fault.lifetime = Lifetime::For(time);
    fault
}

/// The same with this seed.
pub(crate) fn seeded(mut fault: Fault, seed: u64) -> Fault {
    fault.sample.seed = Some(seed);
    fault
}

/// The maps that the agent has pinned.
pub(crate) fn pinned() -> Result<Pinned> {
    Ok(Pinned::open(Path::new(BPFFS))?)
}

/// Pinned links whose names begin so.
pub(crate) fn links(prefix: &str) -> Vec<PathBuf> {
    links::pinned(&maps::directory(Path::new(BPFFS)), prefix)
}

/// How often each of so many packets arrives through a loss with this seed, as the model has it.
pub(crate) fn arrivals_by_model(seed: u64, loss_ppm: u32, packets: u64) -> Vec<usize> {
    let share = sample::Chance::of_ppm(loss_ppm, 0);
    (0..packets)
        .map(|n| usize::from(!share.hits(seed, Stream::Loss, n)))
        .collect()
}

/// Pinned links of programs that are attached where clocks are read.
pub(crate) fn on_clocks() -> Vec<PathBuf> {
    clock_shift::pinned(&maps::directory(Path::new(BPFFS)))
}

/// Soon the kernel takes nothing for waiting in the detour of the first device.
pub(crate) fn nothing_waits() -> Result<()> {
    let maps = pinned()?;
    eventually("an empty detour", PATIENCE, || {
        let units = maps.waiting(1)?;
        ensure!(units == 0, "{units} kilobytes wait");
        Ok(())
    })
}

/// To what is sent.
pub(crate) fn egress() -> NetworkEffect {
    NetworkEffect {
        egress: true,
        ..NetworkEffect::default()
    }
}

/// Whether a packet took as long as was asked: it may be let go a little earlier, see [`chaos_abi::late`].
pub(crate) fn waited(took: Duration, asked: Duration) -> bool {
    took + Duration::from_nanos(late::MOST_NS) >= asked
}

/// What is sent is late by so much.
pub(crate) fn delayed(time: Duration) -> NetworkEffect {
    NetworkEffect {
        delay: Some(Delay::of(time)),
        ..egress()
    }
}
