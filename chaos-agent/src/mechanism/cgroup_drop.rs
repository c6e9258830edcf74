//! Partition at the socket: two `cgroup_skb` programs on the root cgroup, attached once for all faults. A
//! fault is then map writes only. The links are pinned, so that what is armed outlives this process
//! until its deadline; a successor puts its bodies behind the same links.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::CgroupAttachMode;
use aya::programs::CgroupSkbAttachType;
use aya::programs::cgroup_skb::CgroupSkb;
use aya::programs::links::FdLink;
use chaos_abi::network::flag;
use chaos_planner::capabilities::Mechanism;
use chaos_planner::fault::NetworkEffect;

use super::{MechanismError, canary, find_mut, io_error, pin, program, unpin};
use crate::kernel::links;
use crate::kernel::objects::Loader;

const PROGRAMS: [(&str, CgroupSkbAttachType); 2] = [
    ("cgroup_drop_egress", CgroupSkbAttachType::Egress),
    ("cgroup_drop_ingress", CgroupSkbAttachType::Ingress),
];

/// The loaded programs.
pub struct CgroupDrop {
    ebpf: Ebpf,
    cgroup_root: PathBuf,
    links: PathBuf,
    attached: bool,
}

impl CgroupDrop {
    /// Loads the programs; nothing is attached yet to the root cgroup, which is mounted at `cgroup_root`.
    ///
    /// # Errors
    /// [`MechanismError`], in words for `doctor`.
    pub fn load(
        loader: &mut Loader,
        pins: &Path,
        cgroup_root: &Path,
    ) -> Result<Self, MechanismError> {
        let mut ebpf = loader.load(Mechanism::CgroupDrop)?;
        for (_, program) in ebpf.programs_mut() {
            let skb: &mut CgroupSkb = program
                .try_into()
                .map_err(self::program("use cgroup_drop"))?;
            skb.load().map_err(self::program("load cgroup_drop"))?;
        }
        Ok(Self {
            ebpf,
            cgroup_root: cgroup_root.to_owned(),
            links: links::directory(pins),
            attached: false,
        })
    }

    /// What it has loaded.
    pub fn programs(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Tries the bodies on packets of our own.
    ///
    /// # Errors
    /// What they did instead.
    pub fn fire_canary(&self) -> Result<(), MechanismError> {
        for (name, _) in PROGRAMS {
            canary::is_allowed(&self.ebpf, &format!("{name}_body"))?;
        }
        Ok(())
    }

    /// Attaches the dispatchers to the root cgroup, unless those of a predecessor are: they go on in
    /// our bodies as well.
    ///
    /// # Errors
    /// [`MechanismError`], in words for `doctor`.
    pub fn attach(&mut self) -> Result<(), MechanismError> {
        if self.attached {
            return Ok(());
        }
        let cgroup_root = &self.cgroup_root;
        // Only the root of all has no type. Below it our depths are not the kernel's, and a program
        // that is attached there sees only what is below.
        if cgroup_root.join("cgroup.type").exists() {
            return Err(MechanismError::Target(format!(
                "{} is not the root of the host's cgroups, as in a node that is itself a container",
                cgroup_root.display()
            )));
        }
        let root = File::open(cgroup_root).map_err(io_error(format!(
            "open the root cgroup {}",
            cgroup_root.display()
        )))?;
        let links = &self.links;
        fs::create_dir_all(links).map_err(io_error(format!("create {}", links.display())))?;
        for (name, hook) in PROGRAMS {
            let path = links.join(name);
            if path.exists() {
                continue;
            }
            let skb: &mut CgroupSkb = find_mut(&mut self.ebpf, name)?;
            let id = skb
                .attach(&root, hook, CgroupAttachMode::Single)
                .map_err(program("attach cgroup_drop to the root cgroup"))?;
            let link = skb
                .take_link(id)
                .map_err(program("take the link of cgroup_drop"))?;
            let link = FdLink::try_from(link).map_err(|_| {
                MechanismError::Target("cgroup links need Linux 5.7 or newer".to_owned())
            })?;
            pin(link, &path)?;
        }
        self.attached = true;
        Ok(())
    }

    /// Whether they are attached.
    pub const fn is_attached(&self) -> bool {
        self.attached
    }

    /// Removes the dispatchers from the root cgroup.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn detach(&mut self) -> Result<(), MechanismError> {
        self.attached = false;
        for (name, _) in PROGRAMS {
            unpin(&self.links.join(name))?;
        }
        Ok(())
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
