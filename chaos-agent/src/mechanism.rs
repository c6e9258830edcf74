//! The mechanisms of this node: one module each, with the stem that its kernel program and its
//! metrics have too. A mechanism attaches its programs and translates an effect into a rule;
//! when that happens is decided elsewhere.

mod canary;
pub mod cgroup_drop;
pub mod clock_shift;
mod detour;
pub mod links;
pub mod tc;
pub mod tc_egress;
pub mod tc_ingress;
pub mod tcx;

use std::io;
use std::path::Path;

use aya::Ebpf;
use aya::maps::MapError;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{Program, ProgramError};

use crate::kernel::generation::GenerationError;
use crate::kernel::netlink::Refused;
use crate::kernel::objects::LoadError;

/// Failed to attach, detach or write a rule.
#[derive(Debug, thiserror::Error)]
pub enum MechanismError {
    /// The object could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A program could not be loaded or attached.
    #[error("failed to {what}: {source}")]
    Program {
        /// What was tried.
        what: &'static str,
        /// aya's or the verifier's words.
        #[source]
        source: Box<ProgramError>,
    },
    /// A file, namespace or netlink operation failed.
    #[error("failed to {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// Its programs cannot be put into force.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// A map could not be written.
    #[error("failed to write map {map}: {source}")]
    Map {
        /// Which.
        map: &'static str,
        /// The kernel's words.
        #[source]
        source: MapError,
    },
    /// The target cannot have this, now or ever.
    #[error("{0}")]
    Target(String),
}

impl From<io::Error> for MechanismError {
    fn from(source: io::Error) -> Self {
        Self::Io {
            what: "enter the target's network namespace".into(),
            source,
        }
    }
}

impl From<Refused> for MechanismError {
    fn from(Refused { what, source, .. }: Refused) -> Self {
        io_error(what)(source)
    }
}

pub(crate) fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> MechanismError {
    let what = what.into();
    move |source| MechanismError::Io { what, source }
}

pub(crate) fn program(what: &'static str) -> impl FnOnce(ProgramError) -> MechanismError {
    move |source| MechanismError::Program {
        what,
        source: Box::new(source),
    }
}

/// A program of an object, by name and kind.
pub(crate) fn find<'a, P>(ebpf: &'a Ebpf, name: &str) -> Result<&'a P, MechanismError>
where
    &'a P: TryFrom<&'a Program>,
{
    let found = ebpf.program(name);
    let found = found.and_then(|program| program.try_into().ok());
    found.ok_or(LoadError::Absent.into())
}

/// The same to load or attach it.
pub(crate) fn find_mut<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, MechanismError>
where
    &'a mut P: TryFrom<&'a mut Program>,
{
    let found = ebpf.program_mut(name);
    let found = found.and_then(|program| program.try_into().ok());
    found.ok_or(LoadError::Absent.into())
}

/// Pins what is attached, so that it outlives this process.
pub(crate) fn pin(link: FdLink, path: &Path) -> Result<(), MechanismError> {
    match link.pin(path) {
        Ok(_) => Ok(()),
        Err(error) => Err(MechanismError::Io {
            what: format!("pin the link {}", path.display()),
            source: io::Error::other(error),
        }),
    }
}

/// Detaches what is pinned there; absent is success.
pub(crate) fn unpin(pin: &Path) -> Result<(), MechanismError> {
    match PinnedLink::from_pin(pin) {
        Ok(link) => {
            // The descriptor is the last reference: dropping it detaches the program at once. Without
            // one that comes after a grace period of RCU (`bpf_free_inode`, kernel/bpf/inode.c).
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
