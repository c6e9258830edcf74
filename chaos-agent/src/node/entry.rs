//! One fault of this node: what is wanted of it, and how far it is.

use std::time::Duration;

use chaos_planner::capabilities::Mechanism;
use chaos_planner::fault::{Effect, Fault};
use chaos_planner::observed::{Counts, Observed, Phase};
use chaos_planner::plan::{Until, nanos};

use super::{DRAIN_IN_SIGHT, LOOK_EVERY, Owner, renewal_ns};
use crate::executor::{ArmError, Armed, Executor, Trace};
use crate::mechanism::MechanismError;
use crate::target::TargetError;

/// Waits between two tries: doubled each time.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(60));

/// How often a recovering fault is looked at, at first.
const LOOK_SOON: Duration = Duration::from_millis(20);

/// How far a fault is.
pub(super) enum State {
    /// To be armed, at `retry_ns` at the earliest.
    Waiting {
        /// Why the last try failed; empty before the first.
        reason: String,
        retry_ns: u64,
        tries: u32,
    },
    /// In the kernel.
    Armed(Armed),
    /// It will not be armed (again).
    Ended(Phase, String),
    /// Not wanted any more; traces are looked for.
    Recovering { armed: Armed, since_ns: u64 },
}

/// What becomes of a fault that is disarmed.
pub(super) enum Outcome {
    /// It is not wanted any more, since then.
    Recovering(u64),
    /// It is over.
    Ended(Phase, String),
    /// It will be armed anew.
    Moved,
}

/// The last that is known of rules that have gone.
#[derive(Clone, Copy, Default)]
struct Past {
    counts: Counts,
    armed_ns: u64,
    first_ns: Option<u64>,
}

/// One fault.
pub(super) struct Entry {
    pub(super) owner: Owner,
    pub(super) fault: Fault,
    pub(super) until: Until,
    /// Whether its owner still wants it.
    pub(super) wanted: bool,
    pub(super) state: State,
    past: Past,
    mechanisms: Vec<Mechanism>,
}

impl Entry {
    pub(super) fn new(owner: Owner, fault: Fault, until: Until) -> Self {
        Self {
            owner,
            fault,
            until,
            wanted: true,
            state: State::Waiting {
                reason: String::new(),
                retry_ns: 0,
                tries: 0,
            },
            past: Past::default(),
            mechanisms: Vec::new(),
        }
    }

    /// One that a predecessor armed. It stays until its owner speaks, or its deadline.
    pub(super) fn adopted(owner: Owner, until: Until, armed: Armed) -> Self {
        let mut entry = Self::new(owner, armed.fault.clone(), until);
        entry.armed_now(armed);
        entry
    }

    /// Its owner wants it, perhaps otherwise than before. The earliest deadline ever told counts.
    pub(super) fn want(&mut self, owner: Owner, fault: Fault, until: Until) {
        let other_target = fault.target != self.fault.target;
        self.until = match (self.until, until) {
            (Until::Deadline(old), Until::Deadline(new)) => Until::Deadline(old.min(new)),
            (_, new) => new,
        };
        self.owner = owner;
        self.fault = fault;
        self.wanted = true;
        let again = match &self.state {
            State::Recovering { .. } => true,
            // A deadline is for good; an orphan's client is back.
            State::Ended(Phase::Expired, _) => self.until == Until::Leased,
            State::Ended(..) => other_target,
            _ => false,
        };
        if again {
            self.state = State::Waiting {
                reason: String::new(),
                retry_ns: 0,
                tries: 0,
            };
        }
    }

    pub(super) fn armed(&self) -> Option<&Armed> {
        match &self.state {
            State::Armed(armed) => Some(armed),
            _ => None,
        }
    }

    /// Whether it should be in the kernel now.
    pub(super) fn is_due(&self, now: u64) -> bool {
        self.wanted
            && match self.state {
                State::Armed(_) => true,
                State::Waiting { retry_ns, .. } => retry_ns <= now,
                State::Ended(..) | State::Recovering { .. } => false,
            }
    }

    /// One that could not be armed in time is over, too.
    pub(super) fn lapse(&mut self, now: u64) {
        if matches!(self.state, State::Waiting { .. }) && self.until.is_over(now) {
            self.state = State::Ended(Phase::Expired, String::new());
        }
    }

    pub(super) fn armed_now(&mut self, armed: Armed) {
        self.mechanisms = armed.each_rule().map(|rule| rule.mechanism).collect();
        self.state = State::Armed(armed);
    }

    pub(super) fn failed(&mut self, error: &ArmError, now: u64) {
        let phase = phase_of(error);
        tracing::warn!(fault = %self.fault.id, target = %self.fault.record, %error, "not armed");
        self.state = if phase == Phase::Failed {
            let tries = match self.state {
                State::Waiting { tries, .. } => tries,
                _ => 0,
            };
            let wait = RETRY.0.saturating_mul(1 << tries.min(16)).min(RETRY.1);
            State::Waiting {
                reason: error.to_string(),
                retry_ns: now.saturating_add(nanos(wait)),
                tries: tries + 1,
            }
        } else {
            State::Ended(phase, error.to_string())
        };
    }

    /// Its rules have gone: keeps what they counted. (Counters stay until their rule is given away.)
    pub(super) fn conclude(&mut self, executor: &Executor, armed: &Armed, outcome: Outcome) {
        if let Ok((counts, first_ns)) = executor.counts(armed) {
            self.past.counts += counts;
            self.past.armed_ns = armed.armed_ns;
            self.past.first_ns = self.past.first_ns.or(first_ns);
        }
        self.state = match outcome {
            Outcome::Recovering(since_ns) => State::Recovering {
                armed: armed.clone(),
                since_ns,
            },
            Outcome::Ended(phase, reason) => State::Ended(phase, reason),
            Outcome::Moved => State::Waiting {
                reason: String::new(),
                retry_ns: 0,
                tries: 0,
            },
        };
    }

    pub(super) fn observe(&mut self, executor: &Executor, now: u64, halted: bool) -> Observed {
        let mut seen = self.past;
        let mut expires_in = Duration::ZERO;
        let (phase, mut reason) = match &self.state {
            State::Waiting { reason, .. } if reason.is_empty() => (Phase::Pending, String::new()),
            State::Waiting { reason, .. } => (Phase::Failed, reason.clone()),
            State::Ended(phase, reason) => (*phase, reason.clone()),
            State::Recovering { armed, .. } => {
                // Programs that somebody else holds may take long; packets do not.
                let trace = executor.traces(armed).ok().flatten();
                let trace = trace.filter(|trace| *trace == Trace::ClockBytes);
                let reason = trace.map_or_else(String::new, |trace| trace.to_string());
                (Phase::Recovering, reason)
            }
            State::Armed(armed) => {
                if let Ok((counts, first_ns)) = executor.counts(armed) {
                    seen.counts += counts;
                    seen.first_ns = seen.first_ns.or(first_ns);
                }
                seen.armed_ns = armed.armed_ns;
                expires_in = Duration::from_nanos(armed.deadline_ns.saturating_sub(now));
                // Read back: the rule is what says whether it is injected.
                match executor.traces(armed) {
                    Ok(Some(Trace::Rule)) if armed.deadline_ns > now => {
                        (Phase::Injected, String::new())
                    }
                    Ok(Some(Trace::Rule)) => (Phase::Expired, String::new()),
                    Ok(_) => (
                        Phase::Failed,
                        "the kernel does not hold its rules any more".into(),
                    ),
                    Err(error) => (
                        Phase::Failed,
                        format!("failed to read the rules back: {error}"),
                    ),
                }
            }
        };
        let flaw = match &self.state {
            State::Armed(armed) if phase == Phase::Injected => flaw(armed, executor, &seen.counts),
            _ => None,
        };
        let degraded = flaw.is_some();
        if let Some(flaw) = flaw {
            reason = flaw;
        }
        if halted {
            reason = "this node was stopped by `chaos-agent panic`; `chaos-agent panic --resume` lets faults act again".into();
        }
        let ago = |at: u64| Duration::from_nanos(now.saturating_sub(at));
        Observed {
            id: self.fault.id.clone(),
            kind: self.fault.kind.clone(),
            namespace: self.fault.namespace.clone(),
            name: self.fault.name.clone(),
            record: self.fault.record.clone(),
            phase: if halted && phase == Phase::Pending {
                Phase::Failed
            } else {
                phase
            },
            mechanisms: self.mechanisms.clone(),
            reason,
            degraded,
            counts: seen.counts,
            expires_in,
            armed_ago: if seen.armed_ns == 0 {
                Duration::ZERO
            } else {
                ago(seen.armed_ns)
            },
            first_hit_ago: seen.first_ns.map(ago),
        }
    }

    /// When something has to be done about it. Nothing is armed while the node is halted.
    pub(super) fn next_ns(&self, now: u64, halted: bool) -> Option<u64> {
        let end = match self.until {
            Until::Deadline(at) | Until::Orphaned(at) => Some(at),
            Until::Leased => None,
        };
        match &self.state {
            State::Armed(armed) if end.is_some_and(|at| at <= armed.deadline_ns) => end,
            State::Armed(armed) => {
                let renewal = renewal_ns(&self.fault, armed.deadline_ns);
                Some(end.map_or(renewal, |at| at.min(renewal)))
            }
            State::Waiting { .. } if halted => end,
            State::Waiting { retry_ns, .. } => Some(end.map_or(*retry_ns, |at| at.min(*retry_ns))),
            State::Recovering { since_ns, .. } => {
                // What is still there then waits for somebody else.
                let soon = now.saturating_sub(*since_ns) < nanos(DRAIN_IN_SIGHT);
                let wait = if soon { LOOK_SOON } else { LOOK_EVERY };
                Some(now + nanos(wait))
            }
            State::Ended(..) => None,
        }
    }
}

/// Why a fault that is armed does not do all that was asked for.
fn flaw(armed: &Armed, executor: &Executor, counts: &Counts) -> Option<String> {
    match armed.fault.effect {
        Effect::Clock(_) => executor.clock_problem(armed).or_else(|| {
            (counts.failed > 0).then(|| {
                format!(
                    "{} calls went by the right time: clock reads of a 32-bit program, the system call \
                     time(2), whose result cannot be changed on this kernel, or waits until a time in \
                     memory that cannot be written",
                    counts.failed
                )
            })
        }),
        Effect::Network(_) => (counts.over_budget > 0).then(|| {
            format!(
                "{} packets were dropped because too many waited on the device already; raise the \
                 agent's --delay-budget, or act on fewer packets",
                counts.over_budget
            )
        }),
    }
}

/// Whether trying again can help.
fn phase_of(error: &ArmError) -> Phase {
    match error {
        ArmError::Unsupported(_) => Phase::NotSupported,
        ArmError::Target(TargetError::Gone { .. }) => Phase::TargetGone,
        ArmError::Mechanism(MechanismError::Target(_)) => Phase::NotSupported,
        _ => Phase::Failed,
    }
}
