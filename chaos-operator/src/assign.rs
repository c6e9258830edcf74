//! What each record has to have: from a resource and its records to faults in the terms of
//! `agent.proto`. The only place where one becomes the other. Pure.
//!
//! Here is what all kinds share (target, sample, mode, id); each kind's effect is in a file of its
//! own.

use std::sync::Arc;
use std::time::Duration;

use chaos_api::v1alpha1::{InjectionMode, Lifecycle};
use chaos_api::{duration, percent};
use chaos_proto::agent::target::Target as TargetKind;
use chaos_proto::agent::{ContainerTarget, Fault, Mode, PodTarget, Sample, Target};
use k8s_openapi::api::core::v1::Pod;

use crate::cluster::{
    Cluster, container_id, container_ids, containers, is_completed, is_host_network, pod_ips,
    pod_node,
};
use crate::names::Names;

pub mod network;
pub mod time;

/// What an assignment follows from.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// `metadata.uid` of the object.
    pub uid: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Round of a legacy scheduler; 0 without one.
    pub round: u64,
    /// Its records: `(selectorKey, id)`.
    pub records: &'a [(String, String)],
    /// Pods as they are now.
    pub cluster: &'a Cluster,
    /// Host names as they were resolved last.
    pub names: &'a Names,
}

impl Request<'_> {
    /// Each record with what it has to have; `share` says that of a selector key and an id. Both of
    /// its results are that: an error is what there is to say before a fault can be made.
    fn each(&self, share: impl Fn(&str, &str) -> Result<Share, Share>) -> Vec<Assigned> {
        let assigned = |(selector_key, id): &(String, String)| Assigned {
            selector_key: selector_key.clone(),
            id: id.clone(),
            share: share(selector_key, id).unwrap_or_else(|other| other),
        };
        self.records.iter().map(assigned).collect()
    }
}

/// One record with what it has to have.
#[derive(Clone, Debug, PartialEq)]
pub struct Assigned {
    /// `.` or `.Target`.
    pub selector_key: String,
    /// Id of the record.
    pub id: String,
    /// What it has to have.
    pub share: Share,
}

/// What a record has to have.
#[derive(Clone, Debug, PartialEq)]
pub enum Share {
    /// A fault on a node. `remaining_ms` is filled in when it is sent.
    Fault {
        /// The node of the pod.
        node: String,
        /// What to send there.
        fault: Box<Fault>,
    },
    /// This side has nothing to do, so it is injected as it is.
    Nothing,
    /// Injected as it is, and without effect: the reason.
    NoEffect(&'static str),
    /// Its pod cannot have a fault yet: the reason.
    Waiting(&'static str),
    /// Its pod does not exist, or has ended for good; or its container is not in the pod that has
    /// the name now.
    Gone,
}

/// The pod of a record, if it can have a fault now.
fn live_pod<'a>(id: &str, cluster: &'a Cluster) -> Result<(&'a Arc<Pod>, &'a str), Share> {
    let pod = cluster
        .pod_of_record(id)
        .filter(|pod| !is_completed(pod))
        .ok_or(Share::Gone)?;
    let node = pod_node(pod).ok_or(Share::Waiting("the pod is not on a node yet"))?;
    if container_ids(pod).is_empty() && pod_ips(pod).is_empty() {
        return Err(Share::Waiting("the pod has not been started yet"));
    }
    Ok((pod, node))
}

/// The container of a record `<namespace>/<pod>/<container>`, if it can have a fault now.
fn live_container(id: &str, pod: &Pod) -> Result<Target, Share> {
    let name = id.rsplit('/').next().unwrap_or_default();
    // The pod may be back under its name with other containers, as one of a StatefulSet.
    if containers(pod, &[name.to_owned()]).is_empty() {
        return Err(Share::Gone);
    }
    let container_id =
        container_id(pod, name).ok_or(Share::Waiting("the container has not been started yet"))?;
    Ok(Target {
        target: Some(TargetKind::Container(ContainerTarget {
            pod_uid: pod.metadata.uid.clone().unwrap_or_default(),
            container_id,
        })),
    })
}

/// All of a pod.
fn whole(pod: &Pod) -> Target {
    Target {
        target: Some(TargetKind::Pod(PodTarget {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            container_ids: container_ids(pod),
            host_network: is_host_network(pod),
        })),
    }
}

/// The parts of a fault that do not depend on the kind.
fn fault(
    kind: &str,
    lifecycle: &Lifecycle,
    request: &Request<'_>,
    selector_key: &str,
    id: &str,
    target: Target,
) -> Fault {
    let faultline = lifecycle.faultline.clone().unwrap_or_default();
    let sample = faultline.sample.map(|sample| Sample {
        ppm: sample
            .percent
            .and_then(|text| percent::parse_ppm(&text).ok()),
        first: sample.first.unwrap_or_default(),
        every: sample.every.unwrap_or_default(),
        seed: sample.seed,
    });
    let mode = match faultline.mode.unwrap_or_default() {
        InjectionMode::Inject => Mode::Inject,
        InjectionMode::Observe => Mode::Observe,
    };
    Fault {
        id: fault_id(request.uid, request.round, selector_key, id),
        kind: kind.to_owned(),
        namespace: request.namespace.to_owned(),
        name: request.name.to_owned(),
        record: id.to_owned(),
        target: Some(target),
        remaining_ms: None,
        orphan_ms: faultline.orphan_timeout.as_deref().and_then(millis),
        mode: mode.into(),
        sample,
        effect: None,
    }
}

/// Unique and stable for a record of a round; begins with the uid of the object.
#[must_use]
pub fn fault_id(uid: &str, round: u64, selector_key: &str, record: &str) -> String {
    format!("{uid}/{round}/{selector_key}/{record}")
}

/// The uid of the object that a fault belongs to.
#[must_use]
pub fn owner_of(fault_id: &str) -> &str {
    fault_id.split('/').next().unwrap_or_default()
}

fn positive(text: &str) -> Option<Duration> {
    Duration::try_from(duration::parse(text).ok()?).ok()
}

fn millis(text: &str) -> Option<u64> {
    u64::try_from(positive(text)?.as_millis()).ok()
}
