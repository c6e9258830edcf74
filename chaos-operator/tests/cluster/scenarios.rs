//! What a user does, and what then happens at the agent and in the object.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use chaos_proto::agent::fault::Effect;

use crate::world::{World, holds, injected, word};

/// Runs one after the other: they share a cluster.
pub(crate) async fn run_all(world: &mut World) {
    macro_rules! scenarios {
        ($($name:ident),* $(,)?) => {$(
            let began = Instant::now();
            let result = $name(world).await;
            println!("{}: {:?} in {:.1?}", stringify!($name).replace('_', " "), result.is_ok(), began.elapsed());
            if let Err(error) = result {
                panic!("{}: {error:?}", stringify!($name));
            }
        )*};
    }
    scenarios!(a_delay_reaches_the_agent_and_goes_away_again,);
}

const DELAY: &str =
    "{action: delay, mode: all, selector: {labelSelectors: {app: web}}, delay: {latency: 100ms}}";

async fn a_delay_reaches_the_agent_and_goes_away_again(world: &mut World) -> Result<()> {
    world.pod("web-0", "web", "n1", "10.0.0.1").await?;
    world.pod("web-1", "web", "n1", "10.0.0.2").await?;
    world.apply("slow", DELAY).await?;
    world
        .agent
        .until("two delays", |agent| agent.faults.len() == 2)
        .await?;
    let object = world
        .until("slow", "all injected", |o| holds(o, "AllInjected"))
        .await?;
    ensure!(injected(&object) == ["./shop/web-0".replace("./", "."), ".shop/web-1".to_owned()]);
    let held = world.agent.state().faults;
    let effects: Vec<Effect> = held
        .into_values()
        .filter_map(|held| held.fault.effect)
        .collect();
    for Effect::Network(effect) in &effects {
        ensure!(effect.delay_ns == Some(100_000_000) && effect.all_peers && effect.egress);
    }
    world.agent.set(|agent| agent.hits = 7);
    let object = world
        .until("slow", "hits", |o| shown(o, "hits") == "14")
        .await?;
    ensure!(word(&object) == "Running", "{}", word(&object));
    let took = world.delete("slow").await?;
    ensure!(took < Duration::from_secs(1), "deleting took {took:?}");
    ensure!(world.agent.state().faults.is_empty());
    for reason in [
        "FinalizerInited",
        "Started",
        "Updated",
        "Applied",
        "Deleted",
        "Recovered",
    ] {
        world.event("slow", reason).await?;
    }
    Ok(())
}

/// A field of `status.faultline`.
fn shown(object: &chaos_api::v1alpha1::NetworkChaos, field: &str) -> String {
    let status = serde_json::to_value(&object.status).unwrap_or_default();
    let value = &status["faultline"][field];
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}
