//! The kernel's side: the programs, the rules that they have, and what is to be seen of a packet.

use std::path::Path;

use anyhow::{Result, ensure};
use aya::programs::{TestRun, TestRunOptions};
use chaos_abi::late;
use chaos_abi::network::{Rule, RuleRef, Target, target_flag};
use chaos_agent::executor::PeerEntries;
use chaos_agent::kernel::maps::{Pinned, TargetKind};
use chaos_agent::mechanism::tc::Way;

use super::detour::{Detour, OURS, Seen, Size};
use super::model::{Counted, Model, ModelRule, those_set};
use crate::programs::{LOOPBACK, Programs, SLOT};

/// Index of no device.
const NOWHERE: u32 = 9_999;

/// Index that packets come in by that come out of the detour. Only compared: it need not be there.
const OUT: u32 = 9_998;

/// `TC_ACT_OK`, `TC_ACT_SHOT`, `TC_ACT_REDIRECT`, include/uapi/linux/pkt_cls.h.
const OK: u32 = 0;
const SHOT: u32 = 2;
const REDIRECT: u32 = 7;

/// `struct __sk_buff`, include/uapi/linux/bpf.h: its length, and where some of its fields are.
const CONTEXT: usize = 192;
const INGRESS_IFINDEX: usize = 36;
const CB: usize = 48;
const TSTAMP: usize = 152;
const GSO_SEGS: usize = 164;

/// What a packet carries that has had its treatment and comes in by the device once more
/// (`chaos-ebpf/src/bin/tc_ingress.rs`).
const TREATED: [u32; 5] = [0x7472_6561, SLOT, !SLOT, 0, 0];

/// The programs, and the rules that they have.
pub(super) struct Kernel {
    pub(super) programs: Programs,
    way: Way,
    held: Vec<PeerEntries>,
    /// Where the detour begins.
    sink: u32,
}

/// What comes back of a run.
struct Ran {
    verdict: u32,
    context: [u8; CONTEXT],
    frame: Vec<u8>,
}

impl Kernel {
    /// Packets go into the detour by the device `sink` of this namespace.
    pub(super) fn load(bpffs: &Path, sink: u32) -> Result<Self> {
        Ok(Self {
            programs: Programs::load(&bpffs.join("fuzz"))?,
            way: Way::Egress,
            held: Vec::new(),
            sink,
        })
    }

    /// Takes the rules from it.
    pub(super) fn forget(&mut self) -> Result<()> {
        let maps = &mut self.programs.maps;
        maps.set_target(TargetKind::Device, SLOT.into(), Target::default())?;
        for entries in std::mem::take(&mut self.held) {
            entries.leave(&PeerEntries::default(), maps)?;
        }
        Ok(())
    }

    /// Gives it the model's rules instead of those it has.
    pub(super) fn take(&mut self, model: &Model, detour: &Detour) -> Result<()> {
        self.way = model.way;
        self.forget()?;
        let maps = &mut self.programs.maps;
        maps.set_armed(true)?;
        maps.nothing_waits(SLOT as u16)?;
        let mut target = Target {
            device: LOOPBACK,
            budget: u32::try_from(detour.budget)?,
            flags: those_set(&[
                (target_flag::SEGMENTS, detour.cuts),
                (target_flag::SHARED, model.is_shared),
            ]),
            ..Target::default()
        };
        if model.can_detour {
            target.detour_in = if detour.works { self.sink } else { NOWHERE };
            target.detour_out = OUT;
        }
        for (place, one) in target.rules.iter_mut().zip(&model.rules) {
            *place = enter(one, one.kernel_rule(model.way), maps, &mut self.held)?;
        }
        Ok(maps.set_target(TargetKind::Device, SLOT.into(), target)?)
    }

    /// What the program on the device does to a packet. One that `passes_by` comes out of the detour.
    pub(super) fn treat(&self, frame: &[u8], size: Size, passes_by: bool) -> Result<Seen> {
        let mut context = match (passes_by, self.way) {
            (true, Way::Ingress) => with(TREATED),
            _ => [0; CONTEXT],
        };
        if passes_by && self.way == Way::Egress {
            put(&mut context, INGRESS_IFINDEX, OUT);
        }
        put(&mut context, GSO_SEGS, size.segments);
        let [on_device, ..] = self.way.programs();
        let mut ran = self.run(on_device, frame, context)?;
        if passes_by && self.way == Way::Ingress {
            // The word is taken off; those beside it say nothing without.
            let carried = carried(&ran.context);
            ensure!(carried[0] == 0, "treated for ever: {carried:x?}");
            ran.context[CB..CB + 4 * carried.len()].fill(0);
        }
        ensure!(
            ran.frame == frame,
            "the packet was changed: {:02x?}",
            ran.frame
        );
        Ok(Seen {
            verdict: ran.verdict,
            carried: carried(&ran.context),
            waiting: self.programs.maps.waiting(SLOT as u16)?,
        })
    }

    /// What time it was when the last packet was looked at.
    pub(super) fn clock(&self) -> Result<u64> {
        Ok(self.programs.maps.counters(1)?.last_ns)
    }

    /// How much earlier packets are sent into the detour, by those that have come out.
    pub(super) fn earlier(&self) -> Result<u64> {
        let word = self.programs.maps.lateness(SLOT as u16)?;
        Ok(late::known_ns(word))
    }

    /// The stamp lets a packet that carries this go at `at`, and nothing that is not ours.
    pub(super) fn stamps(&self, frame: &[u8], carried: [u32; 5], at: u64) -> Result<()> {
        let [_, stamp, _] = self.way.programs();
        let ran = self.run(stamp, frame, with(carried))?;
        let stamped =
            u64::from(word(&ran.context, TSTAMP + 4)) << 32 | u64::from(word(&ran.context, TSTAMP));
        ensure!(
            (ran.verdict, stamped) == (OK, at),
            "stamped {stamped} with verdict {}, not {at}",
            ran.verdict
        );
        let foreign = carried.map(|word| if word == OURS { 0 } else { word });
        let verdict = self.run(stamp, frame, with(foreign))?.verdict;
        ensure!(verdict == SHOT, "a foreign packet got verdict {verdict}");
        Ok(())
    }

    /// What a packet looks like behind the detour, and how much waits then.
    pub(super) fn come_out(&self, frame: &[u8], carried: [u32; 5]) -> Result<(Vec<u8>, u64)> {
        let [.., back] = self.way.programs();
        let ran = self.run(back, frame, with(carried))?;
        ensure!(
            ran.verdict == REDIRECT,
            "returned with verdict {}",
            ran.verdict
        );
        if self.way == Way::Ingress {
            let says = self::carried(&ran.context);
            ensure!(
                says[..3] == TREATED[..3],
                "it comes in again and says {says:x?}"
            );
        }
        Ok((ran.frame, self.programs.maps.waiting(SLOT as u16)?))
    }

    /// Counters, draws and clocks are the model's.
    pub(super) fn compare(&self, model: &Model) -> Result<()> {
        for rule in &model.rules {
            let counted = counted(&self.programs, rule.id)?;
            let state = self.programs.maps.state(rule.id)?;
            ensure!(
                (counted, state) == (rule.counted, rule.state),
                "the kernel: {counted:?}, {state:?}, the model: {rule:#?}"
            );
        }
        Ok(())
    }

    fn run(&self, program: &str, frame: &[u8], context: [u8; CONTEXT]) -> Result<Ran> {
        let mut ran = Ran {
            verdict: 0,
            context: [0; CONTEXT],
            frame: vec![0; frame.len()],
        };
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut ran.frame),
            ctx_in: Some(&context),
            ctx_out: Some(&mut ran.context),
            ..TestRunOptions::new()
        };
        let result = self.programs.classifier(program)?.test_run(options)?;
        ran.verdict = result.return_value;
        Ok(ran)
    }
}

/// Gives the maps a rule that is `told` so, and returns what a target has to refer to it.
pub(super) fn enter(
    one: &ModelRule,
    told: Rule,
    maps: &mut Pinned,
    held: &mut Vec<PeerEntries>,
) -> Result<RuleRef> {
    if let Some(peers) = &one.peers {
        let entries = PeerEntries::of(one.id, peers);
        PeerEntries::default().enter(&entries, maps)?;
        held.push(entries);
    }
    maps.reset_counters(one.id)?;
    maps.set_rule(one.id, told)?;
    Ok(RuleRef {
        id: one.id,
        // A reference to another life of the rule is void.
        generation: told.generation + u32::from(one.is_void),
    })
}

/// What a rule has counted.
pub(super) fn counted(programs: &Programs, id: u32) -> Result<Counted> {
    let counted = programs.maps.counters(id)?;
    Ok(Counted {
        matched: counted.matched,
        injected: counted.injected,
        would_inject: counted.would_inject,
        overflowed: counted.overflowed,
        over_budget: counted.over_budget,
        failed: counted.failed,
    })
}

/// What the context carries.
fn carried(context: &[u8; CONTEXT]) -> [u32; 5] {
    std::array::from_fn(|i| word(context, CB + 4 * i))
}

/// A context that carries this.
fn with(carried: [u32; 5]) -> [u8; CONTEXT] {
    let mut context = [0; CONTEXT];
    for (i, word) in carried.into_iter().enumerate() {
        put(&mut context, CB + 4 * i, word);
    }
    context
}

fn put(context: &mut [u8; CONTEXT], at: usize, word: u32) {
    context[at..at + 4].copy_from_slice(&word.to_ne_bytes());
}

fn word(context: &[u8; CONTEXT], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&context[at..at + 4]);
    u32::from_ne_bytes(bytes)
}
