//! What the scenarios have in hand: the API server, the agents, an operator, and short ways to
//! make and read objects.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use chaos_api::v1alpha1::RecordPhase;
use chaos_crd::{Experiment, NetworkChaos};
use chaos_operator::run::RunArgs;
use k8s_openapi::api::core::v1::{Event, Namespace, Node, Pod, Secret};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::control_plane::{ADDRESS, ControlPlane};
use crate::fake_agent::FakeAgent;

pub(crate) const NAMESPACE: &str = "shop";
const FAULTLINE: &str = "faultline";
const AGENT_PORT: u16 = 31767;
const FIRST_METRICS_PORT: u16 = 10080;

pub(crate) struct World {
    pub(crate) control_plane: ControlPlane,
    pub(crate) client: Client,
    pub(crate) agent: FakeAgent,
    operator: Option<JoinHandle<Result<()>>>,
    operators: u16,
}

impl World {
    pub(crate) async fn new(control_plane: ControlPlane) -> Result<Self> {
        let client = control_plane.client().await?;
        for name in [FAULTLINE, NAMESPACE] {
            create::<Namespace>(
                &Api::all(client.clone()),
                json!({ "metadata": { "name": name } }),
            )
            .await?;
        }
        for name in ["n1", "n2"] {
            create::<Node>(
                &Api::all(client.clone()),
                json!({ "metadata": { "name": name } }),
            )
            .await?;
        }
        let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), FAULTLINE);
        create(
            &slices,
            json!({
                "metadata": {
                    "name": "chaos-agent-x",
                    "labels": { "kubernetes.io/service-name": "chaos-agent" },
                },
                "addressType": "IPv4",
                "endpoints": [{ "addresses": [ADDRESS], "nodeName": "n1", "conditions": { "ready": true } }],
            }),
        )
        .await?;
        let kubeconfig = control_plane.kubeconfig();
        let operator = operator(&kubeconfig, 0);
        let tls = agent_tls(&client).await?;
        let agent = FakeAgent::start("n1", format!("{ADDRESS}:{AGENT_PORT}").parse()?, tls);
        Ok(Self {
            control_plane,
            client,
            agent,
            operator: Some(operator),
            operators: 1,
        })
    }

    /// As if the operator's machine had lost its power: nothing is given back.
    pub(crate) fn kill_operator(&mut self) {
        if let Some(operator) = self.operator.take() {
            operator.abort();
        }
    }

    /// Waits until the operator gives up by itself; returns why.
    pub(crate) async fn until_operator_gives_up(&mut self) -> Result<String> {
        let operator = self.operator.take().context("no operator")?;
        let ended = tokio::time::timeout(Duration::from_secs(15), operator).await;
        match ended.context("it goes on")?? {
            Ok(()) => bail!("it ended without an error"),
            Err(error) => Ok(format!("{error:#}")),
        }
    }

    pub(crate) fn start_operator(&mut self) {
        let kubeconfig = self.control_plane.kubeconfig();
        self.operator = Some(operator(&kubeconfig, self.operators));
        self.operators += 1;
    }

    /// Of the operator that was started last.
    pub(crate) fn metrics_port(&self) -> u16 {
        FIRST_METRICS_PORT + self.operators - 1
    }

    pub(crate) fn chaos(&self) -> Api<NetworkChaos> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    pub(crate) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// A running pod on `node`, label `app: <app>`.
    pub(crate) async fn pod(&self, name: &str, app: &str, node: &str, ip: &str) -> Result<()> {
        let pod = json!({
            "metadata": { "name": name, "labels": { "app": app } },
            "spec": { "nodeName": node, "containers": [{ "name": "app", "image": "none" }] },
        });
        create::<Pod>(&self.pods(), pod).await?;
        self.pod_status(name, "Running", ip).await
    }

    pub(crate) async fn pod_status(&self, name: &str, phase: &str, ip: &str) -> Result<()> {
        let status = json!({ "status": {
            "phase": phase, "podIP": ip, "podIPs": [{ "ip": ip }],
            "containerStatuses": [{
                "name": "app", "image": "none", "imageID": "", "ready": true, "restartCount": 0,
                "containerID": format!("containerd://{name}"),
            }],
        }});
        self.pods()
            .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
            .await?;
        Ok(())
    }

    pub(crate) async fn delete_pod(&self, name: &str) -> Result<()> {
        let now = DeleteParams::default().grace_period(0);
        self.pods().delete(name, &now).await?;
        Ok(())
    }

    /// Applies a NetworkChaos; `spec` is YAML.
    pub(crate) async fn apply(&self, name: &str, spec: &str) -> Result<()> {
        let spec: Value = serde_norway::from_str(spec)?;
        let object = json!({
            "apiVersion": "chaos-mesh.org/v1alpha1", "kind": "NetworkChaos",
            "metadata": { "name": name }, "spec": spec,
        });
        create(&self.chaos(), object).await
    }

    pub(crate) async fn annotate(&self, name: &str, key: &str, value: Option<&str>) -> Result<()> {
        let patch = json!({ "metadata": { "annotations": { key: value } } });
        self.chaos()
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        Ok(())
    }

    /// Deletes a NetworkChaos and waits until it is gone; returns how long that took.
    pub(crate) async fn delete(&self, name: &str) -> Result<Duration> {
        let began = Instant::now();
        self.ask_to_delete(name).await?;
        self.until_gone(name).await?;
        Ok(began.elapsed())
    }

    pub(crate) async fn ask_to_delete(&self, name: &str) -> Result<()> {
        self.chaos().delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    pub(crate) async fn until_gone(&self, name: &str) -> Result<()> {
        until_gone(&self.chaos(), name).await
    }

    /// Waits until the object is as asked.
    pub(crate) async fn until(
        &self,
        name: &str,
        what: &str,
        is: impl Fn(&NetworkChaos) -> bool,
    ) -> Result<NetworkChaos> {
        until(&self.chaos(), name, what, is).await
    }

    /// Waits for an Event about `name` with this reason; returns its message.
    pub(crate) async fn event(&self, name: &str, reason: &str) -> Result<String> {
        for _ in 0..400 {
            if let Some(event) = self.events(name).await?.into_iter().find(|e| e.0 == reason) {
                return Ok(event.1);
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        bail!(
            "{name}: no Event {reason} in 10 s: {:?}",
            self.events(name).await?
        )
    }

    /// Reasons and messages of all Events about `name`, oldest first.
    pub(crate) async fn events(&self, name: &str) -> Result<Vec<(String, String)>> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), NAMESPACE);
        let params = ListParams::default().fields(&format!("involvedObject.name={name}"));
        let mut events = api.list(&params).await?.items;
        events.sort_by_key(ResourceExt::name_any);
        let pair = |event: Event| {
            (
                event.reason.unwrap_or_default(),
                event.message.unwrap_or_default(),
            )
        };
        Ok(events.into_iter().map(pair).collect())
    }
}

/// Waits until an experiment of any kind is as asked.
pub(crate) async fn until<K>(
    api: &Api<K>,
    name: &str,
    what: &str,
    is: impl Fn(&K) -> bool,
) -> Result<K>
where
    K: Experiment + Clone + DeserializeOwned + Debug,
{
    for _ in 0..600 {
        let object = api.get(name).await?;
        if is(&object) {
            return Ok(object);
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    bail!(
        "{name}: {what}: not in 15 s: {}",
        status_of(api, name).await
    )
}

/// Waits until an experiment of any kind, which was asked to go, is gone.
pub(crate) async fn until_gone<K>(api: &Api<K>, name: &str) -> Result<()>
where
    K: Experiment + Clone + DeserializeOwned + Debug,
{
    for _ in 0..600 {
        if api.get_opt(name).await?.is_none() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    bail!(
        "{name} is still there after 15 s: {}",
        status_of(api, name).await
    )
}

async fn status_of<K>(api: &Api<K>, name: &str) -> String
where
    K: Experiment + Clone + DeserializeOwned + Debug,
{
    let object = api.get_opt(name).await.ok().flatten();
    let status = object.as_ref().and_then(K::chaos_status);
    serde_json::to_string(&status).unwrap_or_default()
}

/// Whether a condition holds.
pub(crate) fn holds(object: &NetworkChaos, condition: &str) -> bool {
    let status = object.status.as_ref();
    status.is_some_and(|status| {
        let conditions = &status.chaos.conditions;
        conditions
            .iter()
            .any(|one| one.r#type == condition && one.status == "True")
    })
}

/// Records that are injected.
pub(crate) fn injected(object: &NetworkChaos) -> Vec<String> {
    let records = object
        .status
        .iter()
        .flat_map(|s| &s.chaos.experiment.container_records);
    records
        .filter(|record| record.phase == RecordPhase::Injected)
        .map(|record| format!("{}{}", record.selector_key, record.id))
        .collect()
}

/// `status.faultline.phase`
pub(crate) fn word(object: &NetworkChaos) -> &str {
    let ours = object
        .status
        .as_ref()
        .and_then(|s| s.chaos.faultline.as_ref());
    ours.and_then(|ours| ours.phase.as_deref())
        .unwrap_or_default()
}

fn operator(kubeconfig: &std::path::Path, number: u16) -> JoinHandle<Result<()>> {
    let args = RunArgs {
        namespace: FAULTLINE.to_owned(),
        kubeconfig: Some(kubeconfig.to_owned()),
        metrics: ([127, 0, 0, 1], FIRST_METRICS_PORT + number).into(),
        agent_port: AGENT_PORT,
        // The same name each time: a new one would wait for the old one's lease.
        identity: Some("operator".to_owned()),
        takeover: false,
        filter_namespaces: false,
    };
    // A runtime of its own, so that ending it ends all its tasks.
    tokio::task::spawn(async move {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let guard = Runtime(Some(runtime));
        let task = guard
            .0
            .as_ref()
            .context("it is there")?
            .spawn(chaos_operator::run::run(args));
        task.await?
    })
}

/// Ends its runtime without waiting when it is dropped inside another.
struct Runtime(Option<tokio::runtime::Runtime>);

impl Drop for Runtime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Waits for the Secret that the operator makes for agents.
async fn agent_tls(client: &Client) -> Result<(String, String, String)> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), FAULTLINE);
    for _ in 0..400 {
        if let Some(secret) = secrets.get_opt("faultline-agent-tls").await? {
            let data = secret.data.context("the Secret has data")?;
            let text = |key: &str| -> Result<String> {
                let value = data.get(key).with_context(|| format!("{key} is missing"))?;
                Ok(String::from_utf8(value.0.clone())?)
            };
            ensure!(secrets.get_opt("faultline-ca").await?.is_some());
            return Ok((text("ca.crt")?, text("tls.crt")?, text("tls.key")?));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("no Secret faultline-agent-tls in 20 s")
}

async fn create<K>(api: &Api<K>, object: Value) -> Result<()>
where
    K: Clone + DeserializeOwned + serde::Serialize + Debug,
{
    let object: K = serde_json::from_value(object)?;
    api.create(&PostParams::default(), &object).await?;
    Ok(())
}

/// A field of `status.faultline`, as text; `null` if it is not there.
pub(crate) fn shown(object: &NetworkChaos, field: &str) -> String {
    let status = serde_json::to_value(&object.status).unwrap_or_default();
    let value = &status["faultline"][field];
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}
