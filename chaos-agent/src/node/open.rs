//! Taking a node over: the lock, the programs, what a predecessor armed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use chaos_planner::capabilities::{Capabilities, Capability, Mechanism};
use chaos_planner::plan::Until;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::sys::utsname::uname;

use super::entry::Entry;
use super::{Node, Options, Owner};
use crate::executor::{ArmedRule, Executor, Programs};
use crate::journal::{self, Journal};
use crate::kernel::btf::Types;
use crate::kernel::clock;
use crate::kernel::generation::{Generation, GenerationError};
use crate::kernel::maps::{self, MapsError, Pinned};
use crate::kernel::objects::{self, Loader};
use crate::mechanism::MechanismError;
use crate::mechanism::cgroup_drop::CgroupDrop;
use crate::mechanism::clock_shift::{self, ClockShift};
use crate::mechanism::tc::Way;
use crate::mechanism::tc_egress::{TcEgress, Tried};
use crate::mechanism::tcx::Tcx;
use crate::target::{Finder, TargetError};

/// Failed to take the node over.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another agent has it.
    #[error(
        "another agent runs on this host (it holds {}): use it through the other commands, or stop it first",
        .0.display()
    )]
    Locked(PathBuf),
    /// A directory or file cannot be used.
    #[error("failed to {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Pins need a bpffs.
    #[error("{} is not a bpffs: mount one (`mount -t bpf bpf {}`)", .0.display(), .0.display())]
    NoBpffs(PathBuf),
    /// cgroup v1, or no hierarchy.
    #[error(transparent)]
    Cgroup(#[from] TargetError),
    /// No mechanism at all can be loaded: no CAP_BPF, or no BPF objects in this build.
    #[error("no mechanism works on this node: {0}")]
    Nothing(#[source] MechanismError),
    /// The maps are there but cannot be used.
    #[error(transparent)]
    Maps(#[from] MapsError),
    /// Our programs could not be put in the place of a predecessor's.
    #[error(transparent)]
    Generation(#[from] GenerationError),
}

impl Node {
    /// Takes the host lock, loads programs, tries each mechanism, puts them in the place of a
    /// predecessor's, adopts what that armed and removes what it left half done.
    ///
    /// # Errors
    /// [`OpenError`]. A mechanism that does not work here is no error: see
    /// [`Node::capabilities`].
    pub fn open(options: Options) -> Result<Self, OpenError> {
        let io_error = |what: String| move |source| OpenError::Io { what, source };
        fs::create_dir_all(&options.run_dir)
            .map_err(io_error(format!("create {}", options.run_dir.display())))?;
        let lock = lock(&options)?;
        let finder = Finder::new(&options.cgroup_root, &options.proc_root);
        finder.check()?;
        let pins = maps::directory(&options.bpffs);
        if !statfs(&options.bpffs).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC) {
            return Err(OpenError::NoBpffs(options.bpffs));
        }
        // Then nobody has left anything: to look for it is to ask for thousands of rules.
        let is_fresh = !pins.exists();
        fs::create_dir_all(&pins).map_err(io_error(format!("create {}", pins.display())))?;

        let budget = u32::try_from(options.delay_budget / 1024).unwrap_or(u32::MAX);
        let mut loader = Loader::new(&pins);
        let types = Types::of_this_kernel(&clock_shift::functions());
        let cgroup_drop = CgroupDrop::load(&mut loader, &pins, &options.cgroup_root);
        // No packet counts less than one unit of the budget.
        let mut load = |way| TcEgress::load(&mut loader, way, budget.max(1), &types);
        let tc = [Way::Egress, Way::Ingress].map(|way| (way.mechanism(), load(way)));
        let clock_shift = ClockShift::load(&mut loader, &pins, &options.proc_root, types);
        let mut maps = match Pinned::open(&options.bpffs) {
            Ok(maps) => maps,
            Err(error) => {
                let none = tc.iter().all(|(_, tc)| tc.is_err());
                return Err(match cgroup_drop.err() {
                    Some(first) if none => OpenError::Nothing(first),
                    _ => OpenError::Maps(error),
                });
            }
        };
        let generation = Generation::next(&maps, &pins)?;
        let cgroup_drop = cgroup_drop.and_then(|mut mechanism| {
            mechanism.fire_canary()?;
            mechanism.attach()?;
            generation.enter(mechanism.programs())?;
            Ok(mechanism)
        });
        let clock_shift = clock_shift.and_then(|mut mechanism| {
            mechanism.begin()?;
            generation.enter(mechanism.programs())?;
            Ok(mechanism)
        });
        let mut mechanisms = vec![capability(
            Mechanism::CgroupDrop,
            cgroup_drop.as_ref().err(),
        )];
        let mut working = Vec::new();
        for (name, loaded) in tc {
            let tried = loaded.and_then(|mut mechanism| {
                mechanism.fire_canary(&mut maps, &options.cgroup_root)?;
                let tried = mechanism.probe()?;
                generation.enter(mechanism.programs())?;
                Ok((mechanism, tried))
            });
            match tried {
                Ok((mechanism, tried)) => {
                    mechanisms.push(of_packets(name, &tried));
                    working.push(mechanism);
                }
                Err(error) => mechanisms.push(capability(name, Some(&error))),
            }
        }
        mechanisms.push(capability(
            Mechanism::ClockShift,
            clock_shift.as_ref().err(),
        ));
        let capabilities = Capabilities {
            kernel: uname()
                .map(|u| u.release().to_string_lossy().into_owned())
                .unwrap_or_default(),
            mechanisms,
        };
        generation.begin(&mut maps)?;
        let journal = Journal::new(&options.run_dir, &options.proc_root)
            .map_err(io_error("read the boot id".into()))?;
        let record = journal.read();
        let mut executor = Executor::new(
            maps,
            finder,
            options.proc_root.clone(),
            Programs {
                cgroup_drop: cgroup_drop.ok(),
                clock_shift: clock_shift.ok(),
                tc: working,
                tcx: Tcx::new(&pins, loader),
            },
            record.devices,
            budget,
        );
        executor.forget_other_layouts(&options.bpffs)?;
        let mut entries = BTreeMap::new();
        let mut lost = record.unrestored;
        for journal::Entry {
            owner,
            deadline_ns,
            orphaned_ns,
            armed,
        } in record.armed
        {
            let acts = |rule: &ArmedRule| capabilities.lacks(rule.mechanism, false).is_none();
            if armed.rules.iter().all(acts) && executor.adopt(&armed) {
                let until = deadline_ns
                    .map(Until::Deadline)
                    .or(orphaned_ns.map(Until::Orphaned))
                    .unwrap_or(Until::Leased);
                let id = armed.fault.id.clone();
                tracing::info!(fault = %id, "adopted from a predecessor");
                entries.insert(id, Entry::adopted(Owner(owner), until, armed));
            } else {
                lost.push(armed);
            }
        }
        let keep: Vec<_> = entries.values().filter_map(Entry::armed).collect();
        for armed in &lost {
            // Its rules are the sweep's; what it changed in programs is known by the journal alone.
            if let Err(error) = executor.disarm(armed) {
                tracing::warn!(fault = %armed.fault.id, %error, "failed to undo what a predecessor did");
            }
        }
        let swept = if is_fresh {
            Ok(0)
        } else {
            executor.sweep(&keep)
        };
        let swept = swept.and_then(|n| executor.settle(&keep).map(|()| n));
        match swept {
            Ok(0) => {}
            Ok(swept) => tracing::info!(swept, "removed what a predecessor left half done"),
            Err(error) => tracing::warn!(%error, "failed to sweep"),
        }
        let looked_ns = clock::now_ns();
        Ok(Self {
            options,
            capabilities,
            executor,
            journal,
            entries,
            looked_ns,
            _lock: lock,
        })
    }
}

fn lock(options: &Options) -> Result<Flock<File>, OpenError> {
    let path = options.run_dir.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| OpenError::Io {
            what: format!("open {}", path.display()),
            source,
        })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => OpenError::Locked(path),
        errno => OpenError::Io {
            what: format!("lock {}", path.display()),
            source: errno.into(),
        },
    })
}

fn capability(mechanism: Mechanism, error: Option<&MechanismError>) -> Capability {
    // The stubs of a build without bpf-linker are a fact about the build, not about the node.
    let reason = if objects::bytes(mechanism).is_empty() {
        objects::LoadError::Absent.to_string()
    } else {
        error.map(error_chain).unwrap_or_default()
    };
    Capability {
        mechanism,
        supported: error.is_none(),
        only_loss: false,
        reason,
    }
}

/// Of one that works.
fn of_packets(mechanism: Mechanism, tried: &Tried) -> Capability {
    let hook = match &tried.no_tcx {
        None => "by tcx".to_owned(),
        Some(error) => format!(
            "by clsact: the first fault on a device may lose packets of that moment, because {}",
            error_chain(error)
        ),
    };
    let limits = [&tried.only_loss, &tried.no_receivers];
    let limits = limits.into_iter().flatten().map(error_chain);
    let reason = limits.chain([hook]).collect::<Vec<_>>().join("; ");
    Capability {
        mechanism,
        supported: true,
        only_loss: tried.only_loss.is_some(),
        reason,
    }
}

fn error_chain(error: &MechanismError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    text
}
