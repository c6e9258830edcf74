//! From an experiment in a file to faults on this host, where there are no pods: whoever applies
//! it says by a flag to whom it is done. Pure.
//!
//! In a cluster this is the operator's part (`chaos-operator/src/assign.rs`); what both read from
//! a document means the same.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use chaos_api::clock::{self, Skew};
use chaos_api::documents::Document;
use chaos_api::external::{External, Host};
use chaos_api::shaping::{Shaping, Share};
use chaos_api::v1alpha1::faultline::InjectionMode;
use chaos_api::v1alpha1::{Direction, Lifecycle, NetworkAction, NetworkChaosSpec, PodSelector};
use chaos_api::validate::FieldError;
use chaos_api::{duration, percent};
use chaos_planner::clock::{ClockEffect, Jump};
use chaos_planner::fault::{
    Bandwidth, Chance, Delay, Effect, Fault, Lifetime, Mode, NetworkEffect, Peak, Peer, Reorder,
    Sample, TargetRef,
};

mod words;

pub use self::words::describe;

/// Rules of a host that a cluster does not have.
pub fn rules(document: &Document) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut refuse = |field: &str, value: String, rule: &str, advice: &str| {
        errors.push(FieldError {
            field: field.to_owned(),
            value,
            rule: rule.to_owned(),
            advice: advice.to_owned(),
        });
    };
    let network = match document {
        Document::Network(chaos) => Some(&chaos.spec),
        Document::Time(_) => None,
    };
    if let Some(target) = network.and_then(|spec| spec.target.as_ref()) {
        refuse(
            "spec.target",
            format!("mode {}", target.mode.as_str()),
            "selects pods, and a host without Kubernetes has none",
            "remove it, or name addresses by externalTargets",
        );
    }
    if let Some(scheduler) = &document.lifecycle().scheduler {
        refuse(
            "spec.scheduler",
            scheduler.cron.clone(),
            "rounds are started by the operator of a cluster",
            "remove it, and start this command by cron or a systemd timer",
        );
    }
    errors
}

/// Whether the document says which pods, which means nothing here.
pub fn selects_pods(document: &Document) -> bool {
    let containers = match document {
        Document::Network(_) => false,
        Document::Time(chaos) => !chaos.spec.container_names.is_empty(),
    };
    containers || *document.source() != PodSelector::default()
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
    document: &Document,
    id: String,
    name: &str,
    record: &str,
    target: TargetRef,
    resolve: Resolve<'_>,
) -> Result<Fault, FieldError> {
    let metadata = document.metadata();
    let lifecycle = document.lifecycle();
    let effect = match document {
        Document::Network(chaos) => Effect::Network(NetworkEffect {
            peers: peers(&chaos.spec, resolve)?,
            ..effect(&chaos.spec)?
        }),
        Document::Time(chaos) => {
            let Skew {
                offset_ns,
                clocks,
                drift_ppm,
                jumps,
            } = Skew::of(&chaos.spec)?;
            Effect::Clock(ClockEffect {
                offset_ns,
                clocks,
                drift_ppm,
                jumps: jumps.into_iter().map(jump).collect(),
            })
        }
    };
    Ok(Fault {
        id,
        kind: document.kind().to_owned(),
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_else(|| name.to_owned()),
        record: record.to_owned(),
        target,
        lifetime: lifetime(lifecycle)?,
        mode: match lifecycle
            .faultline
            .as_ref()
            .and_then(|f| f.mode)
            .unwrap_or_default()
        {
            InjectionMode::Inject => Mode::Inject,
            InjectionMode::Observe => Mode::Observe,
        },
        sample: sample(lifecycle)?,
        effect,
    })
}

const fn jump(jump: clock::Jump) -> Jump {
    Jump {
        after_ns: jump.after_ns,
        by_ns: jump.by_ns,
    }
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

fn lifetime(lifecycle: &Lifecycle) -> Result<Lifetime, FieldError> {
    if let Some(text) = &lifecycle.duration {
        let left = duration::parse_positive(text)
            .map_err(|rule| FieldError::unreadable("spec.duration", text, &rule))?;
        return Ok(Lifetime::For(left));
    }
    let timeout = lifecycle
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

fn sample(lifecycle: &Lifecycle) -> Result<Sample, FieldError> {
    let sample = lifecycle.faultline.as_ref().and_then(|f| f.sample.clone());
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
mod tests;
