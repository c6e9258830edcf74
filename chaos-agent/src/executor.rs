//! The one place that changes the kernel: makes the rules of a fault and removes them, in reverse
//! on failure. When that is due is decided by chaos-planner and `node.rs`.
//!
//! Order matters to a packet that passes meanwhile. Arming writes peers, then rules, then the
//! target's list, which makes them visible at once; disarming goes the other way.

mod allocate;
mod arm;
mod armed;
mod clocks;
mod devices;
mod load;
mod peers;
mod rest;
mod rules;
mod traces;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use aya::maps::MapError;
use chaos_abi::control;
use chaos_abi::counters::Counters;
use chaos_abi::network::{RuleRef, Target, target_flag};
use chaos_planner::capabilities::Mechanism;
use chaos_planner::fault::{Effect, Fault, TargetRef};
use chaos_planner::observed::Counts;

pub use self::arm::Prepared;
pub use self::armed::{ArmError, Armed, ArmedRule, Place};
pub use self::devices::Drained;
pub use self::peers::PeerEntries;
pub use self::traces::Trace;

use self::allocate::Ids;
use self::arm::open_inside;
use self::devices::Devices;
use self::load::Load;
use self::rest::Idle;
use self::rules::{lives, retain};
use crate::kernel::links;
use crate::kernel::maps::{MapsError, Pinned, TargetKind, directory, other_layouts, was_halted};
use crate::kernel::netns;
use crate::mechanism::cgroup_drop::CgroupDrop;
use crate::mechanism::clock_shift::ClockShift;
use crate::mechanism::tc::Way;
use crate::mechanism::tc_egress::{Device, TcEgress};
use crate::mechanism::tcx::Tcx;
use crate::mechanism::{MechanismError, unpin};
use crate::target::{Finder, Resolved, TargetError};

/// The mechanisms that work on this node.
pub struct Programs {
    /// For partitions.
    pub cgroup_drop: Option<CgroupDrop>,
    /// For clocks.
    pub clock_shift: Option<ClockShift>,
    /// For everything else that is done to packets: those of each way that works here.
    pub tc: Vec<TcEgress>,
    /// Their links to devices.
    pub tcx: Tcx,
}

/// Owner of everything that this node changes.
pub struct Executor {
    maps: Pinned,
    finder: Finder,
    root_netns: u64,
    cgroup_drop: Option<CgroupDrop>,
    clock_shift: Option<ClockShift>,
    devices: Devices,
    ids: Ids,
    /// Faults that have ended, with programs whose vDSO could not be put back yet: one of each cgroup.
    unrestored: Vec<Armed>,
    idle: Idle,
}

impl Executor {
    /// Takes over maps and programs. `devices` are those that a predecessor attached to; `budget` is
    /// the most that may wait on each, in [`chaos_abi::network::waiting_units`].
    pub fn new(
        maps: Pinned,
        finder: Finder,
        proc_root: PathBuf,
        programs: Programs,
        devices: Vec<Device>,
        budget: u32,
    ) -> Self {
        let Programs {
            cgroup_drop,
            clock_shift,
            tc,
            tcx,
        } = programs;
        let root_netns = netns::inode(&proc_root.join("1/ns/net")).unwrap_or(0);
        let devices = Devices::new(tc, tcx, proc_root, devices, budget);
        let ids = Ids::default();
        Self {
            maps,
            finder,
            root_netns,
            cgroup_drop,
            clock_shift,
            devices,
            ids,
            unrestored: Vec::new(),
            idle: Idle::default(),
        }
    }

    /// The maps, to read.
    pub fn maps(&self) -> &Pinned {
        &self.maps
    }

    /// Does a part of what the next faults would wait for. Whether there was anything to do.
    pub fn load_ahead(&mut self) -> bool {
        self.devices.load_ahead()
    }

    /// Whether what the journal tells of is what the kernel holds; then its ids are taken.
    pub fn adopt(&mut self, armed: &Armed) -> bool {
        let held = armed.rules.iter().all(|rule| {
            let target = self.maps.target(rule.mechanism.into(), rule.key);
            let reference = RuleRef {
                id: rule.id,
                generation: rule.generation,
            };
            self.maps
                .generation(rule.mechanism.into(), rule.id)
                .is_ok_and(|found| found == rule.generation)
                && target.is_ok_and(|t| t.is_some_and(|t| t.rules.contains(&reference)))
        });
        if held {
            if let Ok(found) = self.find(&armed.fault.target) {
                self.look_at_clocks(armed, &found);
            }
            self.ids.take(lives(armed), armed.peer_set);
        }
        held
    }

    /// Takes an agent's place whose maps have another layout: its programs are detached, and end with
    /// its pins. What it had armed is armed anew when its clients speak; a halt stays in force.
    ///
    /// # Errors
    /// A map that cannot be written, before anything is removed.
    pub fn forget_other_layouts(&mut self, bpffs: &Path) -> Result<(), MapsError> {
        let others = other_layouts(bpffs);
        if others.is_empty() {
            return Ok(());
        }
        if others.iter().any(|layout| was_halted(layout)) {
            let halted = self.maps.set_control(control::HALTED, 1);
            halted.map_err(|source| MapsError::Map {
                map: "CONTROL",
                path: directory(bpffs),
                source,
            })?;
        }
        // One by one: removed with the directory, they would go when the kernel has time, and ours may be
        // there by then. And first: what they send to is removed below.
        for link in others.iter().flat_map(|layout| links::pinned(layout, "")) {
            if let Err(error) = unpin(&link) {
                tracing::warn!(%error, "failed to detach an older agent's program; it acts until its rules end");
            }
        }
        if let Err(error) = self.devices.release(&mut self.maps) {
            tracing::warn!(%error, "failed to detach an older agent's programs; they act until their rules end");
        }
        for layout in others {
            tracing::info!(pins = %layout.display(), "removing what an agent with another layout has pinned");
            let removed = if layout.is_dir() {
                std::fs::remove_dir_all(&layout)
            } else {
                std::fs::remove_file(&layout)
            };
            if let Err(error) = removed {
                tracing::warn!(pins = %layout.display(), %error, "failed to remove it");
            }
        }
        Ok(())
    }

    /// Removes every rule, target and peer that none of these faults has: what a predecessor left
    /// half done.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn sweep(&mut self, keep: &[&Armed]) -> Result<usize, MapError> {
        let rules: Vec<_> = keep.iter().flat_map(|armed| &armed.rules).collect();
        let mut swept = 0;
        for kind in [TargetKind::Cgroup, TargetKind::Device, TargetKind::Clock] {
            for (key, mut target) in self.maps.targets(kind)? {
                let known = |r: &RuleRef| {
                    rules.iter().any(|rule| {
                        (rule.id, rule.generation) == (r.id, r.generation) && rule.key == key
                    })
                };
                if retain(&mut target, known) {
                    swept += 1;
                    self.put_target(kind, key, target)?;
                }
            }
        }
        let network = self.maps.rules()?.into_iter().map(|(id, _)| id);
        let clock = self.maps.clock_rules()?.into_iter().map(|(id, _)| id);
        let families = [
            (TargetKind::Cgroup, network.collect::<Vec<_>>()),
            (TargetKind::Clock, clock.collect()),
        ];
        for (kind, ids) in families {
            let clock = kind == TargetKind::Clock;
            for id in ids {
                let known = rules.iter().any(|rule| {
                    rule.id == id && (rule.mechanism == Mechanism::ClockShift) == clock
                });
                if !known {
                    swept += 1;
                    self.maps.free_rule(kind, id)?;
                }
            }
        }
        let sets: BTreeSet<u32> = keep.iter().map(|armed| armed.peer_set).collect();
        for key in self.maps.peers()? {
            if !sets.contains(&key.set) {
                self.maps.remove_peer(key)?;
            }
        }
        for (prefix, key, _) in self.maps.nets()? {
            if !sets.contains(&key.set) {
                self.maps.remove_net(prefix, key)?;
            }
        }
        match self.devices.sweep() {
            Ok(links) => swept += links,
            Err(error) => {
                tracing::warn!(%error, "failed to detach from a device that nothing is known of");
            }
        }
        self.tell_armed(&Load::of(keep.iter().copied()))?;
        Ok(swept)
    }

    /// Removes all traces of a fault. Safe to repeat, and for what was only prepared.
    ///
    /// # Errors
    /// What the kernel answers; what could be removed is.
    pub fn disarm(&mut self, armed: &Armed) -> Result<(), MapError> {
        for rule in &armed.rules {
            let kind = rule.mechanism.into();
            if let Some(mut target) = self.maps.target(kind, rule.key)?
                && retain(&mut target, |r| {
                    (r.id, r.generation) != (rule.id, rule.generation)
                })
            {
                self.put_target(kind, rule.key, target)?;
            }
            if self.maps.generation(kind, rule.id)? == rule.generation {
                self.maps.free_rule(kind, rule.id)?;
            }
        }
        self.restore_clocks(armed)?;
        entries(armed).leave(&PeerEntries::default(), &mut self.maps)?;
        self.ids.give_back(lives(armed));
        Ok(())
    }

    /// After faults went: the words that say what is armed, and devices that have nothing left to
    /// do. `all` is everything that is armed now.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn settle(&mut self, all: &[&Armed]) -> Result<(), MapError> {
        let load = Load::of(all.iter().copied());
        self.tell_armed(&load)?;
        self.tell_depths(&load).map_err(|error| match error {
            ArmError::Map(error) => error,
            // Fewer depths than before cannot be too many.
            _ => MapError::KeyNotFound,
        })?;
        self.devices.settle(all);
        Ok(())
    }

    /// Detaches from devices whose packets have all arrived.
    pub fn drain(&mut self) -> Drained {
        self.devices.drain(&mut self.maps)
    }

    /// Corrects what the kernel takes for waiting, where that is not so.
    pub fn relieve(&mut self) {
        self.devices.relieve(&mut self.maps);
    }

    /// Writes another deadline into all rules of a fault.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn renew(&mut self, armed: &mut Armed, deadline_ns: u64) -> Result<(), MapError> {
        for rule in armed.each_rule() {
            let kind = rule.mechanism.into();
            self.maps
                .set_deadline(kind, rule.id, rule.generation, deadline_ns)?;
        }
        armed.deadline_ns = deadline_ns;
        Ok(())
    }

    /// Replaces the peers that a fault is limited to: new ones first.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn set_peers(&mut self, armed: &mut Armed, fault: &Fault) -> Result<(), MapError> {
        let old = entries(armed);
        let before = std::mem::replace(&mut armed.fault, fault.clone());
        let new = entries(armed);
        let result = old.enter(&new, &mut self.maps).and_then(|()| {
            // Only those of packets have peers.
            let Effect::Network(effect) = &armed.fault.effect else {
                return Ok(());
            };
            // Networks may be the first, or the last.
            for rule in armed.each_rule() {
                let mut held = self.maps.rule(rule.id)?;
                if held.generation == rule.generation {
                    held.flags = rules::kernel_rule(armed, rule, effect, self.root_netns).flags;
                    self.maps.set_rule(rule.id, held)?;
                }
            }
            old.leave(&new, &mut self.maps)
        });
        if result.is_err() {
            // What is in no list would never be removed.
            drop(new.enter(&old, &mut self.maps));
            drop(new.leave(&old, &mut self.maps));
            armed.fault = before;
        }
        result
    }

    /// What the kernel counted, and the CLOCK_MONOTONIC nanoseconds of the first hit.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn counts(&self, armed: &Armed) -> Result<(Counts, Option<u64>), MapError> {
        let mut sum = Counters::default();
        for rule in armed.each_rule() {
            sum.merge(&self.maps.counters(rule.id)?);
        }
        Ok((counts(&sum), (sum.first_ns != 0).then_some(sum.first_ns)))
    }

    /// Whether the target, which has other processes now, is still in the namespace that the fault
    /// was armed in: the number of one that is gone is given out again at once.
    pub fn is_there(&self, armed: &Armed, found: &Resolved) -> bool {
        let mut devices = armed
            .rules
            .iter()
            .filter(|rule| Way::of(rule.mechanism).is_some())
            .peekable();
        if devices.peek().is_none() {
            return true;
        }
        let Ok(Some(mut netlink)) = open_inside(found) else {
            return false;
        };
        devices.all(|rule| self.devices.is_attached(rule.key, &mut netlink))
    }

    /// Where the target of a fault is now; compare with [`Armed::place`].
    ///
    /// # Errors
    /// [`TargetError`]
    pub fn find(&self, target: &TargetRef) -> Result<Resolved, TargetError> {
        find(&self.finder, target)
    }

    /// Devices that are attached to, for the journal.
    pub fn devices(&self) -> Vec<Device> {
        self.devices.list()
    }

    /// Detaches everything from everywhere, waiting for nothing.
    ///
    /// # Errors
    /// The first failure; the rest is tried all the same.
    pub fn detach_all(&mut self) -> Result<(), MechanismError> {
        let devices = self.devices.detach_all(&mut self.maps);
        let drop = self.cgroup_drop.as_mut().map_or(Ok(()), CgroupDrop::detach);
        let clocks = self.clock_shift.as_mut().map_or(Ok(()), ClockShift::detach);
        devices.and(drop).and(clocks)
    }

    /// The target's entry as it is, or as it begins.
    fn target(&self, rule: &ArmedRule) -> Result<Target, MapError> {
        let mut target = self
            .maps
            .target(rule.mechanism.into(), rule.key)?
            .unwrap_or_default();
        if Way::of(rule.mechanism).is_some() {
            self.devices.describe(rule.key, &mut target);
        }
        Ok(target)
    }

    /// A device's entry stays, without rules, for packets that are still in its detour.
    fn put_target(
        &mut self,
        kind: TargetKind,
        key: u64,
        mut target: Target,
    ) -> Result<(), MapError> {
        if target.rules[0].generation == 0 {
            if kind != TargetKind::Device {
                return self.maps.remove_target(kind, key);
            }
            target.flags &= !target_flag::SHARED;
        }
        self.maps.set_target(kind, key, target)
    }
}

/// What the kernel counted, in the planner's words.
pub fn counts(counters: &Counters) -> Counts {
    Counts {
        matched: counters.matched,
        injected: counters.injected,
        would_inject: counters.would_inject,
        failed: counters.failed,
        overflowed: counters.overflowed,
        over_budget: counters.over_budget,
    }
}

/// What the maps hold of a fault's peers.
fn entries(armed: &Armed) -> PeerEntries {
    let peers = match &armed.fault.effect {
        Effect::Network(effect) => effect.peers.as_deref(),
        Effect::Clock(_) => None,
    };
    PeerEntries::of(armed.peer_set, peers.unwrap_or_default())
}

fn find(finder: &Finder, target: &TargetRef) -> Result<Resolved, TargetError> {
    match target {
        TargetRef::Pod {
            uid, container_ids, ..
        } => finder.find_pod(uid, container_ids),
        TargetRef::Container { pod_uid, id } => finder.find_pod_container(pod_uid, id),
        TargetRef::Cgroup(path) => finder.find_cgroup(path),
        TargetRef::Pid(pid) => finder.find_pid(*pid),
    }
}
