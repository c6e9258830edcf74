//! The one place that changes the kernel: makes the rules of a fault and removes them, in reverse
//! on failure. When that is due is decided by chaos-planner and `node.rs`.
//!
//! Order matters to a packet that passes meanwhile. Arming writes peers, then rules, then the
//! target's list, which makes them visible at once; disarming goes the other way.

mod allocate;
mod armed;
mod devices;
mod rules;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;

use aya::maps::MapError;
use chaos_abi::network::{Rule, RuleRef, Target};
use chaos_abi::{RULES_PER_TARGET, control};
use chaos_planner::capabilities::{Capabilities, Mechanism};
use chaos_planner::choose::choose;
use chaos_planner::fault::{Effect, Fault, NetworkEffect, TargetRef};
use chaos_planner::observed::Counts;

pub use self::armed::{ArmError, Armed, ArmedRule, MechanismName, Place};
pub use self::devices::Drained;

use self::allocate::Ids;
use self::devices::Devices;
use self::rules::{cgroup_device, lives, peer_key, retain};
use crate::kernel::maps::{Pinned, TargetKind};
use crate::kernel::{clock, netns};
use crate::mechanism::MechanismError;
use crate::mechanism::cgroup_drop::CgroupDrop;
use crate::mechanism::tc_egress::{Device, TcEgress};
use crate::target::{Finder, Resolved, TargetError};

/// Owner of everything that this node changes.
pub struct Executor {
    maps: Pinned,
    finder: Finder,
    root_netns: u64,
    cgroup_drop: Option<CgroupDrop>,
    devices: Devices,
    ids: Ids,
}

impl Executor {
    /// Takes over maps and programs. `devices` are those that a predecessor attached to.
    pub fn new(
        maps: Pinned,
        finder: Finder,
        proc_root: PathBuf,
        cgroup_drop: Option<CgroupDrop>,
        tc_egress: Option<TcEgress>,
        devices: Vec<Device>,
    ) -> Self {
        let root_netns = netns::inode(&proc_root.join("1/ns/net")).unwrap_or(0);
        let devices = Devices::new(tc_egress, proc_root, devices);
        let ids = Ids::default();
        Self {
            maps,
            finder,
            root_netns,
            cgroup_drop,
            devices,
            ids,
        }
    }

    /// The maps, to read.
    pub fn maps(&self) -> &Pinned {
        &self.maps
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
                .rule(rule.id)
                .is_ok_and(|found| found.generation == rule.generation)
                && target.is_ok_and(|t| t.is_some_and(|t| t.rules.contains(&reference)))
        });
        if held {
            self.ids.take(lives(armed), armed.peer_set);
        }
        held
    }

    /// Removes every rule, target and peer that none of these faults has: what a predecessor left
    /// half done.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn sweep(&mut self, keep: &[&Armed]) -> Result<usize, MapError> {
        let rules: Vec<_> = keep.iter().flat_map(|armed| &armed.rules).collect();
        let mut swept = 0;
        for kind in [TargetKind::Cgroup, TargetKind::Device] {
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
        for (id, _) in self.maps.rules()? {
            if !rules.iter().any(|rule| rule.id == id) {
                swept += 1;
                self.maps.set_rule(id, Rule::default())?;
            }
        }
        for key in self.maps.peers()? {
            if !keep.iter().any(|armed| armed.peer_set == key.set) {
                self.maps.remove_peer(key)?;
            }
        }
        self.tell_armed(keep)?;
        Ok(swept)
    }

    /// Finds the target, chooses mechanisms, takes ids: everything but the act.
    ///
    /// # Errors
    /// [`ArmError`]
    pub fn prepare(
        &mut self,
        fault: &Fault,
        deadline_ns: u64,
        capabilities: &Capabilities,
    ) -> Result<Armed, ArmError> {
        let mechanisms = choose(&fault.effect, &fault.target, capabilities)?;
        let found = self.find(&fault.target)?;
        let Effect::Network(effect) = &fault.effect;
        let pod = matches!(
            fault.target,
            TargetRef::Pod {
                host_network: false,
                ..
            }
        );
        let mut rules = Vec::new();
        for mechanism in mechanisms {
            rules.push(match mechanism {
                Mechanism::CgroupDrop => ArmedRule {
                    mechanism: MechanismName::CgroupDrop,
                    key: found.pod_cgroup_id,
                    id: 0,
                    generation: 0,
                    ifindex: cgroup_device(&found, effect, pod)?,
                },
                Mechanism::TcEgress => {
                    let slot = self.device(&found, &fault.record, effect, pod)?;
                    ArmedRule {
                        mechanism: MechanismName::TcEgress,
                        key: u64::from(slot),
                        id: 0,
                        generation: 0,
                        ifindex: 0,
                    }
                }
            });
        }
        for rule in &mut rules {
            (rule.id, rule.generation) = self.ids.rule(&self.maps)?;
        }
        let peer_set = if effect.peers.is_some() {
            self.ids.peer_set()
        } else {
            0
        };
        Ok(Armed {
            seed: fault
                .sample
                .seed
                .unwrap_or_else(|| RandomState::new().build_hasher().finish()),
            fault: fault.clone(),
            deadline_ns,
            armed_ns: clock::now_ns(),
            rules,
            peer_set,
            place: Place {
                cgroup_id: found.pod_cgroup_id,
                depth: found.depth,
                netns: found.netns,
                netns_inode: found.netns_inode,
            },
        })
    }

    /// Attaches what is missing and makes the rules. `all` is everything that will be armed then,
    /// this one included.
    ///
    /// # Errors
    /// [`ArmError`]; nothing of it is left.
    pub fn arm(&mut self, armed: &mut Armed, all: &[&Armed]) -> Result<(), ArmError> {
        let result = self.try_arm(armed, all);
        if result.is_err() {
            // The first error is the one to tell; the sweep of the next agent gets what is left.
            if let Err(error) = self.disarm(armed) {
                tracing::warn!(fault = %armed.fault.id, %error, "failed to undo");
            }
        }
        result
    }

    fn try_arm(&mut self, armed: &mut Armed, all: &[&Armed]) -> Result<(), ArmError> {
        let Effect::Network(effect) = armed.fault.effect.clone();
        for rule in &armed.rules {
            if rule.mechanism == MechanismName::TcEgress {
                self.devices.attach(rule.key, &armed.place, effect.delay)?;
            }
        }
        for peer in effect.peers.iter().flatten() {
            self.maps.insert_peer(peer_key(armed.peer_set, *peer))?;
        }
        self.tell_depths(all)?;
        for rule in &armed.rules {
            self.maps.reset_counters(rule.id)?;
            self.maps.set_rule(
                rule.id,
                rules::kernel_rule(armed, rule, &effect, self.root_netns),
            )?;
        }
        self.tell_armed(all)?;
        for rule in &armed.rules {
            let kind = rule.mechanism.into();
            let mut target = self.target(rule)?;
            let free =
                target
                    .rules
                    .iter_mut()
                    .find(|r| r.generation == 0)
                    .ok_or(ArmError::Full {
                        what: "faults on one target",
                        limit: RULES_PER_TARGET,
                    })?;
            *free = RuleRef {
                id: rule.id,
                generation: rule.generation,
            };
            self.maps.set_target(kind, rule.key, target)?;
        }
        armed.armed_ns = clock::now_ns();
        Ok(())
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
            if self.maps.rule(rule.id)?.generation == rule.generation {
                self.maps.set_rule(rule.id, Rule::default())?;
            }
        }
        let Effect::Network(effect) = &armed.fault.effect;
        for peer in effect.peers.iter().flatten() {
            self.maps.remove_peer(peer_key(armed.peer_set, *peer))?;
        }
        self.ids.give_back(lives(armed));
        Ok(())
    }

    /// After faults went: the words that say what is armed, and devices that have nothing left to
    /// do. `all` is everything that is armed now.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn settle(&mut self, all: &[&Armed]) -> Result<(), MapError> {
        self.tell_armed(all)?;
        self.tell_depths(all).map_err(|error| match error {
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

    /// Whether this fault has left anything in the kernel, its device included.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn traces(&self, armed: &Armed) -> Result<Option<&'static str>, MapError> {
        for rule in &armed.rules {
            if self.maps.rule(rule.id)?.generation == rule.generation {
                return Ok(Some("a rule"));
            }
            let target = self
                .maps
                .target(rule.mechanism.into(), rule.key)?
                .unwrap_or_default();
            if target.rules.contains(&RuleRef {
                id: rule.id,
                generation: rule.generation,
            }) {
                return Ok(Some("an entry of its target"));
            }
            if rule.mechanism == MechanismName::TcEgress && self.devices.is_draining(rule.key) {
                return Ok(Some("packets on the way"));
            }
        }
        if armed.peer_set != 0
            && self
                .maps
                .peers()?
                .iter()
                .any(|key| key.set == armed.peer_set)
        {
            return Ok(Some("a peer"));
        }
        Ok(None)
    }

    /// Writes another deadline into all rules of a fault.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn renew(&mut self, armed: &mut Armed, deadline_ns: u64) -> Result<(), MapError> {
        for rule in &armed.rules {
            let mut found = self.maps.rule(rule.id)?;
            if found.generation == rule.generation {
                found.deadline_ns = deadline_ns;
                self.maps.set_rule(rule.id, found)?;
            }
        }
        armed.deadline_ns = deadline_ns;
        Ok(())
    }

    /// Replaces the addresses that a fault is limited to: new ones first.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn set_peers(&mut self, armed: &mut Armed, fault: &Fault) -> Result<(), MapError> {
        let peers = |fault: &Fault| {
            let Effect::Network(effect) = &fault.effect;
            effect.peers.clone().unwrap_or_default()
        };
        let (old, new) = (peers(&armed.fault), peers(fault));
        let added: Vec<_> = new.iter().filter(|peer| !old.contains(peer)).collect();
        for (done, peer) in added.iter().enumerate() {
            if let Err(error) = self.maps.insert_peer(peer_key(armed.peer_set, **peer)) {
                // What is in no list would never be removed.
                for peer in &added[..done] {
                    self.maps.remove_peer(peer_key(armed.peer_set, **peer))?;
                }
                return Err(error);
            }
        }
        for peer in old.iter().filter(|peer| !new.contains(peer)) {
            self.maps.remove_peer(peer_key(armed.peer_set, *peer))?;
        }
        armed.fault = fault.clone();
        Ok(())
    }

    /// What the kernel counted, and the CLOCK_MONOTONIC nanoseconds of the first hit.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn counts(&self, armed: &Armed) -> Result<(Counts, Option<u64>), MapError> {
        let mut sum = chaos_abi::counters::Counters::default();
        for rule in &armed.rules {
            sum.merge(&self.maps.counters(rule.id)?);
        }
        let counts = Counts {
            matched: sum.matched,
            injected: sum.injected,
            would_inject: sum.would_inject,
            failed: sum.failed,
        };
        Ok((counts, (sum.first_ns != 0).then_some(sum.first_ns)))
    }

    /// Where the target of a fault is now; compare with [`Armed::place`].
    ///
    /// # Errors
    /// [`TargetError`]
    pub fn find(&self, target: &TargetRef) -> Result<Resolved, TargetError> {
        match target {
            TargetRef::Pod {
                uid, container_ids, ..
            } => self.finder.find_pod(uid, container_ids),
            TargetRef::Cgroup(path) => self.finder.find_cgroup(path),
            TargetRef::Pid(pid) => self.finder.find_pid(*pid),
        }
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
        devices.and(self.cgroup_drop.as_mut().map_or(Ok(()), CgroupDrop::detach))
    }

    /// Slot of the device that the effect acts on.
    fn device(
        &mut self,
        found: &Resolved,
        record: &str,
        effect: &NetworkEffect,
        pod: bool,
    ) -> Result<u16, ArmError> {
        let namespace = found
            .netns
            .as_deref()
            .ok_or_else(|| ArmError::NoProcess(record.to_owned()))?;
        let (ifindex, name) = TcEgress::find_device(namespace, effect.device.as_deref(), pod)?;
        self.devices.slot(found.netns_inode, ifindex, name)
    }

    /// The target's entry as it is, or as it begins.
    fn target(&self, rule: &ArmedRule) -> Result<Target, MapError> {
        let mut target = self
            .maps
            .target(rule.mechanism.into(), rule.key)?
            .unwrap_or_default();
        if rule.mechanism == MechanismName::TcEgress {
            self.devices.describe(rule.key, &mut target);
        }
        Ok(target)
    }

    /// A device's entry stays, without rules, for packets that are still in its detour.
    fn put_target(&mut self, kind: TargetKind, key: u64, target: Target) -> Result<(), MapError> {
        if kind == TargetKind::Cgroup && target.rules[0].generation == 0 {
            self.maps.remove_target(kind, key)
        } else {
            self.maps.set_target(kind, key, target)
        }
    }

    fn tell_armed(&mut self, all: &[&Armed]) -> Result<(), MapError> {
        let rules: usize = all.iter().map(|armed| armed.rules.len()).sum();
        self.maps
            .set_control(control::ARMED, rules.try_into().unwrap_or(u32::MAX))
    }

    fn tell_depths(&mut self, all: &[&Armed]) -> Result<(), ArmError> {
        use chaos_abi::network::MAX_DEPTHS;
        let mut depths: Vec<u32> = all.iter().map(|armed| armed.place.depth).collect();
        depths.sort_unstable();
        depths.dedup();
        let limit = MAX_DEPTHS as usize;
        if depths.len() > limit {
            return Err(ArmError::Full {
                what: "different depths of target cgroups",
                limit,
            });
        }
        depths.resize(limit, 0);
        for (index, depth) in (0..).zip(depths) {
            self.maps.set_depth(index, depth)?;
        }
        Ok(())
    }
}
