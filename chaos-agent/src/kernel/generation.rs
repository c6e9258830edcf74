//! Which generation of the kernel programs acts.
//!
//! Each agent loads programs of its own. What is attached are dispatchers, which go on in the bodies
//! that `EPOCH` means (`chaos-ebpf/src/generation.rs`): an agent puts its bodies beside those that act,
//! writes the word once, and clears the others. Whatever stops it in between, the bodies of one
//! generation act, and the next agent clears what is left. Nothing on any device is touched.

use std::fs;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::maps::{Map, MapData, MapError, ProgramArray};
use aya::programs::ProgramError;
use chaos_abi::control::{EPOCH, GENERATIONS};

use super::maps::{Pinned, absent_is_fine};

/// What the name of a program array ends with; that of the bodies in it, in lower case.
const SUFFIX: &str = "_BODY";

/// Failed to put a new generation into force; the old one acts on.
#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    /// The pins cannot be listed.
    #[error("failed to list the pins in {}: {source}", .path.display())]
    Pins {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A map refused.
    #[error("failed to write map {map}: {source}; are you root, with CAP_BPF?")]
    Map {
        /// Which.
        map: String,
        /// The kernel's words.
        #[source]
        source: MapError,
    },
    /// An object has a program array without its program, or that is not loaded.
    #[error("failed to use the BPF program {program}: {source}")]
    Program {
        /// Which.
        program: String,
        /// Why not.
        #[source]
        source: Box<ProgramError>,
    },
}

/// The generation of this agent, before it acts.
#[derive(Debug)]
pub struct Generation {
    epoch: u32,
    pins: PathBuf,
}

impl Generation {
    /// The one after that which acts, without what an agent may have left that was stopped here.
    ///
    /// # Errors
    /// [`GenerationError`]
    pub fn next(maps: &Pinned, pins: &Path) -> Result<Self, GenerationError> {
        let epoch = maps.control(EPOCH).map_err(of_map("CONTROL"))?;
        let next = Self {
            epoch: epoch.wrapping_add(1),
            pins: pins.to_owned(),
        };
        next.clear(next.epoch)?;
        Ok(next)
    }

    /// Puts the bodies of an object beside those that act.
    ///
    /// # Errors
    /// [`GenerationError`]
    pub fn enter(&self, ebpf: &mut Ebpf) -> Result<(), GenerationError> {
        let arrays: Vec<String> = ebpf
            .maps()
            .filter(|(name, _)| name.ends_with(SUFFIX))
            .map(|(name, _)| name.to_owned())
            .collect();
        for array in arrays {
            let name = array.to_lowercase();
            let refused = |source| GenerationError::Program {
                program: name.clone(),
                source: Box::new(source),
            };
            let program = ebpf
                .program(&name)
                .ok_or_else(|| refused(ProgramError::NotLoaded))?;
            let body = program
                .fd()
                .and_then(|fd| fd.try_clone().map_err(ProgramError::IOError))
                .map_err(refused)?;
            let Some(map) = ebpf.map_mut(&array) else {
                continue;
            };
            ProgramArray::try_from(map)
                .and_then(|mut bodies| bodies.set(self.epoch % GENERATIONS, &body, 0))
                .map_err(of_map(&array))?;
        }
        Ok(())
    }

    /// From now on it acts and its predecessor does not: one store.
    ///
    /// # Errors
    /// [`GenerationError`]. Only when clearing fails, this generation acts all the same.
    pub fn begin(self, maps: &mut Pinned) -> Result<(), GenerationError> {
        maps.set_control(EPOCH, self.epoch)
            .map_err(of_map("CONTROL"))?;
        // A packet that has read the old word and finds nothing there reads it again.
        self.clear(self.epoch.wrapping_sub(1))
    }

    /// Also the bodies of mechanisms that this agent could not load.
    fn clear(&self, epoch: u32) -> Result<(), GenerationError> {
        let listed = fs::read_dir(&self.pins).map_err(|source| GenerationError::Pins {
            path: self.pins.clone(),
            source,
        })?;
        for pin in listed.flatten() {
            let name = pin.file_name().to_string_lossy().into_owned();
            if name.ends_with(SUFFIX) {
                let cleared = MapData::from_pin(pin.path())
                    .and_then(|data| ProgramArray::try_from(Map::ProgramArray(data)))
                    .and_then(|mut bodies| {
                        absent_is_fine(bodies.clear_index(&(epoch % GENERATIONS)))
                    });
                cleared.map_err(of_map(&name))?;
            }
        }
        Ok(())
    }
}

fn of_map(map: &str) -> impl FnOnce(MapError) -> GenerationError {
    let map = map.to_owned();
    move |source| GenerationError::Map { map, source }
}
