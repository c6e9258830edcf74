//! Which pods a selector means. Pure; how many of them are taken is `draw.rs`'s business.
//!
//! As upstream, but for one thing: pods that have completed (`Succeeded`, `Failed`) are only
//! selected if `podPhaseSelectors` names their phase. Upstream takes them, and the experiment then
//! never becomes injected.

use std::collections::BTreeMap;
use std::sync::Arc;

use chaos_api::v1alpha1::{PodSelectorSpec, SelectorRequirement};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::cluster::{Cluster, is_completed, pod_node, pod_phase};

/// Why a selector cannot be carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// `nodes` names one that does not exist.
    #[error("{field}.nodes: {node}: no node has this name; see kubectl get nodes")]
    UnknownNode {
        /// Path of the selector.
        field: String,
        /// The name.
        node: String,
    },
}

/// The pods that `selector` means, by namespace and name. `field` is its path, for errors.
///
/// # Errors
/// See [`SelectorError`].
pub fn select<'a>(
    selector: &PodSelectorSpec,
    field: &str,
    cluster: &'a Cluster,
) -> Result<Vec<&'a Arc<Pod>>, SelectorError> {
    if !selector.pods.is_empty() {
        return Ok(listed(selector, cluster));
    }
    if let Some(node) = selector.nodes.iter().find(|n| cluster.node(n).is_none()) {
        return Err(SelectorError::UnknownNode {
            field: field.to_owned(),
            node: node.clone(),
        });
    }
    let mut namespaces: Vec<&String> = selector.namespaces.iter().collect();
    namespaces.sort_unstable();
    namespaces.dedup();
    Ok(namespaces
        .into_iter()
        .flat_map(|namespace| cluster.pods_in(namespace))
        .filter(|pod| matches(selector, pod, cluster))
        .collect())
}

/// Whether `selector` means this pod.
#[must_use]
pub fn matches(selector: &PodSelectorSpec, pod: &Pod, cluster: &Cluster) -> bool {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    if !cluster.is_enabled(namespace) {
        return false;
    }
    if !selector.pods.is_empty() {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        return !is_completed(pod)
            && selector
                .pods
                .get(namespace)
                .is_some_and(|names| names.iter().any(|listed| listed == name));
    }
    selector.namespaces.iter().any(|one| one == namespace)
        && has_all(&selector.label_selectors, pod.labels())
        && has_all(&selector.annotation_selectors, pod.annotations())
        && selector
            .expression_selectors
            .iter()
            .all(|requirement| meets(requirement, pod.labels()))
        && selector
            .field_selectors
            .iter()
            .all(|(path, value)| field(pod, path) == Some(value))
        && is_in_phase(&selector.pod_phase_selectors, pod)
        && is_on_node(selector, pod, cluster)
}

/// A list of pods stands alone; those that do not exist are skipped.
fn listed<'a>(selector: &PodSelectorSpec, cluster: &'a Cluster) -> Vec<&'a Arc<Pod>> {
    let mut pods: Vec<&Arc<Pod>> = selector
        .pods
        .iter()
        .flat_map(|(namespace, names)| {
            let mut names: Vec<&String> = names.iter().collect();
            names.sort_unstable();
            names.dedup();
            names
                .into_iter()
                .filter_map(|name| cluster.pod(namespace, name))
        })
        .collect();
    pods.retain(|pod| matches(selector, pod, cluster));
    pods
}

fn has_all(wanted: &BTreeMap<String, String>, present: &BTreeMap<String, String>) -> bool {
    wanted
        .iter()
        .all(|(key, value)| present.get(key) == Some(value))
}

/// As Kubernetes has it: a label that is missing is not in any list.
fn meets(requirement: &SelectorRequirement, labels: &BTreeMap<String, String>) -> bool {
    let value = labels.get(&requirement.key);
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|value| requirement.values.contains(value)),
        "NotIn" => value.is_none_or(|value| !requirement.values.contains(value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        // Refused by validation; meaning nobody is safer than meaning everybody.
        _ => false,
    }
}

/// Those fields that the API server can select pods by.
fn field<'a>(pod: &'a Pod, path: &str) -> Option<&'a String> {
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    match path {
        "metadata.name" => pod.metadata.name.as_ref(),
        "metadata.namespace" => pod.metadata.namespace.as_ref(),
        "spec.nodeName" => spec?.node_name.as_ref(),
        "spec.restartPolicy" => spec?.restart_policy.as_ref(),
        "spec.schedulerName" => spec?.scheduler_name.as_ref(),
        "spec.serviceAccountName" => spec?.service_account_name.as_ref(),
        "status.phase" => status?.phase.as_ref(),
        "status.podIP" => status?.pod_ip.as_ref(),
        "status.nominatedNodeName" => status?.nominated_node_name.as_ref(),
        _ => None,
    }
}

fn is_in_phase(phases: &[String], pod: &Pod) -> bool {
    let phase = pod_phase(pod);
    let excluded = |entry: &String| entry.strip_prefix('!') == Some(phase);
    if phases.iter().any(excluded) {
        return false;
    }
    let mut included = phases.iter().filter(|entry| !entry.starts_with('!'));
    let mut named = included.clone();
    if named.next().is_none() {
        return !is_completed(pod);
    }
    included.any(|entry| entry == phase)
}

/// `nodes` and `nodeSelectors` name a union.
fn is_on_node(selector: &PodSelectorSpec, pod: &Pod, cluster: &Cluster) -> bool {
    if selector.nodes.is_empty() && selector.node_selectors.is_empty() {
        return true;
    }
    let Some(name) = pod_node(pod) else {
        return false;
    };
    if selector.nodes.iter().any(|node| node == name) {
        return true;
    }
    !selector.node_selectors.is_empty()
        && cluster
            .node(name)
            .is_some_and(|node| has_all(&selector.node_selectors, node.labels()))
}

#[cfg(test)]
mod tests;
