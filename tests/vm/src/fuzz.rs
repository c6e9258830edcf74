//! The packet program against its model: random rules, random and mutated packets, by
//! BPF_PROG_TEST_RUN. The verdict of each packet and the counters of each rule have to be the
//! model's.
//!
//! A VM test runs some thousands on each kernel; `cargo xtask fuzz` runs millions on this machine.

mod model;
mod packets;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use aya::Ebpf;
use aya::programs::{Program, SchedClassifier, TestRun, TestRunOptions};
use chaos_abi::control;
use chaos_abi::network::{Rule, RuleRef, Target, flag};
use chaos_abi::sample::Chance;
use chaos_agent::executor::PeerEntries;
use chaos_agent::kernel::maps::{self, Pinned, TargetKind};
use chaos_agent::kernel::objects;
use chaos_planner::capabilities::Mechanism;

use model::{Model, Verdict};
use packets::{Random, is_cut, packet, rules};

/// `TC_ACT_STOLEN` and `TC_ACT_UNSPEC`, include/uapi/linux/pkt_cls.h.
const STOLEN: u32 = 4;
const UNSPEC: u32 = u32::MAX;

const SLOT: u32 = 7;

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
            let verdict = match kernel.run(&bytes) {
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

/// The loaded program and its maps, in a folder of their own.
struct Kernel {
    directory: PathBuf,
    maps: Pinned,
    programs: Ebpf,
    held: Vec<PeerEntries>,
    // Its maps are among those of the agent.
    _cgroup_drop: Ebpf,
}

impl Kernel {
    fn load(bpffs: &Path) -> Result<Self> {
        let directory = bpffs.join("fuzz");
        let pins = maps::directory(&directory);
        fs::create_dir_all(&pins).with_context(|| {
            format!(
                "failed to make {}: is a bpffs mounted there?",
                pins.display()
            )
        })?;
        let cgroup_drop = objects::load(Mechanism::CgroupDrop, &pins, &[])?;
        let mut programs = objects::load(Mechanism::TcEgress, &pins, &[("SLOT", SLOT)])?;
        for (_, program) in programs.programs_mut() {
            if let Program::SchedClassifier(classifier) = program {
                classifier.load()?;
            }
        }
        Ok(Self {
            maps: Pinned::open(&directory)?,
            directory,
            programs,
            held: Vec::new(),
            _cgroup_drop: cgroup_drop,
        })
    }

    /// Gives the kernel the model's rules instead of those it has.
    fn take(&mut self, model: &Model) -> Result<()> {
        self.maps.set_control(control::ARMED, 1)?;
        self.maps
            .set_target(TargetKind::Device, SLOT.into(), Target::default())?;
        for entries in std::mem::take(&mut self.held) {
            entries.leave(&PeerEntries::default(), &mut self.maps)?;
        }
        // TEST_RUN gives packets the loopback device.
        let mut target = Target {
            device: 1,
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
                PeerEntries::default().enter(&entries, &mut self.maps)?;
                self.held.push(entries);
            }
            self.maps.reset_counters(one.id)?;
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
            self.maps.set_rule(one.id, rule)?;
            *place = RuleRef {
                id: one.id,
                // A reference to another life of the rule is void.
                generation: one.generation + u32::from(one.is_void),
            };
        }
        self.maps
            .set_target(TargetKind::Device, SLOT.into(), target)?;
        Ok(())
    }

    fn run(&self, packet: &[u8]) -> Result<u32> {
        let program = self
            .programs
            .program("tc_egress_body")
            .context("no tc_egress_body")?;
        let classifier: &SchedClassifier = program.try_into()?;
        let options = TestRunOptions {
            data_in: Some(packet),
            ..TestRunOptions::new()
        };
        Ok(classifier.test_run(options)?.return_value)
    }

    fn compare(&self, model: &Model) -> Result<()> {
        for rule in &model.rules {
            let counted = self.maps.counters(rule.id)?;
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

impl Drop for Kernel {
    fn drop(&mut self) {
        // A leftover would be found by the next run, which then fails for no reason of its own.
        drop(fs::remove_dir_all(&self.directory));
    }
}
