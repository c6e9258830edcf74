//! Publishes notices as Kubernetes Events, one by one and behind the work: nobody waits for them.
//!
//! `kube`'s recorder folds repeated Events into series; readers of Chaos Mesh's Events expect one
//! each, under its names and with its annotations.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chaos_api::v1alpha1::names::{EVENT_ANNOTATION_TYPE, GROUP};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::mpsc;

use crate::metrics::Metrics;
use crate::notice::Notice;

/// `reportingComponent` of every Event.
const COMPONENT: &str = "chaos-operator";

/// Events that wait, at most; more are counted as lost. An experiment on 1000 pods makes about as
/// many.
const QUEUE: usize = 10_000;

/// Puts Events into the queue. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Publisher {
    queue: mpsc::Sender<(ObjectReference, Notice, Timestamp)>,
    metrics: Arc<Metrics>,
}

impl Publisher {
    /// Starts the task that posts them.
    #[must_use]
    pub fn start(client: Client, metrics: Arc<Metrics>) -> Self {
        let (queue, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(post_all(client, receiver));
        Self { queue, metrics }
    }

    /// Puts an Event about `object` into the queue.
    pub fn publish(&self, object: &ObjectReference, notice: Notice) {
        let namespace = object.namespace.as_deref().unwrap_or_default();
        tracing::info!(
            object = format_args!("{namespace}/{}", object.name.as_deref().unwrap_or_default()),
            reason = notice.reason,
            "{}",
            notice.message
        );
        let kind = event_type(&notice);
        self.metrics.event(kind, notice.reason, namespace);
        if self
            .queue
            .try_send((object.clone(), notice, Timestamp::now()))
            .is_err()
        {
            self.metrics.event_lost();
        }
    }
}

async fn post_all(client: Client, mut queue: mpsc::Receiver<(ObjectReference, Notice, Timestamp)>) {
    while let Some((object, notice, at)) = queue.recv().await {
        let namespace = object.namespace.clone().unwrap_or_default();
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        let event = event(&object, &notice, at);
        if let Err(error) = api.create(&PostParams::default(), &event).await {
            // The next one may well succeed; the log has it already.
            tracing::debug!(%error, reason = notice.reason, "failed to post an Event");
        }
    }
}

fn event(object: &ObjectReference, notice: &Notice, at: Timestamp) -> Event {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    let nanos = u64::try_from(at.as_nanosecond()).unwrap_or_default();
    let serial = nanos.wrapping_add(SERIAL.fetch_add(1, Ordering::Relaxed));
    let name = object.name.as_deref().unwrap_or_default();
    let fields = notice
        .fields
        .iter()
        .map(|(field, value)| (format!("{GROUP}/{field}"), value.clone()));
    let kind = (EVENT_ANNOTATION_TYPE.to_owned(), notice.kind.to_owned());
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{serial:x}")),
            namespace: object.namespace.clone(),
            annotations: Some(fields.chain([kind]).collect()),
            ..ObjectMeta::default()
        },
        involved_object: object.clone(),
        type_: Some(event_type(notice).to_owned()),
        reason: Some(notice.reason.to_owned()),
        message: Some(notice.message.clone()),
        count: Some(1),
        first_timestamp: Some(Time(at)),
        last_timestamp: Some(Time(at)),
        event_time: Some(MicroTime(at)),
        // Required with an event time.
        action: Some(notice.reason.to_owned()),
        reporting_component: Some(COMPONENT.to_owned()),
        reporting_instance: Some(COMPONENT.to_owned()),
        source: Some(EventSource {
            component: Some(COMPONENT.to_owned()),
            host: None,
        }),
        ..Event::default()
    }
}

const fn event_type(notice: &Notice) -> &'static str {
    if notice.warning { "Warning" } else { "Normal" }
}
