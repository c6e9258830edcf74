//! Pods that come, go and change.

use super::*;

#[test]
fn without_a_match_it_says_so_once_and_waits() {
    let mut bench = Bench::with(PARTITION, []);
    bench.look();
    assert_eq!(bench.events(), "Started Updated Failed");
    assert_eq!(bench.shown(), "Pending |  | ");
    let reason = bench.reason();
    assert!(
        reason.contains("no pod matches (namespaces: shop)"),
        "{reason}"
    );
    bench.look();
    assert_eq!(bench.events(), "");
    bench.cluster.put_pod(web(1).build());
    bench.look();
    assert_eq!(bench.events(), "Updated");
    assert_eq!(bench.ids(), ".web-1");
}

#[test]
fn one_side_without_a_match_is_no_experiment() {
    let spec = "{action: partition, mode: all, selector: {labelSelectors: {app: web}},
        target: {mode: all, selector: {labelSelectors: {app: db}}}}";
    let mut bench = Bench::new(spec);
    bench.look();
    assert_eq!(bench.fault_count(), 0);
    let reason = bench.reason();
    assert!(
        reason.starts_with("spec.target.selector: no pod matches"),
        "{reason}"
    );
}

#[test]
fn an_unknown_node_is_named() {
    let mut bench = Bench::new("{action: partition, mode: all, selector: {nodes: [n9]}}");
    bench.look();
    assert!(
        bench.reason().contains("n9: no node has this name"),
        "{}",
        bench.reason()
    );
}

#[test]
fn with_mode_all_pods_join_and_leave() {
    let mut bench = Bench::new(PARTITION);
    bench.settle();
    bench.cluster.put_pod(web(3).build());
    bench.settle();
    assert_eq!(bench.ids(), ".web-1 .web-2 .web-3");
    bench.starts("Running 3/3");
    bench.agents_report(Phase::Injected, "", 4);
    bench.look();
    bench.cluster.remove_pod("shop", "web-1");
    bench.look();
    assert_eq!(bench.ids(), ".web-2 .web-3");
    assert_eq!(bench.events(), "Recovered Updated");
    bench.starts("Running 2/2 hits 12");
}

#[test]
fn a_pod_that_has_ended_leaves() {
    let mut bench = Bench::new(PARTITION);
    bench.settle();
    bench.cluster.put_pod(web(1).phase("Failed").build());
    bench.look();
    assert_eq!(bench.ids(), ".web-2");
}

#[test]
fn a_drawn_set_stays_and_the_same_name_is_injected_again() {
    let spec =
        "{action: partition, mode: fixed, value: '2', selector: {labelSelectors: {app: web}}}";
    let mut bench = Bench::new(spec);
    bench.settle();
    bench.cluster.put_pod(web(3).build());
    bench.look();
    assert_eq!(bench.ids(), ".web-1 .web-2", "nobody joins");
    bench.cluster.remove_pod("shop", "web-1");
    bench.look();
    assert_eq!(
        bench.shown(),
        "Injecting 1/2 | Selected | .web-1=Not Injected .web-2=Injected"
    );
    assert_eq!(bench.events(), "Recovered");
    assert!(
        bench.reason().contains("the pod is gone"),
        "{}",
        bench.reason()
    );
    bench.cluster.put_pod(web(1).uid("another").build());
    bench.look();
    assert!(
        bench.shown().contains(".web-1=Not Injected/Wait"),
        "{}",
        bench.shown()
    );
    bench.agents_report(Phase::Injected, "", 0);
    bench.look();
    bench.starts("Running 2/2");
    let record = &bench.kept.records[0];
    assert_eq!((record.injected_count, record.recovered_count), (2, 1));
}

#[test]
fn a_pod_that_was_replaced_between_two_looks_is_injected_again() {
    let mut bench = Bench::with(ONE, [web(1)]);
    bench.settle();
    bench.pass(1);
    bench.cluster.put_pod(web(1).uid("another").build());
    bench.look();
    let shown = bench.shown();
    assert!(
        shown.ends_with(".web-1=Not Injected/Wait"),
        "old news: {shown}"
    );
    bench.agents_report(Phase::Injected, "", 0);
    bench.look();
    assert!(
        bench.shown().ends_with(".web-1=Injected"),
        "{}",
        bench.shown()
    );
}

#[test]
fn without_follow_the_set_is_frozen() {
    let spec = "{action: partition, mode: all, selector: {labelSelectors: {app: web}},
        faultline: {follow: false}}";
    let mut bench = Bench::new(spec);
    bench.settle();
    bench.cluster.put_pod(web(3).build());
    bench.cluster.put_pod(web(1).uid("another").build());
    bench.look();
    assert_eq!(bench.ids(), ".web-1 .web-2");
    assert_eq!(bench.fault_count(), 1);
    assert!(
        bench.shown().contains(".web-1=Not Injected "),
        "{}",
        bench.shown()
    );
    bench.look();
    assert_eq!(bench.fault_count(), 1, "for good");
}

#[test]
fn a_pod_joins_as_soon_as_it_has_a_node_and_an_address() {
    let mut bench = Bench::with(PARTITION, [web(1)]);
    bench.settle();
    let new = || pod("shop/web-2").label("app", "web");
    bench.cluster.put_pod(new().unscheduled().build());
    bench.look();
    assert_eq!(bench.fault_count(), 1);
    assert!(
        bench.reason().contains("not on a node yet"),
        "{}",
        bench.reason()
    );
    bench.cluster.put_pod(new().unstarted().build());
    bench.look();
    assert!(
        bench.reason().contains("not been started yet"),
        "{}",
        bench.reason()
    );
    bench.cluster.put_pod(web(2).build());
    bench.look();
    assert_eq!(bench.fault_count(), 2);
}

#[test]
fn targets_that_vanish_do_not_become_everybody() {
    let spec = "{action: partition, mode: one, selector: {pods: {shop: [web-1]}},
        target: {mode: one, selector: {pods: {shop: [web-2]}}}}";
    let mut bench = Bench::new(spec);
    bench.settle();
    assert_eq!(bench.fault_count(), 2);
    bench.cluster.remove_pod("shop", "web-2");
    bench.look();
    assert_eq!(bench.fault_count(), 0);
    bench.agents_report(Phase::Recovering, "", 0);
    bench.look();
    assert!(bench.shown().contains("AllRecovered"), "{}", bench.shown());
}

#[test]
fn pods_on_their_way_out_are_drawn_last() {
    let mut leaving = web(1).build();
    leaving.metadata.deletion_timestamp = Some(Time(CREATED.parse().unwrap()));
    for uid in ["a", "b", "c", "d", "e", "f"] {
        let mut bench = Bench::new(ONE);
        bench.chaos.metadata.uid = Some(uid.to_owned());
        bench.cluster.put_pod(leaving.clone());
        bench.look();
        assert_eq!(bench.ids(), ".web-2");
    }
}

#[test]
fn a_name_that_cannot_be_resolved_is_told_once_and_its_old_addresses_stay() {
    let spec = "{action: partition, mode: all, selector: {labelSelectors: {app: web}}, \
                externalTargets: [db.example]}";
    let mut bench = Bench::new(spec);
    let found = |addresses: &[&str], error: Option<&str>| {
        let found = crate::names::Found {
            addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
            error: error.map(str::to_owned),
        };
        Names([("db.example".to_owned(), found)].into())
    };
    let told = |step: &Step| {
        let failed = |notice: &&Notice| notice.message.contains("db.example");
        step.notices.iter().filter(failed).count()
    };
    bench.names = found(&[], Some("no such name"));
    let step = bench.look();
    assert_eq!((told(step), step.faults.len()), (1, 0));
    assert_eq!(told(bench.look()), 0, "once");
    bench.names = found(&["192.0.2.7"], None);
    let sent = bench.look().faults.clone();
    assert_eq!(sent["n1"].len(), 2);
    bench.names = found(&["192.0.2.7"], Some("no answer within 10 s"));
    let step = bench.look();
    assert_eq!((told(step), &step.faults), (1, &sent));
}
