//! Partition at the socket: two `cgroup_skb` programs on the root cgroup, attached once. A fault
//! is then map writes only. The links are pinned, so that what is armed outlives this process
//! until its deadline.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::CgroupAttachMode;
use aya::programs::CgroupSkbAttachType;
use aya::programs::cgroup_skb::CgroupSkb;
use aya::programs::links::{FdLink, PinnedLink};
use chaos_abi::network::flag;
use chaos_planner::capabilities::Mechanism;
use chaos_planner::fault::NetworkEffect;

use super::{MechanismError, io_error, program};
use crate::kernel::objects;

const PROGRAMS: [(&str, CgroupSkbAttachType); 2] = [
    ("cgroup_drop_egress", CgroupSkbAttachType::Egress),
    ("cgroup_drop_ingress", CgroupSkbAttachType::Ingress),
];

/// The attached programs.
pub struct CgroupDrop {
    /// Keeps the maps that the programs use.
    _ebpf: Ebpf,
    links: PathBuf,
}

impl CgroupDrop {
    /// Loads the programs and attaches them to the root cgroup. Links that a predecessor left are
    /// replaced: the new ones are attached before the old ones go, so that a running partition has
    /// no gap; a packet in between can be counted twice.
    ///
    /// # Errors
    /// [`MechanismError`], in words for `doctor`.
    pub fn attach(cgroup_root: &Path, pins: &Path, links: &Path) -> Result<Self, MechanismError> {
        let mut ebpf = objects::load(Mechanism::CgroupDrop, pins, 0)?;
        let root = File::open(cgroup_root).map_err(io_error(format!(
            "open the root cgroup {}",
            cgroup_root.display()
        )))?;
        fs::create_dir_all(links).map_err(io_error(format!("create {}", links.display())))?;
        for (name, hook) in PROGRAMS {
            let skb: &mut CgroupSkb = ebpf
                .program_mut(name)
                .and_then(|program| program.try_into().ok())
                .ok_or(objects::LoadError::Absent)?;
            skb.load().map_err(program("load cgroup_drop"))?;
            let id = skb
                .attach(&root, hook, CgroupAttachMode::Single)
                .map_err(program("attach cgroup_drop to the root cgroup"))?;
            let link = skb
                .take_link(id)
                .map_err(program("take the link of cgroup_drop"))?;
            let link = FdLink::try_from(link).map_err(|_| {
                MechanismError::Target("cgroup links need Linux 5.7 or newer".to_owned())
            })?;
            let pin = links.join(name);
            unpin(&pin)?;
            link.pin(&pin).map_err(|error| MechanismError::Io {
                what: format!("pin the link {}", pin.display()),
                source: io::Error::other(error),
            })?;
        }
        Ok(Self {
            _ebpf: ebpf,
            links: links.to_owned(),
        })
    }

    /// Removes the programs.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn detach(&mut self) -> Result<(), MechanismError> {
        detach_pinned(&self.links)
    }

    /// The part of a rule that this mechanism reads. `ifindex` 0 is every device.
    pub fn rule(effect: &NetworkEffect, ifindex: u32) -> chaos_abi::network::Rule {
        let mut flags = flag::DROP;
        if effect.egress {
            flags |= flag::EGRESS;
        }
        if effect.ingress {
            flags |= flag::INGRESS;
        }
        chaos_abi::network::Rule {
            flags,
            ifindex,
            ..Default::default()
        }
    }
}

/// Detaches what is pinned, also after the agent that did it has died.
///
/// # Errors
/// When a pin cannot be removed.
pub fn detach_pinned(links: &Path) -> Result<(), MechanismError> {
    for (name, _) in PROGRAMS {
        unpin(&links.join(name))?;
    }
    Ok(())
}

fn unpin(pin: &Path) -> Result<(), MechanismError> {
    match PinnedLink::from_pin(pin) {
        Ok(link) => {
            // The descriptor is the last reference: dropping it detaches the program.
            link.unpin()
                .map_err(io_error(format!("unpin {}", pin.display())))?;
            Ok(())
        }
        Err(_) if !pin.exists() => Ok(()),
        Err(error) => Err(MechanismError::Io {
            what: format!("open the pinned link {}", pin.display()),
            source: io::Error::other(error),
        }),
    }
}
