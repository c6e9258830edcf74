//! The packet program against its model: random rules, random and mutated packets, by
//! BPF_PROG_TEST_RUN. The verdict of each packet and the counters of each rule have to be the
//! model's.
//!
//! A VM test runs some thousands on each kernel; `cargo xtask fuzz` runs millions on this machine.

mod model;
mod packets;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use chaos_abi::control;
use chaos_abi::network::{Rule, RuleRef, Target, flag};
use chaos_abi::sample::Chance;
use chaos_agent::executor::PeerEntries;
use chaos_agent::kernel::maps::TargetKind;

use model::{Model, Verdict};
use packets::{Random, is_cut, packet, rules};

use crate::programs::{LOOPBACK, Programs, SLOT, STOLEN, UNSPEC};

/// Packets between two sets of rules.
const ROUND: u64 = 1_000;

/// What has been tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tried {
    /// Packets whose verdict was compared.
    pub packets: u64,
    /// Those that were lost.
    pub lost: u64,
    /// Those that the kernel refused to make of the bytes.
    pub refused: u64,
    /// Sets of rules.
    pub rounds: u64,
}

/// Tries so many packets, the same ones for the same seed. `progress` hears of each thousand.
///
/// # Errors
/// The first packet whose verdict, or set of rules whose counters, are not the model's, with all
/// that is needed to see it again.
pub fn run(
    bpffs: &Path,
    packets: u64,
    seed: u64,
    mut progress: impl FnMut(&Tried),
) -> Result<Tried> {
    let mut kernel = Kernel::load(bpffs)?;
    let mut tried = Tried::default();
    while tried.packets < packets {
        let round = tried.rounds;
        let random = &mut Random::new(seed, round);
        let mut model = Model::new(rules(random));
        kernel.take(&model)?;
        for n in 0..ROUND {
            let bytes = packet(random);
            let verdict = match kernel.programs.run(&bytes) {
                // Newer kernels make no packet of less than an IP header; older ones do.
                Err(_) if is_cut(&bytes) => {
                    tried.refused += 1;
                    continue;
                }
                verdict => verdict?,
            };
            let expected = match model.decide(&bytes) {
                Verdict::Lose => STOLEN,
                Verdict::Pass => UNSPEC,
            };
            ensure!(
                verdict == expected,
                "seed {seed}, round {round}, packet {n}: the program says {verdict}, the model \
                 {expected}\npacket: {bytes:02x?}\nrules: {:#?}",
                model.rules
            );
            tried.packets += 1;
            tried.lost += u64::from(verdict == STOLEN);
        }
        kernel
            .compare(&model)
            .with_context(|| format!("seed {seed}, round {round}"))?;
        tried.rounds += 1;
        progress(&tried);
    }
    Ok(tried)
}

/// The programs, and the rules that they have.
struct Kernel {
    programs: Programs,
    held: Vec<PeerEntries>,
}

impl Kernel {
    fn load(bpffs: &Path) -> Result<Self> {
        Ok(Self {
            programs: Programs::load(&bpffs.join("fuzz"))?,
            held: Vec::new(),
        })
    }

    /// Gives the kernel the model's rules instead of those it has.
    fn take(&mut self, model: &Model) -> Result<()> {
        let maps = &mut self.programs.maps;
        maps.set_control(control::ARMED, 1)?;
        maps.set_target(TargetKind::Device, SLOT.into(), Target::default())?;
        for entries in std::mem::take(&mut self.held) {
            entries.leave(&PeerEntries::default(), maps)?;
        }
        let mut target = Target {
            device: LOOPBACK,
            ..Target::default()
        };
        for (place, one) in target.rules.iter_mut().zip(&model.rules) {
            let mut flags = flag::EGRESS;
            if one.observe {
                flags |= flag::OBSERVE;
            }
            if let Some(peers) = &one.peers {
                flags |= flag::PEERS | flag::NETS;
                let entries = PeerEntries::of(one.id, peers);
                PeerEntries::default().enter(&entries, maps)?;
                self.held.push(entries);
            }
            maps.reset_counters(one.id)?;
            let mut rule = Rule {
                deadline_ns: if one.is_past { 1 } else { u64::MAX },
                generation: one.generation,
                flags,
                peer_set: one.id,
                seed: one.seed,
                sample_threshold: one.sample,
                sample_first: one.first,
                sample_every: one.every,
                loss: Chance {
                    threshold: one.loss,
                    correlation: 0,
                },
                ..Rule::default()
            };
            if rule.draws() {
                rule.flags |= flag::DRAWS;
            }
            maps.set_rule(one.id, rule)?;
            *place = RuleRef {
                id: one.id,
                // A reference to another life of the rule is void.
                generation: one.generation + u32::from(one.is_void),
            };
        }
        maps.set_target(TargetKind::Device, SLOT.into(), target)?;
        Ok(())
    }

    fn compare(&self, model: &Model) -> Result<()> {
        for rule in &model.rules {
            let counted = self.programs.maps.counters(rule.id)?;
            let counted = [
                counted.matched,
                counted.injected,
                counted.would_inject,
                counted.failed,
            ];
            let expected = [rule.matched, rule.injected, rule.would_inject, 0];
            ensure!(
                counted == expected,
                "matched, injected, would_inject, failed: {counted:?}, not {expected:?}: {rule:#?}"
            );
        }
        Ok(())
    }
}
