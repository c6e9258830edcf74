//! Operators, agents and nodes that go away, and come back or not.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::DeleteParams;

use super::DELAY;
use crate::world::{World, holds, injected, shown, word};

const FAR: &str = "{action: partition, mode: all, selector: {labelSelectors: {app: far}}}";

pub(super) async fn a_new_operator_goes_on_without_a_gap(world: &mut World) -> Result<()> {
    world.apply("lasting", DELAY).await?;
    world
        .until("lasting", "injected", |o| holds(o, "AllInjected"))
        .await?;
    let before = world.agent.state();
    world.kill_operator();
    tokio::time::sleep(Duration::from_millis(300)).await;
    world.start_operator();
    let is_back = |agent: &crate::fake_agent::State| agent.sets.len() > before.sets.len();
    world.agent.until("a new stream", is_back).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let after = world.agent.state();
    for set in &after.sets[before.sets.len()..] {
        ensure!(set.len() == 2, "a set without the faults: {set:?}");
    }
    for (id, held) in &after.faults {
        let old = before.faults.get(id);
        ensure!(
            old.is_some_and(|old| old.since == held.since),
            "armed again"
        );
    }
    let object = world.chaos().get("lasting").await?;
    ensure!(injected(&object).len() == 2);
    let records = object
        .status
        .iter()
        .flat_map(|s| &s.chaos.experiment.container_records);
    ensure!(records.clone().all(|record| record.injected_count == 1));
    world.delete("lasting").await?;
    Ok(())
}

pub(super) async fn an_agent_that_is_away_holds_up_a_delete_but_not_a_forced_one(
    world: &mut World,
) -> Result<()> {
    world.apply("away", DELAY).await?;
    world
        .until("away", "injected", |o| holds(o, "AllInjected"))
        .await?;
    world.agent.vanish();
    tokio::time::sleep(Duration::from_millis(100)).await;
    world.ask_to_delete("away").await?;
    let says_why = |o: &_| shown(o, "reason").contains("has been away since");
    let object = world.until("away", "a reason", says_why).await?;
    println!("     {}", shown(&object, "reason"));
    ensure!(word(&object) == "Deleting" && object.metadata.finalizers.is_some());
    let began = Instant::now();
    let key = "chaos-mesh.chaos-mesh.org/cleanFinalizer";
    world.annotate("away", key, Some("forced")).await?;
    world.until_gone("away").await?;
    let took = began.elapsed();
    ensure!(took < Duration::from_secs(1), "it took {took:?}");
    world.agent.listen();
    world
        .agent
        .until("nothing", |agent| agent.faults.is_empty())
        .await?;
    Ok(())
}

/// `n2` has no agent.
pub(super) async fn what_no_agent_was_ever_told_is_deleted_at_once(
    world: &mut World,
) -> Result<()> {
    world.pod("far-0", "far", "n2", "10.0.2.1").await?;
    world.apply("far", FAR).await?;
    world
        .until("far", "asked for", |o| word(o) == "Injecting")
        .await?;
    let took = world.delete("far").await?;
    ensure!(took < Duration::from_secs(1), "deleting took {took:?}");
    Ok(())
}

/// Of an operator before this one nobody knows what it has told `n2`.
pub(super) async fn a_node_that_is_gone_is_clean(world: &mut World) -> Result<()> {
    world.apply("far", FAR).await?;
    world
        .until("far", "asked for", |o| word(o) == "Injecting")
        .await?;
    world.kill_operator();
    world.start_operator();
    world.ask_to_delete("far").await?;
    let is_seen = |o: &_| word(o) == "Deleting";
    world.until("far", "to be deleted", is_seen).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    ensure!(
        world.chaos().get_opt("far").await?.is_some(),
        "n2 has no agent to say so"
    );
    let nodes: Api<Node> = Api::all(world.client.clone());
    let began = Instant::now();
    nodes.delete("n2", &DeleteParams::default()).await?;
    world.until_gone("far").await?;
    let took = began.elapsed();
    ensure!(took < Duration::from_secs(1), "it took {took:?}");
    world.delete_pod("far-0").await
}
