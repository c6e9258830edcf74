//! Experiments from their start to their end: paused, deleted, repeated, and pods that go meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use chaos_api::v1alpha1::RecordPhase;

use super::{
    bench::{Bench, NAMESPACE, document, ended_in_time},
    tests,
};
use crate::{
    lab::{
        chaos::{PATIENCE, all_are, condition, drawn, ours},
        clock, nanos,
        samples::{Sign, Span, Stats},
        sleep_until,
    },
    out::note,
    step,
};

tests![
    deleting_recovers_at_once_and_removes_the_object,
    pausing_recovers_and_resuming_injects_the_same_pods,
    a_pod_that_is_deleted_in_mid_fault_counts_as_recovered,
    a_legacy_scheduler_repeats_its_rounds,
];

const PARTITION: &str = "  action: partition\n";

/// How the path from `a` to `b` was in a span.
fn a_to_b(bench: &Bench<'_>, span: &Span) -> Result<Stats> {
    let paths = bench.lab.settled_paths(span.start, span.end)?;
    let asked = |path: &&crate::lab::samples::Path| path.from == "a" && path.to == "b";
    Ok(Stats::over(paths.iter().filter(asked), span))
}

/// A second from now.
fn next_second() -> Span {
    let now = clock::now();
    now..now + nanos(Duration::from_secs(1))
}

fn deleting_recovers_at_once_and_removes_the_object(bench: &Bench<'_>) -> Result<()> {
    let applied = bench.lab.apply(&document("deleted", "a", "b", PARTITION))?;
    bench.injected(&applied.name)?;
    let during = next_second();
    sleep_until(during.end);
    let took = bench.lab.delete(&applied.name)?;
    let after = next_second();
    note!("deleted after {:.1} s", took.as_secs_f64());
    ensure!(
        bench.lab.experiment(&applied.name)?.is_none(),
        "it is still there"
    );
    let (during, after) = (a_to_b(bench, &during)?, a_to_b(bench, &after)?);
    ensure!(
        during.refused == during.sent && during.sent > 10,
        "{during:?}"
    );
    ensure!(after.answered == after.sent && after.sent > 10, "{after:?}");
    let held = bench.lab.held()?;
    ensure!(held.is_empty(), "{held:?}");
    Ok(())
}

fn pausing_recovers_and_resuming_injects_the_same_pods(bench: &Bench<'_>) -> Result<()> {
    let one = format!(
        "apiVersion: chaos-mesh.org/v1alpha1\nkind: NetworkChaos\nmetadata:\n  name: paused\nspec:\n  \
         mode: one\n  selector:\n    namespaces: [{NAMESPACE}]\n    labelSelectors: {{app: peer}}\n{PARTITION}"
    );
    let name = bench.lab.apply(&one)?.name;
    let before = bench.injected(&name)?;
    let annotate = |value: &str| {
        let pause = format!("experiment.chaos-mesh.org/pause={value}");
        let words = ["annotate", "--overwrite", "networkchaos", &name, &pause];
        step::output(&mut bench.lab.kubectl(words))
    };
    annotate("true")?;
    let paused = bench.lab.wait_for_phase(&name, "Paused", PATIENCE)?;
    ensure!(condition(&paused, "Paused") == Some(true), "{paused:?}");
    ensure!(all_are(&paused, RecordPhase::NotInjected), "{paused:?}");
    let quiet = next_second();
    let quiet = Stats::over(&bench.lab.settled_paths(quiet.start, quiet.end)?, &quiet);
    ensure!(quiet.loss() == 0.0, "{quiet:?}");
    annotate("false")?;
    let again = bench.injected(&name)?;
    ensure!(condition(&again, "Paused") == Some(false), "{again:?}");
    ensure!(
        drawn(&again, ".") == drawn(&before, "."),
        "{before:?} {again:?}"
    );
    ensure!(
        again
            .experiment
            .container_records
            .iter()
            .all(|record| record.injected_count == 2),
        "{again:?}"
    );
    bench.lab.delete(&name).map(drop)
}

fn a_pod_that_is_deleted_in_mid_fault_counts_as_recovered(bench: &Bench<'_>) -> Result<()> {
    bench.lab.create(&[("victim", &[("app", "victim")])])?;
    let words = [
        "wait",
        "--for=condition=Ready",
        "--timeout=60s",
        "pod/victim",
    ];
    step::output(&mut bench.lab.kubectl(words))?;
    let rest = "  action: delay\n  delay: {latency: 50ms}\n";
    let name = bench
        .lab
        .apply(&document("bereft", "victim", "a", rest))?
        .name;
    bench.injected(&name)?;
    let words = ["delete", "pod", "victim", "--wait=false"];
    step::output(&mut bench.lab.kubectl(words))?;
    // With mode all the pods that are gone are not in the status any more.
    bench
        .lab
        .wait_for(&name, "the pod to be missed", PATIENCE, |status| {
            drawn(status, ".").is_empty()
        })?;
    let events = bench.lab.events(&name)?;
    ensure!(
        events.iter().any(|event| event.reason == "Recovered"),
        "{events:?}"
    );
    let started = Instant::now();
    bench.lab.delete(&name)?;
    ensure!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
    Ok(())
}

/// Datagrams that were refused, as first and last of each round: rounds are seconds apart.
fn rounds(mut refused: Vec<u64>) -> Vec<(u64, u64)> {
    refused.sort_unstable();
    let mut rounds: Vec<(u64, u64)> = Vec::new();
    for at in refused {
        match rounds.last_mut() {
            Some((_, last)) if at - *last < nanos(Duration::from_secs(1)) => *last = at,
            _ => rounds.push((at, at)),
        }
    }
    rounds
}

fn a_legacy_scheduler_repeats_its_rounds(bench: &Bench<'_>) -> Result<()> {
    const EVERY: Duration = Duration::from_secs(6);
    const LASTS: Duration = Duration::from_secs(3);
    let rest = "  action: partition\n  duration: 3s\n  scheduler: {cron: \"@every 6s\"}\n";
    let applied = bench.lab.apply(&document("rounds", "a", "b", rest))?;
    let created = bench.lab.deadline(&applied.name, Duration::ZERO)?;
    let status = bench
        .lab
        .wait_for(&applied.name, "the end of round 3", PATIENCE, |status| {
            let ours = ours(status);
            ours.round > Some(3)
                || ours.round == Some(3) && ours.phase.as_deref() == Some("Waiting")
        })?;
    let until = clock::now();
    ensure!(ours(&status).next_start.is_some(), "{status:?}");
    bench.lab.delete(&applied.name)?;
    let paths = bench.lab.settled_paths(applied.asked, until)?;
    let asked = paths
        .iter()
        .filter(|path| path.from == "a" && path.to == "b");
    let refused = asked
        .flat_map(|path| &path.samples)
        .filter(|sample| Sign::Refused.is_on(sample));
    let rounds = rounds(refused.map(|sample| sample.sent).collect());
    ensure!(rounds.len() >= 3, "{} rounds were seen", rounds.len());
    for (number, (first, last)) in (0..3).zip(&rounds) {
        let start = created + number * nanos(EVERY);
        let after = |at: u64| Duration::from_nanos(at.saturating_sub(start)).as_secs_f64();
        note!(
            "round {}: from {:.2} s to {:.2} s after its tick",
            number + 1,
            after(*first),
            after(*last)
        );
        // The first one comes late by the rest of the second in which the object was made.
        let begins_in_it = *first >= start && *first < start + nanos(LASTS);
        ensure!(
            begins_in_it && ended_in_time(*last, start + nanos(LASTS)).is_ok(),
            "round {} is not where its tick is",
            number + 1
        );
    }
    Ok(())
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn refusals_that_are_seconds_apart_are_of_different_rounds() {
        let second = nanos(Duration::from_secs(1));
        let at = [7 * second, 0, 7 * second + 1, second - 1];
        assert_eq!(
            rounds(at.to_vec()),
            [(0, second - 1), (7 * second, 7 * second + 1)]
        );
    }
}
