//! Programs that do nothing: what a hook costs by itself. No object of ours is that, so they are made of
//! two instructions.

use std::ffi::CString;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use aya::programs::{CgroupSkb, CgroupSkbAttachType, SchedClassifier};
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_prog_type};
use nix::libc;

/// `r0 = value; exit`: code in the lowest byte, the immediate in the upper half.
fn program(value: i32) -> [u64; 2] {
    /// `BPF_ALU64 | BPF_MOV | BPF_K`
    const MOVE: u64 = 0xb7;
    /// `BPF_JMP | BPF_EXIT`
    const EXIT: u64 = 0x95;
    [u64::from(value.cast_unsigned()) << 32 | MOVE, EXIT]
}

/// A classifier that lets everything pass on.
pub(super) fn classifier(bpffs: &Path) -> Result<SchedClassifier> {
    let pin = load(bpffs, bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, -1, 0)?;
    SchedClassifier::from_pin(&pin.0).context("failed to open an empty classifier")
}

/// A filter of cgroups that allows everything.
pub(super) fn filter(bpffs: &Path, attach: CgroupSkbAttachType) -> Result<CgroupSkb> {
    // enum bpf_attach_type, include/uapi/linux/bpf.h
    let kind = match attach {
        CgroupSkbAttachType::Ingress => 0,
        CgroupSkbAttachType::Egress => 1,
    };
    let pin = load(bpffs, bpf_prog_type::BPF_PROG_TYPE_CGROUP_SKB, 1, kind)?;
    CgroupSkb::from_pin(&pin.0, attach).context("failed to open an empty filter")
}

/// A pinned program; the pin goes on drop.
struct Pin(PathBuf);

impl Drop for Pin {
    fn drop(&mut self) {
        // It is in a bpffs that goes with this process, or with the machine.
        drop(std::fs::remove_file(&self.0));
    }
}

fn load(bpffs: &Path, kind: bpf_prog_type, value: i32, attach: u32) -> Result<Pin> {
    let instructions = program(value);
    // SAFETY: zeroes are a valid `bpf_attr`: integers all through.
    let mut attr: bpf_attr = unsafe { zeroed() };
    // SAFETY: a union of integers, zeroed: each of its views is valid.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.prog_type = kind as u32;
    load.insns = instructions.as_ptr() as u64;
    load.insn_cnt = instructions.len() as u32;
    load.license = c"GPL".as_ptr() as u64;
    load.expected_attach_type = attach;
    let fd = bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr).context("failed to load an empty program")?;
    let fd = i32::try_from(fd).context("not a descriptor")?;
    // SAFETY: the kernel has just given it to us, and nobody else has it.
    let program = unsafe { OwnedFd::from_raw_fd(fd) };
    let path = bpffs.join("empty");
    let name = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: as above.
    let mut attr: bpf_attr = unsafe { zeroed() };
    // SAFETY: as above.
    let pin = unsafe { &mut attr.__bindgen_anon_4 };
    pin.pathname = name.as_ptr() as u64;
    pin.bpf_fd = program.as_raw_fd().cast_unsigned();
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr).context("failed to pin an empty program")?;
    Ok(Pin(path))
}

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i64> {
    let size = size_of::<bpf_attr>();
    // SAFETY: the attributes and what they point to live until the call returns.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as i32, attr, size) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
