//! Documents that are wrong: who says so, how soon, and in which words.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{
    bench::{Bench, document},
    tests,
};
use crate::{
    lab::chaos::{PATIENCE, ours},
    out::note,
};

tests![
    a_typo_is_refused_by_kubectl_by_name,
    what_the_schema_sees_is_refused_with_field_value_and_rule,
    what_only_the_operator_sees_is_a_failed_event_without_records,
];

/// Two seconds are promised, on a machine that has nothing else to do.
const EVENT_LIMIT: Duration = Duration::from_secs(20);
/// One second is promised, likewise. What is never injected waits for no lease of 30 s.
const DELETE_LIMIT: Duration = Duration::from_secs(15);

fn a_typo_is_refused_by_kubectl_by_name(bench: &Bench<'_>) -> Result<()> {
    let typo = "  action: delay\n  delay: {latenzy: 100ms}\n  duration: 4s\n";
    let said = bench.lab.refused(&document("typo", "a", "b", typo))?;
    note!("{said}");
    ensure!(
        said.contains("unknown field \"spec.delay.latenzy\""),
        "{said}"
    );
    Ok(())
}

fn what_the_schema_sees_is_refused_with_field_value_and_rule(bench: &Bench<'_>) -> Result<()> {
    for (rest, parts) in [
        (
            "  action: delay\n  delay: {latency: \"100\"}\n",
            [
                "spec.delay.latency",
                "100",
                "must be one number with one unit",
            ],
        ),
        (
            "  action: loss\n  loss: {loss: \"130\"}\n",
            ["spec.loss.loss", "130", "100"],
        ),
        (
            "  action: delay\n",
            ["spec.delay", "not set", "action delay needs this block"],
        ),
    ] {
        let said = bench.lab.refused(&document("wrong", "a", "b", rest))?;
        note!("{said}");
        for part in parts {
            ensure!(said.contains(part), "{part:?} is not in: {said}");
        }
    }
    Ok(())
}

fn what_only_the_operator_sees_is_a_failed_event_without_records(bench: &Bench<'_>) -> Result<()> {
    let rest = "  action: partition\n  duration: 10s\n  scheduler: {cron: \"0 24 * * *\"}\n";
    let applied = bench.lab.apply(&document("hour", "a", "b", rest))?;
    let returned = Instant::now();
    let event = bench
        .lab
        .wait_for_event(&applied.name, "Failed", EVENT_LIMIT)?;
    note!(
        "after {:.1} s: {}",
        returned.elapsed().as_secs_f64(),
        event.message
    );
    ensure!(
        event
            .message
            .starts_with("spec.scheduler.cron: 0 24 * * *: ")
            && event.message.contains("; "),
        "{}",
        event.message
    );
    let status = bench
        .lab
        .wait_for_phase(&applied.name, "Failed", PATIENCE)?;
    ensure!(status.experiment.container_records.is_empty(), "{status:?}");
    let reason = ours(&status).reason.context("no reason")?;
    ensure!(reason == event.message, "{reason}");
    let took = bench.lab.delete(&applied.name)?;
    ensure!(took < DELETE_LIMIT, "deleting took {took:?}");
    Ok(())
}
