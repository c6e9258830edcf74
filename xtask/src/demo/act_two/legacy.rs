//! The document that people still have from Chaos Mesh 1.x: a partition that a scheduler repeats,
//! between pods that are drawn anew each round.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_api::v1alpha1::ChaosStatus;

use super::{conditions, kernel, mechanisms, when};
use crate::{
    demo::report::{Fault, Figures, Spans},
    lab::{
        Lab,
        chaos::{self, Applied, Counted},
        clock, nanos,
        samples::{Path, Sign, Stats, first_and_last},
    },
    step::Step,
};

const DOCUMENT: &str = include_str!("../documents/legacy.yaml");

/// How many rounds are watched.
const ROUNDS: u64 = 3;

/// A round begins within this time after the one before has ended.
const BETWEEN: Duration = Duration::from_secs(25);

/// Spans before and after a round: there are five seconds from one round to the next.
const SPAN: Duration = Duration::from_secs(2);

/// A datagram may be sent this long before a round of which the answer is refused in it.
const EDGE: Duration = Duration::from_millis(100);

/// What was seen of a round while it ran.
struct Round {
    number: u64,
    source: String,
    target: String,
    /// When its pods were known, and when it was over.
    seen: (u64, u64),
    during: ChaosStatus,
    after: ChaosStatus,
    /// Datagrams of the target that arrived at the source between these two moments.
    reverse: u64,
    /// What the kernel has counted in this round, and in all until its end.
    counted: Counted,
    counted_until: Counted,
    verdict: String,
}

/// Applies it and watches its rounds.
///
/// # Errors
/// If a round does not come, bite and go.
pub(super) fn watch(lab: &Lab<'_>, step: &Step) -> Result<Vec<Fault>> {
    let mut before = lab.counted(super::name_of(DOCUMENT))?;
    let applied = lab.apply(DOCUMENT)?;
    let mut rounds = Vec::new();
    let mut last = 0;
    for _ in 0..ROUNDS {
        step.progress(format!("waiting for a round after {last}"));
        let round = watch_round(lab, &applied.name, last, before)?;
        before = round.counted_until;
        last = round.number;
        rounds.push(round);
    }
    let until = clock::now() + nanos(SPAN);
    let paths = lab.settled_paths(applied.asked - nanos(SPAN), until)?;
    lab.delete(&applied.name)?;
    rounds
        .iter()
        .map(|round| conclude(round, &applied, &paths))
        .collect()
}

/// Watches the next round after `last`. On a slow machine one may pass unseen.
fn watch_round(lab: &Lab<'_>, name: &str, last: u64, counted: Counted) -> Result<Round> {
    let round_of = |status: &ChaosStatus| chaos::ours(status).round.unwrap_or_default();
    let during = lab.wait_for(name, "a round to run", BETWEEN, |status| {
        round_of(status) > last && chaos::condition(status, "AllInjected") == Some(true)
    })?;
    let number = round_of(&during);
    let since = clock::now();
    let only = |key: &str| {
        let drawn = chaos::drawn(&during, key);
        ensure!(drawn.len() == 1, "{name}: drawn for {key:?}: {drawn:?}");
        drawn.into_iter().next().context("one was drawn")
    };
    let (source, target) = (only(".")?, only(".Target")?);
    let before = lab.arrived(&source, &target)?;
    let what = format!("round {number} to end");
    let after = lab.wait_for(name, &what, BETWEEN, |status| {
        round_of(status) == number && chaos::ours(status).phase.as_deref() == Some("Waiting")
    })?;
    let over = clock::now();
    let counted_until = lab.counted(name)?;
    let reverse = lab.arrived(&source, &target)?.saturating_sub(before);
    Ok(Round {
        number,
        counted: counted_until.since(counted),
        counted_until,
        seen: (since, over),
        verdict: lab.verdict(name, &after)?,
        source,
        target,
        during,
        after,
        reverse,
    })
}

fn conclude(round: &Round, applied: &Applied, paths: &[Path]) -> Result<Fault> {
    let Round {
        number,
        source,
        target,
        seen,
        during,
        after,
        reverse,
        counted,
        verdict,
        ..
    } = round;
    let there = |path: &&Path| path.from == *source && path.to == *target;
    let back = |path: &&Path| path.from == *target && path.to == *source;
    // The first refusal is before the status could be seen.
    let span = seen.0.saturating_sub(nanos(SPAN))..seen.1;
    let hits = first_and_last(paths.iter().filter(there), &span, Sign::Refused)
        .with_context(|| format!("round {number}: {source} → {target} was not cut"))?;
    let mut spans = Spans::around(
        hits.0.saturating_sub(nanos(SPAN)),
        hits.0.saturating_sub(nanos(EDGE)),
        hits,
        hits.1 + nanos(SPAN),
    );
    spans.after.start += nanos(EDGE);
    let cut = Stats::over(paths.iter().filter(there), &spans.during);
    let others = |path: &&Path| !there(path) && !back(path);
    let figures = |who: &str, rows| Figures::of(who, rows, &spans);
    let mut fault = Fault {
        title: format!("a partition from 1.x, round {number}: {source} cannot send to {target}"),
        asked: "action partition, one to one, direction to, for 10s @every 15s".to_owned(),
        document: DOCUMENT.to_owned(),
        paths: vec![
            Figures::of(
                &format!("{source} → {target}"),
                paths.iter().filter(there),
                &spans,
            ),
            Figures::of(
                &format!("{target} → {source} (answers)"),
                paths.iter().filter(back),
                &spans,
            ),
            figures("all other paths", paths.iter().filter(others)),
        ],
        kernel: kernel(*counted),
        mechanisms: mechanisms(during),
        conditions: [conditions(during), conditions(after)],
        remarks: vec![format!(
            "{} of {} datagrams refused with EPERM; the other way {reverse} arrived meanwhile",
            cut.refused, cut.sent
        )],
        verdict: verdict.clone(),
        ..Fault::default()
    };
    when(&mut fault, applied, hits);
    if *number > 1 {
        // The clock asked for it, not the command.
        fault.first_hit_ms = None;
    }
    Ok(fault)
}
