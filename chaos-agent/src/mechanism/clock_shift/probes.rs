//! The last rung for programs that run already: uprobes on `clock_gettime` of the C library, in the
//! memory of one program only, so that nobody else pays for them. What acts is the rule, as everywhere:
//! without one they do nothing.
//!
//! Not here: where a program's library is (`library`), and when this rung is taken (`stubs`).

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::UProbe;
use aya::programs::links::FdLink;
use aya::programs::uprobe::{UProbeAttachLocation, UProbeScope};
use procfs::process::Stat;
use procfs::{FromRead, ProcError};

use super::library;
use crate::kernel::links;
use crate::mechanism::{MechanismError, find_mut, io_error, pin, program, unpin};

/// The programs at a function's first instruction and behind its last.
const PROGRAMS: [&str; 2] = ["clock_shift_called", "clock_shift_returned"];

/// What the names of pinned links begin with.
const PREFIX: &str = "clock_probe_";

/// Programs with probes.
pub(super) struct Probes {
    pins: PathBuf,
    attached: BTreeMap<Process, Attached>,
}

/// What one of them has.
#[derive(Default)]
struct Attached {
    /// The name of what is probed; not known yet of what a predecessor has left.
    library: Option<String>,
    links: Vec<PathBuf>,
}

/// A pid is given out again, at another time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Process {
    pid: u32,
    /// In clock ticks since boot.
    started: u64,
}

impl Process {
    fn of(directory: &Path) -> Result<Self, ProcError> {
        let stat = Stat::from_file(directory.join("stat"))?;
        Ok(Self {
            pid: stat.pid.cast_unsigned(),
            started: stat.starttime,
        })
    }

    /// Of the `n`th link.
    fn link(self, n: usize) -> String {
        format!("{PREFIX}{}_{}_{n}", self.pid, self.started)
    }

    fn of_link(name: &str) -> Option<Self> {
        let mut numbers = name.strip_prefix(PREFIX)?.split('_');
        let process = Self {
            pid: numbers.next()?.parse().ok()?,
            started: numbers.next()?.parse().ok()?,
        };
        Some(process)
    }
}

/// Loads the programs.
///
/// # Errors
/// The verifier's words.
pub(super) fn load(ebpf: &mut Ebpf) -> Result<(), MechanismError> {
    for name in PROGRAMS {
        for name in super::dispatcher_and_body(name) {
            let probe: &mut UProbe = find_mut(ebpf, &name)?;
            probe.load().map_err(super::refused)?;
        }
    }
    Ok(())
}

impl Probes {
    /// Those that a predecessor has pinned.
    pub(super) fn of_links(pins: &Path) -> Self {
        let mut attached: BTreeMap<_, Attached> = BTreeMap::new();
        for path in links::pinned(pins, PREFIX) {
            let name = path.file_name().and_then(|name| name.to_str());
            if let Some(process) = name.and_then(Process::of_link) {
                attached.entry(process).or_default().links.push(path);
            }
        }
        Self {
            pins: pins.to_owned(),
            attached,
        }
    }

    /// Puts probes into a program, unless it has them: which library they are in.
    ///
    /// # Errors
    /// Why it cannot have any, in words for a user.
    pub(super) fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        directory: &Path,
    ) -> Result<String, ProbeError> {
        let process = Process::of(directory).map_err(|_| ProbeError::Gone)?;
        let known = self.attached.get(&process);
        if let Some(library) = known.and_then(|known| known.library.as_ref()) {
            return Ok(library.clone());
        }
        let functions = library::clock_functions(directory).map_err(|error| {
            if directory.exists() {
                ProbeError::Files(error)
            } else {
                ProbeError::Gone
            }
        })?;
        let Some(first) = functions.first() else {
            return Err(ProbeError::NoLibrary);
        };
        let name = first.name.clone();
        if let Some(known) = self.attached.get_mut(&process) {
            known.library = Some(name.clone());
            return Ok(name);
        }
        self.forget_the_dead(directory.parent().unwrap_or(directory));
        let mut links: Vec<PathBuf> = Vec::new();
        for function in &functions {
            for program in PROGRAMS {
                let path = links::path(&self.pins, &process.link(links.len()));
                if let Err(error) = attach(ebpf, program, process.pid, function, &path) {
                    links.iter().for_each(|link| drop(unpin(link)));
                    return Err(ProbeError::Kernel(error.into()));
                }
                links.push(path);
            }
        }
        let library = Some(name.clone());
        self.attached.insert(process, Attached { library, links });
        Ok(name)
    }

    /// Takes them out of a program. Whether it had any.
    pub(super) fn detach(&mut self, pid: u32) -> bool {
        let had = self.attached.keys().any(|process| process.pid == pid);
        self.detach_where(|process| process.pid == pid);
        had
    }

    /// Out of all programs.
    pub(super) fn detach_all(&mut self) {
        self.detach_where(|_| true);
    }

    fn forget_the_dead(&mut self, proc_root: &Path) {
        self.detach_where(|process| {
            let found = Process::of(&proc_root.join(process.pid.to_string()));
            found.ok() != Some(process)
        });
    }

    fn detach_where(&mut self, is_meant: impl Fn(Process) -> bool) {
        self.attached.retain(|process, Attached { links, .. }| {
            if is_meant(*process) {
                links.retain(|link| {
                    unpin(link).inspect_err(|error| {
                        tracing::warn!(%error, "failed to take a probe out of a program; will try again");
                    }).is_err()
                });
            }
            !links.is_empty()
        });
    }
}

/// Why a program has no probes.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeError {
    /// It has ended, or is about to.
    #[error("it has ended")]
    Gone,
    /// What it has mapped cannot be looked at.
    #[error("the files that it has mapped cannot be read: {0}; the agent needs CAP_SYS_ADMIN")]
    Files(#[source] io::Error),
    /// As one in Go.
    #[error("it has no C library with a function clock_gettime that could be probed instead")]
    NoLibrary,
    /// Not on this kernel, or not in this file.
    #[error("its C library cannot be probed instead: {0}")]
    Kernel(Box<MechanismError>),
}

fn attach(
    ebpf: &mut Ebpf,
    name: &str,
    pid: u32,
    function: &library::Function,
    path: &Path,
) -> Result<(), MechanismError> {
    let probe: &mut UProbe = find_mut(ebpf, name)?;
    let scope = NonZeroU32::new(pid).map_or(UProbeScope::CallingProcess, UProbeScope::OneProcess);
    let point = UProbeAttachLocation::AbsoluteOffset(function.offset);
    let link = probe
        .attach(point, &function.file, scope)
        .and_then(|id| probe.take_link(id))
        .map_err(program("attach clock_shift to a program's C library"))?;
    let link = FdLink::try_from(link).map_err(io::Error::other);
    pin(link.map_err(io_error("keep what is attached"))?, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_says_whose_it_is() {
        let process = Process {
            pid: 17,
            started: 4_000_000_000,
        };
        let name = process.link(3);
        assert_eq!(name, "clock_probe_17_4000000000_3");
        assert_eq!(Process::of_link(&name), Some(process));
        for other in ["clock_shift_gettime", "clock_probe_", "clock_probe_x_1_0"] {
            assert_eq!(Process::of_link(other), None);
        }
    }

    #[test]
    fn a_process_is_told_by_its_start() {
        let own = Process::of(Path::new("/proc/self")).expect("it runs");
        assert_eq!(own.pid, std::process::id());
        assert!(own.started > 0);
        assert!(Process::of(Path::new("/proc/4194305")).is_err());
    }
}
