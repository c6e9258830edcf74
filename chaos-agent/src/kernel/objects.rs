//! The BPF objects, one per mechanism: loaded, their maps shared through pins.

use std::path::Path;

use aya::{Ebpf, EbpfError, EbpfLoader, include_bytes_aligned};
use chaos_planner::capabilities::Mechanism;

/// Failed to load a mechanism's object.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The agent was built without bpf-linker.
    #[error(
        "this agent was built without its BPF objects; build it with `cargo xtask ebpf` or any other xtask command"
    )]
    Absent,
    /// The kernel or aya refused it.
    #[error("failed to load the BPF object {object}: {source}")]
    Refused {
        /// Its stem.
        object: &'static str,
        /// Why.
        #[source]
        source: Box<EbpfError>,
    },
}

/// The object file.
pub fn bytes(mechanism: Mechanism) -> &'static [u8] {
    match mechanism {
        Mechanism::CgroupDrop => include_bytes_aligned!(concat!(env!("OUT_DIR"), "/cgroup_drop.o")),
        Mechanism::ClockShift => include_bytes_aligned!(concat!(env!("OUT_DIR"), "/clock_shift.o")),
        Mechanism::TcEgress => include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tc_egress.o")),
        Mechanism::TcIngress => include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tc_ingress.o")),
    }
}

/// Creates or adopts the maps under `pins` and parses the programs; each program is loaded into
/// the kernel by its mechanism. `globals` are the constants of the object that are filled in.
///
/// # Errors
/// [`LoadError`], with the verifier's words if it was that.
pub fn load(mechanism: Mechanism, pins: &Path, globals: &[(&str, u32)]) -> Result<Ebpf, LoadError> {
    let bytes = bytes(mechanism);
    if bytes.is_empty() {
        return Err(LoadError::Absent);
    }
    let mut loader = EbpfLoader::new();
    loader.default_map_pin_directory(pins);
    // No relocation: what reads kernel structures gets its offsets as globals.
    loader.btf(None);
    for (name, value) in globals {
        loader.override_global(name, value, true);
    }
    loader.load(bytes).map_err(|source| LoadError::Refused {
        object: mechanism.name(),
        source: Box::new(source),
    })
}
