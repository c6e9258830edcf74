//! What an operator before this one may have left on nodes without having written it down: it tells
//! agents first and writes the status after. Pure.
//!
//! An agent that has carried out any set of this operator has nothing else than what was in it, so
//! such things only matter when an object is deleted before its nodes have been heard.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::cluster::pod_node;
use crate::experiment::Surrounding;
use crate::kept::{End, Kept};
use crate::kind::Kind;
use crate::phase::{LONGEST_LEASE, settled_at};
use crate::selector::select;
use crate::window::Window;

/// Nodes that may still have something of an inherited experiment, and when each counts as clean if
/// its agent stays away: those whose agent is connected, those of pods that match, and those of its
/// records, as long as no set of this operator has been carried out there.
pub(super) fn unheard<K: Kind>(
    object: &K,
    kept: &Kept,
    window: &Window,
    around: &Surrounding<'_>,
) -> BTreeMap<String, Timestamp> {
    if !around.view.inherited {
        return BTreeMap::new();
    }
    let mut nodes: BTreeSet<String> = BTreeSet::new();
    for (key, selector) in object.selectors() {
        // What cannot be selected was not selected before either.
        for pod in select(&selector.selector, key, around.cluster).unwrap_or_default() {
            nodes.extend(pod_node(pod).map(str::to_owned));
        }
    }
    for record in &kept.records {
        let pod = around.cluster.pod_of_record(&record.id);
        nodes.extend(pod.and_then(|pod| pod_node(pod)).map(str::to_owned));
    }
    let connected = around.view.nodes.iter().filter(|(_, node)| node.connected);
    nodes.extend(connected.map(|(name, _)| name.clone()));
    nodes.retain(|name| around.cluster.node(name).is_some());
    let ends = window.ends_at.or(window.round.map(|round| round.ends));
    let end = ends.map_or(End::Lease(LONGEST_LEASE), End::At);
    let settled = |name: String| (settled_at(end, around.view.node(&name).since), name);
    nodes
        .into_iter()
        .map(settled)
        .filter(|(settled, name)| {
            let node = around.view.node(name);
            node.generation == 0 && (node.connected || around.now < *settled)
        })
        .map(|(settled, name)| (name, settled))
        .collect()
}
