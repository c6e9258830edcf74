//! What a packet pays in the packet programs, by BPF_PROG_TEST_RUN: in nanoseconds of this thread's CPU
//! time, so that what others do on the machine costs nothing here. And how true seeded losses are.

use std::path::Path;

use anyhow::{Result, ensure};
use aya::programs::{CgroupSkbAttachType, ProgramError, TestRun, TestRunOptions, TestRunResult};
use chaos_abi::network::{Rule, RuleRef, Target, flag};
use chaos_abi::sample::{ALWAYS, Chance};
use chaos_abi::{MAX_RULES, RULES_PER_TARGET};
use chaos_agent::executor::PeerEntries;
use chaos_agent::kernel::maps::{Pinned, TargetKind};
use chaos_planner::fault::Peer;
use ipnet::{IpNet, Ipv4Net};
use nix::time::{ClockId, clock_gettime};

use super::{InTurns, Measure, compare, copies, empty};
use crate::figures::statistics::binomial_99;
use crate::figures::{Aim, Figure};
use crate::programs::{LOOPBACK, Programs, SLOT};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Pairs of each comparison.
    pub pairs: usize,
    /// Packets of each measurement.
    pub packets: u32,
    /// Runs of each loss.
    pub losses: u32,
}

/// Addresses, networks and rules where there are many.
const MANY: u32 = 10_000;
const MANY_NETS: u32 = 1_000;

/// Whom the packets go to.
const PEER: [u8; 4] = [10, 200, 0, 1];

/// All figures, each as soon as it is there.
///
/// # Errors
/// If the programs cannot be loaded and run, or BPF run-time statistics are on: these cost more than
/// what is measured.
pub fn measure(
    bpffs: &Path,
    effort: Effort,
    mut tell: impl FnMut(Figure) -> Result<()>,
) -> Result<()> {
    let statistics = std::fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled");
    ensure!(
        statistics.is_ok_and(|on| on.trim() == "0"),
        "kernel.bpf_stats_enabled: must be 0 to measure; set it by sysctl"
    );
    let bench = Bench { bpffs, effort };
    for figure in [Bench::nothing_armed, Bench::bystanders, Bench::peers] {
        figure(&bench, &mut tell)?;
    }
    bench.losses(&mut tell)
}

struct Bench<'a> {
    bpffs: &'a Path,
    effort: Effort,
}

type Tell<'a> = &'a mut dyn FnMut(Figure) -> Result<()>;

impl Bench<'_> {
    /// The tax of a node on which nothing is armed.
    fn nothing_armed(&self, tell: Tell<'_>) -> Result<()> {
        let aim = Aim::AtMost(1.08);
        let unit = "ns/packet / empty program";
        let programs = self.programs("idle")?;
        let tc = programs.classifier("tc_egress")?;
        let empty = [
            empty::classifier(self.bpffs)?,
            empty::classifier(self.bpffs)?,
        ];
        let sides = (self.time(tc), self.time(&empty[0]), self.time(&empty[1]));
        tell(
            self.compare("tc_egress, nothing armed", unit, sides)?
                .aim(aim),
        )?;
        for (name, attach) in [
            ("cgroup_drop_egress", CgroupSkbAttachType::Egress),
            ("cgroup_drop_ingress", CgroupSkbAttachType::Ingress),
        ] {
            let filter = programs.filter(name)?;
            let empty = [attach, attach].map(|attach| empty::filter(self.bpffs, attach));
            let [empty, twin] = empty;
            let (empty, twin) = (empty?, twin?);
            let sides = (self.time(filter), self.time(&empty), self.time(&twin));
            tell(
                self.compare(&format!("{name}, nothing armed"), unit, sides)?
                    .aim(aim),
            )?;
        }
        Ok(())
    }

    /// What many rules cost a packet that none of them is about.
    fn bystanders(&self, tell: Tell<'_>) -> Result<()> {
        let unit = "ns/packet / 1 rule armed";
        let aim = Aim::AtMost(1.10);
        let [mut many, mut one, mut twin] = self.three()?;
        for (all, rules) in [(&mut many, MANY), (&mut one, 1), (&mut twin, 1)] {
            for programs in all {
                arm_elsewhere(&mut programs.maps, rules)?;
            }
        }
        let name = "cgroup_drop, 10 000 rules on other cgroups";
        let figure = self.compare_copies(name, unit, [&many, &one, &twin], |programs| {
            programs.filter("cgroup_drop_egress")
        })?;
        tell(figure.aim(aim))?;

        let name = "tc_egress, 10 000 rules on other devices";
        tell(
            self.compare_egress(name, unit, [&many, &one, &twin])?
                .aim(aim),
        )?;

        // On the target's device, to somebody else.
        for programs in [&mut many, &mut one, &mut twin].into_iter().flatten() {
            arm_here(&mut programs.maps, &[peer([10, 9, 9, 9], 32)])?;
        }
        let name = "tc_egress, 10 000 rules elsewhere, target to another peer";
        tell(
            self.compare_egress(name, unit, [&many, &one, &twin])?
                .aim(aim),
        )
    }

    /// What it costs a target's packet that its fault is about many peers.
    fn peers(&self, tell: Tell<'_>) -> Result<()> {
        let address = |n: u32| peer((0x0a01_0000 + n).to_be_bytes(), 32);
        let net = |n: u32| peer((0x0b00_0000 + (n << 8)).to_be_bytes(), 24);
        let ours = [peer(PEER, 32), peer([10, 200, 0, 0], 24)];
        let cases = [
            (
                "one fault on 10 000 addresses, a packet to one of them",
                "ns/packet / 1 address",
                (1..MANY).map(address).collect::<Vec<_>>(),
                ours[0],
                Some(Aim::AtMost(1.10)),
            ),
            (
                "one fault on 1 000 networks, a packet into one of them",
                "ns/packet / 1 network",
                (1..MANY_NETS).map(net).collect(),
                ours[1],
                None,
            ),
        ];
        for (name, unit, mut peers, ours, aim) in cases {
            peers.push(ours);
            let [mut many, mut one, mut twin] = self.three()?;
            for programs in &mut many {
                arm_here(&mut programs.maps, &peers)?;
            }
            for programs in one.iter_mut().chain(&mut twin) {
                arm_here(&mut programs.maps, &[ours])?;
            }
            let figure = self.compare_egress(name, unit, [&many, &one, &twin])?;
            for programs in many.iter().chain(&one) {
                ensure!(
                    programs.maps.counters(1)?.matched > 0,
                    "{name}: the packet was not to one of them"
                );
            }
            tell(match aim {
                Some(aim) => figure.aim(aim),
                None => figure,
            })?;
        }
        Ok(())
    }

    /// How many of seeded runs lose as many packets as such a probability should, and what a draw
    /// costs.
    fn losses(&self, tell: Tell<'_>) -> Result<()> {
        const PACKETS: u32 = 1_000;
        let mut programs = self.programs("loss")?;
        for ppm in [10_000, 100_000, 500_000] {
            let probability = f64::from(ppm) / 1e6;
            let inside = binomial_99(PACKETS.into(), probability);
            let mut good = 0;
            for seed in 0..u64::from(self.effort.losses) {
                arm(&mut programs.maps, |rule| {
                    rule.loss = Chance::of_ppm(ppm, 0);
                    rule.seed = seed;
                    rule.flags |= flag::DRAWS;
                })?;
                run(programs.classifier("tc_egress")?, PACKETS)?;
                let counted = programs.maps.counters(1)?;
                ensure!(counted.matched == u64::from(PACKETS), "{counted:?}");
                good += u32::from(inside.contains(&counted.injected));
            }
            let share = f64::from(good) / f64::from(self.effort.losses);
            let name = format!(
                "loss of {} %: runs inside the 99 % interval",
                probability * 100.0
            );
            let figure = Figure {
                samples: self.effort.losses as usize,
                ..Figure::of(name, "share of seeded runs", &[share])
            };
            tell(figure.aim(Aim::AtLeast(0.97)))?;
        }
        let empty = [
            empty::classifier(self.bpffs)?,
            empty::classifier(self.bpffs)?,
        ];
        let sides = (
            self.time(programs.classifier("tc_egress")?),
            self.time(&empty[0]),
            self.time(&empty[1]),
        );
        let unit = "ns/packet / empty program";
        tell(self.compare(
            "tc_egress, a target's packet with a loss of 50 %",
            unit,
            sides,
        )?)
    }

    fn compare_egress(&self, name: &str, unit: &str, of: [&Vec<Programs>; 3]) -> Result<Figure> {
        self.compare_copies(name, unit, of, |programs| programs.classifier("tc_egress"))
    }

    /// Of each side one program, of its copies in turns.
    fn compare_copies<P: SkbProgram>(
        &self,
        name: &str,
        unit: &str,
        of: [&Vec<Programs>; 3],
        program: impl Fn(&Programs) -> Result<&P>,
    ) -> Result<Figure> {
        let [a, b, c] = of.map(|copies| -> Result<_> {
            let timed = |copy| Ok(self.time(program(copy)?));
            let mut copies = InTurns::new(copies.iter().map(timed).collect::<Result<_>>()?);
            Ok(move || copies.next()?())
        });
        self.compare(name, unit, (a?, b?, c?))
    }

    fn compare(
        &self,
        name: &str,
        unit: &str,
        sides: (impl Measure, impl Measure, impl Measure),
    ) -> Result<Figure> {
        compare(name, unit, self.effort.pairs, sides)
    }

    /// Nanoseconds of CPU time a packet.
    fn time<P: SkbProgram>(&self, program: &P) -> impl Measure {
        let packets = self.effort.packets;
        move || {
            let cpu =
                || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(std::time::Duration::from);
            let before = cpu()?;
            run(program, packets)?;
            Ok((cpu()? - before).as_nanos() as f64 / f64::from(packets))
        }
    }

    fn programs(&self, name: &str) -> Result<Programs> {
        Programs::load(&self.bpffs.join(name))
    }

    /// Three sides of a comparison, of each some copies.
    fn three(&self) -> Result<[Vec<Programs>; 3]> {
        let side = |name: &str| {
            let made =
                (0..copies(self.effort.pairs)).map(|copy| self.programs(&format!("{name}{copy}")));
            made.collect::<Result<Vec<_>>>()
        };
        Ok([side("many")?, side("one")?, side("twin")?])
    }
}

/// A program that BPF_PROG_TEST_RUN gives a packet.
trait SkbProgram: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult> {}

impl<P> SkbProgram for P where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult>
{
}

fn run<P: SkbProgram>(program: &P, packets: u32) -> Result<(), ProgramError> {
    let packet = packet();
    let options = TestRunOptions {
        data_in: Some(&packet),
        repeat: packets,
        ..TestRunOptions::new()
    };
    program.test_run(options).map(drop)
}

/// UDP to [`PEER`] in an Ethernet frame of 64 bytes.
fn packet() -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend([0x08, 0x00, 0x45]);
    frame.resize(64, 0);
    frame[14 + 8] = 64;
    frame[14 + 9] = 17;
    frame[14 + 12..14 + 16].copy_from_slice(&[10, 0, 0, 7]);
    frame[14 + 16..14 + 20].copy_from_slice(&PEER);
    frame
}

fn peer(address: [u8; 4], length: u8) -> Peer {
    let net = Ipv4Net::new(address.into(), length).unwrap_or_default();
    Peer::new(IpNet::V4(net), None)
}

/// A rule without effect: what is measured is the way to it.
fn rule() -> Rule {
    Rule {
        deadline_ns: u64::MAX,
        generation: 1,
        flags: flag::EGRESS,
        sample_threshold: ALWAYS,
        ..Rule::default()
    }
}

/// One rule, number 1, on the device of the packet, for everybody.
fn arm(maps: &mut Pinned, change: impl FnOnce(&mut Rule)) -> Result<()> {
    let mut armed = rule();
    change(&mut armed);
    maps.reset_counters(1)?;
    maps.set_rule(1, armed)?;
    let mut target = Target {
        device: LOOPBACK,
        ..Target::default()
    };
    target.rules[0] = RuleRef {
        id: 1,
        generation: 1,
    };
    maps.set_target(TargetKind::Device, SLOT.into(), target)?;
    Ok(maps.set_armed(true)?)
}

/// One rule on the device of the packet, for these peers.
fn arm_here(maps: &mut Pinned, peers: &[Peer]) -> Result<()> {
    PeerEntries::default().enter(&PeerEntries::of(1, peers), maps)?;
    arm(maps, |rule| {
        rule.peer_set = 1;
        rule.flags |= flag::PEERS | flag::NETS;
    })
}

/// So many rules on targets that the packet has nothing to do with, each with a peer of its own.
fn arm_elsewhere(maps: &mut Pinned, rules: u32) -> Result<()> {
    let ids: Vec<u32> = (2..MAX_RULES).take(rules as usize).collect();
    for (ids, n) in ids.chunks(RULES_PER_TARGET).zip(0_u32..) {
        let mut target = Target {
            device: LOOPBACK,
            ..Target::default()
        };
        for (place, &id) in target.rules.iter_mut().zip(ids) {
            let peers = PeerEntries::of(id, &[peer((0x0a02_0000 + id).to_be_bytes(), 32)]);
            PeerEntries::default().enter(&peers, maps)?;
            let rule = Rule {
                peer_set: id,
                ..rule()
            };
            let flags = rule.flags | flag::PEERS | flag::DROP;
            maps.set_rule(id, Rule { flags, ..rule })?;
            *place = RuleRef { id, generation: 1 };
        }
        maps.set_target(TargetKind::Device, (SLOT + 1 + n).into(), target)?;
        // No cgroup has such an id.
        maps.set_target(TargetKind::Cgroup, u64::MAX - u64::from(n), target)?;
    }
    maps.set_depth(0, 1)?;
    Ok(maps.set_armed(true)?)
}
