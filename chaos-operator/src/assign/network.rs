//! NetworkChaos: which pods do what to packets to and from which addresses.
//!
//! | action | direction | sources (`.`) | targets (`.Target`) |
//! |---|---|---|---|
//! | partition | to | drop egress to targets | drop ingress from sources |
//! | partition | from | drop ingress from targets | drop egress to sources |
//! | partition | both | both | both |
//! | delay, loss | to | egress to targets | nothing |
//! | delay, loss | from | nothing | egress to sources |
//! | delay, loss | both | egress to targets | egress to sources |
//!
//! Without a target the sources' packets to and from everybody are meant. A target without any pod
//! is not the same as no target: then there is nothing to do.

use std::collections::BTreeSet;
use std::net::IpAddr;

use chaos_api::percent;
use chaos_api::v1alpha1::names::SELECTOR_KEY_SOURCE;
use chaos_api::v1alpha1::{Direction, NetworkAction, NetworkChaos, NetworkChaosSpec};
use chaos_proto::agent::NetworkEffect;
use chaos_proto::agent::fault::Effect;

use crate::assign::{Assigned, Request, Share, fault, live_pod, nanos};
use crate::cluster::{is_completed, pod_ips};
use crate::kind::Kind;

const SELF_ONLY: &str =
    "the pod is its own only peer, and what it sends to itself passes no network device";
const NO_ADDRESS: &str = "no pod of the other side has an address yet";

/// What each record of a NetworkChaos has to have. The spec has been defaulted and validated.
#[must_use]
pub fn assign(chaos: &NetworkChaos, request: &Request<'_>) -> Vec<Assigned> {
    let sides = Sides::of(chaos, request);
    request
        .records
        .iter()
        .map(|(selector_key, id)| Assigned {
            selector_key: selector_key.clone(),
            id: id.clone(),
            share: share(chaos, request, &sides, selector_key, id).unwrap_or_else(|other| other),
        })
        .collect()
}

/// Both sides.
struct Sides {
    sources: Side,
    /// `None`: the experiment has no target.
    targets: Option<Side>,
}

/// The pods of a side that exist: ids of their records, and all their addresses.
#[derive(Default)]
struct Side {
    ids: BTreeSet<String>,
    addresses: BTreeSet<IpAddr>,
}

impl Sides {
    fn of(chaos: &NetworkChaos, request: &Request<'_>) -> Self {
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
    sides: &Sides,
    selector_key: &str,
    id: &str,
) -> Result<Share, Share> {
    let (pod, node) = live_pod(id, request.cluster)?;
    let is_source = selector_key == SELECTOR_KEY_SOURCE;
    let Some(ways) = Ways::of(&chaos.spec, is_source) else {
        return Ok(Share::Nothing);
    };
    let own = pod_ips(pod);
    let peers = match sides.opposite(is_source) {
        None => None,
        Some(others) => Some(peers(chaos, sides, others, is_source, id, &own)?),
    };
    let mut fault = fault(
        NetworkChaos::NAME,
        &chaos.spec.lifecycle,
        request,
        selector_key,
        id,
        pod,
    );
    fault.effect = Some(Effect::Network(effect(&chaos.spec, ways, peers)));
    Ok(Share::Fault {
        node: node.to_owned(),
        fault: Box::new(fault),
    })
}

/// The addresses that a record's packets are compared with.
fn peers(
    chaos: &NetworkChaos,
    sides: &Sides,
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
    if !is_source
        && chaos.spec.action != NetworkAction::Partition
        && sides.sources.ids.contains(id)
        && Ways::of(&chaos.spec, true).is_some()
    {
        if let Some(targets) = &sides.targets {
            peers.retain(|peer| !targets.addresses.contains(peer));
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
        // Only a packet that is dropped can be dropped on arrival; it is shaped where it is sent.
        let ways = Self {
            egress: sent,
            ingress: received && spec.action == NetworkAction::Partition,
        };
        (ways.egress || ways.ingress).then_some(ways)
    }
}

fn effect(spec: &NetworkChaosSpec, ways: Ways, peers: Option<BTreeSet<IpAddr>>) -> NetworkEffect {
    let shaping = spec.action != NetworkAction::Partition;
    let loss = spec.loss.as_ref().filter(|_| shaping);
    let delay = spec.delay.as_ref().filter(|_| shaping);
    NetworkEffect {
        egress: ways.egress,
        ingress: ways.ingress,
        device: spec.device.clone().unwrap_or_default(),
        all_peers: peers.is_none(),
        peers: peers.iter().flatten().map(ToString::to_string).collect(),
        drop: !shaping,
        loss_ppm: loss.and_then(|block| percent::parse_ppm(&block.loss).ok()),
        delay_ns: delay
            .and_then(|block| nanos(&block.latency))
            .filter(|latency| *latency > 0),
    }
}

#[cfg(test)]
mod tests;
