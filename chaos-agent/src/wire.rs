//! Between the messages of `agent.proto` and the planner's types: the one place that knows both.
//!
//! What comes in is not trusted. A fault that makes no sense is refused by itself, with the
//! reason for its author; the others of its set go on. Nothing is looked up here.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use chaos_planner::capabilities::{Capabilities, Mechanism};
use chaos_planner::fault::{Effect, Fault, Lifetime, Mode, Sample, TargetRef};
use chaos_planner::observed::{Counts, Observed, Phase};
use chaos_proto::agent as proto;

use crate::target;

mod clock;
mod network;

/// The longest time that a deadline lies ahead: what is asked beyond it lasts that long.
pub const MAX_LIFETIME: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// The most addresses that one fault may name.
pub const MAX_PEERS: usize = 65_536;

/// Who sent a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Somebody with a certificate of our CA: names pods only.
    Network,
    /// root of this node, by the unix socket: names cgroups and processes as well.
    Local,
}

/// A fault that is not even tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// As it was sent.
    pub id: String,
    /// `<field>: <value>: <rule>; <what to do>`
    pub reason: String,
}

/// Sorts a received set into the faults to carry out and those to refuse. An id that is there
/// twice with different contents is refused: nothing says which of them is meant.
pub fn desired(faults: Vec<proto::Fault>, origin: Origin) -> (Vec<Fault>, Vec<Refusal>) {
    let mut accepted: Vec<Fault> = Vec::with_capacity(faults.len());
    let mut refused = Vec::new();
    let mut seen: HashMap<String, proto::Fault> = HashMap::with_capacity(faults.len());
    for message in faults {
        if let Some(first) = seen.get(&message.id) {
            if *first != message && !refused.iter().any(|r: &Refusal| r.id == message.id) {
                accepted.retain(|fault| fault.id != message.id);
                let reason = "id: is there twice with different contents; give each fault its own";
                refused.push(Refusal {
                    id: message.id,
                    reason: reason.to_owned(),
                });
            }
            continue;
        }
        seen.insert(message.id.clone(), message.clone());
        let id = message.id.clone();
        match fault(message, origin) {
            Ok(fault) => accepted.push(fault),
            Err(reason) => refused.push(Refusal {
                id: id.chars().take(MAX_ID).collect(),
                reason,
            }),
        }
    }
    (accepted, refused)
}

/// What a client is told of a fault that was refused.
pub fn refusal(refusal: &Refusal) -> proto::ObservedFault {
    proto::ObservedFault {
        id: refusal.id.clone(),
        phase: proto::Phase::NotSupported.into(),
        reason: refusal.reason.clone(),
        ..Default::default()
    }
}

/// What a client is told of a fault that the kernel holds.
pub fn observed(observed: &Observed) -> proto::ObservedFault {
    proto::ObservedFault {
        id: observed.id.clone(),
        phase: phase(observed.phase).into(),
        mechanisms: observed
            .mechanisms
            .iter()
            .map(|m| m.name().to_owned())
            .collect(),
        reason: observed.reason.clone(),
        degraded: observed.degraded,
        counters: Some(proto::Counters {
            matched: observed.counts.matched,
            injected: observed.counts.injected,
            would_inject: observed.counts.would_inject,
            failed: observed.counts.failed,
            overflowed: observed.counts.overflowed,
            over_budget: observed.counts.over_budget,
        }),
        expires_in_ms: milliseconds(observed.expires_in),
        armed_ms_ago: milliseconds(observed.armed_ago),
        first_hit_ms_ago: observed.first_hit_ago.map(milliseconds),
    }
}

/// The way back, for the command line. `None` for a message of a version that knows other phases.
pub fn observed_from(
    message: proto::ObservedFault,
    [kind, namespace, name, record]: [String; 4],
) -> Option<Observed> {
    let counters = message.counters.unwrap_or_default();
    Some(Observed {
        phase: match message.phase() {
            proto::Phase::Pending => Phase::Pending,
            proto::Phase::Injected => Phase::Injected,
            proto::Phase::Expired => Phase::Expired,
            proto::Phase::Recovering => Phase::Recovering,
            proto::Phase::Failed => Phase::Failed,
            proto::Phase::NotSupported => Phase::NotSupported,
            proto::Phase::TargetGone => Phase::TargetGone,
        },
        id: message.id,
        kind,
        namespace,
        name,
        record,
        mechanisms: message
            .mechanisms
            .iter()
            .map(|name| Mechanism::ALL.into_iter().find(|m| m.name() == name))
            .collect::<Option<_>>()?,
        reason: message.reason,
        degraded: message.degraded,
        counts: Counts {
            matched: counters.matched,
            injected: counters.injected,
            would_inject: counters.would_inject,
            failed: counters.failed,
            overflowed: counters.overflowed,
            over_budget: counters.over_budget,
        },
        expires_in: Duration::from_millis(message.expires_in_ms),
        armed_ago: Duration::from_millis(message.armed_ms_ago),
        first_hit_ago: message.first_hit_ms_ago.map(Duration::from_millis),
    })
}

/// What a client is told of the node.
pub fn capabilities(node: &str, capabilities: &Capabilities) -> proto::CapabilitiesReply {
    proto::CapabilitiesReply {
        node: node.to_owned(),
        kernel: capabilities.kernel.clone(),
        mechanisms: capabilities
            .mechanisms
            .iter()
            .map(|capability| proto::Capability {
                mechanism: capability.mechanism.name().to_owned(),
                supported: capability.supported,
                only_loss: capability.only_loss,
                reason: capability.reason.clone(),
            })
            .collect(),
    }
}

/// The message for a fault: what the command line sends to the daemon.
pub fn message(fault: &Fault) -> proto::Fault {
    let (remaining_ms, orphan_ms) = match fault.lifetime {
        Lifetime::For(left) => (Some(milliseconds(left)), None),
        Lifetime::Leased { orphan_timeout } => (None, orphan_timeout.map(milliseconds)),
    };
    let target = match &fault.target {
        TargetRef::Pod {
            uid,
            container_ids,
            host_network,
        } => proto::target::Target::Pod(proto::PodTarget {
            uid: uid.clone(),
            container_ids: container_ids.clone(),
            host_network: *host_network,
        }),
        TargetRef::Container { pod_uid, id } => {
            proto::target::Target::Container(proto::ContainerTarget {
                pod_uid: pod_uid.clone(),
                container_id: id.clone(),
            })
        }
        TargetRef::Cgroup(path) => {
            proto::target::Target::CgroupPath(path.to_string_lossy().into_owned())
        }
        TargetRef::Pid(pid) => proto::target::Target::Pid(*pid),
    };
    let effect = match &fault.effect {
        Effect::Network(effect) => proto::fault::Effect::Network(network::message(effect)),
        Effect::Clock(effect) => proto::fault::Effect::Clock(clock::message(effect)),
    };
    proto::Fault {
        id: fault.id.clone(),
        kind: fault.kind.clone(),
        namespace: fault.namespace.clone(),
        name: fault.name.clone(),
        record: fault.record.clone(),
        target: Some(proto::Target {
            target: Some(target),
        }),
        remaining_ms,
        orphan_ms,
        mode: match fault.mode {
            Mode::Inject => proto::Mode::Inject,
            Mode::Observe => proto::Mode::Observe,
        }
        .into(),
        sample: Some(proto::Sample {
            ppm: fault.sample.ppm,
            first: fault.sample.first,
            every: fault.sample.every,
            seed: fault.sample.seed,
        }),
        effect: Some(effect),
    }
}

/// `<uid>/<round>/<selector>/<namespace>/<pod>[/<container>]`
const MAX_ID: usize = 1024;

fn fault(message: proto::Fault, origin: Origin) -> Result<Fault, String> {
    text("id", &message.id, 1..=MAX_ID)?;
    text("kind", &message.kind, 1..=63)?;
    text("namespace", &message.namespace, 0..=63)?;
    text("name", &message.name, 1..=253)?;
    text("record", &message.record, 0..=MAX_ID)?;
    let mode = match proto::Mode::try_from(message.mode) {
        Ok(proto::Mode::Inject) => Mode::Inject,
        Ok(proto::Mode::Observe) => Mode::Observe,
        Err(_) => return Err(newer("mode", &message.mode)),
    };
    let sample = message.sample.unwrap_or_default();
    network::ppm("sample.ppm", sample.ppm)?;
    Ok(Fault {
        target: target(message.target, origin)?,
        lifetime: match message.remaining_ms {
            Some(left) => Lifetime::For(lifetime(left)),
            None => Lifetime::Leased {
                orphan_timeout: message.orphan_ms.map(lifetime),
            },
        },
        mode,
        sample: Sample {
            ppm: sample.ppm,
            first: sample.first,
            every: sample.every,
            seed: sample.seed,
        },
        effect: match message.effect {
            Some(proto::fault::Effect::Network(effect)) => {
                Effect::Network(network::effect(effect)?)
            }
            Some(proto::fault::Effect::Clock(effect)) => Effect::Clock(clock::effect(effect)?),
            None => return Err(newer("effect", &message.kind)),
        },
        id: message.id,
        kind: message.kind,
        namespace: message.namespace,
        name: message.name,
        record: message.record,
    })
}

fn target(message: Option<proto::Target>, origin: Origin) -> Result<TargetRef, String> {
    use proto::target::Target;
    match message.and_then(|message| message.target) {
        None => Err(newer("target", &"none")),
        Some(Target::Pod(pod)) => {
            ids("pod", std::iter::once(&pod.uid).chain(&pod.container_ids))?;
            Ok(TargetRef::Pod {
                uid: pod.uid,
                container_ids: pod.container_ids,
                host_network: pod.host_network,
            })
        }
        Some(Target::Container(container)) => {
            ids("container", [&container.pod_uid, &container.container_id])?;
            Ok(TargetRef::Container {
                pod_uid: container.pod_uid,
                id: container.container_id,
            })
        }
        Some(Target::CgroupPath(path)) if origin == Origin::Local => {
            text("target.cgroup_path", &path, 1..=4096)?;
            Ok(TargetRef::Cgroup(PathBuf::from(path)))
        }
        Some(Target::Pid(pid)) if origin == Origin::Local => match pid {
            0 => Err("target.pid: 0: must be a process; give the id that `ps` prints".to_owned()),
            pid => Ok(TargetRef::Pid(pid)),
        },
        Some(Target::CgroupPath(path)) => Err(format!(
            "target.cgroup_path: {}: is only accepted on the node's own socket; name a pod",
            shown(&path)
        )),
        Some(Target::Pid(pid)) => Err(format!(
            "target.pid: {pid}: is only accepted on the node's own socket; name a pod"
        )),
    }
}

fn ids<'a>(field: &str, ids: impl IntoIterator<Item = &'a String>) -> Result<(), String> {
    match ids.into_iter().find(|id| !target::is_id(id)) {
        None => Ok(()),
        Some(id) => Err(format!(
            "target.{field}: {}: must be letters, digits and `-`, at most 128; send the uid and \
             the container ids without the runtime's scheme",
            shown(id)
        )),
    }
}

/// These end up in logs, labels and file names: nothing that a terminal or a parser would act on.
fn text(field: &str, value: &str, length: std::ops::RangeInclusive<usize>) -> Result<(), String> {
    if length.contains(&value.len()) && !value.chars().any(char::is_control) {
        return Ok(());
    }
    Err(format!(
        "{field}: {}: must have {} to {} bytes and no control characters; send it as the API \
         server has it",
        shown(value),
        length.start(),
        length.end()
    ))
}

fn newer(field: &str, value: &dyn std::fmt::Display) -> String {
    format!(
        "{field}: {}: is not known to this agent, version {}; run one as new as the operator",
        shown(&value.to_string()),
        env!("CARGO_PKG_VERSION")
    )
}

/// Printable, and short enough for a status.
fn shown(value: &str) -> String {
    value
        .chars()
        .take(64)
        .flat_map(char::escape_debug)
        .collect()
}

fn lifetime(ms: u64) -> Duration {
    Duration::from_millis(ms).min(MAX_LIFETIME)
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn phase(phase: Phase) -> proto::Phase {
    match phase {
        Phase::Pending => proto::Phase::Pending,
        Phase::Injected => proto::Phase::Injected,
        Phase::Expired => proto::Phase::Expired,
        Phase::Recovering => proto::Phase::Recovering,
        Phase::Failed => proto::Phase::Failed,
        Phase::NotSupported => proto::Phase::NotSupported,
        Phase::TargetGone => proto::Phase::TargetGone,
    }
}

#[cfg(test)]
mod tests;
