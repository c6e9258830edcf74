//! All elements of an array in one system call (`BPF_MAP_LOOKUP_BATCH`, Linux 5.6). aya asks for one at
//! a time, which for the rules of a node is 16 384 calls.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use aya::Pod;
use aya::maps::{Array, IterableMap, MapData, MapError};
use aya::sys::SyscallError;
use nix::libc;

use super::Plain;

const CALL: &str = "bpf_map_lookup_batch";

/// linux/bpf.h, enum bpf_cmd
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;

/// The part of `union bpf_attr` that batches use.
#[repr(C)]
#[derive(Default)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// The elements, in their order.
pub(super) fn elements<T: bytemuck::Pod>(
    array: &Array<MapData, Plain<T>>,
) -> Result<Vec<T>, MapError>
where
    Plain<T>: Pod,
{
    let length = array.len() as usize;
    let mut values = vec![T::zeroed(); length];
    // The kernel wants to say which element each value is of, and where it would go on.
    let mut keys = vec![0_u32; length];
    let mut next = 0_u32;
    let mut batch = Batch {
        out_batch: (&raw mut next).expose_provenance() as u64,
        keys: keys.as_mut_ptr().expose_provenance() as u64,
        values: values.as_mut_ptr().expose_provenance() as u64,
        count: array.len(),
        map_fd: array.map().fd().as_fd().as_raw_fd().cast_unsigned(),
        ..Batch::default()
    };
    // SAFETY: the buffers live as long as the call and have room for as many elements as it asks for;
    // aya has compared the size of `T` with that of the map's values.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_LOOKUP_BATCH,
            &raw mut batch,
            size_of::<Batch>(),
        )
    };
    if answer == 0 && batch.count as usize == length {
        return Ok(values);
    }
    let io_error = match answer {
        0 => io::Error::other(format!("{} of {length} elements", batch.count)),
        _ => io::Error::last_os_error(),
    };
    Err(SyscallError {
        call: CALL,
        io_error,
    }
    .into())
}
