//! Durations, pauses and rounds.

use std::time::Duration;

use anyhow::{Result, ensure};
use chaos_crd::NetworkChaos;

use super::DELAY;
use crate::world::{World, holds, injected, shown, word};

pub(super) async fn a_duration_ends_by_itself(world: &mut World) -> Result<()> {
    let spec = DELAY.replace("delay: {", "duration: 3s, delay: {");
    world.apply("short", &spec).await?;
    world
        .agent
        .until("two delays", |agent| agent.faults.len() == 2)
        .await?;
    for held in world.agent.state().faults.values() {
        let left = held.fault.remaining_ms.unwrap_or(0);
        // The API server counts whole seconds.
        ensure!((1500..=3000).contains(&left), "{left} ms left");
    }
    world
        .until("short", "running", |o| holds(o, "AllInjected"))
        .await?;
    let object = world
        .until("short", "its end", |o| word(o) == "Finished")
        .await?;
    ensure!(holds(&object, "AllRecovered") && !holds(&object, "AllInjected"));
    ensure!(world.agent.state().faults.is_empty());
    world.event("short", "TimeUp").await?;
    let took = world.delete("short").await?;
    ensure!(took < Duration::from_secs(1), "deleting took {took:?}");
    Ok(())
}

pub(super) async fn pausing_recovers_and_going_on_injects_the_same_pods(
    world: &mut World,
) -> Result<()> {
    let pause = "experiment.chaos-mesh.org/pause";
    let spec = DELAY.replace("mode: all", "mode: one");
    world.apply("paused", &spec).await?;
    let object = world
        .until("paused", "injected", |o| holds(o, "AllInjected"))
        .await?;
    let before = injected(&object);
    world.annotate("paused", pause, Some("true")).await?;
    let object = world
        .until("paused", "a pause", |o| word(o) == "Paused")
        .await?;
    ensure!(holds(&object, "Paused") && holds(&object, "AllRecovered"));
    ensure!(world.agent.state().faults.is_empty());
    world.event("paused", "Paused").await?;
    world.annotate("paused", pause, None).await?;
    let object = world
        .until("paused", "injected again", |o| holds(o, "AllInjected"))
        .await?;
    ensure!(
        injected(&object) == before,
        "{before:?}, then {:?}",
        injected(&object)
    );
    world.delete("paused").await?;
    Ok(())
}

pub(super) async fn rounds_draw_anew_and_wait_between(world: &mut World) -> Result<()> {
    let spec = "{action: partition, mode: one, direction: to,
        duration: 1s, scheduler: {cron: '@every 3s'},
        selector: {labelSelectors: {app: web}},
        target: {mode: one, selector: {labelSelectors: {app: web}}}}";
    world.apply("rounds", spec).await?;
    let number = |o: &NetworkChaos| shown(o, "round").parse::<u64>().unwrap_or(0);
    // The API server counts whole seconds, so the first round may be over before it is seen.
    world.until("rounds", "a round", |o| number(o) > 0).await?;
    for _ in 0..2 {
        let waiting = world
            .until("rounds", "a wait", |o| word(o) == "Waiting")
            .await?;
        ensure!(shown(&waiting, "nextStart") != "null");
        ensure!(world.agent.state().faults.is_empty());
        let next = number(&waiting) + 1;
        let is_next = |o: &NetworkChaos| number(o) == next && holds(o, "AllInjected");
        let object = world.until("rounds", "the next round", is_next).await?;
        ensure!(shown(&object, "timeLeft") != "null");
        let records = injected(&object);
        let [source, target] = records.as_slice() else {
            anyhow::bail!("two records, not {records:?}");
        };
        ensure!(source.trim_start_matches('.') != target.trim_start_matches(".Target"));
    }
    world.delete("rounds").await?;
    Ok(())
}
