//! TimeChaos: records are containers, each with its own target.

use anyhow::{Context, Result, bail, ensure};
use chaos_crd::TimeChaos;
use chaos_proto::agent::fault::Effect;
use chaos_proto::agent::target::Target;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;

use crate::world::{NAMESPACE, World, until, until_gone};

pub(super) async fn a_skew_reaches_the_first_container_of_each_pod(
    world: &mut World,
) -> Result<()> {
    let api: Api<TimeChaos> = Api::namespaced(world.client.clone(), NAMESPACE);
    let object = |offset: &str| -> Result<TimeChaos> {
        Ok(serde_json::from_value(json!({
            "apiVersion": "chaos-mesh.org/v1alpha1", "kind": "TimeChaos",
            "metadata": { "name": "late" },
            "spec": {
                "timeOffset": offset, "mode": "all",
                "selector": { "labelSelectors": { "app": "web" } },
            },
        }))?)
    };
    let refused = api.create(&PostParams::default(), &object("0s")?).await;
    let refused = refused
        .err()
        .context("an offset of 0 was taken")?
        .to_string();
    ensure!(
        refused.contains("an offset of 0 changes no clock"),
        "{refused}"
    );
    api.create(&PostParams::default(), &object("-5m")?).await?;
    world
        .agent
        .until("two skews", |agent| agent.faults.len() == 2)
        .await?;
    for held in world.agent.state().faults.into_values() {
        let Some(Target::Container(target)) = held.fault.target.and_then(|t| t.target) else {
            bail!("no container is the target");
        };
        // The id that the pods of these tests give to their only container is the pod's name.
        ensure!(
            held.fault.record == format!("{NAMESPACE}/{}/app", target.container_id),
            "{}",
            held.fault.record
        );
        let Some(Effect::Clock(effect)) = held.fault.effect else {
            bail!("no effect on clocks");
        };
        ensure!((effect.offset_ns, effect.clocks) == (-300_000_000_000, 1));
    }
    let injected = |object: &TimeChaos| {
        let status = object.status.as_ref();
        let records = status.map(|status| &status.chaos.experiment.container_records);
        records.is_some_and(|all| all.len() == 2 && all.iter().all(|r| r.injected_count == 1))
    };
    until(&api, "late", "injected", injected).await?;
    api.delete("late", &DeleteParams::default()).await?;
    world
        .agent
        .until("none", |agent| agent.faults.is_empty())
        .await?;
    until_gone(&api, "late").await
}
