use chaos_api::documents;

use super::*;

fn document(spec: &str) -> String {
    format!(
        "apiVersion: chaos-mesh.org/v1alpha1\nkind: NetworkChaos\nmetadata:\n  name: web\n\
         spec:\n{spec}"
    )
}

fn faults(spec: &str) -> Result<Vec<Fault>, String> {
    let parsed = documents::parse_for_host(&document(spec), &rules)
        .map_err(|errors| errors.lines("x.yaml").collect::<Vec<_>>().join("\n"))?;
    let one = |chaos: &Document| {
        fault(
            chaos,
            "id".to_owned(),
            "x",
            "/a",
            TargetRef::Cgroup("/a".into()),
            &|name| match name {
                "db.example" => Ok(vec![
                    "10.0.0.7".parse().unwrap(),
                    "fd00::7".parse().unwrap(),
                ]),
                _ => Err(io::Error::other("no such name")),
            },
        )
    };
    parsed
        .iter()
        .map(one)
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())
}

fn network(spec: &str) -> NetworkEffect {
    match faults(spec).unwrap().remove(0).effect {
        Effect::Network(network) => network,
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_action_and_direction_has_its_effect() {
    let drop = NetworkEffect {
        drop: true,
        ..NetworkEffect::default()
    };
    let egress = NetworkEffect {
        egress: true,
        ..NetworkEffect::default()
    };
    let delay = Some(Delay::of(Duration::from_millis(100)));
    for (spec, expected) in [
        (
            "  action: partition\n",
            NetworkEffect {
                egress: true,
                ..drop.clone()
            },
        ),
        (
            "  action: partition\n  direction: from\n",
            NetworkEffect {
                ingress: true,
                ..drop.clone()
            },
        ),
        (
            "  action: delay\n  direction: from\n  delay: {latency: 100ms}\n",
            NetworkEffect {
                delay,
                ingress: true,
                ..NetworkEffect::default()
            },
        ),
        (
            "  action: partition\n  direction: both\n  device: eth0@if3\n",
            NetworkEffect {
                egress: true,
                ingress: true,
                device: Some("eth0".to_owned()),
                ..drop
            },
        ),
        (
            "  action: delay\n  delay: {latency: 100ms}\n",
            NetworkEffect {
                delay,
                ..egress.clone()
            },
        ),
        (
            "  action: netem\n  delay: {latency: 100ms}\n  loss: {loss: '30.5'}\n",
            NetworkEffect {
                delay,
                loss: Some(Chance::of(305_000)),
                ..egress.clone()
            },
        ),
        // All blocks act, whatever the action is called.
        (
            "  action: loss\n  delay: {latency: 100ms}\n  loss: {loss: '1'}\n",
            NetworkEffect {
                delay,
                loss: Some(Chance::of(10_000)),
                ..egress
            },
        ),
    ] {
        assert_eq!(network(spec), expected, "{spec}");
    }
}

#[test]
fn a_killed_command_ends_its_fault_unless_told_otherwise() {
    for (more, expected) in [
        (
            "  duration: 1m30s\n",
            Lifetime::For(Duration::from_secs(90)),
        ),
        (
            "",
            Lifetime::Leased {
                orphan_timeout: Some(Duration::ZERO),
            },
        ),
        (
            "  faultline: {orphanTimeout: 5m}\n",
            Lifetime::Leased {
                orphan_timeout: Some(Duration::from_secs(300)),
            },
        ),
    ] {
        let fault = faults(&format!("  action: partition\n{more}"))
            .unwrap()
            .remove(0);
        assert_eq!(fault.lifetime, expected, "{more}");
    }
}

#[test]
fn external_targets_are_peers() {
    let spec =
        "  action: partition\n  externalTargets: ['10.0.0.1:80', 'fd00::/8', 'db.example:5432']\n";
    let peer = |net: &str, port| Peer::new(net.parse().unwrap(), port);
    let mut expected = vec![
        peer("10.0.0.1/32", Some(80)),
        peer("fd00::/8", None),
        peer("10.0.0.7/32", Some(5432)),
        peer("fd00::7/128", Some(5432)),
    ];
    expected.sort_unstable();
    assert_eq!(network(spec).peers, Some(expected));
    let error = faults("  action: partition\n  externalTargets: [x.example]\n").unwrap_err();
    assert_eq!(
        error,
        "spec.externalTargets[0]: x.example: this host cannot resolve the name: no such name; \
         correct it, or write the address"
    );
}

#[test]
fn mode_and_sample_are_those_of_the_document() {
    let spec = "  action: partition\n  faultline:\n    mode: Observe\n    sample: \
                {percent: '0.5', first: 3, every: 2, seed: 7}\n";
    let fault = faults(spec).unwrap().remove(0);
    assert_eq!(fault.mode, Mode::Observe);
    assert_eq!(
        fault.sample,
        Sample {
            ppm: Some(5_000),
            first: 3,
            every: 2,
            seed: Some(7)
        }
    );
    assert_eq!(
        (fault.kind.as_str(), fault.name.as_str()),
        ("NetworkChaos", "web")
    );
    assert_eq!(describe(&fault), "partition on packets sent (only counted)");
    let all = "  action: netem\n  loss: {loss: '30'}\n  duplicate: {duplicate: '0.5'}\n  \
               delay: {latency: 90ms, jitter: 10ms, reorder: {reorder: '5', gap: 1}}\n  \
               rate: {rate: 1mbit}\n";
    assert_eq!(
        describe(&faults(all).unwrap()[0]),
        "loss 30% and duplicate 0.5% and delay 90ms\u{b1}10ms but for 5% and rate 125000 B/s on \
         packets sent"
    );
}

#[test]
fn what_has_no_meaning_on_a_host_is_refused_with_its_line() {
    for (spec, expected) in [
        (
            "  action: partition\n  target:\n    mode: all\n    selector: {}\n",
            "x.yaml:7: spec.target: mode all: selects pods, and a host without Kubernetes has \
             none; remove it, or name addresses by externalTargets",
        ),
        (
            "  action: partition\n  duration: 10s\n  scheduler: {cron: '@every 15s'}\n",
            "x.yaml:8: spec.scheduler: @every 15s: rounds are started by the operator of a \
             cluster; remove it, and start this command by cron or a systemd timer",
        ),
        (
            "  action: partition\n  externalTargets: ['10.0.0.256']\n",
            "x.yaml:7: spec.externalTargets[0]: 10.0.0.256: \"10.0.0.256\" is neither",
        ),
        (
            "  action: partition\n  devize: eth0\n",
            "x.yaml:7: spec.devize",
        ),
    ] {
        let error = faults(spec).unwrap_err();
        assert!(error.starts_with(expected), "{error}\nfor\n{expected}");
    }
}

#[test]
fn selectors_may_be_there_and_mean_nothing() {
    let with = document("  action: partition\n  mode: one\n  selector: {labelSelectors: {a: b}}\n");
    let without = document("  action: partition\n");
    for (text, expected) in [(with, true), (without, false)] {
        let parsed = documents::parse_for_host(&text, &rules).unwrap();
        assert_eq!(selects_pods(&parsed[0]), expected);
    }
}

#[test]
fn a_clock_is_set_ahead_or_back() {
    let text = "apiVersion: chaos-mesh.org/v1alpha1\nkind: TimeChaos\nmetadata: {name: x}\nspec:\n  \
                timeOffset: -1h30m\n  clockIds: [CLOCK_REALTIME, CLOCK_BOOTTIME]\n  \
                faultline: {rate: '0.5', jumps: [{after: 1m, by: 5m}, {after: 90s, by: -10s}]}\n";
    let parsed = documents::parse_for_host(text, &rules).unwrap();
    let target = TargetRef::Cgroup("/a".into());
    let none = |_: &str| Ok(Vec::new());
    let fault = fault(&parsed[0], "id".to_owned(), "x", "/a", target, &none).unwrap();
    assert_eq!(
        (fault.kind.as_str(), fault.name.as_str()),
        ("TimeChaos", "x")
    );
    assert_eq!(
        fault.effect,
        Effect::Clock(ClockEffect {
            offset_ns: -5_400_000_000_000,
            clocks: 0b1000_0001,
            drift_ppm: -500_000,
            jumps: [(60, 300), (90, -10)]
                .map(|(after, by)| Jump {
                    after_ns: after * 1_000_000_000,
                    by_ns: by * 1_000_000_000,
                })
                .to_vec(),
        })
    );
    assert_eq!(
        describe(&fault),
        "CLOCK_REALTIME and CLOCK_BOOTTIME 1h30m0s behind, at 0.5 times its speed, +5m0s after 60s, \
         -10s after 90s"
    );
    assert!(!selects_pods(&parsed[0]));
}
