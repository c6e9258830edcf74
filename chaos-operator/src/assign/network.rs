//! NetworkChaos: which pods do what to packets to and from which addresses.
//!
//! | action | direction | sources (`.`) | targets (`.Target`) |
//! |---|---|---|---|
//! | partition | to | drop egress to targets | drop ingress from sources |
//! | partition | from | drop ingress from targets | drop egress to sources |
//! | partition | both | both | both |
//! | all others | to | egress to targets | nothing |
//! | all others | from | nothing | egress to sources |
//! | all others | both | egress to targets | egress to sources |
//!
//! Without a target the sources' packets to and from everybody are meant. A target without any pod
//! is not the same as no target: then there is nothing to do.
//!
//! `externalTargets` are further peers of the sources, beside the target or without one. Nothing can
//! be done where those send, so it is done to what the sources receive. A fault has one set of
//! peers for both ways; so where both are asked for, from a target and from outside, the sources
//! do it to and from outside, and the targets to and from the sources.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use chaos_api::external::{External, Host};
use chaos_api::shaping::{self, Shaping};
use chaos_api::v1alpha1::names::SELECTOR_KEY_SOURCE;
use chaos_api::v1alpha1::{Direction, NetworkAction, NetworkChaosSpec};
use chaos_crd::NetworkChaos;
use chaos_proto::agent::fault::Effect;
use chaos_proto::agent::{self, NetworkEffect, Peer};
use ipnet::IpNet;

use crate::assign::{Assigned, Request, Share, fault, live_pod, whole};
use crate::cluster::{Cluster, is_completed, pod_ips};
use crate::kind::Kind;
use crate::names::Names;

const SELF_ONLY: &str =
    "the pod is its own only peer, and what it sends to itself passes no network device";
const NO_ADDRESS: &str = "no pod of the other side has an address yet";
const NOT_RESOLVED: &str = "no name of externalTargets has been resolved yet";

/// What each record of a NetworkChaos has to have. The spec has been defaulted and validated.
#[must_use]
pub fn assign(chaos: &NetworkChaos, request: &Request<'_>) -> Vec<Assigned> {
    let sides = Sides::of(chaos, request);
    request.each(|selector_key, id| share(chaos, request, &sides, selector_key, id))
}

/// The host names among its external targets.
#[must_use]
pub fn host_names(chaos: &NetworkChaos) -> BTreeSet<String> {
    let names = externals(&chaos.spec).filter_map(|one| match one.host {
        Host::Name(name) => Some(name),
        Host::Net(_) => None,
    });
    names.collect()
}

/// Those that can be read: the others were refused before.
fn externals(spec: &NetworkChaosSpec) -> impl Iterator<Item = External> {
    spec.external_targets
        .iter()
        .flat_map(|text| External::parse(text))
}

/// Both sides.
struct Sides<'a> {
    sources: Side,
    /// `None`: the experiment has no target.
    targets: Option<Side>,
    cluster: &'a Cluster,
}

/// The pods of a side that exist: ids of their records, and all their addresses.
#[derive(Default)]
struct Side {
    ids: BTreeSet<String>,
    addresses: BTreeSet<IpAddr>,
}

impl<'a> Sides<'a> {
    fn of(chaos: &NetworkChaos, request: &Request<'a>) -> Self {
        let side = |source: bool| {
            let mut side = Side::default();
            for (key, id) in request.records {
                let pod = request.cluster.pod_of_record(id);
                let pod = pod.filter(|pod| !is_completed(pod));
                if let Some(pod) = pod.filter(|_| (key == SELECTOR_KEY_SOURCE) == source) {
                    side.ids.insert(id.clone());
                    side.addresses.extend(pod_ips(pod));
                }
            }
            side
        };
        Self {
            sources: side(true),
            targets: chaos.spec.target.is_some().then(|| side(false)),
            cluster: request.cluster,
        }
    }

    /// The side that a record of this key talks to; `None` is everybody.
    fn opposite(&self, is_source: bool) -> Option<&Side> {
        if is_source {
            self.targets.as_ref()
        } else {
            Some(&self.sources)
        }
    }
}

fn share(
    chaos: &NetworkChaos,
    request: &Request<'_>,
    sides: &Sides<'_>,
    selector_key: &str,
    id: &str,
) -> Result<Share, Share> {
    let (pod, node) = live_pod(id, request.cluster)?;
    let is_source = selector_key == SELECTOR_KEY_SOURCE;
    let Some(ways) = Ways::of(&chaos.spec, is_source) else {
        return Ok(Share::Nothing);
    };
    let own = pod_ips(pod);
    let outside = if is_source {
        outside(&chaos.spec, request.names)
    } else {
        Outside::default()
    };
    let peers = match sides.opposite(is_source) {
        None if outside.is_named => Some(BTreeSet::new()),
        // The targets do what is between them.
        Some(_) if is_source && ways.ingress && is_shaping(&chaos.spec) => Some(BTreeSet::new()),
        None => None,
        Some(others) => match peers(chaos, sides, others, is_source, id, &own) {
            Ok(inside) => Some(inside),
            // Then it is only about those outside.
            Err(Share::Waiting(_) | Share::NoEffect(_)) if outside.is_named => {
                Some(BTreeSet::new())
            }
            Err(other) => return Err(other),
        },
    };
    let peers = peers.map(|inside| {
        let inside = inside.into_iter().map(|ip| (IpNet::from(ip), None));
        inside.chain(outside.peers).collect::<BTreeSet<_>>()
    });
    if peers.as_ref().is_some_and(BTreeSet::is_empty) {
        return Err(Share::Waiting(NOT_RESOLVED));
    }
    let mut fault = fault(
        NetworkChaos::NAME,
        &chaos.spec.lifecycle,
        request,
        selector_key,
        id,
        whole(pod),
    );
    let device = if is_source {
        &chaos.spec.device
    } else {
        &chaos.spec.target_device
    };
    fault.effect = Some(Effect::Network(NetworkEffect {
        device: device.clone().unwrap_or_default(),
        ..effect(&chaos.spec, ways, peers)
    }));
    Ok(Share::Fault {
        node: node.to_owned(),
        fault: Box::new(fault),
    })
}

/// Whom `externalTargets` name.
#[derive(Default)]
struct Outside {
    /// There are any.
    is_named: bool,
    /// Those that are known, with their ports.
    peers: BTreeSet<(IpNet, Option<u16>)>,
}

fn outside(spec: &NetworkChaosSpec, names: &Names) -> Outside {
    let mut outside = Outside {
        is_named: !spec.external_targets.is_empty(),
        ..Outside::default()
    };
    for External { host, port } in externals(spec) {
        match host {
            Host::Net(net) => {
                outside.peers.insert((net, port));
            }
            Host::Name(name) => {
                let addresses = names.addresses(&name).into_iter().flatten();
                outside
                    .peers
                    .extend(addresses.map(|ip| (IpNet::from(*ip), port)));
            }
        }
    }
    outside
}

/// The addresses of pods that a record's packets are compared with.
fn peers(
    chaos: &NetworkChaos,
    sides: &Sides<'_>,
    others: &Side,
    is_source: bool,
    id: &str,
    own: &BTreeSet<IpAddr>,
) -> Result<BTreeSet<IpAddr>, Share> {
    if others.ids.is_empty() {
        return Err(Share::Waiting("the other side has no pod"));
    }
    if others.ids.iter().all(|other| other == id) {
        return Err(Share::NoEffect(SELF_ONLY));
    }
    if others.addresses.is_empty() {
        return Err(Share::Waiting(NO_ADDRESS));
    }
    let mut peers: BTreeSet<IpAddr> = others.addresses.difference(own).copied().collect();
    // Pods on the node's network share its address with their neighbours.
    if peers.is_empty() {
        return Err(Share::NoEffect(SELF_ONLY));
    }
    // A pod that is a source and a target would delay, or lose, the same packet twice.
    if !is_source && is_shaping(&chaos.spec) && sides.sources.ids.contains(id) {
        match (Ways::of(&chaos.spec, true), &sides.targets) {
            // It does so as a source.
            (Some(Ways { ingress: false, .. }), Some(targets)) => {
                peers.retain(|peer| !targets.addresses.contains(peer));
            }
            // Of two such pods the first does it both ways.
            (Some(Ways { egress: true, .. }), Some(targets)) => {
                let first = targets.ids.iter().take_while(|other| *other != id);
                let first = first.filter(|other| sides.sources.ids.contains(*other));
                let first = first.filter_map(|other| sides.cluster.pod_of_record(other));
                let theirs: BTreeSet<IpAddr> = first.flat_map(|pod| pod_ips(pod)).collect();
                peers.retain(|peer| !theirs.contains(peer));
            }
            _ => {}
        }
        if peers.is_empty() {
            return Err(Share::Nothing);
        }
    }
    Ok(peers)
}

/// Which ways a record's packets are touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ways {
    egress: bool,
    ingress: bool,
}

impl Ways {
    /// `None`: this side has nothing to do.
    fn of(spec: &NetworkChaosSpec, is_source: bool) -> Option<Self> {
        let (toward_target, toward_source) = match spec.direction.unwrap_or_default() {
            Direction::To => (true, false),
            Direction::From => (false, true),
            Direction::Both => (true, true),
        };
        let (sent, received) = if is_source {
            (toward_target, toward_source)
        } else {
            (toward_source, toward_target)
        };
        // A packet is dropped at both ends. It is shaped at one: where it is sent, if that is a pod.
        let outside = !spec.external_targets.is_empty();
        let ingress = match spec.target {
            _ if !is_shaping(spec) => received,
            None => received,
            Some(_) if is_source => received && outside,
            Some(_) => received && sent && outside,
        };
        let ways = Self {
            egress: sent,
            ingress,
        };
        (ways.egress || ways.ingress).then_some(ways)
    }
}

/// All but partition.
fn is_shaping(spec: &NetworkChaosSpec) -> bool {
    spec.action != NetworkAction::Partition
}

fn effect(
    spec: &NetworkChaosSpec,
    ways: Ways,
    peers: Option<BTreeSet<(IpNet, Option<u16>)>>,
) -> NetworkEffect {
    // It has been validated: nothing in it cannot be read.
    let shaping = Shaping::of(spec).unwrap_or_default();
    let chance = |share: shaping::Share| agent::Chance {
        ppm: share.ppm,
        correlation_ppm: share.correlation_ppm,
    };
    NetworkEffect {
        egress: ways.egress,
        ingress: ways.ingress,
        device: String::new(),
        all_peers: peers.is_none(),
        peers: peers.iter().flatten().map(peer).collect(),
        drop: spec.action == NetworkAction::Partition,
        loss: shaping.loss.map(chance),
        duplicate: shaping.duplicate.map(chance),
        corrupt: shaping.corrupt.map(chance),
        delay: shaping.delay.map(|delay| agent::Delay {
            latency_ns: nanos(delay.latency),
            jitter_ns: nanos(delay.jitter),
            correlation_ppm: delay.correlation_ppm,
            reorder: delay.reorder.map(|(share, gap)| agent::Reorder {
                chance: Some(chance(share)),
                gap,
            }),
        }),
        rate: shaping.rate,
        bandwidth: shaping.bandwidth.map(|bucket| {
            let (peak_rate, peak_burst) = bucket.peak.unwrap_or_default();
            agent::Bandwidth {
                rate: bucket.rate,
                limit: bucket.limit,
                buffer: bucket.buffer,
                peak_rate,
                peak_burst,
            }
        }),
    }
}

fn peer((net, port): &(IpNet, Option<u16>)) -> Peer {
    Peer {
        net: if net.prefix_len() == net.max_prefix_len() {
            net.addr().to_string()
        } else {
            net.to_string()
        },
        port: port.map_or(0, u32::from),
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
