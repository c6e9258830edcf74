//! How long it takes from a document to the agent.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::DELAY;
use crate::world::{World, holds};

const ROUNDS: usize = 20;

pub(super) async fn from_apply_to_the_agent_takes_milliseconds(world: &mut World) -> Result<()> {
    let mut from_sent = Vec::new();
    let mut from_returned = Vec::new();
    let mut to_injected = Vec::new();
    for n in 0..ROUNDS {
        let name = format!("fast-{n}");
        let apply = async {
            let began = Instant::now();
            world.apply(&name, DELAY).await?;
            anyhow::Ok((began, Instant::now()))
        };
        let arrival = world
            .agent
            .until("two delays", |agent| agent.faults.len() == 2);
        let (arrival, apply) = tokio::join!(arrival, apply);
        let (arrival, (sent, returned)) = (arrival?, apply?);
        world
            .until(&name, "injected", |o| holds(o, "AllInjected"))
            .await?;
        from_sent.push(arrival.duration_since(sent));
        from_returned.push(arrival.saturating_duration_since(returned));
        to_injected.push(sent.elapsed());
        world.delete(&name).await?;
        world
            .agent
            .until("nothing", |agent| agent.faults.is_empty())
            .await?;
    }
    for (what, times) in [
        ("create sent -> agent has it", &mut from_sent),
        ("create returned -> agent has it", &mut from_returned),
        (
            "create sent -> AllInjected (polled each 25 ms)",
            &mut to_injected,
        ),
    ] {
        times.sort();
        println!(
            "     {what}: p50 {:.1?}, max {:.1?}",
            times[ROUNDS / 2],
            times[ROUNDS - 1]
        );
    }
    ensure!(from_returned[ROUNDS / 2] < Duration::from_millis(100));
    Ok(())
}
