//! The faults of a node whose daemon does not live: the pinned maps say what there is, the journal
//! says what it is called.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context as _;
use chaos_abi::counters::Counters;
use chaos_planner::observed::{Observed, Phase};

use crate::executor::counts;
use crate::journal::{Entry, Journal};
use crate::kernel::clock;
use crate::kernel::maps::{MapsError, Pinned};
use crate::node::Options;

/// The pinned maps; `None` when nothing is pinned.
pub(super) fn maps(options: &Options) -> anyhow::Result<Option<Pinned>> {
    match Pinned::open(&options.bpffs) {
        Ok(maps) => Ok(Some(maps)),
        Err(MapsError::NotPinned(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Every fault that the kernel holds.
pub(super) fn faults(options: &Options, maps: &Pinned) -> anyhow::Result<Vec<Observed>> {
    let journal = Journal::new(&options.run_dir, &options.proc_root)
        .context("failed to read the boot id")?
        .read();
    let now = clock::now_ns();
    let mut known = BTreeSet::new();
    let mut faults = Vec::new();
    for entry in &journal.armed {
        let found = of_entry(maps, entry, now, &mut known)?;
        faults.extend(found);
    }
    let network = maps.rules()?.into_iter();
    let clocks = maps.clock_rules()?.into_iter();
    let all = network
        .map(|(id, rule)| (id, rule.generation, rule.deadline_ns))
        .chain(clocks.map(|(id, rule)| (id, rule.generation, rule.deadline_ns)));
    for (id, generation, deadline_ns) in all {
        if !known.contains(&(id, generation)) {
            let counters = maps.counters(id)?;
            faults.push(Observed {
                id: format!("rule-{id}"),
                kind: String::new(),
                namespace: String::new(),
                name: format!("rule-{id}"),
                record: String::new(),
                phase: phase(deadline_ns, now),
                mechanisms: Vec::new(),
                reason: "not in the journal: `chaos-agent recover --all` removes it".to_owned(),
                degraded: false,
                counts: counts(&counters),
                expires_in: left(deadline_ns, now),
                armed_ago: Duration::ZERO,
                first_hit_ago: first_hit(&counters, now),
            });
        }
    }
    Ok(faults)
}

fn of_entry(
    maps: &Pinned,
    entry: &Entry,
    now: u64,
    known: &mut BTreeSet<(u32, u32)>,
) -> anyhow::Result<Option<Observed>> {
    let armed = &entry.armed;
    let mut sum = Counters::default();
    let mut deadline = None;
    for rule in armed.each_rule() {
        let (id, generation) = (rule.id, rule.generation);
        let held = maps.deadline_of(rule.mechanism.into(), id, generation)?;
        if held.is_some() {
            known.insert((id, generation));
            sum.merge(&maps.counters(id)?);
            deadline = deadline.max(held);
        }
    }
    // Written before the act, or after it: the kernel does not hold it.
    let Some(deadline) = deadline else {
        return Ok(None);
    };
    let mechanisms = armed.each_rule().map(|rule| rule.mechanism).collect();
    Ok(Some(Observed {
        id: armed.fault.id.clone(),
        kind: armed.fault.kind.clone(),
        namespace: armed.fault.namespace.clone(),
        name: armed.fault.name.clone(),
        record: armed.fault.record.clone(),
        phase: phase(deadline, now),
        mechanisms,
        reason: String::new(),
        degraded: false,
        counts: counts(&sum),
        expires_in: left(deadline, now),
        armed_ago: Duration::from_nanos(now.saturating_sub(armed.armed_ns)),
        first_hit_ago: first_hit(&sum, now),
    }))
}

fn phase(deadline_ns: u64, now: u64) -> Phase {
    if deadline_ns > now {
        Phase::Injected
    } else {
        Phase::Expired
    }
}

fn left(deadline_ns: u64, now: u64) -> Duration {
    Duration::from_nanos(deadline_ns.saturating_sub(now))
}

fn first_hit(counters: &Counters, now: u64) -> Option<Duration> {
    (counters.first_ns != 0).then(|| Duration::from_nanos(now.saturating_sub(counters.first_ns)))
}
