//! Objects for the unit tests of this crate: pods and nodes by builders, experiments from YAML.

use std::collections::BTreeMap;

use chaos_crd::NetworkChaos;
use k8s_openapi::api::core::v1::{
    Container, ContainerStatus, Node, Pod, PodIP, PodSpec, PodStatus,
};
use kube::ResourceExt;

use crate::cluster::Cluster;
use crate::kind::Kind;

/// Uid of every experiment here.
pub(crate) const UID: &str = "11111111-2222";
/// When every experiment here was created.
pub(crate) const CREATED: &str = "2026-01-01T00:00:00Z";

/// A pod under construction.
pub(crate) struct PodBuilder(Pod);

/// A running pod on `n1`, with one container; `<namespace>/<name>`.
pub(crate) fn pod(id: &str) -> PodBuilder {
    let (namespace, name) = id.split_once('/').expect("<namespace>/<name>");
    let mut pod = Pod::default();
    pod.metadata.namespace = Some(namespace.into());
    pod.metadata.name = Some(name.into());
    pod.metadata.uid = Some(format!("uid-{name}"));
    pod.spec = Some(PodSpec {
        node_name: Some("n1".into()),
        containers: vec![Container {
            name: "app".into(),
            ..Container::default()
        }],
        ..PodSpec::default()
    });
    pod.status = Some(PodStatus {
        phase: Some("Running".into()),
        container_statuses: Some(vec![ContainerStatus {
            container_id: Some(format!("containerd://c-{name}")),
            name: "app".into(),
            ..ContainerStatus::default()
        }]),
        ..PodStatus::default()
    });
    PodBuilder(pod)
}

impl PodBuilder {
    pub(crate) fn label(mut self, key: &str, value: &str) -> Self {
        self.0.labels_mut().insert(key.into(), value.into());
        self
    }

    pub(crate) fn annotation(mut self, key: &str, value: &str) -> Self {
        self.0.annotations_mut().insert(key.into(), value.into());
        self
    }

    pub(crate) fn on(mut self, node: &str) -> Self {
        self.0.spec.get_or_insert_default().node_name = Some(node.into());
        self
    }

    pub(crate) fn uid(mut self, uid: &str) -> Self {
        self.0.metadata.uid = Some(uid.into());
        self
    }

    /// One more container, with this id of the runtime.
    pub(crate) fn container(mut self, name: &str, id: &str) -> Self {
        let spec = self.0.spec.get_or_insert_default();
        spec.containers.push(Container {
            name: name.into(),
            ..Container::default()
        });
        let status = self.0.status.get_or_insert_default();
        let statuses = status.container_statuses.get_or_insert_default();
        statuses.push(ContainerStatus {
            container_id: Some(format!("containerd://{id}")),
            name: name.into(),
            ..ContainerStatus::default()
        });
        self
    }

    pub(crate) fn host_network(mut self) -> Self {
        self.0.spec.get_or_insert_default().host_network = Some(true);
        self
    }

    pub(crate) fn phase(mut self, phase: &str) -> Self {
        self.0.status.get_or_insert_default().phase = Some(phase.into());
        self
    }

    pub(crate) fn ips(mut self, ips: &[&str]) -> Self {
        let status = self.0.status.get_or_insert_default();
        status.pod_ip = ips.first().map(|ip| (*ip).to_owned());
        status.pod_ips = Some(ips.iter().map(|ip| PodIP { ip: (*ip).into() }).collect());
        self
    }

    /// Before the scheduler has seen it.
    pub(crate) fn unscheduled(mut self) -> Self {
        self.0.spec.get_or_insert_default().node_name = None;
        self.0.status = None;
        self
    }

    /// On a node, but nothing of it runs yet.
    pub(crate) fn unstarted(mut self) -> Self {
        self.0.status = None;
        self
    }

    pub(crate) fn build(self) -> Pod {
        self.0
    }
}

/// A node under construction.
pub(crate) struct NodeBuilder(Node);

pub(crate) fn node(name: &str) -> NodeBuilder {
    let mut node = Node::default();
    node.metadata.name = Some(name.into());
    NodeBuilder(node)
}

impl NodeBuilder {
    pub(crate) fn label(mut self, key: &str, value: &str) -> Self {
        let labels: &mut BTreeMap<String, String> = self.0.labels_mut();
        labels.insert(key.into(), value.into());
        self
    }

    pub(crate) fn build(self) -> Node {
        self.0
    }
}

/// These pods, and the nodes they are on.
pub(crate) fn cluster(pods: impl IntoIterator<Item = PodBuilder>) -> Cluster {
    let mut cluster = Cluster::default();
    for pod in pods {
        let pod = pod.build();
        if let Some(name) = crate::cluster::pod_node(&pod) {
            cluster.put_node(node(name).build());
        }
        cluster.put_pod(pod);
    }
    cluster
}

/// `shop/web` with this spec, defaulted.
pub(crate) fn network_chaos(spec: &str) -> NetworkChaos {
    experiment(spec)
}

/// The same of any kind.
pub(crate) fn experiment<K: Kind>(spec: &str) -> K {
    let spec: serde_norway::Value = serde_norway::from_str(spec).expect("the test's spec is YAML");
    let object = serde_json::json!({
        "apiVersion": "chaos-mesh.org/v1alpha1",
        "kind": K::NAME,
        "metadata": {
            "name": "web", "namespace": "shop", "uid": UID, "creationTimestamp": CREATED,
        },
        "spec": spec,
    });
    let mut chaos: K = serde_json::from_value(object).expect("the test's spec is one of its kind");
    chaos.apply_defaults();
    chaos
}
