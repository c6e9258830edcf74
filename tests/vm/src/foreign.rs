//! A tcx program of somebody else on a device, as Cilium has them: it counts the IPv4 packets that it sees
//! and ends with a verdict about them. Made of a few instructions by hand, without anything of what is tested.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};
use aya::programs::{SchedClassifier, TcAttachType};
use nix::libc;
use nix::net::if_::if_nametoindex;

use crate::netns::Namespace;

/// What it says of each of these packets; include/uapi/linux/bpf.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Says {
    /// `TCX_NEXT`: others are asked, too.
    Next,
    /// `TCX_PASS`: no program behind is asked, and no filter of clsact.
    Pass,
    /// `TCX_REDIRECT`: out by the device with this index, to the neighbour that has its address there.
    Away(u32),
}

/// Which packets of a device it sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// What comes in.
    Ingress = 46,
    /// What goes out.
    Egress = 47,
}

/// It is gone on drop.
#[derive(Debug)]
pub(crate) struct Foreign {
    program: OwnedFd,
    seen: OwnedFd,
    _link: OwnedFd,
}

impl Foreign {
    /// Puts one before, or behind, all that are there on a device; `None` where the kernel has no tcx.
    pub(crate) fn attach(
        namespace: &Namespace,
        device: &str,
        side: Side,
        first: bool,
        says: Says,
    ) -> Result<Option<Foreign>> {
        namespace.within(|| Foreign::attach_here(device, side, first, says))
    }

    /// The same on a device of this thread's namespace.
    fn attach_here(device: &str, side: Side, first: bool, says: Says) -> Result<Option<Foreign>> {
        let seen = counter().context("failed to make a map")?;
        let program = program(&seen, says).context("failed to load a program")?;
        match link(&program, if_nametoindex(device)?, side, first) {
            Ok(link) => Ok(Some(Foreign {
                program,
                seen,
                _link: link,
            })),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
            Err(error) => Err(error).context("failed to attach a program"),
        }
    }

    /// How many packets it has seen.
    pub(crate) fn seen(&self) -> Result<u64> {
        let (key, mut value) = (0_u32, 0_u64);
        let attributes = [
            word(&self.seen),
            (&raw const key) as u64,
            (&raw mut value) as u64,
            0,
        ];
        // BPF_MAP_LOOKUP_ELEM: map_fd, key, value, flags
        bpf(1, &attributes).context("failed to read a map")?;
        Ok(value)
    }

    /// Its program's id, as in [`there`].
    pub(crate) fn id(&self) -> Result<u32> {
        let info =
            std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.program.as_raw_fd()))?;
        let id = info.lines().find_map(|line| line.strip_prefix("prog_id:"));
        Ok(id.context("a program without id")?.trim().parse()?)
    }
}

/// Programs on the loopback device that do nothing, for as long as this lives.
#[derive(Debug)]
pub struct Kept {
    _programs: Vec<Foreign>,
}

/// The first program of a machine on a hook of tcx, and the last, rewrite the code that handles packets
/// (`tcx_needed_key` and others, static keys of net/core/dev.c). Each fault of a test would, and QEMU's
/// emulation can run a CPU into that. These are there before, and stay.
///
/// # Errors
/// What the kernel answers; that it has no tcx is none.
pub fn keep_hooks() -> Result<Kept> {
    let keep = |side| Foreign::attach_here("lo", side, false, Says::Next);
    let kept = [keep(Side::Ingress)?, keep(Side::Egress)?];
    Ok(Kept {
        _programs: kept.into_iter().flatten().collect(),
    })
}

/// Ids of the programs on a device, in the order in which they are asked; none without tcx.
pub(crate) fn there(namespace: &Namespace, device: &str, side: Side) -> Result<Vec<u32>> {
    let hook = match side {
        Side::Ingress => TcAttachType::Ingress,
        Side::Egress => TcAttachType::Egress,
    };
    namespace.within(|| {
        let (_, programs) = SchedClassifier::query_tcx(device, hook)?;
        Ok(programs
            .iter()
            .map(aya::programs::ProgramInfo::id)
            .collect())
    })
}

/// One number.
fn counter() -> io::Result<OwnedFd> {
    const ARRAY: u64 = 2;
    // BPF_MAP_CREATE: map_type, key_size, value_size, max_entries, map_flags
    own(bpf(0, &[4 << 32 | ARRAY, 1 << 32 | 8, 0])?)
}

fn program(seen: &OwnedFd, says: Says) -> io::Result<OwnedFd> {
    // include/uapi/linux/bpf.h: opcode, registers (dst, src << 4), offset, immediate
    let op = |code: u64, registers: u64, offset: u64, immediate: u32| {
        u64::from(immediate) << 32 | offset << 16 | registers << 8 | code
    };
    let mov = |register, value: i32| op(0xb7, register, 0, value.cast_unsigned());
    let verdict = match says {
        Says::Next => vec![],
        Says::Pass => vec![mov(0, 0)],
        Says::Away(device) => vec![
            mov(1, device.cast_signed()),
            mov(2, 0),
            mov(3, 0),
            mov(4, 0),
            // BPF_CALL of bpf_redirect_neigh
            op(0x85, 0, 0, 152),
        ],
    };
    let to_exit = 4 + verdict.len() as u64;
    let mut program = vec![
        // TCX_NEXT
        mov(0, -1),
        // BPF_LDX | BPF_MEM | BPF_W: r3 is `__sk_buff.protocol`
        op(0x61, 0x13, 16, 0),
        // BPF_JMP | BPF_JNE: on to the end, if that is not IPv4
        op(0x55, 3, to_exit, u32::from(0x0800_u16.to_be())),
        // BPF_LD_IMM64 of BPF_PSEUDO_MAP_VALUE: r1 is where the number is
        op(0x18, 0x21, 0, seen.as_raw_fd().cast_unsigned()),
        0,
        mov(2, 1),
        // BPF_ATOMIC | BPF_DW, BPF_ADD: it grows by r2
        op(0xdb, 0x21, 0, 0),
    ];
    program.extend(verdict);
    // BPF_EXIT
    program.push(0x95);
    let attributes = [
        // prog_type BPF_PROG_TYPE_SCHED_CLS, insn_cnt
        (program.len() as u64) << 32 | 3,
        program.as_ptr() as u64,
        c"GPL".as_ptr() as u64,
        0,
        0,
        0,
    ];
    // BPF_PROG_LOAD
    own(bpf(5, &attributes)?)
}

fn link(program: &OwnedFd, device: u32, side: Side, first: bool) -> io::Result<OwnedFd> {
    const BPF_F_BEFORE: u64 = 1 << 3;
    let flags = if first { BPF_F_BEFORE } else { 0 };
    // BPF_LINK_CREATE: prog_fd, target_ifindex, attach_type, flags
    let attributes = [
        u64::from(device) << 32 | word(program),
        flags << 32 | side as u64,
    ];
    own(bpf(28, &attributes)?)
}

fn word(fd: &OwnedFd) -> u64 {
    u64::from(fd.as_raw_fd().cast_unsigned())
}

fn own(fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: the kernel has just made this descriptor, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf(command: libc::c_int, attributes: &[u64]) -> io::Result<i32> {
    // SAFETY: the kernel reads the attributes, and what they point to lives until the call returns.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.as_ptr(),
            size_of_val(attributes),
        )
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(answer).map_err(io::Error::other)
}
