use std::collections::BTreeSet;

use super::*;
use crate::fixtures::{cluster, node, pod};

fn selector(yaml: &str) -> PodSelectorSpec {
    serde_norway::from_str(yaml).unwrap()
}

fn shop() -> Cluster {
    let mut cluster = cluster([
        pod("shop/web-0")
            .label("app", "web")
            .label("tier", "front")
            .on("n1"),
        pod("shop/web-1")
            .label("app", "web")
            .on("n2")
            .annotation("team", "blue"),
        pod("shop/db-0")
            .label("app", "db")
            .on("n2")
            .ips(&["10.0.0.9"]),
        pod("shop/job-0")
            .label("app", "web")
            .on("n1")
            .phase("Succeeded"),
        pod("shop/new-0").label("app", "web").unscheduled(),
        pod("bank/web-0").label("app", "web").on("n3"),
    ]);
    cluster.put_node(node("n1").label("zone", "a").build());
    cluster.put_node(node("n2").label("zone", "b").build());
    cluster.put_node(node("n3").label("zone", "b").build());
    cluster
}

#[track_caller]
fn check(yaml: &str, expected: &str) {
    let cluster = shop();
    let chosen: Vec<String> = select(&selector(yaml), "spec.selector", &cluster)
        .unwrap()
        .into_iter()
        .map(|pod| crate::cluster::pod_id(pod))
        .collect();
    assert_eq!(chosen.join(" "), expected, "{yaml}");
}

#[test]
fn all_filters_must_agree() {
    check(
        "{namespaces: [shop]}",
        "shop/db-0 shop/new-0 shop/web-0 shop/web-1",
    );
    check(
        "{namespaces: [shop, bank, shop]}",
        "bank/web-0 shop/db-0 shop/new-0 shop/web-0 shop/web-1",
    );
    check("{namespaces: [nowhere]}", "");
    check(
        "{namespaces: [shop], labelSelectors: {app: web}}",
        "shop/new-0 shop/web-0 shop/web-1",
    );
    check(
        "{namespaces: [shop], labelSelectors: {app: web, tier: front}}",
        "shop/web-0",
    );
    check(
        "{namespaces: [shop], annotationSelectors: {team: blue}}",
        "shop/web-1",
    );
    check("{namespaces: [shop], annotationSelectors: {team: blu}}", "");
    check(
        "{namespaces: [shop], labelSelectors: {app: db}, annotationSelectors: {team: blue}}",
        "",
    );
}

#[test]
fn expressions_are_those_of_kubernetes() {
    for (expression, expected) in [
        ("{key: app, operator: In, values: [db, x]}", "shop/db-0"),
        ("{key: app, operator: NotIn, values: [web]}", "shop/db-0"),
        ("{key: tier, operator: Exists}", "shop/web-0"),
        (
            "{key: tier, operator: DoesNotExist}",
            "shop/db-0 shop/new-0 shop/web-1",
        ),
        (
            "{key: tier, operator: NotIn, values: [front]}",
            "shop/db-0 shop/new-0 shop/web-1",
        ),
        ("{key: app, operator: Like, values: [web]}", ""),
    ] {
        check(
            &format!("{{namespaces: [shop], expressionSelectors: [{expression}]}}"),
            expected,
        );
    }
}

#[test]
fn fields_are_those_that_the_api_server_knows() {
    for (field, expected) in [
        ("{metadata.name: web-1}", "shop/web-1"),
        ("{spec.nodeName: n2}", "shop/db-0 shop/web-1"),
        ("{status.podIP: 10.0.0.9}", "shop/db-0"),
        ("{status.phase: Running, metadata.name: db-0}", "shop/db-0"),
        ("{spec.hostname: x}", ""),
    ] {
        check(
            &format!("{{namespaces: [shop], fieldSelectors: {field}}}"),
            expected,
        );
    }
}

#[test]
fn nodes_and_node_selectors_are_a_union() {
    check("{namespaces: [shop], nodes: [n1]}", "shop/web-0");
    check(
        "{namespaces: [shop], nodeSelectors: {zone: b}}",
        "shop/db-0 shop/web-1",
    );
    check(
        "{namespaces: [shop], nodes: [n1], nodeSelectors: {zone: b}}",
        "shop/db-0 shop/web-0 shop/web-1",
    );
    check("{namespaces: [shop], nodeSelectors: {zone: c}}", "");
}

#[test]
fn an_unknown_node_is_named() {
    let (selector, cluster) = (selector("{namespaces: [shop], nodes: [n9]}"), shop());
    let error = select(&selector, "spec.selector", &cluster).unwrap_err();
    assert_eq!(
        error.to_string(),
        "spec.selector.nodes: n9: no node has this name; see kubectl get nodes"
    );
}

#[test]
fn a_list_of_pods_stands_alone_and_skips_the_missing() {
    check(
        "{pods: {shop: [web-1, gone, db-0], bank: [web-0]}, labelSelectors: {app: db}}",
        "bank/web-0 shop/db-0 shop/web-1",
    );
    check("{pods: {shop: [job-0]}}", "");
}

#[test]
fn phases_are_a_union_and_an_exclamation_mark_excludes() {
    for (phases, expected) in [
        ("[Running]", "shop/db-0 shop/web-0 shop/web-1"),
        ("[Pending]", "shop/new-0"),
        (
            "[Running, Pending]",
            "shop/db-0 shop/new-0 shop/web-0 shop/web-1",
        ),
        ("['!Pending']", "shop/db-0 shop/web-0 shop/web-1"),
        ("['!Running', '!Pending']", ""),
        ("[Running, '!Running']", ""),
        ("[Succeeded]", "shop/job-0"),
    ] {
        check(
            &format!("{{namespaces: [shop], podPhaseSelectors: {phases}}}"),
            expected,
        );
    }
}

#[test]
fn completed_pods_are_not_selected_unless_their_phase_is_named() {
    check(
        "{namespaces: [shop], labelSelectors: {app: web}}",
        "shop/new-0 shop/web-0 shop/web-1",
    );
}

#[test]
fn with_the_namespace_filter_others_are_skipped_silently() {
    let mut cluster = shop();
    cluster.set_enabled_namespaces(Some(BTreeSet::from(["bank".to_owned()])));
    let both = selector("{namespaces: [shop, bank]}");
    assert_eq!(select(&both, "", &cluster).unwrap().len(), 1);
    let list = selector("{pods: {shop: [web-0], bank: [web-0]}}");
    assert_eq!(select(&list, "", &cluster).unwrap().len(), 1);
}
