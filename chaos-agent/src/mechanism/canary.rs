//! New programs are tried on a packet of our own before they act (BPF_PROG_TEST_RUN): the verifier
//! says that a program does no harm, not that it does its work on this kernel.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use aya::Ebpf;
use aya::maps::MapError;
use aya::programs::{CgroupSkb, SchedClassifier, TestRun, TestRunOptions};
use chaos_abi::CANARY_RULE;
use chaos_abi::network::{Rule, RuleRef, Target, flag, target_flag};
use chaos_abi::sample::{ALWAYS, Chance};
use chaos_planner::plan::nanos;

use super::{MechanismError, find, io_error, program};
use crate::kernel::clock;
use crate::kernel::maps::{Pinned, TargetKind};

/// No device has it: a filter without classid, as in a test run.
const SLOT: u64 = 0;

/// Which device test runs give a packet: loopback.
const LOOPBACK: u32 = 1;

/// `TC_ACT_REDIRECT`, include/uapi/linux/pkt_cls.h: away, see `chaos_ebpf::hook`.
const AWAY: u32 = 7;

/// include/uapi/linux/in.h
const UDP: u8 = 17;

/// include/uapi/linux/if_ether.h, in network byte order: IPv4, and what IEEE 802 keeps for experiments.
const ETH_P_IP: [u8; 2] = [0x08, 0x00];
const ETH_P_802_EX1: [u8; 2] = [0x88, 0xb5];

/// The socket that tries how receivers are found has this address: nobody else sends to it.
const RECEIVER: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// A rule that loses everything loses the packet, and counts it.
pub(super) fn is_lost(ebpf: &Ebpf, body: &str, maps: &mut Pinned) -> Result<(), MechanismError> {
    lost(ebpf, body, maps, None, &packet(ETH_P_IP))
}

/// A rule that loses what sockets of the root cgroup receive, which all are in, loses a packet to one
/// of ours. `root` is where the hierarchy is mounted.
pub(super) fn is_received(
    ebpf: &Ebpf,
    body: &str,
    maps: &mut Pinned,
    root: &Path,
) -> Result<(), MechanismError> {
    let opened = UdpSocket::bind((RECEIVER, 0)).and_then(|socket| {
        let port = socket.local_addr()?.port();
        Ok((socket, port))
    });
    let (_socket, port) = opened.map_err(io_error("open a socket on loopback"))?;
    let cgroup = fs::metadata(root).map_err(io_error(format!("look at {}", root.display())))?;
    let mut packet = packet(ETH_P_IP);
    // The protocol and both addresses of the IPv4 header; then the ports of the UDP header.
    packet[23] = UDP;
    packet[26..30].copy_from_slice(&RECEIVER.octets());
    packet[30..34].copy_from_slice(&RECEIVER.octets());
    packet[34..36].copy_from_slice(&port.to_be_bytes());
    packet[36..38].copy_from_slice(&port.to_be_bytes());
    lost(ebpf, body, maps, Some(cgroup.ino()), &packet)
}

fn lost(
    ebpf: &Ebpf,
    body: &str,
    maps: &mut Pinned,
    cgroup: Option<u64>,
    packet: &[u8],
) -> Result<(), MechanismError> {
    let verdict = arm(maps, cgroup).and_then(|()| {
        let classifier: &SchedClassifier = find(ebpf, body)?;
        run(classifier, packet)
    });
    let counted = maps.counters(CANARY_RULE);
    disarm(maps)?;
    let (verdict, counted) = (verdict?, counted.map_err(of_map("COUNTERS"))?);
    if (verdict, counted.matched, counted.injected) == (AWAY, 1, 1) {
        return Ok(());
    }
    Err(MechanismError::Target(format!(
        "{body} was given a packet to lose and said {verdict}, not {AWAY}; it counted {} as lost, not 1",
        counted.injected
    )))
}

/// A packet of no protocol that faults know passes.
pub(super) fn is_allowed(ebpf: &Ebpf, body: &str) -> Result<(), MechanismError> {
    let skb: &CgroupSkb = find(ebpf, body)?;
    match run(skb, &packet(ETH_P_802_EX1))? {
        1 => Ok(()),
        verdict => Err(MechanismError::Target(format!(
            "{body} was given a packet to let pass and said {verdict}, not 1"
        ))),
    }
}

/// `cgroup` is one that has the root's depth.
fn arm(maps: &mut Pinned, cgroup: Option<u64>) -> Result<(), MechanismError> {
    let generation = 1;
    let started = maps.reset_counters(CANARY_RULE);
    started.map_err(of_map("COUNTERS"))?;
    let rule = Rule {
        deadline_ns: clock::now_ns() + nanos(Duration::from_secs(10)),
        generation,
        flags: flag::EGRESS | flag::INGRESS,
        sample_threshold: ALWAYS,
        loss: Chance::of_ppm(1_000_000, 0),
        cgroup_id: cgroup.unwrap_or(0),
        ..Rule::default()
    };
    maps.set_rule(CANARY_RULE, rule).map_err(of_map("RULES"))?;
    let mut target = Target {
        device: LOOPBACK,
        flags: cgroup.map_or(0, |_| target_flag::SHARED),
        ..Target::default()
    };
    target.rules[0] = RuleRef {
        id: CANARY_RULE,
        generation,
    };
    let visible = maps.set_target(TargetKind::Device, SLOT, target);
    visible.map_err(of_map("DEVICE_TARGETS"))
}

fn disarm(maps: &mut Pinned) -> Result<(), MechanismError> {
    let hidden = maps.remove_target(TargetKind::Device, SLOT);
    hidden.map_err(of_map("DEVICE_TARGETS"))?;
    let freed = maps.set_rule(CANARY_RULE, Rule::default());
    freed.map_err(of_map("RULES"))?;
    let reset = maps.reset_counters(CANARY_RULE);
    reset.map_err(of_map("COUNTERS"))
}

/// A packet that is otherwise empty.
fn packet(ethertype: [u8; 2]) -> [u8; 64] {
    let mut packet = [0_u8; 64];
    packet[12..14].copy_from_slice(&ethertype);
    // IPv4, five words of header.
    packet[14] = 0x45;
    packet
}

/// Its verdict.
fn run<P>(tried: &P, packet: &[u8]) -> Result<u32, MechanismError>
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = aya::programs::TestRunResult>,
{
    let options = TestRunOptions {
        data_in: Some(packet),
        ..TestRunOptions::new()
    };
    let ran = tried.test_run(options);
    Ok(ran
        .map_err(program("try a new program on a packet"))?
        .return_value)
}

fn of_map(map: &'static str) -> impl FnOnce(MapError) -> MechanismError {
    move |source| MechanismError::Map { map, source }
}
