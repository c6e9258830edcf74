//! Arming: from a fault to rules that packets meet, in two steps, so that the journal is written
//! between them.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;

use chaos_abi::RULES_PER_TARGET;
use chaos_abi::network::{RuleRef, target_flag};
use chaos_planner::capabilities::Capabilities;
use chaos_planner::choose::choose;
use chaos_planner::fault::{Effect, Fault, TargetRef};

use super::rules::{cgroup_device, clock_rule, is_shared, kernel_rule};
use super::{ArmError, Armed, ArmedRule, Executor, Load, PeerEntries, Place, entries};
use crate::kernel::clock;
use crate::kernel::netlink::Netlink;
use crate::mechanism::links;
use crate::mechanism::tc::Way;
use crate::mechanism::{MechanismError, io_error};
use crate::target::Resolved;

/// A fault that is about to be armed.
pub struct Prepared {
    armed: Armed,
    /// A connection into the target's namespace, if it has one. Held no longer than it takes to
    /// arm: it keeps the namespace alive.
    inside: Option<Netlink>,
}

impl Prepared {
    /// What will be armed.
    pub const fn armed(&self) -> &Armed {
        &self.armed
    }
}

impl Executor {
    /// Finds the target, chooses mechanisms, takes ids: everything but the act.
    ///
    /// # Errors
    /// [`ArmError`]
    pub fn prepare(
        &mut self,
        fault: &Fault,
        deadline_ns: u64,
        capabilities: &Capabilities,
    ) -> Result<Prepared, ArmError> {
        let mechanisms = choose(&fault.effect, capabilities)?;
        let found = self.find(&fault.target)?;
        // A clock needs no network namespace.
        let (network, device) = match &fault.effect {
            Effect::Network(effect) => (true, effect.device.as_deref()),
            Effect::Clock(_) => (false, None),
        };
        let pod = matches!(
            fault.target,
            TargetRef::Pod {
                host_network: false,
                ..
            }
        );
        // A partition of every device needs to know none.
        let looks_inside = network
            && (pod || device.is_some() || mechanisms.iter().any(|m| Way::of(*m).is_some()));
        let mut inside = if looks_inside {
            open_inside(&found)?
        } else {
            None
        };
        let mut rules = Vec::new();
        for mechanism in mechanisms {
            let places = match Way::of(mechanism) {
                None => vec![(
                    found.pod_cgroup_id,
                    cgroup_device(inside.as_mut(), device, pod)?,
                )],
                Some(way) => {
                    if way == Way::Ingress
                        && is_shared(&fault.target, found.netns_inode, self.root_netns)
                    {
                        self.devices.tells_receivers()?;
                    }
                    let netlink = inside
                        .as_mut()
                        .ok_or_else(|| ArmError::NoProcess(fault.record.clone()))?;
                    let mut places = Vec::new();
                    let inode = found.netns_inode;
                    for (index, name) in links::of_target(netlink, device, pod)? {
                        let own = links::is_of_pod(&name) && inode != self.root_netns;
                        let slot = self.devices.slot(inode, index, name, way, own)?;
                        places.push((u64::from(slot), 0));
                    }
                    places
                }
            };
            rules.extend(places.into_iter().map(|(key, ifindex)| ArmedRule {
                mechanism,
                key,
                id: 0,
                generation: 0,
                ifindex,
            }));
        }
        // One rule of a mechanism, however many devices: they draw, shape and count together.
        let mut last = None;
        for rule in &mut rules {
            let life = match last {
                Some((mechanism, life)) if mechanism == rule.mechanism => life,
                _ => self.ids.rule()?,
            };
            last = Some((rule.mechanism, life));
            (rule.id, rule.generation) = life;
        }
        let peer_set = match &fault.effect {
            Effect::Network(effect) if effect.peers.is_some() => self.ids.peer_set(),
            _ => 0,
        };
        let armed = Armed {
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
        };
        Ok(Prepared { armed, inside })
    }

    /// Attaches what is missing and makes the rules. `others` is everything else that is armed.
    ///
    /// # Errors
    /// [`ArmError`]; nothing of it is left.
    pub fn arm<'a>(
        &mut self,
        prepared: Prepared,
        others: impl Iterator<Item = &'a Armed>,
    ) -> Result<Armed, ArmError> {
        let Prepared { mut armed, inside } = prepared;
        let mut load = Load::of(others);
        load.add(&armed);
        match self.try_arm(&armed, inside, &load) {
            Ok(()) => {
                armed.armed_ns = clock::now_ns();
                Ok(armed)
            }
            Err(error) => {
                // The first error is the one to tell; the sweep of the next agent gets what is left.
                if let Err(error) = self.disarm(&armed) {
                    tracing::warn!(fault = %armed.fault.id, %error, "failed to undo");
                }
                Err(error)
            }
        }
    }

    fn try_arm(
        &mut self,
        armed: &Armed,
        mut inside: Option<Netlink>,
        load: &Load,
    ) -> Result<(), ArmError> {
        let mut by_tcx = Vec::new();
        for rule in &armed.rules {
            if let (Some(_), Effect::Network(effect)) =
                (Way::of(rule.mechanism), &armed.fault.effect)
            {
                let netlink = inside
                    .as_mut()
                    .ok_or_else(|| ArmError::NoProcess(armed.fault.record.clone()))?;
                let built = self.devices.attach(rule.key, netlink, effect)?;
                if let Some(slot) = built.detour {
                    self.maps.nothing_waits(slot)?;
                }
                if built.by_tcx {
                    by_tcx.push(rule.key);
                }
            }
        }
        self.attach_to_node(armed)?;
        PeerEntries::default().enter(&entries(armed), &mut self.maps)?;
        self.tell_depths(load)?;
        for rule in armed.each_rule() {
            self.maps.reset_counters(rule.id)?;
            match &armed.fault.effect {
                Effect::Network(effect) => self
                    .maps
                    .set_rule(rule.id, kernel_rule(armed, rule, effect, self.root_netns))?,
                Effect::Clock(effect) => self
                    .maps
                    .set_clock_rule(rule.id, clock_rule(armed, rule, effect))?,
            }
        }
        self.tell_armed(load)?;
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
            let shared = is_shared(
                &armed.fault.target,
                armed.place.netns_inode,
                self.root_netns,
            );
            if shared && Way::of(rule.mechanism) == Some(Way::Ingress) {
                target.flags |= target_flag::SHARED;
            }
            self.maps.set_target(kind, rule.key, target)?;
        }
        // Last: the fault acts at once, and the kernel waits for a grace period before it says so
        // (`tcx_entry_sync`, include/net/tcx.h).
        for key in by_tcx {
            if let Some(netlink) = &inside {
                self.devices.attach_by_tcx(key, netlink)?;
            }
        }
        // From here on, whoever is started has no vDSO; then those who were before.
        self.change_clocks(armed)?;
        Ok(())
    }
}

/// A connection into the target's namespace; `None` while it has no process.
pub(super) fn open_inside(found: &Resolved) -> Result<Option<Netlink>, MechanismError> {
    let open = |path: &PathBuf| {
        Netlink::open_in(path).map_err(io_error("open rtnetlink in the target's network namespace"))
    };
    found.netns.as_ref().map(open).transpose()
}
