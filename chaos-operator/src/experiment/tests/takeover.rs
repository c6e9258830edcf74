//! Operators that go on where another one was.

use super::*;

/// What the API server would give another operator.
fn taken_over(bench: &Bench) -> Kept {
    let status = bench.step.as_ref().unwrap().status.clone();
    let text = serde_json::to_string(&status).unwrap();
    let status = serde_json::from_str(&text).unwrap();
    Kept::load(
        &bench.chaos.uid().unwrap(),
        Some(&status),
        bench.chaos.lifecycle(),
        &bench.cluster,
        bench.now,
    )
}

#[test]
fn another_operator_goes_on_where_this_one_was() {
    let mut bench = Bench::new(ONE);
    bench.settle();
    bench.agents_report(Phase::Injected, "", 5);
    bench.look();
    let (before, faults) = (bench.shown(), bench.step.as_ref().unwrap().faults.clone());
    let heard = std::mem::take(&mut bench.view.faults);
    bench.view.nodes.clear();
    bench.kept = taken_over(&bench);
    bench.look();
    assert_eq!(bench.events(), "", "nothing has happened");
    assert_eq!(bench.step.as_ref().unwrap().faults, faults);
    assert_eq!(bench.shown(), before, "until the agent says otherwise");
    bench.view.faults = heard;
    let step = bench.look().clone();
    assert_eq!(bench.shown(), before);
    let written = bench.kept.written.as_ref();
    assert!(
        !must_write(written, &step.status, Timestamp::UNIX_EPOCH),
        "nothing is new"
    );
}

#[test]
fn another_operator_finishes_what_this_one_began_to_delete() {
    let mut bench = Bench::new(PARTITION);
    bench.settle();
    bench.ask_to_delete();
    bench.look();
    bench.kept = taken_over(&bench);
    bench.view.nodes.clear();
    assert_eq!(bench.look().finalizer, FinalizerAction::Keep);
    assert_eq!(bench.fault_count(), 0);
    bench.view = Bench::new(PARTITION).view;
    bench.agents_report(Phase::Recovering, "", 0);
    assert_eq!(bench.look().finalizer, FinalizerAction::Remove(None));
}

/// What is shown after each count; `None` is a restart of the operator, `true` a new arming.
fn hits_shown(bench: &mut Bench, story: &[(Option<u64>, bool)]) -> Vec<u64> {
    bench.settle();
    let mut shown = Vec::new();
    for (hits, again) in story {
        bench.pass(1);
        if *again {
            bench.armed.clear();
        }
        match hits {
            Some(hits) => bench.agents_report(Phase::Injected, "", *hits),
            None => {
                bench.kept = taken_over(bench);
                bench.view.faults.clear();
            }
        }
        bench.look();
        shown.push(bench.ours().hits.unwrap());
    }
    shown
}

#[test]
fn hits_are_counted_once_over_a_restart() {
    const RESTART: (Option<u64>, bool) = (None, false);
    let kernel = |hits| (Some(hits), false);
    let anew = |hits| (Some(hits), true);
    for (story, expected) in [
        (
            vec![kernel(5), RESTART, kernel(5), kernel(8)],
            vec![5, 5, 5, 8],
        ),
        (
            vec![kernel(5), RESTART, kernel(9), anew(1)],
            vec![5, 5, 9, 10],
        ),
        (
            vec![kernel(5), RESTART, anew(2), kernel(3)],
            vec![5, 5, 7, 8],
        ),
        (vec![kernel(5), RESTART, anew(6)], vec![5, 5, 11]),
        (
            vec![kernel(5), anew(2), RESTART, kernel(2), kernel(4), anew(1)],
            vec![5, 7, 7, 7, 9, 10],
        ),
        (
            vec![
                kernel(5),
                anew(2),
                RESTART,
                kernel(2),
                RESTART,
                kernel(2),
                kernel(3),
            ],
            vec![5, 7, 7, 7, 7, 7, 8],
        ),
    ] {
        let mut bench = Bench::new(ONE);
        assert_eq!(hits_shown(&mut bench, &story), expected, "{story:?}");
    }
}

#[test]
fn hits_of_very_many_records_are_counted_once_over_a_restart() {
    let many = (1..=1200).map(|n| {
        let id = format!("shop/web-{n:04}");
        pod(&id).label("app", "web").ips(&["10.0.0.1"])
    });
    let mut bench = Bench::with(PARTITION, many);
    let story = [
        (Some(1), false),
        (None, false),
        (Some(1), false),
        (Some(3), false),
    ];
    assert_eq!(hits_shown(&mut bench, &story), [1200, 1200, 1200, 3600]);
}

/// Deleted before its operator wrote a status, and met by another one that has no stream yet.
fn met_while_being_deleted(spec: &str) -> Bench {
    let mut bench = Bench::new(spec);
    bench.generation = 1;
    bench.view.inherited = true;
    bench.view.nodes.clear();
    bench.chaos.finalizers_mut().push(FINALIZER.to_owned());
    bench.ask_to_delete();
    bench
}

#[test]
fn what_an_operator_sent_and_did_not_write_down_is_asked_about_before_it_is_let_go() {
    let mut bench = met_while_being_deleted(PARTITION);
    assert_eq!(bench.look().finalizer, FinalizerAction::Keep);
    assert_eq!(bench.kept.nodes(), ["n1"], "its report wakes the task");
    assert!(
        bench
            .reason()
            .starts_with("waiting for the agent of node n1"),
        "{}",
        bench.reason()
    );
    bench.view = Bench::new(PARTITION).view;
    bench.view.inherited = true;
    assert_eq!(
        bench.look().finalizer,
        FinalizerAction::Keep,
        "it is connected, and has carried out nothing yet"
    );
    bench.agents_report(Phase::Recovering, "", 0);
    assert_eq!(bench.look().finalizer, FinalizerAction::Remove(None));
}

#[test]
fn an_agent_that_never_comes_is_waited_for_as_long_as_any_fault_can_last() {
    for (spec, seconds) in [(PARTITION.to_owned(), 120), (lasting("30s"), 40)] {
        let mut bench = met_while_being_deleted(&spec);
        assert_eq!(bench.look().finalizer, FinalizerAction::Keep);
        let end = bench.now + SignedDuration::from_secs(seconds);
        assert_eq!(bench.step.as_ref().unwrap().look_again_at, Some(end));
        bench.pass(seconds - 1);
        assert_eq!(bench.look().finalizer, FinalizerAction::Keep);
        bench.pass(1);
        assert_eq!(bench.look().finalizer, FinalizerAction::Remove(None));
    }
}

#[test]
fn a_node_that_cannot_have_anything_of_it_is_not_waited_for() {
    let mut bench = met_while_being_deleted(PARTITION);
    bench.cluster = cluster([pod("shop/db").label("app", "db"), web(1).on("n9")]);
    bench.cluster.remove_node("n9");
    assert_eq!(bench.look().finalizer, FinalizerAction::Remove(None));
}

#[test]
fn a_round_survives_its_operator() {
    let mut bench = Bench::with(ROUNDS, (1..=9).map(web));
    bench.pass(31);
    bench.settle();
    let (before, drawn) = (bench.shown(), bench.ids());
    bench.kept = taken_over(&bench);
    assert_eq!(bench.kept.round.map(|round| round.number), Some(3));
    bench.look();
    assert_eq!((bench.shown(), bench.ids()), (before, drawn));
}

#[test]
fn a_pause_across_a_tick_and_a_restart_draws_a_new_round() {
    for restart in [false, true] {
        let mut bench = Bench::with(ROUNDS, (1..=9).map(web));
        bench.settle();
        bench.annotate(ANNOTATION_PAUSE, PAUSED);
        bench.look();
        bench.agents_report(Phase::Recovering, "", 0);
        bench.pass(16);
        bench.look();
        if restart {
            bench.kept = taken_over(&bench);
            assert_eq!(bench.kept.drawn, Some(1));
        }
        bench.annotate(ANNOTATION_PAUSE, "false");
        bench.look();
        assert_eq!((bench.ours().round, bench.kept.drawn), (Some(2), Some(2)));
        let mut unpaused = Bench::with(ROUNDS, (1..=9).map(web));
        unpaused.pass(16);
        unpaused.look();
        assert_eq!(bench.ids(), unpaused.ids(), "restart: {restart}");
    }
}

#[test]
fn what_chaos_mesh_has_injected_is_not_ours() {
    let mut bench = Bench::new(PARTITION);
    bench.settle();
    let mut status = bench.step.as_ref().unwrap().status.clone();
    status.faultline = None;
    let lifecycle = bench.chaos.lifecycle();
    bench.kept = Kept::load("u", Some(&status), lifecycle, &bench.cluster, bench.now);
    bench.view.faults.clear();
    bench.look();
    bench.starts("Injecting 0/2");
    let messages = bench.messages();
    assert!(
        messages[0].contains("Chaos Mesh says it has injected it"),
        "{messages:?}"
    );
    assert_eq!(bench.fault_count(), 2, "the choice of pods stands");
}
