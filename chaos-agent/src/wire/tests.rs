use std::collections::BTreeSet;
use std::net::IpAddr;

use chaos_planner::fault::{Bandwidth, Chance, Delay, NetworkEffect, Peak, Peer, Reorder};
use ipnet::IpNet;
use proptest::prelude::*;

use super::*;

const UID: &str = "0c6c2ee9-c4d4-4cf3-9a0a-6ca8a6c9ab4d";

/// A partition of one pod from everybody, for 10 s.
fn good() -> proto::Fault {
    proto::Fault {
        id: format!("{UID}/0/./chaos-testing/tikv-0"),
        kind: "NetworkChaos".to_owned(),
        namespace: "chaos-testing".to_owned(),
        name: "network".to_owned(),
        record: "chaos-testing/tikv-0".to_owned(),
        target: Some(proto::Target {
            target: Some(proto::target::Target::Pod(proto::PodTarget {
                uid: UID.to_owned(),
                container_ids: vec!["ab".repeat(32)],
                host_network: false,
            })),
        }),
        remaining_ms: Some(10_000),
        effect: Some(proto::fault::Effect::Network(proto::NetworkEffect {
            egress: true,
            all_peers: true,
            drop: true,
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn with(change: impl FnOnce(&mut proto::Fault)) -> proto::Fault {
    let mut message = good();
    change(&mut message);
    message
}

fn with_network(change: impl FnOnce(&mut proto::NetworkEffect)) -> proto::Fault {
    with(|message| {
        let Some(proto::fault::Effect::Network(network)) = &mut message.effect else {
            unreachable!("good() is a network fault")
        };
        change(network);
    })
}

fn peer_of(net: &str, port: u32) -> proto::Peer {
    proto::Peer {
        net: net.to_owned(),
        port,
    }
}

fn with_target(target: proto::target::Target) -> proto::Fault {
    with(|message| {
        message.target = Some(proto::Target {
            target: Some(target),
        })
    })
}

#[test]
fn what_makes_no_sense_is_refused_with_field_value_and_rule() {
    use proto::target::Target;
    let table = [
        (with(|f| f.id.clear()), "id: : must have 1 to 1024 bytes"),
        (with(|f| f.id = "x".repeat(1025)), "id: xxx"),
        (
            with(|f| f.kind = "\u{1b}[2J".to_owned()),
            r"kind: \u{1b}[2J: must have",
        ),
        (with(|f| f.name.clear()), "name: : must have 1 to 253"),
        (with(|f| f.mode = 7), "mode: 7: is not known to this agent"),
        (
            with(|f| f.effect = None),
            "effect: NetworkChaos: is not known to this agent",
        ),
        (with(|f| f.target = None), "target: none: is not known"),
        (
            with(|f| f.target = Some(proto::Target { target: None })),
            "target: none: is not known",
        ),
        (
            with(|f| {
                f.sample = Some(proto::Sample {
                    ppm: Some(1_000_001),
                    ..Default::default()
                })
            }),
            "sample.ppm: 1000001: must be at most 1000000",
        ),
        (
            with_target(Target::Pod(proto::PodTarget {
                uid: "../../..".to_owned(),
                ..Default::default()
            })),
            "target.pod: ../../..: must be letters",
        ),
        (
            with_target(Target::Pod(proto::PodTarget {
                uid: UID.to_owned(),
                container_ids: vec!["containerd://ab".to_owned()],
                host_network: false,
            })),
            "target.pod: containerd://ab: must be letters",
        ),
        (
            with_target(Target::CgroupPath("/system.slice".to_owned())),
            "target.cgroup_path: /system.slice: is only accepted on the node's own socket",
        ),
        (
            with_target(Target::Pid(1)),
            "target.pid: 1: is only accepted on the node's own socket",
        ),
        (with_network(|n| n.egress = false), "network: no direction"),
        (with_network(|n| n.drop = false), "network: no effect"),
        (
            with_network(|n| {
                n.loss = Some(proto::Chance {
                    ppm: 2_000_000,
                    correlation_ppm: 0,
                })
            }),
            "network.loss.ppm: 2000000",
        ),
        (
            with_network(|n| {
                n.corrupt = Some(proto::Chance {
                    ppm: 1,
                    correlation_ppm: 1_000_001,
                })
            }),
            "network.corrupt.correlation_ppm: 1000001",
        ),
        (
            with_network(|n| n.rate = Some(0)),
            "network.rate: 0: must be at least 1 byte a second",
        ),
        (
            with_network(|n| n.device = "a-name-that-is-too-long".to_owned()),
            "network.device: a-n",
        ),
        (
            with_network(|n| n.device = "../eth0".to_owned()),
            "network.device: ../eth0: must be",
        ),
        (
            with_network(|n| n.peers.push(peer_of("10.0.0.1", 0))),
            "network.all_peers: true",
        ),
        (
            with_network(|n| {
                n.all_peers = false;
                n.peers.push(peer_of("example.com", 0));
            }),
            "network.peers: example.com: must be an IPv4 or IPv6 address",
        ),
        (
            with_network(|n| {
                n.all_peers = false;
                n.peers.push(peer_of("10.0.0.0/8", 65_536));
            }),
            "network.peers: 10.0.0.0/8: port 65536: must be at most 65535",
        ),
        (
            with_network(|n| {
                n.all_peers = false;
                n.peers = vec![peer_of("10.0.0.1", 0); MAX_PEERS + 1];
            }),
            "network.peers: 65537 peers: must be at most 65536",
        ),
    ];
    for (message, expected) in table {
        let good = with(|f| f.id = "another".to_owned());
        let (accepted, refused) = desired(vec![message, good], Origin::Network);
        assert_eq!(accepted.len(), 1, "{expected}: the other one goes on");
        assert_eq!(refused.len(), 1, "{expected}");
        assert!(
            refused[0].reason.starts_with(expected),
            "{:?} for {expected}",
            refused[0].reason
        );
        let answer = refusal(&refused[0]);
        assert_eq!(answer.phase(), proto::Phase::NotSupported);
        assert_eq!(answer.reason, refused[0].reason);
    }
}

#[test]
fn cgroups_and_processes_are_accepted_from_the_nodes_own_socket() {
    use proto::target::Target;
    for (target, expected) in [
        (
            Target::CgroupPath("/system.slice".to_owned()),
            Ok(TargetRef::Cgroup("/system.slice".into())),
        ),
        (Target::Pid(42), Ok(TargetRef::Pid(42))),
        (Target::Pid(0), Err(())),
    ] {
        let (accepted, _) = desired(vec![with_target(target)], Origin::Local);
        assert_eq!(
            accepted.first().map(|f| f.target.clone()).ok_or(()),
            expected
        );
    }
}

#[test]
fn an_id_that_is_there_twice_is_refused_unless_both_say_the_same() {
    let (accepted, refused) = desired(vec![good(), good()], Origin::Network);
    assert_eq!((accepted.len(), refused.len()), (1, 0));
    let other = with(|f| f.remaining_ms = None);
    let (accepted, refused) = desired(vec![good(), other.clone(), other], Origin::Network);
    assert_eq!((accepted.len(), refused.len()), (0, 1));
}

#[test]
fn no_peer_is_not_every_peer() {
    let peers = |message| {
        let (accepted, _) = desired(vec![message], Origin::Network);
        let Effect::Network(network) = &accepted[0].effect else {
            panic!("{:?}", accepted[0].effect)
        };
        network.peers.clone()
    };
    assert_eq!(peers(good()), None);
    assert_eq!(peers(with_network(|n| n.all_peers = false)), Some(vec![]));
    let twice = with_network(|n| {
        n.all_peers = false;
        n.peers = ["fd00::2", "10.0.0.7", "::ffff:10.0.0.7", "10.0.0.9/8"]
            .map(|net| peer_of(net, 0))
            .into();
    });
    assert_eq!(
        peers(twice),
        Some(vec![
            Peer::new("10.0.0.0/8".parse().unwrap(), None),
            Peer::new("10.0.0.7/32".parse().unwrap(), None),
            Peer::new("fd00::2/128".parse().unwrap(), None),
        ]),
        "sorted, each once, mapped addresses as IPv4"
    );
}

#[test]
fn no_time_is_so_long_that_a_deadline_overflows() {
    let (accepted, _) = desired(
        vec![with(|f| f.remaining_ms = Some(u64::MAX))],
        Origin::Network,
    );
    assert_eq!(accepted[0].lifetime, Lifetime::For(MAX_LIFETIME));
    let leased = with(|f| {
        f.remaining_ms = None;
        f.orphan_ms = Some(u64::MAX);
    });
    let (accepted, _) = desired(vec![leased], Origin::Network);
    assert_eq!(
        accepted[0].lifetime,
        Lifetime::Leased {
            orphan_timeout: Some(MAX_LIFETIME)
        }
    );
}

prop_compose! {
    fn chance()(ppm in 0..=1_000_000u32, correlation_ppm in 0..=1_000_000u32) -> Chance {
        Chance { ppm, correlation_ppm }
    }
}

prop_compose! {
    fn delay()(
        latency in any::<u64>(), jitter in any::<u64>(), correlation_ppm in 0..=1_000_000u32,
        reorder in proptest::option::of((chance(), any::<u64>())),
    ) -> Delay {
        Delay {
            latency: Duration::from_nanos(latency),
            jitter: Duration::from_nanos(jitter),
            correlation_ppm,
            reorder: reorder.map(|(chance, gap)| Reorder { chance, gap }),
        }
    }
}

prop_compose! {
    fn bandwidth()(
        rate in 1..u64::MAX, limit in any::<u64>(), buffer in any::<u64>(),
        peak in proptest::option::of((1..u64::MAX, any::<u64>())),
    ) -> Bandwidth {
        Bandwidth { rate, limit, buffer, peak: peak.map(|(rate, burst)| Peak { rate, burst }) }
    }
}

prop_compose! {
    fn network_effect()(
        drop in any::<bool>(), ingress in any::<bool>(),
        loss in proptest::option::of(chance()),
        duplicate in proptest::option::of(chance()),
        corrupt in proptest::option::of(chance()),
        delay in proptest::option::of(delay()),
        rate in proptest::option::of(1..u64::MAX),
        bandwidth in proptest::option::of(bandwidth()),
        device in proptest::option::of("[a-z][a-z0-9.]{0,14}"),
        peers in proptest::option::of(proptest::collection::btree_set(
            (any::<u32>(), 0..=32u8, proptest::option::of(1..=u16::MAX)), 0..4)),
    ) -> NetworkEffect {
        let mut effect = NetworkEffect {
            egress: true,
            ingress: false,
            device,
            peers: peers.map(|set| {
                let peer = |(v4, length, port): (u32, u8, Option<u16>)| {
                    Peer::new(IpNet::new(IpAddr::V4(v4.into()), length).unwrap(), port)
                };
                set.into_iter().map(peer).collect::<BTreeSet<_>>().into_iter().collect()
            }),
            drop: true,
            loss,
            duplicate,
            corrupt,
            delay,
            rate,
            bandwidth,
        };
        effect.ingress = ingress;
        effect.drop = drop || !effect.shapes();
        effect
    }
}

fn target_ref() -> impl Strategy<Value = TargetRef> {
    prop_oneof![
        (
            "[a-f0-9-]{1,36}",
            proptest::collection::vec("[a-f0-9]{64}", 0..3),
            any::<bool>()
        )
            .prop_map(|(uid, container_ids, host_network)| TargetRef::Pod {
                uid,
                container_ids,
                host_network
            }),
        "/[a-z/]{1,20}".prop_map(|path| TargetRef::Cgroup(path.into())),
        (1..u32::MAX).prop_map(TargetRef::Pid),
    ]
}

prop_compose! {
    fn any_fault()(
        effect in network_effect(), target in target_ref(),
        id in "[a-z0-9/]{1,40}", name in "[a-z]{1,20}",
        observe in any::<bool>(), left in proptest::option::of(0..1u64 << 40),
        orphan in proptest::option::of(0..1u64 << 40),
        ppm in proptest::option::of(0..=1_000_000u32),
        first in any::<u64>(), every in any::<u64>(), seed in proptest::option::of(any::<u64>()),
    ) -> Fault {
        Fault {
            id, kind: "NetworkChaos".to_owned(), namespace: String::new(), record: name.clone(), name,
            target,
            lifetime: match left {
                Some(ms) => Lifetime::For(Duration::from_millis(ms)),
                None => Lifetime::Leased { orphan_timeout: orphan.map(Duration::from_millis) },
            },
            mode: if observe { Mode::Observe } else { Mode::Inject },
            sample: Sample { ppm, first, every, seed },
            effect: Effect::Network(effect),
        }
    }
}

proptest! {
    #[test]
    fn a_fault_comes_back_as_it_was_sent(fault in any_fault()) {
        let (accepted, refused) = desired(vec![message(&fault)], Origin::Local);
        prop_assert_eq!(refused, vec![]);
        prop_assert_eq!(accepted, vec![fault]);
    }

    #[test]
    fn no_text_or_number_makes_the_conversion_panic(
        words in proptest::array::uniform5(any::<String>()),
        device in any::<String>(), peer in any::<String>(), uid in any::<String>(),
        mode in any::<i32>(), ms in proptest::option::of(any::<u64>()),
        loss in proptest::option::of((any::<u32>(), any::<u32>())), flags in any::<u8>(),
    ) {
        let [id, kind, namespace, name, record] = words;
        let hostile = proto::Fault {
            id, kind, namespace, name, record, mode, remaining_ms: ms,
            target: Some(proto::Target { target: Some(proto::target::Target::Pod(
                proto::PodTarget { uid, ..Default::default() })) }),
            effect: Some(proto::fault::Effect::Network(proto::NetworkEffect {
                egress: flags & 1 != 0, ingress: flags & 2 != 0, all_peers: flags & 4 != 0,
                drop: flags & 8 != 0, device, peers: vec![peer_of(&peer, flags.into())], rate: ms,
                loss: loss.map(|(ppm, correlation_ppm)| proto::Chance { ppm, correlation_ppm }),
                delay: ms.map(|ms| proto::Delay { latency_ns: ms, jitter_ns: ms, ..Default::default() }),
                ..Default::default()
            })),
            ..good()
        };
        let (accepted, refused) = desired(vec![hostile], Origin::Network);
        prop_assert_eq!(accepted.len() + refused.len(), 1);
        for one in refused {
            prop_assert!(!one.reason.chars().any(char::is_control), "{:?}", one.reason);
        }
    }
}

#[test]
fn what_is_observed_comes_back_as_it_was_sent() {
    for phase in [
        Phase::Pending,
        Phase::Injected,
        Phase::Expired,
        Phase::Recovering,
        Phase::Failed,
        Phase::NotSupported,
        Phase::TargetGone,
    ] {
        let one = Observed {
            id: "id".to_owned(),
            kind: "NetworkChaos".to_owned(),
            namespace: "ns".to_owned(),
            name: "name".to_owned(),
            record: "ns/pod".to_owned(),
            phase,
            mechanisms: Mechanism::ALL.to_vec(),
            reason: "why".to_owned(),
            degraded: true,
            counts: Counts {
                matched: 4,
                injected: 3,
                would_inject: 2,
                failed: 1,
                overflowed: 5,
                over_budget: 6,
            },
            expires_in: Duration::from_millis(1234),
            armed_ago: Duration::from_millis(5),
            first_hit_ago: Some(Duration::from_millis(4)),
        };
        let who = ["NetworkChaos", "ns", "name", "ns/pod"].map(str::to_owned);
        assert_eq!(observed_from(observed(&one), who), Some(one));
    }
}
