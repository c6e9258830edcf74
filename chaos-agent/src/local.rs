//! From a NetworkChaos in a file to faults on this host, where there are no pods: whoever applies
//! it says by a flag to whom it is done. Pure.
//!
//! In a cluster this is the operator's part (`chaos-operator/src/assign.rs`); what both read from
//! a document means the same.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use chaos_api::external::{External, Host};
use chaos_api::shaping::{Shaping, Share};
use chaos_api::v1alpha1::faultline::InjectionMode;
use chaos_api::v1alpha1::{Direction, NetworkAction, NetworkChaos, NetworkChaosSpec, PodSelector};
use chaos_api::validate::FieldError;
use chaos_api::{duration, percent};
use chaos_planner::fault::{
    Bandwidth, Chance, Delay, Effect, Fault, Lifetime, Mode, NetworkEffect, Peak, Peer, Reorder,
    Sample, TargetRef,
};

mod words;

pub use self::words::describe;

/// Rules of a host that a cluster does not have.
pub fn rules(chaos: &NetworkChaos) -> Vec<FieldError> {
    let spec = &chaos.spec;
    let mut errors = Vec::new();
    let mut refuse = |field: &str, value: String, rule: &str, advice: &str| {
        errors.push(FieldError {
            field: field.to_owned(),
            value,
            rule: rule.to_owned(),
            advice: advice.to_owned(),
        });
    };
    if let Some(target) = &spec.target {
        refuse(
            "spec.target",
            format!("mode {}", target.mode.as_str()),
            "selects pods, and a host without Kubernetes has none",
            "remove it, or name addresses by externalTargets",
        );
    }
    if let Some(scheduler) = &spec.lifecycle.scheduler {
        refuse(
            "spec.scheduler",
            scheduler.cron.clone(),
            "rounds are started by the operator of a cluster",
            "remove it, and start this command by cron or a systemd timer",
        );
    }
    let shapes = spec.action != NetworkAction::Partition;
    if shapes && spec.direction.unwrap_or_default() != Direction::To {
        refuse(
            "spec.direction",
            spec.direction.unwrap_or_default().as_str().to_owned(),
            "all but partition acts on what a process sends",
            "set it to `to`, or apply the fault to the processes on the other side",
        );
    }
    errors
}

/// Whether the document says which pods, which means nothing here.
pub fn selects_pods(chaos: &NetworkChaos) -> bool {
    chaos.spec.source != PodSelector::default()
}

/// Finds the addresses of a host name.
pub type Resolve<'a> = &'a dyn Fn(&str) -> io::Result<Vec<IpAddr>>;

/// The fault of a document that has passed its checks and [`rules`]. `record` is how the target is
/// shown, `name` what the object is called if it does not say so itself. Host names are resolved
/// once.
///
/// # Errors
/// `<field>: <value>: <rule>; <what to do>` for what only shows here.
pub fn fault(
    chaos: &NetworkChaos,
    id: String,
    name: &str,
    record: &str,
    target: TargetRef,
    resolve: Resolve<'_>,
) -> Result<Fault, FieldError> {
    let spec = &chaos.spec;
    let metadata = &chaos.metadata;
    Ok(Fault {
        id,
        kind: "NetworkChaos".to_owned(),
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_else(|| name.to_owned()),
        record: record.to_owned(),
        target,
        lifetime: lifetime(spec)?,
        mode: match spec
            .lifecycle
            .faultline
            .as_ref()
            .and_then(|f| f.mode)
            .unwrap_or_default()
        {
            InjectionMode::Inject => Mode::Inject,
            InjectionMode::Observe => Mode::Observe,
        },
        sample: sample(spec)?,
        effect: Effect::Network(NetworkEffect {
            peers: peers(spec, resolve)?,
            ..effect(spec)?
        }),
    })
}

/// `None`, which is everybody, without `externalTargets`.
fn peers(spec: &NetworkChaosSpec, resolve: Resolve<'_>) -> Result<Option<Vec<Peer>>, FieldError> {
    let mut peers = BTreeSet::new();
    for (index, text) in spec.external_targets.iter().enumerate() {
        let field = format!("spec.externalTargets[{index}]");
        let external =
            External::parse(text).map_err(|rule| FieldError::unreadable(&field, text, &rule))?;
        match external.host {
            Host::Net(net) => {
                peers.insert(Peer::new(net, external.port));
            }
            Host::Name(name) => {
                let unknown = |error: &dyn std::fmt::Display| FieldError {
                    field: field.clone(),
                    value: text.clone(),
                    rule: format!("this host cannot resolve the name: {error}"),
                    advice: "correct it, or write the address".to_owned(),
                };
                let addresses = resolve(&name).map_err(|error| unknown(&error))?;
                if addresses.is_empty() {
                    return Err(unknown(&"it has no address"));
                }
                let of = |address: IpAddr| Peer::new(address.into(), external.port);
                peers.extend(addresses.into_iter().map(of));
            }
        }
    }
    Ok((!peers.is_empty()).then(|| peers.into_iter().collect()))
}

fn effect(spec: &NetworkChaosSpec) -> Result<NetworkEffect, FieldError> {
    let direction = spec.direction.unwrap_or_default();
    let mut effect = NetworkEffect {
        egress: direction != Direction::From,
        ingress: direction != Direction::To,
        device: spec.device.as_ref().and_then(|device| {
            // As `ip link` prints it: eth0@if12.
            let name = device.split('@').next().unwrap_or_default();
            (!name.is_empty()).then(|| name.to_owned())
        }),
        ..NetworkEffect::default()
    };
    if spec.action == NetworkAction::Partition {
        effect.drop = true;
        return Ok(effect);
    }
    // All blocks that are set act together, whatever the action is called.
    let shaping = Shaping::of(spec)?;
    let chance = |share: Share| Chance {
        ppm: share.ppm,
        correlation_ppm: share.correlation_ppm,
    };
    effect.loss = shaping.loss.map(chance);
    effect.duplicate = shaping.duplicate.map(chance);
    effect.corrupt = shaping.corrupt.map(chance);
    effect.delay = shaping.delay.map(|delay| Delay {
        latency: delay.latency,
        jitter: delay.jitter,
        correlation_ppm: delay.correlation_ppm,
        reorder: delay.reorder.map(|(share, gap)| Reorder {
            chance: chance(share),
            gap,
        }),
    });
    effect.rate = shaping.rate;
    effect.bandwidth = shaping.bandwidth.map(|bucket| Bandwidth {
        rate: bucket.rate,
        limit: bucket.limit,
        buffer: bucket.buffer,
        peak: bucket.peak.map(|(rate, burst)| Peak { rate, burst }),
    });
    if !effect.shapes() {
        return Err(FieldError {
            field: "spec.action".to_owned(),
            value: spec.action.as_str().to_owned(),
            rule: "nothing would be done".to_owned(),
            advice: "set a latency, a share or a rate above 0".to_owned(),
        });
    }
    Ok(effect)
}

fn lifetime(spec: &NetworkChaosSpec) -> Result<Lifetime, FieldError> {
    if let Some(text) = &spec.lifecycle.duration {
        let left = duration::parse_positive(text)
            .map_err(|rule| FieldError::unreadable("spec.duration", text, &rule))?;
        return Ok(Lifetime::For(left));
    }
    let timeout = spec
        .lifecycle
        .faultline
        .as_ref()
        .and_then(|f| f.orphan_timeout.as_ref());
    // Here the client is the command: when it is killed, its fault ends.
    let orphan_timeout = match timeout {
        None => Duration::ZERO,
        Some(text) => duration::parse_positive(text)
            .map_err(|rule| FieldError::unreadable("spec.faultline.orphanTimeout", text, &rule))?,
    };
    Ok(Lifetime::Leased {
        orphan_timeout: Some(orphan_timeout),
    })
}

fn sample(spec: &NetworkChaosSpec) -> Result<Sample, FieldError> {
    let sample = spec
        .lifecycle
        .faultline
        .as_ref()
        .and_then(|f| f.sample.clone());
    let sample = sample.unwrap_or_default();
    let ppm = match &sample.percent {
        None => None,
        Some(text) => Some(percent::parse_ppm(text).map_err(|error| {
            FieldError::unreadable("spec.faultline.sample.percent", text, &error)
        })?),
    };
    Ok(Sample {
        ppm,
        first: sample.first.unwrap_or(0),
        every: sample.every.unwrap_or(0),
        seed: sample.seed,
    })
}

#[cfg(test)]
mod tests {
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
        let one = |chaos: &NetworkChaos| {
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
        let Effect::Network(network) = faults(spec).unwrap().remove(0).effect;
        network
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
        let spec = "  action: partition\n  externalTargets: ['10.0.0.1:80', 'fd00::/8', 'db.example:5432']\n";
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
        let error = faults("  action: delay\n  direction: from\n  delay: {latency: 1ms}\n");
        assert!(
            error.clone().unwrap_err().contains("spec.direction: from"),
            "{error:?}"
        );
    }

    #[test]
    fn selectors_may_be_there_and_mean_nothing() {
        let with =
            document("  action: partition\n  mode: one\n  selector: {labelSelectors: {a: b}}\n");
        let without = document("  action: partition\n");
        for (text, expected) in [(with, true), (without, false)] {
            let parsed = documents::parse_for_host(&text, &rules).unwrap();
            assert_eq!(selects_pods(&parsed[0]), expected);
        }
    }
}
