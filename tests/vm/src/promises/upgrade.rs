//! A new agent takes the place of the old one while faults act: no packet slips through, none is
//! treated or counted twice, and whatever step the new agent dies at, one generation of programs acts.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, Map, MapData};
use aya::programs::loaded_programs;
use chaos_abi::control;
use chaos_agent::kernel::maps;
use chaos_agent::node::{Node, Options, Owner};
use chaos_planner::fault::{Chance, Delay, Fault, NetworkEffect};
use chaos_planner::observed::{Counts, Phase};
use nix::errno::Errno;

use crate::cgroup::Cgroup;
use crate::machine::{BPFFS, KERNELS, PINS, kernel};
use crate::netns::Pair;
use crate::node::{
    arrivals_by_model, egress, fault, lasting, links, nothing_is_pinned, pinned, resident, seeded,
    waited,
};
use crate::process::Place;
use crate::registry::{is_thorough, note, times};
use crate::traced::{kill_before, steps};
use crate::udp::{Echo, Prober, Probes, Probing};
use crate::wait::eventually;
use crate::{vm_role, vm_test};

const SEED: u64 = 20_261_121;
const LOSS_PPM: u32 = 300_000;
const DELAY: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(10);

/// Two targets in one namespace: one is partitioned, of the other a part is lost and the rest late.
struct Stage {
    pair: Pair,
    apart: Cgroup,
    lossy: Cgroup,
    echo: Echo,
    _resident: crate::process::Process<()>,
}

impl Stage {
    fn new() -> Result<Stage> {
        let pair = Pair::new()?;
        let (apart, lossy) = (Cgroup::new()?, Cgroup::new()?);
        let echo = Echo::start(Place::host().in_namespace(&pair.b))?;
        let _resident = resident(&pair.a, &lossy)?;
        Ok(Stage {
            pair,
            apart,
            lossy,
            echo,
            _resident,
        })
    }

    fn faults(&self) -> Vec<Fault> {
        let to_peer = NetworkEffect {
            peers: Some(vec![Pair::B4.into()]),
            ..egress()
        };
        let partition = NetworkEffect {
            drop: true,
            ..to_peer.clone()
        };
        let lossy = NetworkEffect {
            loss: Some(Chance::of(LOSS_PPM)),
            delay: Some(Delay::of(DELAY)),
            ..to_peer
        };
        let lossy = seeded(fault("lossy", &self.lossy, lossy), SEED);
        [fault("apart", &self.apart, partition), lossy]
            .map(|fault| lasting(fault, Duration::from_secs(900)))
            .into()
    }

    /// A node that has both armed.
    fn armed(&self) -> Result<Node> {
        let mut node = Node::open(Options::default())?;
        node.set_desired(owner(), self.faults());
        node.reconcile();
        both_are_injected(&mut node)?;
        Ok(node)
    }

    /// Probers of both targets.
    fn probe(&self, per_second: u32) -> Result<[Prober; 2]> {
        let probing = Probing::of(Pair::B4).per_second(per_second);
        let start = |cgroup| {
            let place = Place::host().in_namespace(&self.pair.a).in_cgroup(cgroup);
            Prober::start(place, &probing)
        };
        Ok([start(&self.apart)?, start(&self.lossy)?])
    }

    /// Each packet of both was treated, and counted, once.
    fn judge(&self, node: &mut Node, probers: [Prober; 2]) -> Result<()> {
        let [apart, lossy] = probers;
        let (apart, lossy) = (apart.stop()?, lossy.stop()?);
        let (sent, counted) = (apart.len() as u64, counts(node, "apart")?);
        ensure!(
            apart.refused(Errno::EPERM) == apart.len(),
            "{} of {sent} were let through",
            apart.len() - apart.refused(Errno::EPERM)
        );
        ensure!(
            (counted.matched, counted.injected) == (sent, sent),
            "{sent} were refused: {counted:?}"
        );
        self.judge_lossy(&lossy)?;
        let (sent, counted) = (lossy.len() as u64, counts(node, "lossy")?);
        ensure!(
            (counted.matched, counted.injected, counted.failed) == (sent, sent, 0),
            "{sent} were sent: {counted:?}"
        );
        note(format!("{} and {sent} packets", apart.len()));
        Ok(())
    }

    /// The n-th packet is the n-th draw: had one been drawn for twice, or not at all, all after it
    /// would have the fate of others.
    fn judge_lossy(&self, probes: &Probes) -> Result<()> {
        let packets = probes.len() as u64;
        let model = arrivals_by_model(SEED, LOSS_PPM, packets);
        for (n, (times, expected)) in self
            .echo
            .times_seen(packets)
            .into_iter()
            .zip(model)
            .enumerate()
        {
            ensure!(times == expected, "{n} came {times} times, not {expected}");
        }
        let earliest = probes.there().min()?;
        ensure!(waited(earliest, DELAY), "one took {earliest:?} only");
        Ok(())
    }
}

fn owner() -> Owner {
    Owner("test".into())
}

fn counts(node: &mut Node, id: &str) -> Result<Counts> {
    let seen = node.observed(None).into_iter().find(|seen| seen.id == id);
    Ok(seen.context("the fault is not there")?.counts)
}

fn both_are_injected(node: &mut Node) -> Result<()> {
    let seen = node.observed(None);
    ensure!(
        seen.len() == 2 && seen.iter().all(|seen| seen.phase == Phase::Injected),
        "{seen:?}"
    );
    Ok(())
}

/// Dispatchers on the detour; all others have pinned links, but for that on the device, where
/// it is a filter.
const ON_DETOUR: usize = 1;

fn programs() -> usize {
    loaded_programs().count()
}

/// Programs that are no agent's. The kernel frees those of the test before in its own time.
fn others() -> usize {
    let mut count = programs();
    let mut since = Instant::now();
    while since.elapsed() < Duration::from_secs(2) {
        std::thread::sleep(Duration::from_millis(50));
        if programs() != count {
            count = programs();
            since = Instant::now();
        }
    }
    count
}

/// With no agent alive, the kernel holds the dispatchers that are attached and one body of each array,
/// beside the `others` that were there before.
fn one_generation_is_left(others: usize) -> Result<()> {
    let maps = pinned()?;
    let acts = maps.control(control::EPOCH)? % control::GENERATIONS;
    let mut arrays = 0;
    for pin in fs::read_dir(maps::directory(Path::new(BPFFS)))? {
        let pin = pin?;
        let name = pin.file_name().to_string_lossy().into_owned();
        if !name.ends_with("_BODY") {
            continue;
        }
        arrays += 1;
        // To user space the element of a program array is the id of the program.
        let ids: Array<_, u32> = Array::try_from(Map::Array(MapData::from_pin(pin.path())?))?;
        for index in 0..control::GENERATIONS {
            let id = ids.get(&index, 0);
            ensure!(
                id.is_ok() == (index == acts),
                "{name}[{index}]: {id:?}, while {acts} acts"
            );
        }
    }
    let links = links("");
    ensure!(!links.is_empty(), "nothing is attached");
    ensure!(
        arrays >= links.len(),
        "{arrays} arrays of bodies for {links:?}"
    );
    let by_tcx = links.iter().any(|link| link.ends_with("tc_egress_1"));
    are_loaded(others + ON_DETOUR + usize::from(!by_tcx) + links.len() + arrays)
}

/// The kernel frees programs in its own time.
fn are_loaded(expected: usize) -> Result<()> {
    eventually("the programs of one generation", PATIENCE, || {
        let there = programs();
        ensure!(there == expected, "{there} programs, not {expected}");
        Ok(())
    })
}

/// Which steps to die at: one in so many, and on each kernel others of these. Trying a step takes some
/// six seconds, and most of them load one program more, in the same way; `--thorough` tries all.
fn chosen(step: usize, one_in: usize) -> Result<bool> {
    Ok(is_thorough() || step % (KERNELS * one_in) == kernel()? * one_in)
}

vm_test!(upgrades_treat_each_packet_once, limit = 800);
fn upgrades_treat_each_packet_once() -> Result<()> {
    let others = others();
    let stage = Stage::new()?;
    let mut node = stage.armed()?;
    // A thousand packets a second.
    let probers = stage.probe(500)?;
    let start = Instant::now();
    let upgrades = times(20);
    for upgrade in 1..=upgrades {
        // As after SIGKILL: nothing is undone.
        drop(node);
        node = Node::open(Options::default())?;
        both_are_injected(&mut node).with_context(|| format!("upgrade {upgrade}"))?;
        node.set_desired(owner(), stage.faults());
        node.reconcile();
        note(format!("upgrade {upgrade} after {:?}", start.elapsed()));
    }
    note(format!("{upgrades} upgrades took {:?}", start.elapsed()));
    stage.judge(&mut node, probers)?;
    drop(node);
    one_generation_is_left(others)?;
    Node::open(Options::default())?.purge()?;
    nothing_is_pinned()
}

const OPENS: &str = "opens the node";
vm_role!(OPENS, opens);

fn opens(_: &str) -> Result<()> {
    Node::open(Options::default()).map(drop)?;
    Ok(())
}

vm_test!(an_upgrade_may_die_at_any_step, limit = 500);
fn an_upgrade_may_die_at_any_step() -> Result<()> {
    let others = others();
    let stage = Stage::new()?;
    drop(stage.armed()?);
    let probers = stage.probe(100)?;
    let steps = steps(OPENS)?;
    note(format!("{steps} steps"));
    ensure!(steps > 10, "only {steps} steps: what was traced?");
    let mut tried = 0;
    for step in 0..steps {
        if !chosen(step, 8)? {
            continue;
        }
        tried += 1;
        let killed = || format!("killed before step {step} of {steps}");
        kill_before(step, OPENS).with_context(killed)?;
        let mut node = Node::open(Options::default()).with_context(killed)?;
        both_are_injected(&mut node).with_context(killed)?;
        drop(node);
        one_generation_is_left(others).with_context(killed)?;
    }
    ensure!(tried > 0, "none of {steps} steps was chosen");
    let mut node = Node::open(Options::default())?;
    stage.judge(&mut node, probers)?;
    node.purge()?;
    nothing_is_pinned()
}

vm_test!(the_first_start_may_die_at_any_step, limit = 600);
fn the_first_start_may_die_at_any_step() -> Result<()> {
    let others = others();
    let steps = steps(OPENS)?;
    note(format!("{steps} steps"));
    purge(others)?;
    let mut tried = 0;
    for step in 0..steps {
        if !chosen(step, 60)? {
            continue;
        }
        tried += 1;
        let killed = || format!("killed before step {step} of {steps}");
        kill_before(step, OPENS).with_context(killed)?;
        purge(others).with_context(killed)?;
    }
    ensure!(tried > 0, "none of {steps} steps was chosen");
    Ok(())
}

fn purge(others: usize) -> Result<()> {
    Node::open(Options::default())?.purge()?;
    nothing_is_pinned()?;
    are_loaded(others)
}

vm_test!(an_agent_with_another_layout_is_replaced_whole, limit = 60);
fn an_agent_with_another_layout_is_replaced_whole() -> Result<()> {
    let others = others();
    let stage = Stage::new()?;
    let before = stage.pair.a.devices()?;
    drop(stage.armed()?);
    // Layouts differ in nothing but the name here: what counts is that they are not read.
    let root = Path::new(PINS);
    fs::rename(maps::directory(Path::new(BPFFS)), root.join("abi1"))?;
    let mut halted = MapData::from_pin(root.join("abi1/CONTROL"))
        .and_then(|data| Array::<_, u32>::try_from(Map::Array(data)))?;
    halted.set(control::HALTED, 1, 0)?;
    drop(halted);

    let mut node = Node::open(Options::default())?;
    ensure!(node.observed(None).is_empty(), "{:?}", node.observed(None));
    let left: Vec<_> = maps::other_layouts(Path::new(BPFFS));
    ensure!(left.is_empty(), "still pinned: {left:?}");
    ensure!(stage.pair.a.devices()? == before, "the detour is left");
    let mut maps = pinned()?;
    ensure!(maps.halted()?, "the halt was lifted");
    maps.set_control(control::HALTED, 0)?;
    drop(maps);
    let probers = stage.probe(100)?;
    std::thread::sleep(Duration::from_secs(1));
    for prober in probers {
        let probes = prober.stop()?;
        ensure!(
            probes.answered() == probes.len(),
            "an old program acts: {probes:?}"
        );
    }
    // Its client is there still.
    node.set_desired(owner(), stage.faults());
    node.reconcile();
    both_are_injected(&mut node)?;
    node.purge()?;
    nothing_is_pinned()?;
    are_loaded(others)
}
