//! `cgroup_drop` against a model of its own: rules of a cgroup and of the one above it, and packets of a
//! socket that is in it.

use anyhow::{Context, Result, bail, ensure};
use aya::programs::{TestRun, TestRunOptions};
use chaos_abi::network::{MAX_DEPTHS, Rule, Target, flag};
use chaos_agent::executor::PeerEntries;
use chaos_agent::kernel::clock;
use chaos_agent::kernel::maps::TargetKind;
use chaos_agent::mechanism::tc::Way;

use super::kernel::{counted, enter};
use super::model::ModelRule;
use super::other_end::{OtherEnd, other_end};
use super::packets::{is_cut, packet};
use super::random::Random;
use super::target::Inside;
use super::{Lie, Tried, rules};
use crate::programs::Programs;

/// Packets between two sets of rules.
const ROUND: u64 = 500;

/// A rule, and whether it drops what it is about.
#[derive(Clone, Debug)]
struct Drops(ModelRule, bool);

impl Drops {
    /// Whether it denies the packet.
    fn denies(&mut self, to: &OtherEnd, now: u64) -> bool {
        let Self(rule, drops) = self;
        if !rule.is_about(to, now) {
            return false;
        }
        let n = rule.number();
        if !rule.is_sampled(n) || !*drops {
            return false;
        }
        if rule.observe {
            rule.counted.would_inject += 1;
        } else {
            rule.counted.injected += 1;
        }
        !rule.observe
    }

    fn kernel_rule(&self, way: Way) -> Rule {
        let Self(rule, drops) = self;
        let mut told = rule.kernel_rule(way);
        told.flags |= if *drops { flag::DROP } else { 0 };
        told
    }
}

/// The rules of the cgroups in the order in which they are asked.
type Model = Vec<Drops>;

fn is_denied(model: &mut Model, frame: &[u8], way: Way, now: u64) -> bool {
    let Some(to) = other_end(frame, way) else {
        return false;
    };
    model.iter_mut().any(|rule| rule.denies(&to, now))
}

/// As [`super::run`].
pub(super) fn compare(
    programs: &mut Programs,
    target: &Inside,
    packets: u64,
    seed: u64,
    lie: Option<Lie>,
    tried: &mut Tried,
) -> Result<()> {
    let enough = tried.packets + packets;
    while tried.packets < enough {
        let random = &mut Random::new(!seed, tried.rounds);
        let way = random.one_of(&[Way::Egress, Way::Ingress]);
        let (mut model, held) = take(programs, target, way, random)?;
        let round = tried.rounds;
        let told = |model: &Model| format!("seed {seed}, round {round}: {model:#?}");
        let mut compared = 0;
        for _ in 0..ROUND {
            compared += u64::from(
                one_packet(programs, &mut model, way, lie, random, tried)
                    .with_context(|| told(&model))?,
            );
        }
        for Drops(rule, _) in &model {
            let (found, state) = (counted(programs, rule.id)?, programs.maps.state(rule.id)?);
            ensure!(
                (found, state) == (rule.counted, rule.state),
                "the kernel: {found:?}, {state:?}, the model: {rule:#?}"
            );
        }
        for entries in held {
            entries.leave(&PeerEntries::default(), &mut programs.maps)?;
        }
        for (id, _) in target.cgroups() {
            programs.maps.remove_target(TargetKind::Cgroup, id)?;
        }
        ensure!(compared > 0, "no packet of {ROUND} was one");
        tried.rounds += 1;
    }
    Ok(())
}

/// Gives the cgroups random rules, and the depths of both random places.
fn take(
    programs: &mut Programs,
    target: &Inside,
    way: Way,
    random: &mut Random,
) -> Result<(Model, Vec<PeerEntries>)> {
    let maps = &mut programs.maps;
    maps.set_armed(true)?;
    let mut all = rules::rules(random, clock::now_ns(), &[]);
    let mut model = Vec::new();
    let mut held = Vec::new();
    // One that is nobody's, and a free place.
    let mut depths = vec![0, 7];
    depths.extend(target.cgroups().map(|(_, depth)| depth));
    for place in 0..MAX_DEPTHS {
        let depth = depths.swap_remove(random.below(depths.len() as u32) as usize);
        maps.set_depth(place, depth)?;
        let Some((id, _)) = target.cgroups().into_iter().find(|(_, d)| *d == depth) else {
            continue;
        };
        let count = random.below(all.len() as u32 + 1) as usize;
        let mut rules_of_it = Target::default();
        for (place, mut rule) in rules_of_it.rules.iter_mut().zip(all.split_off(count)) {
            // That is told by the target here.
            (rule.rule.cgroup_id, rule.rule.cgroup_depth) = (0, 0);
            let rule = Drops(rule, !random.chance(4));
            *place = enter(&rule.0, rule.kernel_rule(way), maps, &mut held)?;
            model.push(rule);
        }
        maps.set_target(TargetKind::Cgroup, id, rules_of_it)?;
    }
    Ok((model, held))
}

/// Whether it was one.
fn one_packet(
    programs: &Programs,
    model: &mut Model,
    way: Way,
    lie: Option<Lie>,
    random: &mut Random,
    tried: &mut Tried,
) -> Result<bool> {
    let frame = packet(random, way);
    let program = match way {
        Way::Egress => "cgroup_drop_egress",
        Way::Ingress => "cgroup_drop_ingress",
    };
    let options = TestRunOptions {
        data_in: Some(&frame),
        ..TestRunOptions::new()
    };
    let from = clock::now_ns();
    let verdict = match programs.filter(program)?.test_run(options) {
        Err(_) if is_cut(&frame) => {
            tried.refused += 1;
            return Ok(false);
        }
        ran => ran?.return_value,
    };
    let to = clock::now_ns();
    let ended = model
        .iter()
        .any(|Drops(rule, _)| (from..=to).contains(&rule.rule.deadline_ns));
    let mut later = ended.then(|| model.clone());
    let mut denied = is_denied(model, &frame, way, from);
    if let Some(later) = &mut later {
        // Which of the two it was is seen by what was counted.
        let denied_later = is_denied(later, &frame, way, to);
        if !is_counted(programs, model)? {
            model.clone_from(later);
            denied = denied_later;
        }
    }
    denied ^= lie == Some(Lie::Denied);
    match verdict {
        0 | 1 => ensure!(
            denied == (verdict == 0),
            "the program: {verdict}, the model: denied is {denied}, of {frame:02x?}"
        ),
        other => bail!("the program says {other} of {frame:02x?}"),
    }
    tried.packets += 1;
    tried.denied += u64::from(denied);
    Ok(true)
}

fn is_counted(programs: &Programs, model: &Model) -> Result<bool> {
    for Drops(rule, _) in model {
        if counted(programs, rule.id)? != rule.counted {
            return Ok(false);
        }
    }
    Ok(true)
}
