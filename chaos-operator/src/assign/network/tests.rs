use chaos_proto::agent::Mode;
use proptest::prelude::*;

use super::*;
use crate::cluster::Cluster;
use crate::fixtures::{PodBuilder, UID, cluster, network_chaos, pod};
use crate::names::Found;

/// `a` to `d` on two nodes, the addresses 10.0.0.1 to 4.
fn four() -> Cluster {
    cluster(["a", "b", "c", "d"].iter().zip(1..).map(|(name, n)| {
        pod(&format!("shop/{name}"))
            .ips(&[&format!("10.0.0.{n}")])
            .on(if n < 3 { "n1" } else { "n2" })
    }))
}

/// Records written `a b > c d`: sources, then targets.
fn records(text: &str) -> Vec<(String, String)> {
    let (sources, targets) = text.split_once('>').unwrap_or((text, ""));
    let side = |key: &'static str, names: &str| {
        names
            .split_whitespace()
            .map(|name| (key.to_owned(), format!("shop/{name}")))
            .collect::<Vec<_>>()
    };
    let mut records = side(".", sources);
    records.extend(side(".Target", targets));
    records
}

/// `db` is known, `nowhere` is not.
fn names() -> Names {
    let found = Found {
        addresses: ["192.0.2.7".parse().unwrap(), "fd07::7".parse().unwrap()].into(),
        error: None,
    };
    Names([("db".to_owned(), found)].into())
}

fn assigned(spec: &str, pairs: &str, cluster: &Cluster) -> Vec<Assigned> {
    let chaos = network_chaos(spec);
    let records = records(pairs);
    let request = Request {
        uid: UID,
        namespace: "shop",
        name: "web",
        round: 3,
        records: &records,
        cluster,
        names: &names(),
    };
    assign(&chaos, &request)
}

/// One word per record: `a:egress{10.0.0.3}`, `c:nothing`.
fn shown(assigned: &[Assigned]) -> String {
    let words: Vec<String> = assigned
        .iter()
        .map(|one| {
            let name = one.id.trim_start_matches("shop/");
            let side = if one.selector_key == "." { "" } else { "'" };
            let share = match &one.share {
                Share::Nothing => "nothing".to_owned(),
                Share::NoEffect(_) => "no-effect".to_owned(),
                Share::Waiting(_) => "waiting".to_owned(),
                Share::Gone => "gone".to_owned(),
                Share::Fault { fault, .. } => {
                    let Some(Effect::Network(effect)) = &fault.effect else {
                        return "none".to_owned();
                    };
                    let ways = match (effect.egress, effect.ingress) {
                        (true, true) => "both",
                        (true, false) => "egress",
                        (false, true) => "ingress",
                        (false, false) => "neither",
                    };
                    let peers = if effect.all_peers {
                        "*".to_owned()
                    } else {
                        effect
                            .peers
                            .iter()
                            .map(shown_peer)
                            .collect::<Vec<_>>()
                            .join(",")
                    };
                    format!("{ways}{{{peers}}}")
                }
            };
            format!("{name}{side}:{share}")
        })
        .collect();
    words.join(" ")
}

/// Of an address of our pods the last part; else all of it.
fn shown_peer(peer: &Peer) -> String {
    let net = peer.net.strip_prefix("10.0.0.").unwrap_or(&peer.net);
    match peer.port {
        0 => net.to_owned(),
        port => format!("{net}:{port}"),
    }
}

#[track_caller]
fn check(action: &str, direction: &str, pairs: &str, expected: &str) {
    let blocks = match action {
        "delay" => ", delay: {latency: 100ms}",
        "loss" => ", loss: {loss: '30'}",
        _ => "",
    };
    let target = if pairs.contains('>') {
        ", target: {mode: all, selector: {}}"
    } else {
        ""
    };
    let spec = format!(
        "{{action: {action}, mode: all, selector: {{}}, direction: {direction}{target}{blocks}}}"
    );
    let result = shown(&assigned(&spec, pairs, &four()));
    assert_eq!(result, expected, "{action} {direction} {pairs}");
}

#[test]
fn partition_drops_at_both_ends() {
    check("partition", "to", "a > c", "a:egress{3} c':ingress{1}");
    check("partition", "from", "a > c", "a:ingress{3} c':egress{1}");
    check("partition", "both", "a > c", "a:both{3} c':both{1}");
    check(
        "partition",
        "to",
        "a b > c d",
        "a:egress{3,4} b:egress{3,4} c':ingress{1,2} d':ingress{1,2}",
    );
}

#[test]
fn external_targets_are_peers_of_the_sources() {
    let of = |external: &str, target: &str, pairs: &str| {
        let spec = format!(
            "{{action: partition, mode: all, selector: {{}}, direction: both, {target} \
             externalTargets: [{external}]}}"
        );
        shown(&assigned(&spec, pairs, &four()))
    };
    let target = "target: {mode: all, selector: {}},";
    assert_eq!(
        of("'192.0.2.0/24:80', db", "", "a"),
        "a:both{192.0.2.0/24:80,192.0.2.7,fd07::7}"
    );
    assert_eq!(
        of("'db:5432'", target, "a > c"),
        "a:both{3,192.0.2.7:5432,fd07::7:5432} c':both{1}"
    );
    // One that is not resolved is left out; when nothing else is left, it is waited for.
    assert_eq!(of("nowhere, db", "", "a"), "a:both{192.0.2.7,fd07::7}");
    assert_eq!(of("nowhere", "", "a"), "a:waiting");
    // A target that is empty, or the source itself, is no peer; those outside still are.
    assert_eq!(of("db", target, "a >"), "a:both{192.0.2.7,fd07::7}");
    assert_eq!(
        of("db", target, "a > a"),
        "a:both{192.0.2.7,fd07::7} a':no-effect"
    );
}

#[test]
fn what_comes_from_outside_is_shaped_where_it_arrives() {
    let of = |direction: &str, target: &str, pairs: &str| {
        let spec = format!(
            "{{action: delay, delay: {{latency: 100ms}}, mode: all, selector: {{}}, \
             direction: {direction}, {target} externalTargets: [192.0.2.9]}}"
        );
        shown(&assigned(&spec, pairs, &four()))
    };
    let target = "target: {mode: all, selector: {}},";
    for (direction, target, pairs, expected) in [
        ("from", "", "a", "a:ingress{192.0.2.9}"),
        ("both", "", "a", "a:both{192.0.2.9}"),
        // Each packet once: between the pods where it is sent, or else by the targets alone.
        ("to", target, "a > c", "a:egress{3,192.0.2.9} c':nothing"),
        ("from", target, "a > c", "a:ingress{192.0.2.9} c':egress{1}"),
        ("both", target, "a > c", "a:both{192.0.2.9} c':both{1}"),
        (
            "both",
            target,
            "a b > a b c",
            "a:both{192.0.2.9} b:both{192.0.2.9} a':both{2} b':nothing c':both{1,2}",
        ),
        (
            "from",
            target,
            "a b > a b",
            "a:ingress{192.0.2.9} b:ingress{192.0.2.9} a':egress{2} b':egress{1}",
        ),
        ("both", target, "a >", "a:both{192.0.2.9}"),
    ] {
        assert_eq!(
            of(direction, target, pairs),
            expected,
            "{direction} {pairs}"
        );
    }
}

#[test]
fn without_a_target_all_packets_are_meant() {
    check("partition", "to", "a b", "a:egress{*} b:egress{*}");
    check("partition", "from", "a", "a:ingress{*}");
    check("partition", "both", "a", "a:both{*}");
    check("delay", "to", "a", "a:egress{*}");
    check("delay", "from", "a", "a:ingress{*}");
    check("delay", "both", "a", "a:both{*}");
}

#[test]
fn shaping_happens_where_the_packet_is_sent_once() {
    for action in ["delay", "loss"] {
        check(action, "to", "a > c", "a:egress{3} c':nothing");
        check(action, "from", "a > c", "a:nothing c':egress{1}");
        check(action, "both", "a > c", "a:egress{3} c':egress{1}");
    }
}

#[test]
fn a_pod_on_both_sides_does_not_meet_itself() {
    check(
        "partition",
        "to",
        "a b > a b",
        "a:egress{2} b:egress{1} a':ingress{2} b':ingress{1}",
    );
    check(
        "delay",
        "to",
        "a b > a b",
        "a:egress{2} b:egress{1} a':nothing b':nothing",
    );
}

#[test]
fn a_pod_on_both_sides_does_not_delay_a_packet_twice() {
    check(
        "delay",
        "both",
        "a b > a b",
        "a:egress{2} b:egress{1} a':nothing b':nothing",
    );
    check(
        "delay",
        "both",
        "a c > a b",
        "a:egress{2} c:egress{1,2} a':egress{3} b':egress{1,3}",
    );
}

#[test]
fn a_source_that_is_its_own_only_target_has_no_effect() {
    check("partition", "both", "a > a", "a:no-effect a':no-effect");
    check("delay", "to", "a > a", "a:no-effect a':nothing");
}

#[test]
fn a_target_without_any_pod_is_not_everybody() {
    let spec = "{action: partition, mode: all, selector: {}, target: {mode: all, selector: {}}}";
    assert_eq!(shown(&assigned(spec, "a >", &four())), "a:waiting");
    let gone = assigned(spec, "a > x", &four());
    assert_eq!(shown(&gone), "a:waiting x':gone");
}

#[test]
fn pods_that_cannot_have_it_yet_or_any_more_wait_or_are_gone() {
    let cluster = cluster([
        pod("shop/a").ips(&["10.0.0.1"]),
        pod("shop/b").unscheduled(),
        pod("shop/c").unstarted(),
        pod("shop/d").phase("Failed").ips(&["10.0.0.4"]),
    ]);
    let all = "{action: partition, mode: all, selector: {}}";
    assert_eq!(
        shown(&assigned(all, "a b c d e", &cluster)),
        "a:egress{*} b:waiting c:waiting d:gone e:gone"
    );
    let to = "{action: partition, mode: all, selector: {}, target: {mode: all, selector: {}}}";
    assert_eq!(
        shown(&assigned(to, "a > b", &cluster)),
        "a:waiting b':waiting",
        "the peer has no address yet"
    );
    assert_eq!(
        shown(&assigned(to, "a > d", &cluster)),
        "a:waiting d':gone",
        "the address of a pod that has ended may be somebody else's"
    );
}

#[test]
fn addresses_of_both_families_are_peers() {
    let cluster = cluster([
        pod("shop/a").ips(&["10.0.0.1", "fd00::1"]),
        pod("shop/c").ips(&["fd00::3", "10.0.0.3"]),
    ]);
    let spec = "{action: partition, mode: all, selector: {}, target: {mode: all, selector: {}}}";
    let Share::Fault { fault, .. } = &assigned(spec, "a > c", &cluster)[0].share else {
        panic!("a has a fault");
    };
    let Some(Effect::Network(effect)) = &fault.effect else {
        panic!("it is a network fault");
    };
    let nets: Vec<_> = effect.peers.iter().map(|peer| peer.net.as_str()).collect();
    assert_eq!(nets, ["10.0.0.3", "fd00::3"]);
}

#[test]
fn each_side_has_its_device() {
    let spec = "{action: partition, mode: all, selector: {}, device: net1, targetDevice: net2,
        target: {mode: all, selector: {}}}";
    let devices: Vec<String> = assigned(spec, "a > c", &four())
        .iter()
        .map(|one| match &one.share {
            Share::Fault { fault, .. } => match &fault.effect {
                Some(Effect::Network(effect)) => effect.device.clone(),
                _ => panic!("it is a network fault"),
            },
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(devices, ["net1", "net2"]);
}

#[test]
fn the_fault_says_who_where_how_and_for_whom() {
    let spec = "{action: netem, mode: all, selector: {}, device: eth1@if3,
        delay: {latency: 1.5ms}, loss: {loss: '0.5'},
        faultline: {mode: Observe, orphanTimeout: 1m, sample: {percent: '0.001', first: 5, every: 2, seed: 9}}}";
    let cluster = cluster([pod("shop/a").on("n7").host_network()]);
    let Share::Fault { node, fault } = &assigned(spec, "a", &cluster)[0].share else {
        panic!("a has a fault");
    };
    assert_eq!(node, "n7");
    assert_eq!(fault.id, format!("{UID}/3/./shop/a"));
    assert_eq!(
        (fault.kind.as_str(), fault.record.as_str()),
        ("NetworkChaos", "shop/a")
    );
    assert_eq!(
        (fault.namespace.as_str(), fault.name.as_str()),
        ("shop", "web")
    );
    assert_eq!(fault.mode(), Mode::Observe);
    assert_eq!(fault.orphan_ms, Some(60_000));
    assert_eq!(fault.remaining_ms, None);
    let sample = fault.sample.unwrap();
    assert_eq!(
        (sample.ppm, sample.first, sample.every, sample.seed),
        (Some(10), 5, 2, Some(9))
    );
    let Some(Effect::Network(effect)) = &fault.effect else {
        panic!("it is a network fault");
    };
    assert_eq!(effect.device, "eth1");
    let delay = effect.delay.unwrap();
    assert_eq!((delay.latency_ns, delay.jitter_ns), (1_500_000, 0));
    assert_eq!(effect.loss.unwrap().ppm, 5_000);
    assert!(!effect.drop && effect.all_peers);
    let target = fault.target.clone().and_then(|target| target.target);
    let Some(agent::target::Target::Pod(target)) = target else {
        panic!("the target is a pod");
    };
    assert_eq!(target.uid, "uid-a");
    assert_eq!(target.container_ids, ["c-a"]);
    assert!(target.host_network);
}

#[test]
fn all_set_blocks_act_together_whatever_the_action_is_called() {
    let spec = "{action: delay, mode: all, selector: {}, loss: {loss: '25', correlation: '5'},
        duplicate: {duplicate: '1'}, corrupt: {corrupt: '2'}, rate: {rate: 1mbit},
        delay: {latency: 10ms, jitter: 1ms, correlation: '50', reorder: {reorder: '3', gap: 4}},
        bandwidth: {rate: 1kbps, limit: 20, buffer: 10, peakrate: 5, minburst: 6}}";
    let Share::Fault { fault, .. } = &assigned(spec, "a", &four())[0].share else {
        panic!("a has a fault");
    };
    let Some(Effect::Network(effect)) = &fault.effect else {
        panic!("it is a network fault");
    };
    let chance = |ppm, correlation_ppm| agent::Chance {
        ppm,
        correlation_ppm,
    };
    let expected = NetworkEffect {
        egress: true,
        all_peers: true,
        loss: Some(chance(250_000, 50_000)),
        duplicate: Some(chance(10_000, 0)),
        corrupt: Some(chance(20_000, 0)),
        delay: Some(agent::Delay {
            latency_ns: 10_000_000,
            jitter_ns: 1_000_000,
            correlation_ppm: 500_000,
            reorder: Some(agent::Reorder {
                chance: Some(chance(30_000, 0)),
                gap: 4,
            }),
        }),
        rate: Some(125_000),
        bandwidth: Some(agent::Bandwidth {
            rate: 1_024,
            limit: 20,
            buffer: 10,
            peak_rate: 5,
            peak_burst: 6,
        }),
        ..NetworkEffect::default()
    };
    assert_eq!(*effect, expected);
}

proptest! {
    /// Who talks to whom, as the wire would have it, is what the document says.
    #[test]
    fn the_touched_pairs_are_those_of_the_document(
        sources in prop::collection::btree_set(0_u8..4, 1..4),
        targets in prop::collection::btree_set(0_u8..4, 1..4),
        direction in prop::sample::select(vec!["to", "from", "both"]),
        action in prop::sample::select(vec!["partition", "delay"]),
    ) {
        let name = |n: &u8| ["a", "b", "c", "d"][usize::from(*n)];
        let pairs = format!(
            "{} > {}",
            sources.iter().map(name).collect::<Vec<_>>().join(" "),
            targets.iter().map(name).collect::<Vec<_>>().join(" "),
        );
        let spec = format!(
            "{{action: {action}, mode: all, selector: {{}}, direction: {direction},
               target: {{mode: all, selector: {{}}}}, delay: {{latency: 1s}}}}"
        );
        let mut sent: Vec<(u8, u8)> = Vec::new();
        for one in assigned(&spec, &pairs, &four()) {
            let Share::Fault { fault, .. } = one.share else { continue };
            let Some(Effect::Network(effect)) = fault.effect else { continue };
            let own = one.id.as_bytes()[5] - b'a';
            for peer in &effect.peers {
                let other: u8 = peer.net.rsplit('.').next().unwrap().parse::<u8>().unwrap() - 1;
                if effect.egress {
                    sent.push((own, other));
                }
                prop_assert!(!effect.ingress || action == "partition");
            }
        }
        let mut expected: Vec<(u8, u8)> = Vec::new();
        for s in &sources {
            for t in targets.iter().filter(|t| *t != s) {
                if direction != "from" { expected.push((*s, *t)); }
                if direction != "to" { expected.push((*t, *s)); }
            }
        }
        expected.sort_unstable();
        expected.dedup();
        if action == "delay" {
            sent.sort_unstable();
            prop_assert_eq!(&sent, &expected, "each pair once");
        }
        sent.sort_unstable();
        sent.dedup();
        prop_assert_eq!(sent, expected);
    }
}

#[test]
fn a_neighbour_on_the_nodes_network_is_no_peer_of_its_own_address() {
    let on_host = |name: &str| -> PodBuilder { pod(name).host_network().ips(&["192.168.0.1"]) };
    let cluster = cluster([on_host("shop/a"), on_host("shop/b")]);
    let spec = "{action: partition, mode: all, selector: {}, target: {mode: all, selector: {}}}";
    assert_eq!(
        shown(&assigned(spec, "a > b", &cluster)),
        "a:no-effect b':no-effect"
    );
}
