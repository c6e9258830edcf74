//! The packet programs against their model: random rules, random and mutated packets, by
//! BPF_PROG_TEST_RUN; seven of eight on a device, the others of a socket (`socket.rs`). Compared are,
//! of each packet, the verdict, what it carries into the detour and how much waits there, when it is let go
//! and what it looks like behind it; of each rule, its counters, its draws and the clocks of its shapers.
//!
//! What is sent into the detour ends there: not all kernels have fq, and a pair of devices loses packets
//! when CPUs are busy. That a packet goes at its time is tested in `faults`.
//!
//! A VM test runs some thousands on each kernel; `cargo xtask fuzz` runs millions on this machine.

mod detour;
mod kernel;
mod model;
mod other_end;
mod packets;
mod random;
mod rules;
mod socket;
mod target;

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use chaos_agent::kernel::clock;
use chaos_agent::mechanism::tc::Way;

use detour::{Detour, OURS, Size};
use kernel::Kernel;
use model::Model;
use packets::{is_cut, packet};
use random::Random;
use target::Inside;

use crate::bench::pin_to_this_cpu;
use crate::netns::Namespace;
use crate::programs::AWAY;

/// Packets between two sets of rules.
const ROUND: u64 = 1_000;

/// What has been tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tried {
    /// Packets that were compared.
    pub packets: u64,
    /// Those that were lost.
    pub lost: u64,
    /// Those that came in for a socket of a cgroup that has rules.
    pub received: u64,
    /// Those of a socket that were denied.
    pub denied: u64,
    /// Those that went into the detour, or copies of which did.
    pub detoured: u64,
    /// Those that the kernel refused to make of the bytes.
    pub refused: u64,
    /// Sets of rules.
    pub rounds: u64,
    /// Hits that rules counted as dropped by a full shaper, dropped for want of budget, and failed.
    pub overflowed: u64,
    /// See `overflowed`.
    pub over_budget: u64,
    /// See `overflowed`.
    pub failed: u64,
}

/// What a model gets wrong on purpose, to see that it is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// What is lost passes, and the other way round.
    Loss,
    /// A packet waits a nanosecond longer.
    Wait,
    /// A copy is missing.
    Copies,
    /// Another bit is flipped.
    Spot,
    /// A packet is counted twice.
    Count,
    /// More waits in the detour.
    Waiting,
    /// What a socket is denied it may send or get, and the other way round.
    Denied,
}

impl Lie {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Loss,
        Self::Wait,
        Self::Copies,
        Self::Spot,
        Self::Count,
        Self::Waiting,
        Self::Denied,
    ];
}

/// Tries so many packets, the same ones for the same seed. `progress` hears of each thousand. The clock is
/// the kernel's, so that delays end and buckets fill at other times in each run.
///
/// # Errors
/// The first packet or set of rules that is not as in the model, with all that is needed to see it again.
pub fn run(
    bpffs: &Path,
    packets: u64,
    seed: u64,
    lie: Option<Lie>,
    progress: impl FnMut(&Tried) + Send,
) -> Result<Tried> {
    // Packets of TEST_RUN are on the loopback device of this.
    let namespace = Namespace::new()?;
    let sink = namespace.add_sink()?;
    namespace.within(|| {
        // Counters are per CPU.
        pin_to_this_cpu()?;
        let target = Inside::new()?;
        let mut kernel = Kernel::load(bpffs, sink)?;
        let of_sockets = packets / 8;
        let mut tried = compare(
            &mut kernel,
            &target,
            packets - of_sockets,
            seed,
            lie,
            progress,
        )?;
        kernel.forget()?;
        let programs = &mut kernel.programs;
        socket::compare(programs, &target, of_sockets, seed, lie, &mut tried)?;
        Ok(tried)
    })
}

/// Each of a model's lies is noticed.
///
/// # Errors
/// The one that is not, or what the comparison fails with before.
pub fn lies_are_noticed(bpffs: &Path, seed: u64) -> Result<()> {
    run(bpffs, 2_000, seed, None, |_| ())?;
    for lie in Lie::ALL {
        if let Ok(tried) = run(bpffs, 20_000, seed, Some(lie), |_| ()) {
            bail!("a model that is wrong about {lie:?} was not noticed: {tried:?}");
        }
    }
    Ok(())
}

fn compare(
    kernel: &mut Kernel,
    target: &Inside,
    packets: u64,
    seed: u64,
    lie: Option<Lie>,
    mut progress: impl FnMut(&Tried),
) -> Result<Tried> {
    let mut tried = Tried::default();
    while tried.packets < packets {
        let round = tried.rounds;
        let random = &mut Random::new(seed, round);
        let mut model = Model {
            way: random.one_of(&[Way::Egress, Way::Ingress]),
            rules: vec![rules::clock()],
            can_detour: !random.chance(8),
            is_shared: random.chance(2),
            looked_at: false,
            lie,
        };
        let rules = rules::rules(random, clock::now_ns(), &target.cgroups());
        model.rules.extend(rules);
        let mut detour = Detour {
            works: !random.chance(6),
            budget: random.one_of(&[20, 300, 1 << 30]),
            waiting: 0,
            cuts: random.chance(2),
            earlier: 0,
        };
        kernel.take(&model, &detour)?;
        for n in 0..ROUND {
            one_packet(kernel, &mut model, &mut detour, random, &mut tried).with_context(|| {
                format!(
                    "seed {seed}, round {round}, packet {n}\n{detour:?}\nrules: {:#?}",
                    model.rules
                )
            })?;
        }
        kernel
            .compare(&model)
            .with_context(|| format!("seed {seed}, round {round}"))?;
        for rule in &model.rules {
            tried.overflowed += rule.counted.overflowed;
            tried.over_budget += rule.counted.over_budget;
            tried.failed += rule.counted.failed;
        }
        tried.rounds += 1;
        progress(&tried);
    }
    Ok(tried)
}

fn one_packet(
    kernel: &mut Kernel,
    model: &mut Model,
    detour: &mut Detour,
    random: &mut Random,
    tried: &mut Tried,
) -> Result<()> {
    let frame = packet(random, model.way);
    let size = Size {
        bytes: frame.len() as u32,
        segments: random.one_of(&[0, 0, 1, 2, 17]),
    };
    // One that comes out of the detour, or is on another device, is nobody's business.
    let passes_by = random.chance(16) && model.can_detour;
    detour.earlier = kernel.earlier()?;
    let seen = match kernel.treat(&frame, size, passes_by) {
        // Newer kernels make no packet of less than an IP header; older ones do.
        Err(_) if is_cut(&frame) => {
            tried.refused += 1;
            return Ok(());
        }
        seen => seen?,
    };
    let is_looked_at = model.sees(&frame) && !passes_by;
    let now = if is_looked_at { kernel.clock()? } else { 0 };
    model.looked_at = false;
    let decided = if is_looked_at {
        model.decide(&frame, now)
    } else {
        (model::Fate::default(), 0)
    };
    let expected = detour.carry_out(decided, size, now, model);
    ensure!(
        seen == expected,
        "the program: {seen:?}, the model: {expected:?}, which decided {decided:?} at {now}\n\
         packet, {size:?}: {frame:02x?}"
    );
    tried.packets += 1;
    let detoured = seen.carried[2] == OURS;
    tried.lost += u64::from(seen.verdict == AWAY && !detoured);
    tried.detoured += u64::from(detoured);
    tried.received += u64::from(model.looked_at && model.way == Way::Ingress);
    if detoured {
        let [low, high, .., carried] = seen.carried;
        kernel
            .stamps(&frame, seen.carried, u64::from(high) << 32 | u64::from(low))
            .with_context(|| format!("packet: {frame:02x?}"))?;
        if random.chance(2) {
            // It goes on waiting.
            return Ok(());
        }
        let expected = detour.come_out(&frame, carried);
        let out = kernel.come_out(&frame, seen.carried)?;
        ensure!(
            out == (expected.clone(), detour.waiting),
            "behind the detour: {out:02x?}, not {expected:02x?} and {}, with {carried:x}",
            detour.waiting
        );
    }
    Ok(())
}
