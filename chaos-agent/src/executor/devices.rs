//! The devices that programs are attached to: from the first rule on one until its last packet has
//! come out of the detour.

use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::maps::MapError;
use chaos_abi::network::{Target, target_flag};
use chaos_planner::choose::MAX_DELAY;
use chaos_planner::fault::NetworkEffect;
use chaos_planner::plan::nanos;

use super::ArmError;
use super::allocate::Slots;
use crate::executor::Armed;
use crate::kernel::maps::{Pinned, TargetKind};
use crate::kernel::netlink::Netlink;
use crate::kernel::objects::LoadError;
use crate::kernel::{clock, netns};
use crate::mechanism::tc::Way;
use crate::mechanism::tc_egress::{Built, Device, Needs, TcEgress};
use crate::mechanism::tcx::Tcx;
use crate::mechanism::{MechanismError, io_error};

/// How often the detour of a device is looked at until its packets have arrived: twice empty in a
/// row, because one that has just left the queue is still on its way out.
const DRAIN_EVERY: Duration = Duration::from_millis(40);

/// For how many new devices everything is loaded ahead: as many as a fault on a full node is likely to
/// want at once.
const AHEAD: usize = 32;

/// How far a device is.
#[derive(Clone, Copy)]
enum Use {
    /// Rules are armed on it, or about to be.
    Armed,
    /// No rule any more; packets may still wait. CLOCK_MONOTONIC nanoseconds.
    Draining {
        look_at: u64,
        /// No packet can be waiting any more, whatever the queue says.
        over_at: u64,
        was_empty: bool,
    },
    /// Nothing of ours is left on it, or an empty clsact.
    Resting,
}

struct Attached {
    device: Device,
    used: Use,
}

impl Attached {
    /// Everything of ours has been removed from it, but for clsact.
    fn rest(&mut self) {
        self.device.detour = None;
        self.device.checksums = false;
        self.device.longest_delay = Duration::ZERO;
        self.used = Use::Resting;
    }
}

/// How far devices are with their last packets.
#[derive(Clone, Copy, Debug)]
pub struct Drained {
    /// When to look again, CLOCK_MONOTONIC nanoseconds; `None` when no device is draining.
    pub look_ns: Option<u64>,
    /// One was detached from: what the journal says of it has changed.
    pub detached: bool,
}

/// All of them.
pub(super) struct Devices {
    all: Vec<Attached>,
    /// Those of each way that works here.
    programs: Vec<TcEgress>,
    tcx: Tcx,
    /// Not after that has failed once: whoever needs something tries again, and is told why not.
    loads_ahead: bool,
    proc_root: PathBuf,
    /// The most that may wait in one detour, in [`chaos_abi::network::waiting_units`].
    budget: u32,
}

impl Devices {
    /// `known` are those that a predecessor attached to.
    pub(super) fn new(
        programs: Vec<TcEgress>,
        tcx: Tcx,
        proc_root: PathBuf,
        known: Vec<Device>,
        budget: u32,
    ) -> Self {
        let all = known
            .into_iter()
            .map(|device| Attached {
                device,
                used: Use::Armed,
            })
            .collect();
        Self {
            all,
            loads_ahead: programs.iter().any(TcEgress::is_by_tcx),
            programs,
            tcx,
            proc_root,
            budget,
        }
    }

    /// For the journal.
    pub(super) fn list(&self) -> Vec<Device> {
        self.all.iter().map(|a| a.device.clone()).collect()
    }

    /// Slot of a way of this device; a new record if it is the first time. Whether it is a pod's own counts then.
    pub(super) fn slot(
        &mut self,
        netns_inode: u64,
        ifindex: u32,
        name: String,
        way: Way,
        own: bool,
    ) -> Result<u16, ArmError> {
        let same = |a: &&Attached| {
            let Device {
                netns_inode: inode,
                ifindex: index,
                ..
            } = a.device;
            (inode, index, a.device.way) == (netns_inode, ifindex, way)
        };
        if let Some(attached) = self.all.iter().find(same) {
            return Ok(attached.device.slot);
        }
        let slot = Slots(self.all.iter().map(|a| a.device.slot)).free()?;
        self.all.push(Attached {
            device: Device {
                netns_inode,
                ifindex,
                name,
                way,
                own,
                slot,
                clsact_is_ours: false,
                detour: None,
                checksums: false,
                longest_delay: Duration::ZERO,
            },
            used: Use::Armed,
        });
        Ok(slot)
    }

    /// Whether the node can tell which socket receives a packet that comes in by a device.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn tells_receivers(&self) -> Result<(), MechanismError> {
        self.programs.iter().try_for_each(TcEgress::tells_receivers)
    }

    /// Makes a device ready for a rule: all but its program of tcx, see [`Self::attach_by_tcx`]. `netlink` is
    /// of the namespace of the device.
    pub(super) fn attach(
        &mut self,
        slot: u64,
        netlink: &mut Netlink,
        effect: &NetworkEffect,
    ) -> Result<Built, MechanismError> {
        let attached = self
            .all
            .iter_mut()
            .find(|a| u64::from(a.device.slot) == slot)
            .ok_or_else(gone)?;
        let device = &mut attached.device;
        let mut programs = self.programs.iter();
        let programs = programs
            .find(|programs| programs.way() == device.way)
            .ok_or(LoadError::Absent)?;
        // Waits of several faults add up.
        device.longest_delay = device
            .longest_delay
            .saturating_add(effect.longest_wait(MAX_DELAY));
        let built = programs.attach(netlink, device, Needs::of(effect), &self.tcx)?;
        attached.used = Use::Armed;
        Ok(built)
    }

    /// Puts the program of tcx on a device; safe to repeat.
    pub(super) fn attach_by_tcx(
        &mut self,
        slot: u64,
        netlink: &Netlink,
    ) -> Result<(), MechanismError> {
        let attached = of_slot(&self.all, slot).ok_or_else(gone)?;
        self.tcx.attach(netlink, &attached.device)
    }

    /// Loads a part of what the next devices will need. Whether there was anything to load.
    pub(super) fn load_ahead(&mut self) -> bool {
        if !self.loads_ahead {
            return false;
        }
        let rests = |a: &&Attached| matches!(a.used, Use::Resting);
        let known = self.all.iter().filter(rests).map(|a| a.device.slot);
        let free = Slots(self.all.iter().map(|a| a.device.slot)).all_free();
        let loaded = self.tcx.load_ahead(known.chain(free.take(AHEAD)));
        loaded.unwrap_or_else(|error| {
            tracing::warn!(%error, "failed to load a program ahead; faults will wait for theirs");
            self.loads_ahead = false;
            false
        })
    }

    /// Writes where a device and its detour are into its target.
    pub(super) fn describe(&self, slot: u64, target: &mut Target) {
        if let Some(a) = of_slot(&self.all, slot) {
            let (detour_in, detour_out) = a.device.detour.unwrap_or_default();
            target.device = a.device.ifindex;
            target.detour_in = detour_in;
            target.detour_out = detour_out;
            target.budget = self.budget;
            // Its rules, not the device, say whether it is shared.
            target.flags &= target_flag::SHARED;
            if a.device.checksums {
                target.flags |= target_flag::SEGMENTS;
            }
        }
    }

    /// Whether our program is on this device. `netlink` is of its namespace.
    pub(super) fn is_attached(&self, slot: u64, netlink: &mut Netlink) -> bool {
        of_slot(&self.all, slot).is_some_and(|a| {
            self.tcx.is_attached(netlink, &a.device)
                || netlink
                    .has_filter(a.device.ifindex, a.device.way.hook())
                    .unwrap_or(false)
        })
    }

    /// Detaches from devices that are not known: the journal lacks them.
    pub(super) fn sweep(&self) -> Result<usize, MechanismError> {
        let is = |a: &Attached, way, slot| (a.device.way, a.device.slot) == (way, slot);
        let known = |way, slot| self.all.iter().any(|a| is(a, way, slot));
        self.tcx.sweep(known)
    }

    /// Whether packets may still come out of a detour with a tag that our programs have to take off.
    pub(super) fn takes_tags_off(&self) -> bool {
        self.all.iter().any(|a| a.device.is_by_vlan())
    }

    /// Whether packets may still be on the way through the detour of this device.
    pub(super) fn is_draining(&self, slot: u64) -> bool {
        self.all
            .iter()
            .any(|a| u64::from(a.device.slot) == slot && matches!(a.used, Use::Draining { .. }))
    }

    /// Devices without rules begin to drain; those whose namespace is gone are forgotten.
    pub(super) fn settle(&mut self, all: &[&Armed]) {
        let now = clock::now_ns();
        let proc_root = &self.proc_root;
        self.all.retain_mut(|a| {
            let slot = u64::from(a.device.slot);
            let rules = all.iter().flat_map(|armed| &armed.rules);
            let armed = rules
                .filter(|rule| Way::of(rule.mechanism).is_some())
                .any(|rule| rule.key == slot);
            a.used = match a.used {
                _ if armed => Use::Armed,
                Use::Armed => Use::Draining {
                    look_at: now,
                    over_at: now + nanos(a.device.longest_delay + Duration::from_secs(1)),
                    was_empty: false,
                },
                used => used,
            };
            !matches!(a.used, Use::Resting)
                || netns::find(proc_root, a.device.netns_inode, Path::new("")).is_some()
        });
    }

    /// Packets that the kernel loses on the way out of a detour are never counted out of it. Before
    /// that can be taken for a full one, it is seen to be empty.
    pub(super) fn relieve(&self, maps: &mut Pinned) {
        for Attached { device, .. } in &self.all {
            let half = u64::from(self.budget / 2);
            if device.detour.is_some()
                && maps.waiting(device.slot).is_ok_and(|units| units > half)
                && is_empty(&self.proc_root, device)
                && let Err(error) = maps.nothing_waits(device.slot)
            {
                tracing::warn!(device = %device.name, %error, "failed to correct what waits");
            }
        }
    }

    /// Detaches from devices whose packets have all arrived.
    pub(super) fn drain(&mut self, maps: &mut Pinned) -> Drained {
        let now = clock::now_ns();
        let mut detached = false;
        let (proc_root, tcx) = (&self.proc_root, &self.tcx);
        self.all.retain_mut(|a| {
            let Use::Draining { look_at, over_at, was_empty } = a.used else { return true };
            if look_at > now {
                return true;
            }
            let is_empty = over_at <= now || is_empty(proc_root, &a.device);
            if is_empty && (was_empty || a.device.detour.is_none()) {
                match detach(proc_root, tcx, &a.device, maps) {
                    Ok(()) => {
                        detached = true;
                        a.rest();
                        return a.device.clsact_is_ours;
                    }
                    Err(error) => {
                        tracing::warn!(device = %a.device.name, %error, "failed to detach; will try again");
                    }
                }
            }
            a.used = Use::Draining {
                look_at: now + nanos(DRAIN_EVERY),
                over_at,
                was_empty: is_empty,
            };
            true
        });
        let looks = self.all.iter().filter_map(|a| match a.used {
            Use::Draining { look_at, .. } => Some(look_at),
            _ => None,
        });
        Drained {
            look_ns: looks.min(),
            detached,
        }
    }

    /// Detaches from all, waiting for nothing; they are known on.
    pub(super) fn release(&mut self, maps: &mut Pinned) -> Result<(), MechanismError> {
        let mut result = Ok(());
        for attached in &mut self.all {
            let detached = detach(&self.proc_root, &self.tcx, &attached.device, maps);
            if detached.is_ok() {
                attached.rest();
            }
            result = result.and(detached);
        }
        result
    }

    /// Detaches from all, waiting for nothing, and removes what was left resting.
    pub(super) fn detach_all(&mut self, maps: &mut Pinned) -> Result<(), MechanismError> {
        let mut result = Ok(());
        let all = std::mem::take(&mut self.all);
        for Attached { device, .. } in &all {
            result = result.and(detach(&self.proc_root, &self.tcx, device, maps));
        }
        // Both ways of a device share its clsact.
        for Attached { device, .. } in all {
            result = result.and(match inside(&self.proc_root, &device) {
                Ok(Some(mut netlink)) => TcEgress::remove_clsact(&mut netlink, &device),
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            });
        }
        result
    }
}

fn of_slot(all: &[Attached], slot: u64) -> Option<&Attached> {
    all.iter().find(|a| u64::from(a.device.slot) == slot)
}

fn gone() -> MechanismError {
    MechanismError::Target("the target's network namespace is gone".into())
}

fn detach(
    proc_root: &Path,
    tcx: &Tcx,
    device: &Device,
    maps: &mut Pinned,
) -> Result<(), MechanismError> {
    // First, and whatever is left of its namespace: nothing may go into a detour that is being removed.
    tcx.detach(device.way, device.slot)?;
    if let Some(mut netlink) = inside(proc_root, device)? {
        TcEgress::detach(&mut netlink, device)?;
    }
    // Only now: packets that came out of the detour needed it.
    maps.remove_target(TargetKind::Device, u64::from(device.slot))
        .map_err(|source: MapError| MechanismError::Map {
            map: "DEVICE_TARGETS",
            source,
        })
}

/// Whether no packet waits in the detour. One that cannot be asked counts as not empty: then the
/// longest delay is waited for.
fn is_empty(proc_root: &Path, device: &Device) -> bool {
    match inside(proc_root, device) {
        Ok(Some(mut netlink)) => TcEgress::waiting(&mut netlink, device).is_ok_and(|n| n == 0),
        Ok(None) => true,
        Err(_) => false,
    }
}

/// A connection into the namespace of a device; `None` when that is gone.
fn inside(proc_root: &Path, device: &Device) -> Result<Option<Netlink>, MechanismError> {
    let namespace = netns::find(proc_root, device.netns_inode, Path::new(""));
    namespace
        .map(|path| Netlink::open_in(&path))
        .transpose()
        .map_err(io_error("open rtnetlink"))
}
