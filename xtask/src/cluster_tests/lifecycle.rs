//! Experiments from their start to their end: paused, deleted, repeated, and pods that go meanwhile.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use chaos_api::v1alpha1::RecordPhase;

use super::{
    bench::{Bench, NAMESPACE, NODE, document},
    tests,
};
use crate::{
    demo,
    lab::{
        Wanted,
        chaos::{HeldFault, PATIENCE, all_are, condition, drawn, ours},
        clock, nanos,
        samples::{Path, Sign, Span, Stats},
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
    an_operator_that_loses_the_lead_follows_and_leads_again,
    the_demonstration_goes_to_its_end,
];

/// `cargo xtask demo` is what a newcomer sees first.
fn the_demonstration_goes_to_its_end(bench: &Bench<'_>) -> Result<()> {
    demo::try_in(bench.lab.cluster(), bench.root)
}

const PARTITION: &str = "  action: partition\n";

/// How long a fault without a duration goes on by itself.
const LEASE: Duration = Duration::from_secs(30);

/// Two seconds from now: 80 datagrams on each path over both address families.
fn next_seconds() -> Span {
    let now = clock::now();
    now..now + nanos(Duration::from_secs(2))
}

fn deleting_recovers_at_once_and_removes_the_object(bench: &Bench<'_>) -> Result<()> {
    let applied = bench.lab.apply(&document("deleted", "a", "b", PARTITION))?;
    bench.injected(&applied.name)?;
    let during = next_seconds();
    sleep_until(during.end);
    let took = bench.lab.delete(&applied.name)?;
    let after = next_seconds();
    note!("deleted after {:.1} s", took.as_secs_f64());
    ensure!(
        bench.lab.experiment(&applied.name)?.is_none(),
        "it is still there"
    );
    let paths = bench.lab.settled_paths(during.start, after.end)?;
    let asked = |path: &&Path| path.from == "a" && path.to == "b";
    let of = |span| Stats::over(paths.iter().filter(asked), span);
    let (during, after) = (of(&during), of(&after));
    ensure!(
        during.refused == during.sent && during.sent > 10,
        "{during:?}"
    );
    ensure!(after.answered == after.sent && after.sent > 10, "{after:?}");
    let held = bench.lab.held()?;
    ensure!(held.is_empty(), "{held:?}");
    let armed = bench.lab.armed()?;
    ensure!(armed.is_empty(), "{armed:?}");
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
    let quiet = next_seconds();
    let quiet = Stats::over(&bench.lab.settled_paths(quiet.start, quiet.end)?, &quiet);
    ensure!(quiet.answered == quiet.sent && quiet.sent > 10, "{quiet:?}");
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
    let victim = Wanted::new("victim", &[("app", "victim")]);
    bench.lab.create(&[victim.on(NODE)])?;
    let words = [
        "wait",
        "--for=condition=Ready",
        "--timeout=180s",
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
    bench.lab.wait_for_event(&name, "Recovered", PATIENCE)?;
    let started = Instant::now();
    bench.lab.delete(&name)?;
    // Without the pod's kernel to ask, it would be the end of its lease.
    ensure!(started.elapsed() < LEASE / 2, "{:?}", started.elapsed());
    Ok(())
}

fn an_operator_that_loses_the_lead_follows_and_leads_again(bench: &Bench<'_>) -> Result<()> {
    let ask = |words: &[&str]| step::output(bench.lab.cluster().in_namespace().args(words));
    let restarts = || {
        let path = "jsonpath={.items[*].status.containerStatuses[*].restartCount}";
        let selector = "--selector=app.kubernetes.io/name=chaos-operator";
        ask(&["get", "pods", selector, "--output", path])
    };
    let holder = || {
        let path = "jsonpath={.spec.holderIdentity}";
        ask(&["get", "lease", "faultline-operator", "--output", path])
    };
    let name = bench.lab.apply(&document("led", "a", "b", PARTITION))?.name;
    bench.injected(&name)?;
    let (leader, before) = (holder()?, restarts()?);

    // Somebody takes the lead, and never renews it.
    let taken = format!(
        r#"{{"spec": {{"holderIdentity": "nobody", "renewTime": "{}"}}}}"#,
        jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ")
    );
    let patch = [
        "patch",
        "lease",
        "faultline-operator",
        "--type=merge",
        "--patch",
    ];
    ask(&[patch.as_slice(), &[taken.as_str()]].concat())?;
    step::eventually("the operator to lead again", PATIENCE, || {
        let now = holder()?;
        ensure!(now == leader, "{now:?} leads, not {leader:?}");
        Ok(())
    })?;
    let told = ask(&["logs", "deployment/chaos-operator", "--tail=200"])?;
    ensure!(
        told.contains("beginning anew"),
        "it never lost the lead: {told}"
    );
    ensure!(restarts()? == before, "its container was started anew");

    // What it had begun before has gone on, and ends when it is told to.
    let held = bench.lab.held()?;
    let goes_on = |one: &HeldFault| one.name == name && one.phase == "Injected";
    ensure!(held.iter().any(goes_on), "{held:?}");
    bench.lab.delete(&name)?;
    let held = bench.lab.held()?;
    ensure!(held.is_empty(), "{held:?}");
    Ok(())
}

/// Of these moments, those of each round, as the earliest and the latest by their distance from the
/// round's tick. A round may begin `slack` early.
fn rounds(
    at: impl Iterator<Item = u64>,
    first_tick: u64,
    every: Duration,
    slack: Duration,
) -> BTreeMap<u64, (Duration, Duration)> {
    let mut rounds = BTreeMap::new();
    for at in at {
        let since = (at + nanos(slack)).saturating_sub(first_tick);
        let from_tick = Duration::from_nanos(since % nanos(every));
        let (first, last) = rounds
            .entry(since / nanos(every) + 1)
            .or_insert((from_tick, from_tick));
        *first = from_tick.min(*first);
        *last = from_tick.max(*last);
    }
    rounds
}

fn a_legacy_scheduler_repeats_its_rounds(bench: &Bench<'_>) -> Result<()> {
    const EVERY: Duration = Duration::from_secs(8);
    const LASTS: Duration = Duration::from_secs(4);
    // The clocks of API server and node differ by milliseconds, and a message may come late.
    const EARLY: Duration = Duration::from_millis(500);
    const LATE: Duration = Duration::from_millis(1500);
    let rest = "  action: partition\n  duration: 4s\n  scheduler: {cron: \"@every 8s\"}\n";
    let applied = bench.lab.apply(&document("rounds", "a", "b", rest))?;
    let created = bench.lab.deadline(&applied.name, Duration::ZERO)?;
    let status = bench
        .lab
        .wait_for(&applied.name, "the end of round 3", PATIENCE, |status| {
            let ours = ours(status);
            ours.round > Some(3)
                || ours.round == Some(3) && ours.phase.as_deref() == Some("Waiting")
        })?;
    ensure!(ours(&status).next_start.is_some(), "{status:?}");
    bench.lab.delete(&applied.name)?;
    let until = next_seconds().end;
    let paths = bench.lab.settled_paths(applied.asked, until)?;
    let asked = paths
        .iter()
        .filter(|path| path.from == "a" && path.to == "b");
    let refused = asked
        .flat_map(|path| &path.samples)
        .filter(|sample| Sign::Refused.is_on(sample));
    let rounds = rounds(refused.map(|sample| sample.sent), created, EVERY, EARLY);
    for (number, (first, last)) in &rounds {
        let early = EARLY.as_secs_f64();
        note!(
            "round {number}: refused from {:.2} s to {:.2} s after its tick",
            first.as_secs_f64() - early,
            last.as_secs_f64() - early
        );
        // The first one comes late by the rest of the second in which the object was made.
        ensure!(
            *last <= EARLY + LASTS + LATE,
            "round {number} goes on between rounds"
        );
    }
    ensure!(
        (1..=3).all(|number| rounds.contains_key(&number)),
        "not all of three rounds: {rounds:?}"
    );
    Ok(())
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn a_moment_belongs_to_the_round_whose_tick_is_behind_it_or_almost_there() {
        let ms = Duration::from_millis;
        let at = [10_100, 10_000, 14_000, 17_600, 21_900].map(|at| nanos(ms(at)));
        let rounds = rounds(at.into_iter(), nanos(ms(10_000)), ms(8_000), ms(500));
        let expected = [(1, (ms(500), ms(4_500))), (2, (ms(100), ms(4_400)))];
        assert_eq!(rounds, BTreeMap::from(expected));
    }
}
