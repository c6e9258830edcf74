//! Agents that fail, refuse, go away; nodes that vanish.

use super::*;
use crate::phase::LONGEST_LEASE;

#[test]
fn an_agent_that_goes_away_changes_no_phase_but_is_named_after_ten_seconds() {
    let mut bench = Bench::new(PARTITION);
    bench.settle();
    bench.agents_report(Phase::Injected, "", 1);
    bench.look();
    bench.agent_leaves();
    bench.pass(9);
    bench.look();
    assert_eq!(bench.reason(), "");
    bench.pass(1);
    bench.look();
    bench.starts("Running 2/2");
    let reason = bench.reason();
    assert!(
        reason.starts_with("the agent of node n1 has been away since"),
        "{reason}"
    );
}

#[test]
fn an_agent_that_stays_away_is_clean_when_its_lease_has_run_out() {
    let mut bench = Bench::new(PARTITION);
    bench.settle();
    bench.agent_leaves();
    bench.ask_to_delete();
    assert_eq!(bench.look().finalizer, FinalizerAction::Keep);
    let bound = bench.now + LONGEST_LEASE;
    let again = bench.step.as_ref().unwrap().look_again_at;
    assert!(again.is_some_and(|at| at <= bound), "{again:?}");
    let reason = bench.reason();
    assert!(
        reason.contains("ends by itself at 2026-01-01T00:02:00Z"),
        "{reason}"
    );
    bench.pass(120);
    assert_eq!(bench.look().finalizer, FinalizerAction::Remove(None));
    let messages = bench.messages();
    assert!(messages[0].contains("has been away since"), "{messages:?}");
}

#[test]
fn what_was_never_sent_is_clean_at_once() {
    for inherited in [false, true] {
        let mut bench = Bench::new(&lasting("300s"));
        bench.view.inherited = inherited;
        bench.agent_leaves();
        bench.look();
        bench.starts("Injecting 0/2");
        bench.ask_to_delete();
        let step = bench.look();
        let at_once = step.look_again_at == Some(CREATED.parse().unwrap());
        let kept = step.finalizer == FinalizerAction::Keep;
        assert!(
            kept && at_once != inherited,
            "the set with it may yet be sent"
        );
        let expected = if inherited {
            FinalizerAction::Keep
        } else {
            FinalizerAction::Remove(None)
        };
        assert_eq!(bench.look().finalizer, expected, "inherited: {inherited}");
    }
}

#[test]
fn a_set_that_was_sent_the_moment_before_it_was_withdrawn_is_waited_for() {
    let mut bench = Bench::new(PARTITION);
    bench.agent_leaves();
    bench.look();
    bench.ask_to_delete();
    bench.look();
    bench.view.nodes.get_mut("n1").unwrap().sent = true;
    assert_eq!(bench.look().finalizer, FinalizerAction::Keep);
}

#[test]
fn a_pause_does_not_wait_for_what_was_never_sent() {
    let mut bench = Bench::new(PARTITION);
    bench.agent_leaves();
    bench.look();
    bench.annotate(ANNOTATION_PAUSE, PAUSED);
    bench.look();
    bench.look();
    bench.starts("Paused 0/2");
}

#[test]
fn a_fault_that_delays_for_long_has_a_longer_lease() {
    let mut bench = Bench::new(PARTITION);
    bench.settle();
    for seen in bench.view.faults.values_mut() {
        seen.fault.expires_in_ms = 300_000;
    }
    bench.look();
    bench.agent_leaves();
    bench.ask_to_delete();
    bench.pass(299);
    assert_eq!(bench.look().finalizer, FinalizerAction::Keep);
    bench.pass(1);
    assert_eq!(bench.look().finalizer, FinalizerAction::Remove(None));
}

#[test]
fn a_fault_with_a_deadline_is_clean_when_that_has_passed() {
    let mut bench = Bench::new(&lasting("300s"));
    bench.settle();
    bench.agent_leaves();
    bench.ask_to_delete();
    bench.pass(150);
    let step = bench.look();
    assert_eq!(
        step.finalizer,
        FinalizerAction::Keep,
        "the kernel goes on until then"
    );
    bench.pass(160);
    assert_eq!(bench.look().finalizer, FinalizerAction::Remove(None));
}

#[test]
fn a_round_whose_agent_is_away_is_clean_after_its_end() {
    let mut bench = Bench::with(ROUNDS, [web(1)]);
    bench.settle();
    bench.agent_leaves();
    bench.pass(10);
    bench.look();
    bench.starts("Recovering 1/1");
    bench.ask_to_delete();
    bench.pass(9);
    assert_eq!(bench.look().finalizer, FinalizerAction::Keep);
    bench.pass(1);
    assert_eq!(bench.look().finalizer, FinalizerAction::Remove(None));
}

#[test]
fn pods_and_nodes_that_are_gone_are_clean() {
    for node in [true, false] {
        let mut bench = Bench::new(PARTITION);
        bench.settle();
        bench.agent_leaves();
        bench.ask_to_delete();
        assert_eq!(bench.look().finalizer, FinalizerAction::Keep);
        if node {
            bench.cluster.remove_node("n1");
        } else {
            bench.cluster.remove_pod("shop", "web-1");
            bench.cluster.remove_pod("shop", "web-2");
        }
        assert_eq!(bench.look().finalizer, FinalizerAction::Remove(None));
        assert_eq!(bench.events(), "Recovered Recovered");
    }
}

#[test]
fn what_a_node_cannot_have_is_said_once_and_deleted_at_once() {
    let mut bench = Bench::new(PARTITION);
    bench.look();
    bench.agents_report(Phase::NotSupported, "too old", 0);
    bench.look();
    assert_eq!(bench.events(), "NotSupported NotSupported");
    assert_eq!(
        bench.shown(),
        "NotSupported 0/2 | Selected AllRecovered | .web-1=Not Injected .web-2=Not Injected"
    );
    assert_eq!(bench.reason(), "shop/web-1: too old");
    bench.look();
    assert_eq!(bench.events(), "");
    bench.ask_to_delete();
    bench.view.faults.clear();
    assert_eq!(bench.look().finalizer, FinalizerAction::Remove(None));
}

#[test]
fn what_only_some_pods_can_have_is_degraded() {
    let mut bench = Bench::new(PARTITION);
    bench.look();
    bench.agents_report(Phase::Injected, "", 1);
    let cannot = bench.view.faults.values_mut().next().unwrap();
    cannot.fault.phase = Phase::NotSupported.into();
    cannot.fault.reason = "it shares the node's network".to_owned();
    bench.look();
    bench.starts("Degraded 1/2 hits 2 | Selected |");
    assert_eq!(bench.reason(), "shop/web-1: it shares the node's network");
}

#[test]
fn a_failure_is_told_once_and_then_forgotten() {
    let mut bench = Bench::new(PARTITION);
    bench.look();
    bench.agents_report(Phase::Failed, "the map is full", 0);
    bench.look();
    assert_eq!(bench.events(), "Failed Failed");
    bench.starts("Failed 0/2");
    bench.look();
    assert_eq!(bench.events(), "");
    bench.agents_report(Phase::Injected, "", 0);
    bench.look();
    assert_eq!(bench.events(), "Applied Applied");
    let events = &bench.kept.records[0].events;
    assert_eq!(events.len(), 2);
    assert_eq!(events[0].message.as_deref(), Some("the map is full"));
}

#[test]
fn a_fault_that_the_kernel_has_lost_is_not_injected() {
    let mut bench = Bench::new(PARTITION);
    bench.settle();
    bench.view.faults.clear();
    bench.look();
    bench.starts("Injecting 0/2");
    bench.agents_report(Phase::Injected, "", 0);
    bench.look();
    bench.starts("Running 2/2");
}

#[test]
fn a_lapsed_lease_is_not_injected_but_an_end_in_time_is_no_loss() {
    let mut bench = Bench::new(PARTITION);
    bench.settle();
    bench.agents_report(Phase::Expired, "", 0);
    bench.look();
    bench.starts("Injecting 0/2");
    let mut bench = Bench::new(&lasting("10s"));
    bench.settle();
    bench.pass(9);
    bench.agents_report(Phase::Expired, "", 0);
    bench.look();
    bench.starts("Running 2/2");
}

#[test]
fn degraded_is_a_condition_with_its_reason() {
    let mut bench = Bench::new(PARTITION);
    bench.look();
    bench.agents_report(Phase::Injected, "only IPv4", 1);
    for seen in bench.view.faults.values_mut() {
        seen.fault.degraded = true;
    }
    bench.look();
    bench.starts("Degraded 2/2 hits 2 | Selected AllInjected Degraded |");
    assert_eq!(bench.reason(), "shop/web-1: only IPv4");
}

#[test]
fn with_very_many_records_only_what_differs_is_written_down() {
    let many = (1..=1200).map(|n| {
        let id = format!("shop/web-{n:04}");
        pod(&id).label("app", "web").ips(&["10.0.0.1"])
    });
    let mut bench = Bench::with(PARTITION, many);
    bench.settle();
    let step = bench.step.as_ref().unwrap();
    assert_eq!(step.notices.len(), 12, "one Applied per 100");
    let records = &step.status.experiment.container_records;
    assert!(records.iter().all(|record| record.events.is_empty()));
    assert!(bench.ours().records.is_empty());
    let size = serde_json::to_string(&step.status).unwrap().len();
    assert!(size < 250_000, "{size} bytes");
}
