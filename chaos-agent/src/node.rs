//! What this node should hold and what it holds, brought together. One owner, one thread: nothing
//! else in the process touches the kernel's state.
//!
//! `reconcile` may be called at any time and any number of times. Decisions are chaos-planner's;
//! the acts are `executor.rs`'s; here is when, in which order, and what is remembered.

mod entry;
mod leave;
mod look;
mod open;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use chaos_planner::capabilities::Capabilities;
use chaos_planner::fault::{Fault, FaultId, Lifetime};
use chaos_planner::observed::{Observed, Phase};
use chaos_planner::plan::{Held, RENEW_EVERY, Step, Until, Wanted, diff, lease, nanos};
use nix::fcntl::Flock;

pub use self::leave::PurgeError;
pub use self::open::OpenError;

use self::entry::{Entry, Outcome, State};
use crate::executor::{Armed, Executor, Prepared, Trace};
use crate::journal::{self, Journal};
use crate::kernel::clock;

/// How often armed targets are looked up again, and a halted node looks whether it still is.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How long a recovered fault stays in sight while packets are on the way in its detour. Longer
/// delays go on arriving; nothing waits for them.
const DRAIN_IN_SIGHT: Duration = Duration::from_secs(5);

/// Who wants a fault: `operator`, or `local:<n>` for the command line.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner(pub String);

/// Where things are on this host.
#[derive(Clone, Debug)]
pub struct Options {
    /// A mounted bpffs, `/sys/fs/bpf`.
    pub bpffs: PathBuf,
    /// Lock, journal and socket, `/run/faultline`.
    pub run_dir: PathBuf,
    /// Root of the cgroup2 hierarchy, `/sys/fs/cgroup`.
    pub cgroup_root: PathBuf,
    /// `/proc` of the host.
    pub proc_root: PathBuf,
    /// Bytes of the target's packets that may wait on one device, with a kilobyte more for each.
    pub delay_budget: u64,
}

/// [`Options::delay_budget`] unless told otherwise: 64 MiB.
pub const DELAY_BUDGET: u64 = 64 << 20;

impl Default for Options {
    fn default() -> Self {
        Self {
            bpffs: "/sys/fs/bpf".into(),
            run_dir: "/run/faultline".into(),
            cgroup_root: "/sys/fs/cgroup".into(),
            proc_root: "/proc".into(),
            delay_budget: DELAY_BUDGET,
        }
    }
}

/// Everything that changes the kernel of this node, behind one owner.
pub struct Node {
    options: Options,
    capabilities: Capabilities,
    executor: Executor,
    journal: Journal,
    entries: BTreeMap<FaultId, Entry>,
    looked_ns: u64,
    /// One agent per host: held as long as this lives.
    _lock: Flock<std::fs::File>,
}

impl Node {
    /// What this node can do, tried when it was opened.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Replaces what `owner` wants. Returns at once; [`Self::reconcile`] does the work.
    pub fn set_desired(&mut self, owner: Owner, faults: Vec<Fault>) {
        let now = clock::now_ns();
        let mut was_orphaned = false;
        for entry in self
            .entries
            .values_mut()
            .filter(|entry| entry.owner == owner)
        {
            entry.wanted = false;
            was_orphaned |= matches!(entry.until, Until::Orphaned(_));
        }
        for fault in faults {
            let until = until(&fault, now);
            match self.entries.get_mut(&fault.id) {
                Some(entry) => entry.want(owner.clone(), fault, until),
                None => {
                    let entry = Entry::new(owner.clone(), fault, until);
                    self.entries.insert(entry.fault.id.clone(), entry);
                }
            }
        }
        if was_orphaned {
            // A successor must not end what has its client back.
            self.write_journal();
        }
    }

    /// The client of this owner is gone: its faults go on until their own deadlines, or their
    /// orphan timeouts.
    pub fn orphan(&mut self, owner: Owner) {
        let now = clock::now_ns();
        let mut orphaned = false;
        for entry in self
            .entries
            .values_mut()
            .filter(|entry| entry.owner == owner)
        {
            if let (
                Until::Leased,
                Lifetime::Leased {
                    orphan_timeout: Some(timeout),
                },
            ) = (entry.until, entry.fault.lifetime)
            {
                entry.until = Until::Orphaned(now.saturating_add(nanos(timeout)));
                orphaned = true;
            }
        }
        if orphaned {
            // Else each successor would begin to count anew.
            self.write_journal();
        }
    }

    /// Brings the kernel closer to what is desired: arm, renew, disarm, drain, verify. Returns
    /// after which time at the latest to call it again.
    pub fn reconcile(&mut self) -> Duration {
        let now = clock::now_ns();
        let halted = self.executor.maps().halted().unwrap_or(false);
        let looked = self.look_at_targets(now);
        for entry in self.entries.values_mut() {
            entry.lapse(now);
        }
        let held = self.held();
        let wanted = self.wanted(now, halted);
        let steps = diff(&held, &wanted, now);
        let changes = looked || steps.iter().any(|step| !matches!(step, Step::Renew(..)));
        let mut arm = Vec::new();
        for step in steps {
            match step {
                Step::Disarm(id) => self.disarm(&id, now),
                Step::Renew(id, deadline) => self.renew(&id, deadline),
                Step::SetPeers(id) => self.set_peers(&id),
                Step::Arm(id, deadline) => arm.push((id, deadline)),
            }
        }
        self.arm(arm, now);
        if changes {
            self.settle();
        }
        let drained = self.executor.drain();
        if drained.detached {
            self.settle();
        }
        let armed = self.entries.values().filter_map(Entry::armed);
        let rest_ns = self.executor.rest(armed, now);
        self.verify_recovered(now);
        if changes || drained.detached {
            self.write_journal();
        }
        let look_ns = drained.look_ns.into_iter().chain(rest_ns).min();
        self.next(clock::now_ns(), look_ns, halted)
    }

    /// Tells the programs what is armed.
    fn settle(&mut self) {
        let armed: Vec<_> = self.entries.values().filter_map(Entry::armed).collect();
        if let Err(error) = self.executor.settle(&armed) {
            tracing::warn!(%error, "failed to tell the programs what is armed");
        }
    }

    /// While nobody waits: does a part of what the next faults would wait for. Whether there was anything
    /// to do.
    pub fn load_ahead(&mut self) -> bool {
        self.executor.load_ahead()
    }

    /// What the kernel holds of the faults of an owner, or of all; counters included.
    pub fn observed(&mut self, owner: Option<&Owner>) -> Vec<Observed> {
        let now = clock::now_ns();
        let halted = self.executor.maps().halted().unwrap_or(false);
        let executor = &self.executor;
        self.entries
            .values_mut()
            .filter(|entry| owner.is_none_or(|owner| entry.owner == *owner))
            .map(|entry| entry.observe(executor, now, halted))
            .collect()
    }

    fn held(&self) -> BTreeMap<FaultId, Held> {
        self.entries
            .iter()
            .filter_map(|(id, entry)| {
                let armed = entry.armed()?;
                let held = Held {
                    fault: armed.fault.clone(),
                    deadline_ns: armed.deadline_ns,
                };
                Some((id.clone(), held))
            })
            .collect()
    }

    fn wanted(&self, now: u64, halted: bool) -> BTreeMap<FaultId, Wanted> {
        self.entries
            .iter()
            .filter(|(_, entry)| !halted && entry.is_due(now))
            .map(|(id, entry)| {
                (
                    id.clone(),
                    Wanted {
                        fault: entry.fault.clone(),
                        until: entry.until,
                    },
                )
            })
            .collect()
    }

    /// Arms, one, then two, then four at a time: the first fault need not wait for the last, and
    /// the journal, which has to be written before the act, is not written for each.
    fn arm(&mut self, steps: Vec<(FaultId, u64)>, now: u64) {
        let mut steps = steps.as_slice();
        let mut together = 1;
        while !steps.is_empty() {
            let (some, rest) = steps.split_at(together.min(steps.len()));
            self.arm_together(some, now);
            steps = rest;
            together *= 2;
        }
    }

    fn arm_together(&mut self, steps: &[(FaultId, u64)], now: u64) {
        let mut prepared = Vec::new();
        for (id, deadline) in steps {
            let Some(entry) = self.entries.get_mut(id) else {
                continue;
            };
            match self
                .executor
                .prepare(&entry.fault, *deadline, &self.capabilities)
            {
                Ok(one) => prepared.push(one),
                Err(error) => entry.failed(&error, now),
            }
        }
        if prepared.is_empty() {
            return;
        }
        self.journal_with(&prepared);
        for one in prepared {
            let id = one.armed().fault.id.clone();
            let others = self.entries.values().filter_map(Entry::armed);
            let result = self.executor.arm(one, others);
            let Some(entry) = self.entries.get_mut(&id) else {
                continue;
            };
            match result {
                Ok(armed) => {
                    tracing::info!(fault = %id, target = %armed.fault.record, "armed");
                    entry.armed_now(armed);
                }
                Err(error) => entry.failed(&error, now),
            }
        }
    }

    fn disarm(&mut self, id: &FaultId, now: u64) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        let State::Armed(armed) = &entry.state else {
            return;
        };
        let armed = armed.clone();
        let outcome = if !entry.wanted {
            Outcome::Recovering(now)
        } else if entry.until.is_over(now) {
            Outcome::Ended(Phase::Expired, String::new())
        } else {
            // To be armed again otherwise, or the node is halted.
            Outcome::Moved
        };
        match self.executor.disarm(&armed) {
            Ok(()) => {
                tracing::info!(fault = %id, "disarmed");
                entry.conclude(&self.executor, &armed, outcome);
            }
            Err(error) => {
                tracing::warn!(fault = %id, %error, "failed to disarm; will try again");
            }
        }
    }

    fn renew(&mut self, id: &FaultId, deadline: u64) {
        let Some(Entry {
            state: State::Armed(armed),
            ..
        }) = self.entries.get_mut(id)
        else {
            return;
        };
        if let Err(error) = self.executor.renew(armed, deadline) {
            tracing::warn!(fault = %id, %error, "failed to renew a lease; will try again");
        }
    }

    fn set_peers(&mut self, id: &FaultId) {
        let Some(Entry {
            fault,
            state: State::Armed(armed),
            ..
        }) = self.entries.get_mut(id)
        else {
            return;
        };
        let fault = fault.clone();
        if let Err(error) = self.executor.set_peers(armed, &fault) {
            tracing::warn!(fault = %id, %error, "failed to change the peers; will try again");
        }
    }

    /// Forgets what is recovered, once the kernel says so.
    fn verify_recovered(&mut self, now: u64) {
        let executor = &mut self.executor;
        self.entries.retain(|id, entry| {
            if entry.wanted {
                return true;
            }
            let State::Recovering { armed, since_ns } = &entry.state else {
                return matches!(entry.state, State::Armed(_));
            };
            if *since_ns == now {
                // Its last counts are to be seen once.
                return true;
            }
            match executor.traces(armed) {
                Ok(None) => {
                    tracing::info!(fault = %id, "recovered, kernel verified clean");
                    false
                }
                Ok(Some(Trace::Packets)) => {
                    now.saturating_sub(*since_ns) < nanos(DRAIN_IN_SIGHT)
                }
                // Tried again every so often, see `look.rs`: each try stops the program.
                Ok(Some(Trace::ClockBytes)) => true,
                Ok(Some(trace)) => {
                    tracing::warn!(fault = %id, %trace, "not recovered yet: the kernel still holds it");
                    drop(executor.disarm(armed));
                    true
                }
                Err(error) => {
                    tracing::warn!(fault = %id, %error, "failed to read back whether it is recovered");
                    true
                }
            }
        });
    }

    fn write_journal(&self) {
        self.journal_with(&[]);
    }

    fn journal_with(&self, prepared: &[Prepared]) {
        let entry = |owner: &Owner, until: Until, armed: &Armed| journal::Entry {
            owner: owner.0.clone(),
            deadline_ns: match until {
                Until::Deadline(at) => Some(at),
                Until::Leased | Until::Orphaned(_) => None,
            },
            orphaned_ns: match until {
                Until::Orphaned(at) => Some(at),
                Until::Leased | Until::Deadline(_) => None,
            },
            armed: armed.clone(),
        };
        let held = self
            .entries
            .values()
            .filter_map(|e| e.armed().map(|armed| entry(&e.owner, e.until, armed)));
        let planned = prepared.iter().map(Prepared::armed).filter_map(|armed| {
            let e = self.entries.get(&armed.fault.id)?;
            Some(entry(&e.owner, e.until, armed))
        });
        let armed = held.chain(planned).collect();
        let unrestored = self.executor.unrestored().to_vec();
        if let Err(error) = self
            .journal
            .write(armed, unrestored, self.executor.devices())
        {
            // Faults still end at their deadlines; only a successor would have to sweep.
            tracing::error!(%error, run_dir = %self.options.run_dir.display(), "failed to write the journal");
        }
    }

    fn next(&self, now: u64, asked_ns: Option<u64>, halted: bool) -> Duration {
        let of_entries = self
            .entries
            .values()
            .filter_map(|entry| entry.next_ns(now, halted));
        let any = !self.entries.is_empty() || !self.executor.unrestored().is_empty();
        let look = (any || halted).then(|| self.looked_ns.saturating_add(nanos(LOOK_EVERY)));
        let earliest = of_entries.chain(asked_ns).chain(look).min();
        earliest.map_or(Duration::from_secs(60), |at| {
            Duration::from_nanos(at.saturating_sub(now)).max(Duration::from_millis(1))
        })
    }
}

fn until(fault: &Fault, now: u64) -> Until {
    match fault.lifetime {
        Lifetime::For(left) => Until::Deadline(now.saturating_add(nanos(left))),
        Lifetime::Leased { .. } => Until::Leased,
    }
}

/// When a lease has to be renewed.
fn renewal_ns(fault: &Fault, deadline_ns: u64) -> u64 {
    deadline_ns
        .saturating_sub(nanos(lease(fault)))
        .saturating_add(nanos(RENEW_EVERY))
}
