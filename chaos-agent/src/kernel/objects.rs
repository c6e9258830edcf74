//! The BPF objects, one per mechanism: loaded, their maps shared through pins.

use std::path::{Path, PathBuf};

use aya::maps::{Array, Map, MapData};
use aya::{Ebpf, EbpfError, EbpfLoader, include_bytes_aligned};
use chaos_abi::network::MAX_TARGETS;
use chaos_planner::capabilities::Mechanism;

use super::maps;

/// Failed to load a mechanism's object.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The agent was built without bpf-linker.
    #[error(
        "this agent was built without its BPF objects; build it with `cargo xtask ebpf` or any other xtask command"
    )]
    Absent,
    /// There is no such slot for a device.
    #[error("there is no slot {0} for a device")]
    Slot(u16),
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

/// The dispatchers that are attached by tcx.
const TCX: (&str, &[u8]) = (
    "tcx",
    include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tcx.o")),
);

/// Each slot, where a loader can refer to it.
static SLOTS: [u32; MAX_TARGETS as usize] = {
    let mut slots = [0; MAX_TARGETS as usize];
    let mut slot = 0;
    while slot < MAX_TARGETS {
        slots[slot as usize] = slot;
        slot += 1;
    }
    slots
};

/// No and yes, where a loader can refer to them.
static ON: [u64; 2] = [0, 1];

/// Loads objects, one after the other. One for all: a new one of aya's reads the types of the whole
/// kernel, which takes longer than what it is needed for.
pub struct Loader {
    loader: EbpfLoader<'static>,
    armed: PathBuf,
}

/// Section of `ARMED` in the objects, which aya takes for the name of its map.
const ARMED_SECTION: &str = ".bss.armed";

impl Loader {
    /// One that creates or adopts the maps under `pins`.
    pub fn new(pins: &Path) -> Self {
        let mut loader = EbpfLoader::new();
        loader.default_map_pin_directory(pins);
        // No relocation: what reads kernel structures gets its offsets as globals.
        loader.btf(None);
        let armed = pins.join(maps::ARMED);
        loader.map_pin_path(ARMED_SECTION, armed.clone());
        Self { loader, armed }
    }

    /// Creates or adopts the maps of an object and parses its programs; each program is loaded into
    /// the kernel by its mechanism.
    ///
    /// # Errors
    /// [`LoadError`], with the verifier's words if it was that.
    pub fn load(&mut self, mechanism: Mechanism) -> Result<Ebpf, LoadError> {
        self.load_object(mechanism.name(), bytes(mechanism))
    }

    /// The same of an object with constants that are filled in.
    ///
    /// # Errors
    /// As [`Self::load`]; also when there is no such constant.
    pub fn load_with(
        &mut self,
        mechanism: Mechanism,
        globals: &'static [(&'static str, u32)],
    ) -> Result<Ebpf, LoadError> {
        for (name, value) in globals {
            self.loader.override_global(name, value, true);
        }
        let loaded = self.load(mechanism);
        // The next object has no such constants.
        for (name, value) in globals {
            self.loader.override_global(name, value, false);
        }
        loaded
    }

    /// The dispatchers of tcx, for the device of this slot alone.
    ///
    /// # Errors
    /// As [`Self::load`]; also when there is no such slot.
    pub fn load_for_slot(&mut self, slot: u16) -> Result<Ebpf, LoadError> {
        let value = SLOTS.get(usize::from(slot)).ok_or(LoadError::Slot(slot))?;
        let (object, bytes) = TCX;
        self.loader.override_global("SLOT", value, true);
        let loaded = self.load_object(object, bytes);
        self.loader.override_global("SLOT", &SLOTS[0], false);
        loaded
    }

    fn load_object(&mut self, object: &'static str, bytes: &[u8]) -> Result<Ebpf, LoadError> {
        if bytes.is_empty() {
            return Err(LoadError::Absent);
        }
        // aya writes its first value to each map of globals, also to one that a pin has had before. It is
        // what is there: nobody but this thread writes it.
        let armed = usize::from(self.is_armed());
        self.loader.override_global("ARMED", &ON[armed], false);
        self.loader
            .load(bytes)
            .map_err(|source| LoadError::Refused {
                object,
                source: Box::new(source),
            })
    }

    fn is_armed(&self) -> bool {
        let held = MapData::from_pin(&self.armed)
            .and_then(|data| Array::<_, u64>::try_from(Map::Array(data)))
            .and_then(|armed| armed.get(&0, 0));
        held.is_ok_and(|armed| armed != 0)
    }
}
