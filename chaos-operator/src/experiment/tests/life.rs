//! From document to deletion.

use super::*;

#[test]
fn it_is_injected_when_the_kernel_says_so_and_not_before() {
    let mut bench = Bench::new(PARTITION);
    assert_eq!(bench.look().finalizer, FinalizerAction::Add);
    assert_eq!(bench.events(), "Started Updated Updated");
    assert_eq!(
        bench.shown(),
        "Injecting 0/2 | Selected | .web-1=Not Injected/Wait .web-2=Not Injected/Wait"
    );
    assert_eq!(bench.fault_count(), 2);
    bench.agents_report(Phase::Pending, "", 0);
    bench.look();
    bench.starts("Injecting 0/2");
    bench.agents_report(Phase::Injected, "", 0);
    bench.look();
    assert_eq!(
        bench.shown(),
        "Running 2/2 | Selected AllInjected | .web-1=Injected .web-2=Injected"
    );
    assert_eq!(bench.events(), "Applied Applied");
    bench.agents_report(Phase::Injected, "", 7);
    bench.look();
    bench.starts("Running 2/2 hits 14");
    assert_eq!(bench.events(), "");
}

#[test]
fn it_is_gone_when_the_kernel_says_so_and_not_before() {
    let mut bench = Bench::new(PARTITION);
    bench.settle();
    bench.ask_to_delete();
    bench.look();
    assert_eq!(bench.events(), "Deleted Updated");
    assert_eq!(bench.fault_count(), 0);
    bench.starts("Deleting 2/2");
    bench.view.faults.clear();
    let step = bench.look();
    assert_eq!(
        step.finalizer,
        FinalizerAction::Keep,
        "that set was an older one"
    );
    bench.agents_report(Phase::Recovering, "", 0);
    assert_eq!(bench.look().finalizer, FinalizerAction::Remove(None));
    assert_eq!(bench.events(), "Recovered Recovered");
}

#[test]
fn what_an_agent_still_holds_keeps_the_finalizer() {
    let mut bench = Bench::new(PARTITION);
    bench.settle();
    let held = bench.view.faults.clone();
    bench.ask_to_delete();
    bench.look();
    bench.agents_report(Phase::Recovering, "", 0);
    bench.view.faults = held;
    assert_eq!(bench.look().finalizer, FinalizerAction::Keep);
    bench.view.faults.clear();
    assert_eq!(bench.look().finalizer, FinalizerAction::Remove(None));
}

#[test]
fn a_deleted_one_that_was_never_injected_goes_at_once() {
    let mut bench = Bench::with(PARTITION, []);
    bench.chaos.finalizers_mut().push(FINALIZER.to_owned());
    bench.look();
    bench.ask_to_delete();
    assert_eq!(bench.look().finalizer, FinalizerAction::Remove(None));
}

#[test]
fn a_finalizer_that_is_torn_off_is_wanted_again() {
    let mut bench = Bench::new(PARTITION);
    bench.settle();
    assert_eq!(bench.look().finalizer, FinalizerAction::Keep);
    bench.chaos.finalizers_mut().clear();
    assert_eq!(bench.look().finalizer, FinalizerAction::Add);
    assert_eq!(bench.look().finalizer, FinalizerAction::Keep);
}

#[test]
fn a_bad_document_is_answered_once_and_gets_nothing() {
    let mut bench = Bench::new(
        "{action: delay, mode: fixed, value: '0', selector: {}, delay: {latency: 1s},
          faultline: {exemptProbes: true}}",
    );
    bench.look();
    assert_eq!(bench.events(), "Failed Failed");
    let messages = bench.messages();
    assert!(messages[0].starts_with("spec.value: 0: "), "{messages:?}");
    assert_eq!(bench.shown(), "Failed |  | ");
    assert_eq!(bench.reason(), messages[0]);
    let step = bench.look();
    assert_eq!(step.finalizer, FinalizerAction::Keep);
    assert!(step.faults.is_empty() && step.notices.is_empty());
}

#[test]
fn a_document_that_becomes_bad_is_recovered() {
    let mut bench = Bench::new(PARTITION);
    bench.settle();
    bench.chaos.spec.source.mode = chaos_api::v1alpha1::Mode::Fixed;
    bench.look();
    assert_eq!(bench.fault_count(), 0);
    bench.agents_report(Phase::Recovering, "", 0);
    bench.look();
    bench.starts("Failed 0/2");
    assert!(
        bench
            .shown()
            .ends_with(".web-1=Not Injected .web-2=Not Injected")
    );
}

#[test]
fn a_duration_ends_and_says_how_much_is_left() {
    let mut bench = Bench::new(&lasting("30s"));
    bench.settle();
    bench.pass(10);
    let step = bench.look();
    let end: Timestamp = "2026-01-01T00:00:30Z".parse().unwrap();
    assert_eq!(step.ends_at, Some(end));
    let ours = bench.ours();
    assert_eq!(ours.time_left.as_deref(), Some("20s"));
    assert_eq!(ours.next_recover, Some(end.into()));
    bench.pass(20);
    bench.look();
    assert_eq!(bench.events(), "TimeUp Updated");
    bench.starts("Recovering 2/2");
    bench.agents_report(Phase::Recovering, "", 0);
    bench.look();
    assert_eq!(
        bench.shown(),
        "Finished 0/2 | Selected AllRecovered | .web-1=Not Injected .web-2=Not Injected"
    );
    let step = bench.look();
    assert!(step.look_again_at.is_none() && step.notices.is_empty());
}

#[test]
fn it_looks_again_when_its_time_is_over() {
    let mut bench = Bench::new(&lasting("7s"));
    let at = bench.settle().look_again_at;
    assert_eq!(at, Some("2026-01-01T00:00:07Z".parse().unwrap()));
}

#[test]
fn pausing_recovers_and_going_on_injects_the_same_pods() {
    let mut bench = Bench::new(ONE);
    bench.settle();
    let before = bench.shown();
    bench.annotate(ANNOTATION_PAUSE, PAUSED);
    bench.look();
    assert_eq!(bench.events(), "Paused Updated");
    bench.agents_report(Phase::Recovering, "", 0);
    bench.look();
    bench.starts("Paused 0/1 | Selected AllRecovered Paused |");
    bench.annotate(ANNOTATION_PAUSE, "false");
    bench.settle();
    assert_eq!(bench.shown(), before);
    let record = &bench.kept.records[0];
    assert_eq!((record.injected_count, record.recovered_count), (2, 1));
}

#[test]
fn going_on_before_the_pause_was_carried_out_counts_both() {
    let mut bench = Bench::new(ONE);
    bench.settle();
    bench.annotate(ANNOTATION_PAUSE, PAUSED);
    bench.look();
    bench.starts("Recovering 1/1");
    bench.annotate(ANNOTATION_PAUSE, "false");
    bench.look();
    bench.starts("Injecting 0/1");
    bench.agents_report(Phase::Injected, "", 0);
    bench.look();
    bench.starts("Running 1/1");
    let record = &bench.kept.records[0];
    assert_eq!((record.injected_count, record.recovered_count), (2, 1));
}

#[test]
fn hits_of_earlier_times_are_not_forgotten() {
    let mut bench = Bench::new(ONE);
    bench.settle();
    bench.agents_report(Phase::Injected, "", 5);
    bench.annotate(ANNOTATION_PAUSE, PAUSED);
    bench.look();
    bench.agents_report(Phase::Recovering, "", 0);
    bench.look();
    bench.annotate(ANNOTATION_PAUSE, "false");
    bench.settle();
    bench.agents_report(Phase::Injected, "", 2);
    bench.look();
    bench.starts("Running 1/1 hits 7");
}

#[test]
fn without_a_hit_for_ten_seconds_it_has_no_effect_until_the_first() {
    let mut bench = Bench::new(PARTITION);
    bench.settle();
    let at = bench.look().look_again_at;
    assert_eq!(at, Some("2026-01-01T00:00:10Z".parse().unwrap()));
    bench.pass(9);
    bench.agents_report(Phase::Injected, "", 0);
    bench.look();
    bench.starts("Running");
    bench.pass(1);
    bench.agents_report(Phase::Injected, "", 0);
    bench.look();
    bench.starts("NoEffect 2/2 | Selected AllInjected NoEffect |");
    assert!(
        bench.reason().contains("no packet has matched"),
        "{}",
        bench.reason()
    );
    bench.agents_report(Phase::Injected, "", 1);
    bench.look();
    bench.starts("Running 2/2 hits 2 | Selected AllInjected |");
    let status = &bench.step.as_ref().unwrap().status;
    let gone = status
        .conditions
        .iter()
        .find(|one| one.r#type == "NoEffect")
        .unwrap();
    assert_eq!(gone.status, "False", "its end is worth reading");
}

#[test]
fn a_source_that_is_its_own_only_target_has_no_effect_at_once() {
    let spec = "{action: partition, mode: all, selector: {labelSelectors: {app: web}},
        target: {mode: all, selector: {labelSelectors: {app: web}}}}";
    let mut bench = Bench::with(spec, [web(1)]);
    bench.look();
    assert_eq!(bench.fault_count(), 0);
    bench.starts("NoEffect 2/2 | Selected AllInjected NoEffect |");
    assert!(
        bench.reason().contains("its own only peer"),
        "{}",
        bench.reason()
    );
    bench.ask_to_delete();
    bench.chaos.finalizers_mut().push(FINALIZER.to_owned());
    assert_eq!(bench.look().finalizer, FinalizerAction::Remove(None));
}

#[test]
fn a_side_with_nothing_to_do_is_injected_directly() {
    let spec = "{action: delay, mode: all, selector: {pods: {shop: [web-1]}}, delay: {latency: 1s},
        target: {mode: all, selector: {pods: {shop: [web-2]}}}}";
    let mut bench = Bench::new(spec);
    bench.look();
    assert_eq!(bench.fault_count(), 1);
    let shown = bench.shown();
    assert!(
        shown.ends_with(".web-1=Not Injected/Wait .Targetweb-2=Injected"),
        "{shown}"
    );
}

#[test]
fn rounds_draw_wait_and_draw_again() {
    let mut bench = Bench::with(ROUNDS, (1..=9).map(web));
    let mut drawn = std::collections::BTreeSet::new();
    for round in 1..=6_u64 {
        bench.settle();
        let ours = bench.ours();
        assert_eq!(ours.round, Some(round));
        assert_eq!(ours.time_left.as_deref(), Some("10s"));
        bench.starts("Running 1/1");
        drawn.insert(bench.kept.records[0].id.clone());
        bench.agents_report(Phase::Injected, "", 1);
        bench.pass(10);
        bench.look();
        bench.agents_report(Phase::Recovering, "", 0);
        bench.look();
        bench.starts("Waiting 0/1");
        let ours = bench.ours();
        assert_eq!(ours.hits, Some(round), "over all rounds");
        let next = bench.now + SignedDuration::from_secs(5);
        assert_eq!((ours.next_start, ours.time_left), (Some(next.into()), None));
        bench.pass(5);
    }
    assert!(drawn.len() > 2, "{drawn:?}");
}

#[test]
fn rounds_back_to_back_recover_what_they_leave() {
    let spec = ROUNDS.replace("15s", "10s");
    let mut bench = Bench::with(&spec, (1..=9).map(web));
    bench.settle();
    for _ in 0..3 {
        let before = bench.kept.records[0].id.clone();
        bench.agents_report(Phase::Injected, "", 1);
        bench.pass(10);
        bench.look();
        assert_eq!(bench.fault_count(), 1, "only that of the new round");
        assert_eq!(
            bench.kept.leaving.len(),
            1,
            "until its agent says that it is gone"
        );
        assert!(!bench.events().contains("Recovered"));
        bench.agents_report(Phase::Injected, "", 0);
        bench.look();
        let recovered = format!("Successfully recover chaos for {before}");
        assert!(
            bench.messages().contains(&recovered),
            "{:?}",
            bench.messages()
        );
        assert!(bench.kept.leaving.is_empty());
    }
    bench.starts("Running 1/1 hits 3");
}

#[test]
fn what_a_round_has_left_keeps_the_finalizer() {
    let spec = ROUNDS.replace("15s", "10s");
    let mut bench = Bench::with(&spec, [web(1)]);
    bench.settle();
    bench.agent_leaves();
    bench.pass(10);
    let no_match = web(1).label("app", "other").build();
    bench.cluster.put_pod(no_match);
    bench.look();
    bench.starts("Pending |");
    bench.ask_to_delete();
    assert_eq!(bench.look().finalizer, FinalizerAction::Keep);
    bench.pass(9);
    assert_eq!(bench.look().finalizer, FinalizerAction::Keep);
    bench.pass(1);
    assert_eq!(bench.look().finalizer, FinalizerAction::Remove(None));
}

#[test]
fn a_round_that_passes_in_a_pause_is_not_begun() {
    let mut bench = Bench::with(ROUNDS, (1..=9).map(web));
    bench.settle();
    bench.annotate(ANNOTATION_PAUSE, PAUSED);
    bench.look();
    bench.agents_report(Phase::Recovering, "", 0);
    bench.pass(16);
    bench.look();
    assert_eq!(bench.ours().round, Some(1));
    bench.annotate(ANNOTATION_PAUSE, "false");
    bench.look();
    assert_eq!((bench.ours().round, bench.kept.drawn), (Some(2), Some(2)));
}

#[test]
fn the_same_seed_draws_the_same_pods_again() {
    let spec =
        "{action: partition, mode: fixed, value: '3', selector: {labelSelectors: {app: web}},
        faultline: {sample: {seed: 42}}}";
    let draw = |uid: &str| {
        let mut bench = Bench::with(spec, (1..=9).map(web));
        bench.chaos.metadata.uid = Some(uid.to_owned());
        bench.look();
        let ids: Vec<String> = bench.kept.records.iter().map(|r| r.id.clone()).collect();
        (ids, bench.kept.seed)
    };
    assert_eq!(draw("a"), draw("b"));
    assert_eq!(draw("a").1, Some(42));
}

#[test]
fn forced_cleanup_does_not_wait() {
    let mut bench = Bench::new(PARTITION);
    bench.settle();
    bench.agent_leaves();
    bench.ask_to_delete();
    assert_eq!(bench.look().finalizer, FinalizerAction::Keep);
    bench.annotate(ANNOTATION_CLEAN_FINALIZER, CLEAN_FORCED);
    let step = bench.look();
    assert!(matches!(step.finalizer, FinalizerAction::Remove(Some(_))));
    assert_eq!(bench.fault_count(), 0);
}
