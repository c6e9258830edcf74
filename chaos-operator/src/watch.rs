//! Watches the cluster: keeps [`Cluster`] up to date, gives each experiment its task, and wakes the
//! tasks that a change concerns, at once.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockWriteGuard};

use chaos_api::v1alpha1::Record;
use chaos_api::v1alpha1::names::{ANNOTATION_INJECT, INJECT_ENABLED};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::core::DeserializeGuard;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{Config, Event};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, oneshot};

use crate::cluster::{Cluster, pod_id};
use crate::kind::Kind;
use crate::reconcile::{Context, Experiment};
use crate::selector::matches;

/// Somebody whom changes of the cluster concern.
pub trait Concerned: Send + Sync {
    /// A pod has come, changed or gone.
    fn pod_changed(&self, pod: &Pod, cluster: &Cluster);
    /// Anything may have changed.
    fn all_changed(&self);
}

/// Everybody concerned, one per kind.
pub type Everybody = Arc<[Arc<dyn Concerned>]>;

/// All experiments of a kind.
pub struct Experiments<K: Kind> {
    store: Store<DeserializeGuard<K>>,
    /// By uid.
    tasks: Mutex<HashMap<String, Arc<Notify>>>,
}

impl<K: Kind> Experiments<K> {
    /// The experiments of this kind, and what fills them in; see [`Self::run`].
    #[must_use]
    pub fn new() -> (Arc<Self>, reflector::store::Writer<DeserializeGuard<K>>) {
        let (store, writer) = reflector::store();
        let tasks = Mutex::default();
        (Arc::new(Self { store, tasks }), writer)
    }

    /// Watches them and looks after each; returns only if the watch ends, which it does not.
    pub async fn run(
        self: Arc<Self>,
        context: Context,
        mut writer: reflector::store::Writer<DeserializeGuard<K>>,
    ) {
        let api: Api<DeserializeGuard<K>> = Api::all(context.client.clone());
        let mut events = watcher(api, Config::default()).default_backoff().boxed();
        while let Some(event) = next(&mut events, K::NAME).await {
            writer.apply_watcher_event(&event);
            match event {
                Event::Apply(object) | Event::Delete(object) => self.attend(&context, &object),
                Event::Init | Event::InitApply(_) => {}
                Event::InitDone => {
                    let objects = self.store.state();
                    let uids = objects.iter().filter_map(|object| object.uid());
                    context.agents.expect(K::NAME, uids);
                    for object in &objects {
                        self.attend(&context, object);
                    }
                    // Also those that are gone.
                    self.all_changed();
                }
            }
        }
    }

    /// Wakes the task of an object; gives it one if it has none.
    fn attend(self: &Arc<Self>, context: &Context, object: &DeserializeGuard<K>) {
        let Some(uid) = object.uid() else { return };
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = tasks.get(&uid) {
            task.notify_one();
            return;
        }
        let key = ObjectRef::from_obj(object);
        let is_there = self.store.get(&key);
        if is_there.is_none_or(|current| current.uid().as_ref() != Some(&uid)) {
            return;
        }
        let wake = Arc::new(Notify::new());
        tasks.insert(uid.clone(), Arc::clone(&wake));
        context.agents.register(&uid, Arc::clone(&wake));
        let experiment = Experiment {
            context: context.clone(),
            store: self.store.clone(),
            key,
            uid: uid.clone(),
            wake,
        };
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let task = tokio::spawn(experiment.run());
            if let Err(error) = task.await {
                // Its faults stay as they are; the next change gives it a new task.
                tracing::error!(uid, %error, "the task of an experiment has failed");
            }
            this.tasks
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&uid);
        });
    }

    fn wake(&self, uid: Option<&String>) {
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = uid.and_then(|uid| tasks.get(uid)) {
            task.notify_one();
        }
    }
}

impl<K: Kind> Concerned for Experiments<K> {
    fn pod_changed(&self, pod: &Pod, cluster: &Cluster) {
        let id = pod_id(pod);
        for object in self.store.state() {
            let Ok(experiment) = &object.0 else { continue };
            let mut experiment = experiment.clone();
            experiment.apply_defaults();
            let selectors = experiment.selectors();
            let is_eligible = selectors
                .iter()
                .any(|(_, selector)| matches(&selector.selector, pod, cluster));
            let records = experiment
                .chaos_status()
                .map(|status| status.experiment.container_records.as_slice())
                .unwrap_or_default();
            let is_of_pod = |record: &Record| {
                let rest = record.id.strip_prefix(&id);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            if is_eligible || records.iter().any(is_of_pod) {
                self.wake(object.meta().uid.as_ref());
            }
        }
    }

    fn all_changed(&self) {
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        for task in tasks.values() {
            task.notify_one();
        }
    }
}

/// Keeps the pods up to date; `ready` is told when the first list is in.
pub async fn pods(
    client: Client,
    cluster: Arc<RwLock<Cluster>>,
    everybody: Everybody,
    ready: oneshot::Sender<()>,
) {
    let mut events = watcher(Api::<Pod>::all(client), Config::default())
        .default_backoff()
        .boxed();
    let mut ready = Some(ready);
    let mut listed = BTreeSet::new();
    let key = |pod: &Pod| (pod.namespace().unwrap_or_default(), pod.name_any());
    while let Some(event) = next(&mut events, "Pod").await {
        match event {
            Event::Apply(pod) => {
                let matters = write(&cluster).put_pod(pod.clone());
                if matters {
                    tell(&everybody, &cluster, &pod);
                }
            }
            Event::Delete(pod) => {
                let (namespace, name) = key(&pod);
                write(&cluster).remove_pod(&namespace, &name);
                tell(&everybody, &cluster, &pod);
            }
            Event::Init => listed.clear(),
            Event::InitApply(pod) => {
                listed.insert(key(&pod));
                write(&cluster).put_pod(pod);
            }
            Event::InitDone => {
                write(&cluster).retain_pods(&std::mem::take(&mut listed));
                announce(&mut ready, &everybody);
            }
        }
    }
}

/// Keeps the nodes up to date; `ready` is told when the first list is in.
pub async fn nodes(
    client: Client,
    cluster: Arc<RwLock<Cluster>>,
    everybody: Everybody,
    ready: oneshot::Sender<()>,
) {
    let mut events = watcher(Api::<Node>::all(client), Config::default())
        .default_backoff()
        .boxed();
    let mut ready = Some(ready);
    let mut listed = BTreeSet::new();
    while let Some(event) = next(&mut events, "Node").await {
        match event {
            Event::Apply(node) => {
                if write(&cluster).put_node(node) {
                    announce(&mut ready, &everybody);
                }
            }
            Event::Delete(node) => {
                write(&cluster).remove_node(&node.name_any());
                announce(&mut ready, &everybody);
            }
            Event::Init => listed.clear(),
            Event::InitApply(node) => {
                listed.insert(node.name_any());
                write(&cluster).put_node(node);
            }
            Event::InitDone => {
                write(&cluster).retain_nodes(&std::mem::take(&mut listed));
                announce(&mut ready, &everybody);
            }
        }
    }
}

/// Keeps the eligible namespaces up to date; `ready` is told when the first list is in.
pub async fn namespaces(
    client: Client,
    cluster: Arc<RwLock<Cluster>>,
    everybody: Everybody,
    ready: oneshot::Sender<()>,
) {
    let (store, writer) = reflector::store::<Namespace>();
    let mut events = watcher(Api::<Namespace>::all(client), Config::default())
        .default_backoff()
        .reflect(writer)
        .boxed();
    let mut ready = Some(ready);
    while let Some(event) = next(&mut events, "Namespace").await {
        if matches!(event, Event::Init | Event::InitApply(_)) {
            continue;
        }
        let is_enabled = |namespace: &Namespace| {
            let value = namespace.annotations().get(ANNOTATION_INJECT);
            value.map(String::as_str) == Some(INJECT_ENABLED)
        };
        let enabled = store
            .state()
            .iter()
            .filter(|namespace| is_enabled(namespace))
            .map(|namespace| namespace.name_any())
            .collect();
        write(&cluster).set_enabled_namespaces(Some(enabled));
        announce(&mut ready, &everybody);
    }
}

/// The next event; errors are logged, and the watch goes on with a backoff.
async fn next<K>(
    events: &mut (impl futures::Stream<Item = watcher::Result<Event<K>>> + Unpin),
    what: &str,
) -> Option<Event<K>>
where
    K: Resource + DeserializeOwned,
{
    loop {
        match events.try_next().await {
            Ok(event) => return event,
            Err(error) => tracing::warn!(%error, "failed to watch {what}"),
        }
    }
}

/// The first time: the list is in. Later: anything may have changed.
fn announce(ready: &mut Option<oneshot::Sender<()>>, everybody: &Everybody) {
    if let Some(ready) = ready.take() {
        let _ = ready.send(());
    }
    for concerned in everybody.iter() {
        concerned.all_changed();
    }
}

fn tell(everybody: &Everybody, cluster: &RwLock<Cluster>, pod: &Pod) {
    let cluster = cluster.read().unwrap_or_else(PoisonError::into_inner);
    for concerned in everybody.iter() {
        concerned.pod_changed(pod, &cluster);
    }
}

fn write(cluster: &RwLock<Cluster>) -> RwLockWriteGuard<'_, Cluster> {
    cluster.write().unwrap_or_else(PoisonError::into_inner)
}
