//! The packet programs by themselves, with maps of their own: run by BPF_PROG_TEST_RUN, attached to
//! nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Error, Result};
use aya::Ebpf;
use aya::programs::{CgroupSkb, Program, SchedClassifier, TestRun, TestRunOptions};
use chaos_agent::kernel::btf::Types;
use chaos_agent::kernel::generation::Generation;
use chaos_agent::kernel::maps::{self, Pinned};
use chaos_agent::kernel::objects::Loader;
use chaos_agent::mechanism::tc_ingress;
use chaos_planner::capabilities::Mechanism;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::machine::BPFFS;

/// Slot of the device that packets are on: the filter that would say so is not there.
pub(crate) const SLOT: u32 = 7;

/// Index of the loopback device, which BPF_PROG_TEST_RUN gives packets.
pub(crate) const LOOPBACK: u32 = 1;

/// `TC_ACT_REDIRECT`, include/uapi/linux/pkt_cls.h: away, see `chaos_ebpf::hook`.
pub(crate) const AWAY: u32 = 7;

/// `TC_ACT_UNSPEC`: others may have it.
pub(crate) const UNSPEC: u32 = u32::MAX;

/// Mounts a bpffs that only this process has, and returns where it is. On a machine that is not a test
/// VM: there may be none, or that of an agent.
///
/// # Errors
/// If this is not root, or the kernel has no BPF.
pub fn private_bpffs() -> Result<&'static Path> {
    let bpffs = Path::new(BPFFS);
    unshare(CloneFlags::CLONE_NEWNS)
        .context("failed to leave the mount namespace: are you root?")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("failed to make mounts private")?;
    mount(Some("bpf"), bpffs, Some("bpf"), MsFlags::empty(), none)
        .context("failed to mount a bpffs: does this kernel have BPF?")?;
    Ok(bpffs)
}

/// The objects that are about packets, loaded. Their pins are removed on drop.
pub(crate) struct Programs {
    directory: PathBuf,
    /// Their maps, and no agent's.
    pub(crate) maps: Pinned,
    egress: Ebpf,
    ingress: Ebpf,
    cgroup: Ebpf,
    // Its maps are among those of the agent.
    _clock_shift: Ebpf,
}

impl Programs {
    /// Loads them with maps below `directory`, which has to be in a bpffs.
    pub(crate) fn load(directory: &Path) -> Result<Self> {
        let pins = maps::directory(directory);
        fs::create_dir_all(&pins).with_context(|| {
            format!(
                "failed to make {}: is a bpffs mounted there?",
                pins.display()
            )
        })?;
        let mut loader = Loader::new(&pins);
        let mut cgroup = loader.load(Mechanism::CgroupDrop)?;
        let mut egress = loader.load_with(Mechanism::TcEgress, &[("SLOT", SLOT)])?;
        let mut ingress = loader.load_with(Mechanism::TcIngress, constants_of_ingress()?)?;
        let _clock_shift = loader.load(Mechanism::ClockShift)?;
        let of_devices = egress.programs_mut().chain(ingress.programs_mut());
        for (_, program) in cgroup.programs_mut().chain(of_devices) {
            match program {
                Program::SchedClassifier(classifier) => classifier.load()?,
                Program::CgroupSkb(filter) => filter.load()?,
                _ => {}
            }
        }
        let mut maps = Pinned::open(directory)?;
        let generation = Generation::next(&maps, &pins)?;
        generation.enter(&mut cgroup)?;
        generation.enter(&mut egress)?;
        generation.enter(&mut ingress)?;
        generation.begin(&mut maps)?;
        Ok(Self {
            maps,
            directory: directory.to_owned(),
            egress,
            ingress,
            cgroup,
            _clock_shift,
        })
    }

    /// One of `tc_egress` or `tc_ingress`.
    pub(crate) fn classifier(&self, name: &str) -> Result<&SchedClassifier> {
        let program = self.egress.program(name).or(self.ingress.program(name));
        Ok(program.with_context(|| format!("no {name}"))?.try_into()?)
    }

    /// One of `cgroup_drop`.
    pub(crate) fn filter(&self, name: &str) -> Result<&CgroupSkb> {
        let program = self.cgroup.program(name);
        Ok(program.with_context(|| format!("no {name}"))?.try_into()?)
    }

    /// What `tc_egress` says of a packet.
    pub(crate) fn run(&self, packet: &[u8]) -> Result<u32> {
        let options = TestRunOptions {
            data_in: Some(packet),
            ..TestRunOptions::new()
        };
        Ok(self
            .classifier("tc_egress")?
            .test_run(options)?
            .return_value)
    }
}

/// The slot, and where the running kernel has what is read of sockets.
fn constants_of_ingress() -> Result<&'static [(&'static str, u32)]> {
    static CONSTANTS: OnceLock<Vec<(&str, u32)>> = OnceLock::new();
    if let Some(known) = CONSTANTS.get() {
        return Ok(known);
    }
    let types = Types::of_this_kernel(&[]);
    let places = tc_ingress::places(&types).map_err(Error::msg)?;
    let constants = places.iter().copied().chain([("SLOT", SLOT)]);
    Ok(CONSTANTS.get_or_init(|| constants.collect()))
}

impl Drop for Programs {
    fn drop(&mut self) {
        // A leftover would be found by the next run, which then fails for no reason of its own.
        drop(fs::remove_dir_all(&self.directory));
    }
}
