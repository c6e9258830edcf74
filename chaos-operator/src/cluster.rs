//! What the operator knows of the cluster: pods, nodes, and which namespaces are open to chaos.
//!
//! A plain value that the pure parts read; `watch.rs` keeps it up to date. Nothing is fetched here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Node, Pod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

/// Phases of a pod that will not run again.
const COMPLETED: [&str; 2] = ["Succeeded", "Failed"];

/// Pods, nodes and namespaces.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// By namespace and name: selectors name namespaces, so that others are never looked at.
    pods: BTreeMap<String, BTreeMap<String, Arc<Pod>>>,
    /// By name.
    nodes: BTreeMap<String, Arc<Node>>,
    /// With `ENABLE_FILTER_NAMESPACE`: the only eligible namespaces.
    enabled_namespaces: Option<BTreeSet<String>>,
}

impl Cluster {
    /// Takes in a new or changed pod; returns whether that can matter to an experiment. Most
    /// changes of a pod do not.
    pub fn put_pod(&mut self, pod: Pod) -> bool {
        let pod = slim(pod);
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let pods = self.pods.entry(namespace).or_default();
        let matters = pods.get(&name).is_none_or(|old| **old != pod);
        pods.insert(name, Arc::new(pod));
        matters
    }

    /// Forgets a pod.
    pub fn remove_pod(&mut self, namespace: &str, name: &str) {
        if let Some(pods) = self.pods.get_mut(namespace) {
            pods.remove(name);
            if pods.is_empty() {
                self.pods.remove(namespace);
            }
        }
    }

    /// Forgets all pods that are not in `keep`: after a break in the watch, those were deleted.
    pub fn retain_pods(&mut self, keep: &BTreeSet<(String, String)>) {
        for (namespace, pods) in &mut self.pods {
            pods.retain(|name, _| keep.contains(&(namespace.clone(), name.clone())));
        }
        self.pods.retain(|_, pods| !pods.is_empty());
    }

    /// Takes in a new or changed node; returns whether that can matter to an experiment.
    pub fn put_node(&mut self, node: Node) -> bool {
        let node = Node {
            metadata: ObjectMeta {
                name: node.metadata.name,
                labels: node.metadata.labels,
                ..ObjectMeta::default()
            },
            ..Node::default()
        };
        let matters = self
            .nodes
            .get(&node.name_any())
            .is_none_or(|old| **old != node);
        self.nodes.insert(node.name_any(), Arc::new(node));
        matters
    }

    /// Forgets a node.
    pub fn remove_node(&mut self, name: &str) {
        self.nodes.remove(name);
    }

    /// Forgets all nodes that are not in `keep`.
    pub fn retain_nodes(&mut self, keep: &BTreeSet<String>) {
        self.nodes.retain(|name, _| keep.contains(name));
    }

    /// Says which namespaces are eligible; `None` is all.
    pub fn set_enabled_namespaces(&mut self, namespaces: Option<BTreeSet<String>>) {
        self.enabled_namespaces = namespaces;
    }

    /// Whether pods of this namespace may be selected.
    #[must_use]
    pub fn is_enabled(&self, namespace: &str) -> bool {
        self.enabled_namespaces
            .as_ref()
            .is_none_or(|enabled| enabled.contains(namespace))
    }

    /// A pod by namespace and name.
    #[must_use]
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Arc<Pod>> {
        self.pods.get(namespace)?.get(name)
    }

    /// The pod that the record `<namespace>/<pod>` (or `<namespace>/<pod>/…`) is about.
    #[must_use]
    pub fn pod_of_record(&self, id: &str) -> Option<&Arc<Pod>> {
        let mut parts = id.splitn(3, '/');
        self.pod(parts.next()?, parts.next()?)
    }

    /// The pods of a namespace, by name.
    pub fn pods_in(&self, namespace: &str) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods
            .get(namespace)
            .into_iter()
            .flat_map(BTreeMap::values)
    }

    /// A node by name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&Arc<Node>> {
        self.nodes.get(name)
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }
}

/// Only what is read here: a cluster has many pods, and each has much to say.
fn slim(pod: Pod) -> Pod {
    let (spec, status) = (pod.spec.unwrap_or_default(), pod.status);
    Pod {
        metadata: ObjectMeta {
            name: pod.metadata.name,
            namespace: pod.metadata.namespace,
            uid: pod.metadata.uid,
            labels: pod.metadata.labels,
            annotations: pod.metadata.annotations,
            deletion_timestamp: pod.metadata.deletion_timestamp,
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            node_name: spec.node_name,
            host_network: spec.host_network,
            restart_policy: spec.restart_policy,
            scheduler_name: spec.scheduler_name,
            service_account_name: spec.service_account_name,
            containers: spec.containers.into_iter().map(slim_container).collect(),
            ..PodSpec::default()
        }),
        status: status.map(|status| PodStatus {
            phase: status.phase,
            pod_ip: status.pod_ip,
            pod_ips: status.pod_ips,
            nominated_node_name: status.nominated_node_name,
            container_statuses: status.container_statuses.map(|containers| {
                let slim = |container: ContainerStatus| ContainerStatus {
                    container_id: container.container_id,
                    name: container.name,
                    ..ContainerStatus::default()
                };
                containers.into_iter().map(slim).collect()
            }),
            ..PodStatus::default()
        }),
    }
}

fn slim_container(container: Container) -> Container {
    Container {
        name: container.name,
        ..Container::default()
    }
}

/// `<namespace>/<name>`: the id of a pod's record.
#[must_use]
pub fn pod_id(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any())
}

/// It has ended for good: there is nothing left to inject into.
#[must_use]
pub fn is_completed(pod: &Pod) -> bool {
    COMPLETED.contains(&pod_phase(pod))
}

/// `status.phase`; `Pending` before the first status.
#[must_use]
pub fn pod_phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or("Pending")
}

/// The node it runs on, once it is scheduled.
#[must_use]
pub fn pod_node(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

/// It shares the network namespace of its node.
#[must_use]
pub fn is_host_network(pod: &Pod) -> bool {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.host_network)
        .unwrap_or_default()
}

/// All its addresses, IPv4 and IPv6, sorted; empty before it has a sandbox.
#[must_use]
pub fn pod_ips(pod: &Pod) -> BTreeSet<IpAddr> {
    let Some(status) = &pod.status else {
        return BTreeSet::new();
    };
    let listed = status.pod_ips.iter().flatten().map(|entry| &entry.ip);
    status
        .pod_ip
        .iter()
        .chain(listed)
        .filter_map(|ip| ip.parse().ok())
        .collect()
}

/// Ids of its containers without the runtime's scheme, in the order of the spec's status.
#[must_use]
pub fn container_ids(pod: &Pod) -> Vec<String> {
    let Some(status) = &pod.status else {
        return Vec::new();
    };
    status
        .container_statuses
        .iter()
        .flatten()
        .filter_map(|container| bare(container.container_id.as_deref()?))
        .collect()
}

/// `containerd://<id>` without the scheme; `None` for a container that has no id yet.
fn bare(id: &str) -> Option<String> {
    let id = id.split_once("://").map_or(id, |(_, id)| id);
    (!id.is_empty()).then(|| id.to_owned())
}

/// Those of its containers that have one of these names, without init containers, in the order of
/// its spec; no name at all means the first.
pub fn containers<'a>(pod: &'a Pod, names: &[String]) -> Vec<&'a str> {
    let all = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut all = all.map(|container| container.name.as_str());
    if names.is_empty() {
        return all.next().into_iter().collect();
    }
    all.filter(|name| names.iter().any(|asked| asked == name))
        .collect()
}

/// The id of its container of this name, without the runtime's scheme; `None` before it has one.
#[must_use]
pub fn container_id(pod: &Pod, name: &str) -> Option<String> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    let status = statuses.iter().find(|status| status.name == name)?;
    bare(status.container_id.as_deref()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::pod;

    #[test]
    fn a_pod_is_found_by_its_record_also_by_that_of_a_container() {
        let mut cluster = Cluster::default();
        cluster.put_pod(pod("shop/web-0").build());
        assert!(cluster.pod_of_record("shop/web-0").is_some());
        assert!(cluster.pod_of_record("shop/web-0/app").is_some());
        assert!(cluster.pod_of_record("shop").is_none());
        cluster.remove_pod("shop", "web-0");
        assert!(cluster.pod_of_record("shop/web-0").is_none());
    }

    #[test]
    fn only_what_an_experiment_reads_of_a_pod_matters() {
        let mut cluster = Cluster::default();
        let build = || pod("shop/a").ips(&["10.0.0.1"]);
        assert!(cluster.put_pod(build().build()));
        let mut same = build().build();
        same.metadata.resource_version = Some("7".into());
        same.status.get_or_insert_default().message = Some("probed".into());
        assert!(!cluster.put_pod(same));
        assert!(cluster.put_pod(build().label("app", "web").build()));
        assert!(cluster.put_pod(build().phase("Failed").build()));
        assert!(cluster.put_pod(build().ips(&["10.0.0.2"]).build()));
    }

    #[test]
    fn pods_that_a_new_list_does_not_have_are_forgotten() {
        let mut cluster = Cluster::default();
        cluster.put_pod(pod("shop/a").build());
        cluster.put_pod(pod("shop/b").build());
        cluster.retain_pods(&BTreeSet::from([("shop".into(), "b".into())]));
        assert_eq!(cluster.pods_in("shop").count(), 1);
    }

    #[test]
    fn addresses_of_both_families_and_bare_container_ids_are_read() {
        let pod = pod("shop/web-0").ips(&["10.0.0.7", "fd00::7"]).build();
        let ips: Vec<String> = pod_ips(&pod).iter().map(ToString::to_string).collect();
        assert_eq!(ips, ["10.0.0.7", "fd00::7"]);
        assert_eq!(container_ids(&pod), ["c-web-0"]);
    }

    #[test]
    fn containers_are_found_by_name_and_the_first_without_one() {
        let mut cluster = Cluster::default();
        cluster.put_pod(pod("shop/web-0").container("sidecar", "").build());
        let pod = cluster.pod("shop", "web-0").expect("just put");
        let named = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|&name| name.into()).collect();
            containers(pod, &names)
        };
        assert_eq!(named(&[]), ["app"]);
        assert_eq!(named(&["sidecar", "app", "none"]), ["app", "sidecar"]);
        assert_eq!(named(&["none"]), [""; 0]);
        assert_eq!(container_id(pod, "app").as_deref(), Some("c-web-0"));
        assert_eq!(container_id(pod, "sidecar"), None);
    }
}
