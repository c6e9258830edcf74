//! A dispatcher on a target's device by a tcx link (Linux 6.6), pinned by way and slot. Unlike a first
//! clsact it comes and goes without stopping the device, and it is before programs of others, which may
//! end with a verdict. What it does is the business of `tc_egress.rs`, as where clsact has to do.
//!
//! A link is not in the journal: it is found again by its pin, which outlives the device.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use nix::net::if_::if_indextoname;

use super::tc::Way;
use super::tc_egress::Device;
use super::{MechanismError, find_mut, io_error, pin, program, unpin};
use crate::kernel::links;
use crate::kernel::netlink::Netlink;
use crate::kernel::netns;
use crate::kernel::objects::Loader;

/// The device that every network namespace has.
const LOOPBACK: u32 = 1;

/// All links of this node.
pub struct Tcx {
    pins: PathBuf,
    loader: Loader,
    loaded: BTreeMap<u16, Dispatchers>,
}

/// Those of one slot, which can be attached again and again.
struct Dispatchers {
    egress: SchedClassifier,
    ingress: SchedClassifier,
}

impl Dispatchers {
    fn load(loader: &mut Loader, slot: u16) -> Result<Self, MechanismError> {
        let mut ebpf = loader.load_for_slot(slot)?;
        let mut of = |way: Way| {
            let [on_device, ..] = way.programs();
            let dispatcher: &mut SchedClassifier = find_mut(&mut ebpf, on_device)?;
            dispatcher
                .load()
                // On its own: the rest of the object is a dozen descriptors.
                .and_then(|()| {
                    SchedClassifier::from_program_info(dispatcher.info()?, on_device.into())
                })
                .map_err(program("load a dispatcher for tcx"))
        };
        Ok(Self {
            egress: of(Way::Egress)?,
            ingress: of(Way::Ingress)?,
        })
    }

    const fn of(&mut self, way: Way) -> &mut SchedClassifier {
        match way {
            Way::Egress => &mut self.egress,
            Way::Ingress => &mut self.ingress,
        }
    }
}

/// How many slots have their dispatchers loaded, at most: of more, each new one has to wait for its own.
const MOST: usize = 64;

impl Tcx {
    /// Those that are, or will be, pinned below `pins`.
    pub fn new(pins: &Path, loader: Loader) -> Self {
        Self {
            pins: pins.to_owned(),
            loader,
            loaded: BTreeMap::new(),
        }
    }

    /// Loads the dispatchers of one of these slots while nobody waits for them, if there is one without.
    /// Whether there was.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn load_ahead(
        &mut self,
        mut slots: impl Iterator<Item = u16>,
    ) -> Result<bool, MechanismError> {
        let Some(slot) = slots.find(|slot| !self.loaded.contains_key(slot)) else {
            return Ok(false);
        };
        if self.loaded.len() >= MOST {
            return Ok(false);
        }
        let loaded = Dispatchers::load(&mut self.loader, slot)?;
        self.loaded.insert(slot, loaded);
        Ok(true)
    }

    /// Puts a dispatcher of its own on a device, before what others have there; safe to repeat.
    /// `netlink` is of its namespace.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn attach(&mut self, netlink: &Netlink, device: &Device) -> Result<(), MechanismError> {
        if self.is_attached(netlink, device) {
            return Ok(());
        }
        // That of a device which has gone.
        self.detach(device.way, device.slot)?;
        let links = links::directory(&self.pins);
        fs::create_dir_all(&links).map_err(io_error(format!("create {}", links.display())))?;
        let path = self.path(device.way, device.slot);
        let slot = device.slot;
        let mut dispatchers = match self.loaded.remove(&slot) {
            Some(loaded) => loaded,
            None => Dispatchers::load(&mut self.loader, slot)?,
        };
        let (index, way) = (device.ifindex, device.way);
        let dispatcher = dispatchers.of(way);
        let link = netlink.within(|| put(dispatcher, index, way));
        if self.loaded.len() < MOST {
            self.loaded.insert(slot, dispatchers);
        }
        pin(link?, &path)
    }

    /// Whether there is a dispatcher of ours on this device. `netlink` is of its namespace.
    pub fn is_attached(&self, netlink: &Netlink, device: &Device) -> bool {
        let path = self.path(device.way, device.slot);
        let Ok(link) = PinnedLink::from_pin(path) else {
            return false;
        };
        let Ok(ours) = FdLink::from(link).info() else {
            return false;
        };
        let there = netlink.within(|| {
            let name = name(device.ifindex)?;
            SchedClassifier::query_tcx(&name, hook(device.way))
                .map_err(program("list the programs of tcx"))
        });
        there.is_ok_and(|(_, there)| there.iter().any(|p| p.id() == ours.program_id()))
    }

    /// Detaches at once, also where the namespace of the device is gone. None there is success.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn detach(&self, way: Way, slot: u16) -> Result<(), MechanismError> {
        unpin(&self.path(way, slot))
    }

    /// Detaches what is on devices that are not `known`: a predecessor has been stopped before it could
    /// note them, or its journal is lost. How many these were.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn sweep(&self, known: impl Fn(Way, u16) -> bool) -> Result<usize, MechanismError> {
        let mut swept = 0;
        for path in links::pinned(&self.pins, "") {
            let name = path.file_name().and_then(|name| name.to_str());
            let device = name.and_then(parse);
            if let Some((way, slot)) = device.filter(|&(way, slot)| !known(way, slot)) {
                self.detach(way, slot)?;
                swept += 1;
            }
        }
        Ok(swept)
    }

    fn path(&self, way: Way, slot: u16) -> PathBuf {
        links::path(&self.pins, &pin_name(way, slot))
    }
}

/// A dispatcher where no packet ever passes. The first program of tcx on a node, and the last that goes, make
/// the kernel wait for a grace period and rewrite the code that all packets pass, on all CPUs
/// (`tcx_skeys_inc`, include/net/tcx.h): with this one neither a fault nor a bystander waits for that. It goes
/// with the agent.
pub(super) struct Anchor {
    _link: FdLink,
    /// Its device goes with the namespace, and that with the last who holds it.
    _namespace: File,
}

impl Anchor {
    /// On the loopback device of a new namespace. Shows whether this kernel has tcx.
    ///
    /// # Errors
    /// What the kernel answers, in words for `doctor`.
    pub(super) fn cast(ebpf: &mut Ebpf, way: Way) -> Result<Self, MechanismError> {
        let [on_device, ..] = way.programs();
        netns::scratch(|| {
            let namespace = netns::of_this_thread();
            let namespace = namespace.map_err(io_error("open a new network namespace"))?;
            Ok(Self {
                _link: put(find_mut(ebpf, on_device)?, LOOPBACK, way)?,
                _namespace: namespace,
            })
        })
    }
}

/// For as long as the link lives, on a device of this thread's namespace.
fn put(dispatcher: &mut SchedClassifier, index: u32, way: Way) -> Result<FdLink, MechanismError> {
    let first = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = dispatcher
        .attach_with_options(&name(index)?, hook(way), first)
        .map_err(program("attach by tcx"))?;
    let link = dispatcher
        .take_link(id)
        .map_err(program("take the link of tcx"))?;
    FdLink::try_from(link)
        .map_err(|_| MechanismError::Target("tcx attached by something else than a link".into()))
}

/// What a device of this thread's namespace is called now.
fn name(index: u32) -> Result<String, MechanismError> {
    let name = if_indextoname(index).map_err(io::Error::from);
    let name = name.map_err(io_error(format!("look for the device with index {index}")))?;
    Ok(name.to_string_lossy().into_owned())
}

const fn hook(way: Way) -> TcAttachType {
    match way {
        Way::Egress => TcAttachType::Egress,
        Way::Ingress => TcAttachType::Ingress,
    }
}

fn pin_name(way: Way, slot: u16) -> String {
    format!("{}_{slot}", way.mechanism().name())
}

/// What [`pin_name`] says; `None` for those of others.
fn parse(pin: &str) -> Option<(Way, u16)> {
    [Way::Egress, Way::Ingress].into_iter().find_map(|way| {
        let rest = pin.strip_prefix(way.mechanism().name())?;
        Some((way, rest.strip_prefix('_')?.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_says_which_way_of_which_slot_it_is() {
        for (way, slot, name) in [
            (Way::Egress, 7, "tc_egress_7"),
            (Way::Ingress, 4095, "tc_ingress_4095"),
        ] {
            assert_eq!(pin_name(way, slot), name);
            assert_eq!(parse(name), Some((way, slot)));
        }
        for other in ["cgroup_drop_egress", "tc_egress", "tc_egress_x", "tc_7"] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
