//! One task against an API server that answers when the test says so.

use std::time::Duration;

use axum::http::{Method, Request, Response};
use chaos_api::v1alpha1::names::FINALIZER;
use chaos_crd::NetworkChaos;
use kube::client::Body;
use kube::core::error_boundary::InvalidObject;
use kube::runtime::reflector::{self, store::Writer};
use kube::runtime::watcher::Event;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::*;
use crate::fixtures::{UID, cluster, network_chaos, pod};

const PARTITION: &str = "{action: partition, mode: all, selector: {labelSelectors: {app: web}}}";

/// A call that waits for its answer.
struct Call {
    path: String,
    body: Value,
    reply: oneshot::Sender<(u16, Value)>,
}

impl Call {
    fn is_status(&self) -> bool {
        self.path.contains("/web/status")
    }

    fn finalizers(&self) -> Option<usize> {
        Some(self.body["metadata"]["finalizers"].as_array()?.len())
    }

    /// As an object of this version.
    fn ok(self, version: &str) {
        let meta =
            json!({ "name": "web", "namespace": "shop", "uid": UID, "resourceVersion": version });
        let body = if self.is_status() {
            let mut object = serde_json::to_value(network_chaos(PARTITION)).unwrap();
            object["metadata"] = meta;
            object
        } else {
            json!({ "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": meta })
        };
        self.reply.send((200, body)).unwrap();
    }

    fn fail(self, code: u16, message: &str) {
        let status = json!({
            "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code,
            "reason": "Conflict", "message": message,
        });
        self.reply.send((code, status)).unwrap();
    }
}

struct Bench {
    agents: Agents,
    calls: mpsc::UnboundedReceiver<Call>,
    writer: Writer<DeserializeGuard<NetworkChaos>>,
    wake: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Bench {
    /// The task of `shop/web` in this version, which has one pod on `n1`.
    fn new(chaos: NetworkChaos) -> Self {
        Self::with(
            DeserializeGuard(Ok(chaos)),
            Agents::new(&[], Timestamp::now()),
        )
    }

    fn with(object: DeserializeGuard<NetworkChaos>, agents: Agents) -> Self {
        let (calls, receiver) = mpsc::unbounded_channel();
        let service = tower::service_fn(move |request: Request<Body>| {
            let calls = calls.clone();
            async move {
                let path = request.uri().to_string();
                let is_patch = request.method() == Method::PATCH;
                let body = request.into_body().collect_bytes().await?;
                let (code, body) = if is_patch {
                    let (reply, answer) = oneshot::channel();
                    let body = serde_json::from_slice(&body).unwrap();
                    calls.send(Call { path, body, reply }).unwrap();
                    answer.await.unwrap()
                } else {
                    (201, json!({ "metadata": {} }))
                };
                let body = Body::from(serde_json::to_vec(&body).unwrap());
                let response = Response::builder().status(code).body(body);
                Ok::<_, kube::Error>(response.unwrap())
            }
        });
        let client = Client::new(service, "shop");
        let metrics = Arc::new(Metrics::default());
        let pods = [pod("shop/web-1").label("app", "web").ips(&["10.0.0.1"])];
        let context = Context {
            resolver: Resolver::default(),
            client: client.clone(),
            cluster: Arc::new(RwLock::new(cluster(pods))),
            agents: agents.clone(),
            events: Publisher::start(client, Arc::clone(&metrics)),
            metrics,
            zone: TimeZone::UTC,
        };
        let (store, writer) = reflector::store();
        let wake = Arc::new(Notify::new());
        let experiment = Experiment {
            context,
            store,
            key: ObjectRef::new("web").within("shop"),
            uid: UID.to_owned(),
            wake: Arc::clone(&wake),
        };
        agents.register(UID, Arc::clone(&wake));
        let mut bench = Self {
            agents,
            calls: receiver,
            writer,
            wake,
            task: tokio::spawn(async {}),
        };
        bench.writer.apply_watcher_event(&Event::Apply(object));
        bench.task = tokio::spawn(experiment.run());
        bench
    }

    /// The watch brings this object.
    fn show(&mut self, chaos: NetworkChaos) {
        let event = Event::Apply(DeserializeGuard(Ok(chaos)));
        self.writer.apply_watcher_event(&event);
        self.wake.notify_one();
    }

    async fn call(&mut self) -> Call {
        let call = tokio::time::timeout(Duration::from_secs(60), self.calls.recv()).await;
        call.expect("a call").unwrap()
    }

    async fn no_call(&mut self) {
        let call = tokio::time::timeout(Duration::from_millis(50), self.calls.recv()).await;
        assert!(call.is_err(), "{:?}", call.unwrap().map(|call| call.body));
    }

    fn sent(&self) -> usize {
        self.agents.wanted("n1")
    }
}

fn version(version: &str, finalizer: bool) -> NetworkChaos {
    let mut chaos = network_chaos(PARTITION);
    chaos.metadata.resource_version = Some(version.to_owned());
    chaos.metadata.finalizers = finalizer.then(|| vec![FINALIZER.to_owned()]);
    chaos
}

#[tokio::test]
async fn agents_are_told_before_the_api_server_answers_and_the_finalizer_is_set_once() {
    let mut bench = Bench::new(version("1", false));
    let add = bench.call().await;
    assert_eq!(add.finalizers(), Some(1));
    assert_eq!(bench.sent(), 1, "the finalizer is not set yet");
    add.ok("2");
    // The watch is slower than the answer.
    let status = bench.call().await;
    assert!(status.is_status(), "not the finalizer again");
    status.ok("3");
    bench.show(version("3", true));
    bench.no_call().await;
    bench.show(version("4", false));
    assert_eq!(bench.call().await.finalizers(), Some(1), "it was torn off");
}

#[tokio::test]
async fn looking_goes_on_while_a_call_hangs() {
    let mut bench = Bench::new(version("1", false));
    let _hangs = bench.call().await;
    let mut deleted = version("2", true);
    let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::now());
    deleted.metadata.deletion_timestamp = Some(now);
    bench.show(deleted);
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        if bench.sent() == 0 {
            return;
        }
    }
    panic!("the agents have not been told");
}

#[tokio::test]
async fn an_object_that_vanished_before_its_finalizer_was_set_is_withdrawn() {
    let mut bench = Bench::new(version("1", false));
    bench.call().await.fail(404, "not found");
    let event = Event::Delete(DeserializeGuard(Ok(version("1", false))));
    bench.writer.apply_watcher_event(&event);
    bench.wake.notify_one();
    (&mut bench.task).await.unwrap();
    assert_eq!(bench.sent(), 0);
}

#[tokio::test]
async fn one_that_is_being_deleted_when_it_is_first_seen_is_not_sent() {
    let mut deleted = version("1", false);
    let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::now());
    deleted.metadata.deletion_timestamp = Some(now);
    let mut bench = Bench::new(deleted);
    assert!(bench.call().await.is_status(), "and gets no finalizer");
    assert_eq!(bench.sent(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_conflict_is_tried_again_and_at_once_with_a_newer_object() {
    let mut bench = Bench::new(version("1", false));
    let began = tokio::time::Instant::now();
    bench.call().await.fail(409, "the object has been modified");
    bench.show(version("2", false));
    let add = bench.call().await;
    assert_eq!(add.body["metadata"]["resourceVersion"], "2");
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(bench.sent(), 1, "it stays with the agents meanwhile");
    add.ok("3");
    for message in [
        "the object has been modified",
        "UID in precondition: a, UID in object meta: b",
    ] {
        let status = bench.call().await;
        assert!(status.is_status(), "a conflict is no write");
        status.fail(409, message);
    }
    bench.call().await.ok("4");
    bench.show(version("4", true));
    bench.no_call().await;
}

#[tokio::test]
async fn one_that_cannot_be_read_is_let_go_when_every_agent_has_been_told() {
    for inherited in [false, true] {
        let agents = Agents::new(&[NetworkChaos::NAME], Timestamp::now());
        let known = inherited.then(|| UID.to_owned());
        agents.expect(NetworkChaos::NAME, known);
        let mut deleted = version("1", true);
        let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::now());
        deleted.metadata.deletion_timestamp = Some(now);
        let invalid = InvalidObject {
            error: "Unknown variant most".to_owned(),
            metadata: deleted.metadata,
        };
        let mut bench = Bench::with(DeserializeGuard(Err(invalid)), agents);
        if inherited {
            bench.no_call().await;
        } else {
            assert_eq!(bench.call().await.finalizers(), Some(0));
        }
    }
}

#[test]
fn waiting_doubles_up_to_half_a_minute() {
    let meta = version("1", false).metadata;
    let mut pace = Pace::default();
    assert!(pace.pause(&meta).is_zero());
    assert_eq!(pace.failed(&meta), Duration::from_millis(100));
    assert_eq!(pace.failed(&meta), Duration::from_millis(200));
    assert!(!pace.pause(&meta).is_zero());
    for _ in 0..40 {
        pace.failed(&meta);
    }
    assert_eq!(pace.failed(&meta), Duration::from_secs(30));
    assert!(pace.pause(&version("2", false).metadata).is_zero());
}
