//! Whose vDSO is to be without clocks, cgroup by cgroup: everybody's who runs in one with a rule. Where
//! nobody is let at it, the program gets probes.
//!
//! What is remembered here is only a hint whom to ask: each program's own bytes say what it has.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::Ebpf;

use super::probes::{ProbeError, Probes};
use super::skipped::Dispatchers;
use super::vdso::{Content, Done, Vdso, VdsoError};
use crate::mechanism::MechanismError;

/// How often a target is looked through for programs that were started meanwhile by one that had
/// not been seen to yet.
const PASSES: u32 = 8;

impl Held {
    fn begin(dispatchers: &Dispatchers) -> Self {
        Self {
            skipped_before: dispatchers.skipped(),
            stubbed: BTreeSet::new(),
            problems: BTreeMap::new(),
        }
    }
}

/// Programs with stubs.
pub struct Stubs {
    proc_root: PathBuf,
    vdso: Vdso,
    /// What is attached, once it is.
    pub(super) dispatchers: Dispatchers,
    pub(super) probes: Probes,
    held: BTreeMap<u64, Held>,
}

/// Of one cgroup.
struct Held {
    /// What [`Dispatchers::skipped`] said when its first program was seen to.
    skipped_before: u64,
    /// Pids.
    stubbed: BTreeSet<u32>,
    /// Why some are not as they should be.
    problems: BTreeMap<u32, String>,
}

impl Stubs {
    /// None yet.
    ///
    /// # Errors
    /// Why the vDSO of this kernel cannot be changed.
    pub(super) fn new(proc_root: PathBuf, pins: &Path) -> Result<Self, MechanismError> {
        Ok(Self {
            proc_root,
            vdso: Vdso::of_this_kernel().map_err(MechanismError::Target)?,
            dispatchers: Dispatchers::default(),
            probes: Probes::of_links(pins),
            held: BTreeMap::new(),
        })
    }

    /// Everybody in this cgroup, asked for by `pids` until there is nobody new.
    ///
    /// # Errors
    /// The first program that cannot have stubs, and why.
    pub(super) fn enter(
        &mut self,
        ebpf: &mut Ebpf,
        cgroup: u64,
        pids: impl Fn() -> Vec<u32>,
    ) -> Result<(), MechanismError> {
        self.held(cgroup);
        let mut seen = BTreeSet::new();
        for _ in 0..PASSES {
            let new: Vec<u32> = pids().into_iter().filter(|pid| seen.insert(*pid)).collect();
            if new.is_empty() {
                break;
            }
            for pid in new {
                self.stub(ebpf, cgroup, pid).map_err(|error| {
                    let text = self.of(pid, &error);
                    match error {
                        VdsoError::Refused(_) | VdsoError::Locked(_) => {
                            MechanismError::Target(text)
                        }
                        VdsoError::Busy(_) => MechanismError::Io {
                            what: "change the vDSO of the target's programs".to_owned(),
                            source: io::Error::other(text),
                        },
                    }
                })?;
            }
        }
        Ok(())
    }

    /// Those who have come since, in other ways than by being started there. Problems are kept for
    /// [`Self::problem`].
    pub(super) fn refresh(&mut self, ebpf: &mut Ebpf, cgroup: u64, pids: &[u32]) {
        let held = self.held(cgroup);
        held.stubbed.retain(|pid| pids.contains(pid));
        held.problems.clear();
        for &pid in pids {
            if let Err(error) = self.stub(ebpf, cgroup, pid) {
                let text = self.of(pid, &error);
                self.held(cgroup).problems.insert(pid, text);
            }
        }
    }

    /// Everybody gets the original bytes back: those who had stubs, and these, who may have
    /// inherited some. Whoever cannot be seen to now remains, see [`Self::remain`].
    pub fn leave(&mut self, cgroup: u64, pids: &[u32]) {
        let mut held = self
            .held
            .remove(&cgroup)
            .unwrap_or_else(|| Held::begin(&self.dispatchers));
        held.problems.clear();
        held.stubbed.extend(pids);
        // A cgroup around this one, or in it, may have rules of its own.
        let others: BTreeSet<u32> = self
            .held
            .values()
            .flat_map(|held| held.stubbed.iter().copied())
            .collect();
        held.stubbed.retain(|pid| {
            if *pid == std::process::id() || others.contains(pid) {
                return false;
            }
            let process = self.proc_root.join(pid.to_string());
            let probed = self.probes.detach(*pid);
            match self.vdso.give(&process, Content::Original) {
                Ok(_) => false,
                // Its bytes are not ours to put back.
                Err(VdsoError::Refused(reason)) => {
                    tracing::debug!(pid, reason, "left as it is");
                    false
                }
                // It could not be changed either.
                Err(VdsoError::Locked(_)) if probed => false,
                Err(VdsoError::Busy(reason) | VdsoError::Locked(reason)) => {
                    tracing::debug!(pid, reason, "to be put back later");
                    true
                }
            }
        });
        if !held.stubbed.is_empty() {
            self.held.insert(cgroup, held);
        }
    }

    /// Whether programs of this cgroup have stubs, as far as is known.
    pub fn remain(&self, cgroup: u64) -> bool {
        self.held
            .get(&cgroup)
            .is_some_and(|held| !held.stubbed.is_empty())
    }

    /// Pids of those who have stubs in this cgroup, as far as is known.
    pub fn pids(&self, cgroup: u64) -> Vec<u32> {
        let held = self.held.get(&cgroup);
        held.map_or_else(Vec::new, |held| held.stubbed.iter().copied().collect())
    }

    /// The same of all cgroups.
    pub fn all_pids(&self) -> Vec<u32> {
        let all = self.held.values();
        all.flat_map(|held| held.stubbed.iter().copied()).collect()
    }

    /// Why not all programs of this cgroup are as they should be.
    pub fn problem(&self, cgroup: u64) -> Option<&str> {
        let problems = &self.held.get(&cgroup)?.problems;
        problems.values().next().map(String::as_str)
    }

    /// How many clock reads of this node have not been shown to our programs since this cgroup was
    /// first seen to.
    pub fn skipped(&self, cgroup: u64) -> u64 {
        let before = self.held.get(&cgroup).map(|held| held.skipped_before);
        before.map_or(0, |before| {
            self.dispatchers.skipped().saturating_sub(before)
        })
    }

    fn stub(&mut self, ebpf: &mut Ebpf, cgroup: u64, pid: u32) -> Result<(), VdsoError> {
        // Nobody can stop himself, and the agent has to know the right time.
        if pid == std::process::id() {
            return Ok(());
        }
        let process = self.proc_root.join(pid.to_string());
        let done = match self.vdso.give(&process, Content::Stubs) {
            Err(VdsoError::Locked(reason)) => return self.probe(ebpf, cgroup, pid, &reason),
            done => done?,
        };
        // What it may have had before that was possible.
        self.probes.detach(pid);
        let held = self.held(cgroup);
        match done {
            Done::Changed | Done::Nothing => held.stubbed.insert(pid),
            Done::Absent => held.stubbed.remove(&pid),
        };
        Ok(())
    }

    /// The last rung, where the vDSO cannot be changed for this `reason`.
    fn probe(
        &mut self,
        ebpf: &mut Ebpf,
        cgroup: u64,
        pid: u32,
        reason: &str,
    ) -> Result<(), VdsoError> {
        let process = self.proc_root.join(pid.to_string());
        match self.probes.attach(ebpf, &process) {
            Ok(library) => {
                let problem = format!(
                    "{reason}, so only clock_gettime of {library} shows it: gettimeofday and time of \
                     glibc, and programs that read the vDSO by themselves, show the right time"
                );
                let text = self.of(pid, &problem);
                let held = self.held(cgroup);
                held.stubbed.insert(pid);
                held.problems.insert(pid, text);
                Ok(())
            }
            Err(ProbeError::Gone) => {
                self.held(cgroup).stubbed.remove(&pid);
                Ok(())
            }
            Err(error) => Err(VdsoError::Locked(format!("{reason}, and {error}"))),
        }
    }

    /// What is known of a cgroup, from now on.
    fn held(&mut self, cgroup: u64) -> &mut Held {
        self.held
            .entry(cgroup)
            .or_insert_with(|| Held::begin(&self.dispatchers))
    }

    /// `process 17 (redis-server): …`, with its name if it is still there.
    fn of(&self, pid: u32, problem: &impl Display) -> String {
        let path = self.proc_root.join(pid.to_string()).join("comm");
        let name = fs::read_to_string(path)
            .map(|name| format!(" ({})", name.trim_end()))
            .unwrap_or_default();
        format!("process {pid}{name}: {problem}")
    }
}
