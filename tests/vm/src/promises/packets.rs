//! The packet programs on packets that nobody well-behaved sends, by BPF_PROG_TEST_RUN: the verdict
//! is the model's, always, and nothing else changes. And what the verifier has to look at.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions, loaded_programs};
use chaos_abi::control;
use chaos_abi::network::{Rule, RuleRef, Target, flag, target_flag};
use chaos_abi::sample::{ALWAYS, Chance};
use chaos_agent::kernel::maps::{self, TargetKind};
use chaos_agent::kernel::objects::Loader;
use chaos_planner::capabilities::Mechanism;

use crate::cgroup;
use crate::fuzz;
use crate::machine;
use crate::node::Host;
use crate::programs::{AWAY, LOOPBACK, Programs, SLOT, UNSPEC};
use crate::registry::note;
use crate::vm_test;

/// A bpffs folder of its own, so that the maps of an agent are not touched.
const BPFFS: &str = "/sys/fs/bpf/packets";

vm_test!(every_packet_gets_the_verdict_of_the_model, limit = 90);
fn every_packet_gets_the_verdict_of_the_model() -> Result<()> {
    // The same packets on every kernel; `cargo xtask fuzz` tries others, and more.
    let tried = fuzz::run(Path::new(machine::BPFFS), 10_000, 1, None, |_| ())?;
    let rarest = [
        tried.lost,
        tried.detoured,
        tried.denied,
        tried.received,
        tried.overflowed,
        tried.over_budget,
        tried.failed,
    ];
    ensure!(
        rarest.iter().all(|&seen| seen > 50)
            && tried.packets - tried.lost - tried.denied - tried.detoured > 500,
        "the packets are too tame: {tried:?}"
    );
    note(format!("{tried:?}"));
    Ok(())
}

vm_test!(a_wrong_model_is_noticed, limit = 90, once);
fn a_wrong_model_is_noticed() -> Result<()> {
    fuzz::lies_are_noticed(Path::new(machine::BPFFS), 1)
}

vm_test!(what_stops_everything_stops_it, limit = 60);
fn what_stops_everything_stops_it() -> Result<()> {
    let mut programs = Programs::load(Path::new(BPFFS))?;
    let maps = &mut programs.maps;
    let rule = Rule {
        deadline_ns: u64::MAX,
        generation: 3,
        flags: flag::EGRESS,
        sample_threshold: ALWAYS,
        loss: Chance::of_ppm(1_000_000, 0),
        ..Rule::default()
    };
    maps.set_rule(5, rule)?;
    let mut target = Target {
        device: LOOPBACK,
        ..Target::default()
    };
    target.rules[0] = RuleRef {
        id: 5,
        generation: 3,
    };
    maps.set_target(TargetKind::Device, SLOT.into(), target)?;
    maps.set_armed(true)?;
    let mut ipv4 = vec![2; 12];
    ipv4.extend([0x08, 0x00, 0x45]);
    ipv4.resize(14 + 28, 0);
    let hit = &ipv4;

    // The words that stop everything.
    programs.maps.set_control(control::HALTED, 1)?;
    ensure!(programs.run(hit)? == UNSPEC, "acts while halted");
    programs.maps.set_control(control::HALTED, 0)?;
    ensure!(programs.run(hit)? == AWAY, "does not go on");
    programs.maps.set_armed(false)?;
    ensure!(programs.run(hit)? == UNSPEC, "acts while nothing is armed");
    programs.maps.set_armed(true)?;
    // An object that is loaded meanwhile, as a device's own dispatchers are.
    Loader::new(&maps::directory(Path::new(BPFFS))).load_for_slot(9)?;
    ensure!(programs.run(hit)? == AWAY, "loading an object stops it");
    let past = Rule {
        deadline_ns: 1,
        ..rule
    };
    programs.maps.set_rule(5, past)?;
    ensure!(programs.run(hit)? == UNSPEC, "acts past its deadline");
    Ok(())
}

vm_test!(
    where_sockets_cannot_be_read_a_shared_device_s_packets_are_nobody_s,
    limit = 60
);
fn where_sockets_cannot_be_read_a_shared_device_s_packets_are_nobody_s() -> Result<()> {
    let mut programs = Programs::load(Path::new(BPFFS))?;
    // Without its constants, as where the kernel is locked down or says nothing of its types.
    let mut loader = Loader::new(&maps::directory(Path::new(BPFFS)));
    let mut ingress = loader.load(Mechanism::TcIngress)?;
    let body = ingress.program_mut("tc_ingress_body");
    let body: &mut SchedClassifier = body.context("no tc_ingress_body")?.try_into()?;
    body.load()?;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = socket.local_addr()?.port().to_be_bytes();
    let mut packet = vec![0; 12];
    packet.extend([0x08, 0x00, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0]);
    packet.extend([127, 0, 0, 1, 127, 0, 0, 1]);
    packet.extend([port, port].concat());
    packet.extend([0, 8, 0, 0]);
    // The root of all cgroups, which every socket is below.
    for (cgroup_id, expected) in [(0, AWAY), (fs::metadata(cgroup::ROOT)?.ino(), UNSPEC)] {
        let rule = Rule {
            deadline_ns: u64::MAX,
            generation: 3,
            flags: flag::INGRESS,
            sample_threshold: ALWAYS,
            loss: Chance::of_ppm(1_000_000, 0),
            cgroup_id,
            ..Rule::default()
        };
        programs.maps.set_rule(5, rule)?;
        let mut target = Target {
            device: LOOPBACK,
            flags: target_flag::SHARED,
            ..Target::default()
        };
        target.rules[0] = RuleRef {
            id: 5,
            generation: 3,
        };
        programs.maps.set_target(TargetKind::Device, 0, target)?;
        let options = TestRunOptions {
            data_in: Some(&packet),
            ..TestRunOptions::new()
        };
        let verdict = body.test_run(options)?.return_value;
        ensure!(verdict == expected, "of cgroup {cgroup_id}: {verdict}");
    }
    Ok(())
}

vm_test!(the_verifier_has_little_to_look_at, limit = 60);
fn the_verifier_has_little_to_look_at() -> Result<()> {
    // Most of it is the loop of `sample::source`, which is walked step by step. The kernel's limit is
    // a million; what grows towards it takes seconds to load.
    const LIMIT: u32 = 60_000;
    let _host = Host::open()?;
    let mut bodies = 0;
    for program in loaded_programs() {
        let program = program?;
        // The kernel keeps 15 bytes of a name.
        let name = program.name_as_str().unwrap_or_default().to_owned();
        if let Some(instructions) = program.verified_instruction_count() {
            note(format!("{name}: {instructions} instructions"));
            ensure!(instructions < LIMIT, "{name}: {instructions}");
            bodies += usize::from(instructions > 1_000);
        }
    }
    ensure!(bodies > 5, "only {bodies} programs are worth looking at");
    Ok(())
}
