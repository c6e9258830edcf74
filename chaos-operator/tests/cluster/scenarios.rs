//! What a user does, and what then happens at the agent and in the object.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use chaos_crd::NetworkChaos;
use chaos_proto::agent::Phase;
use chaos_proto::agent::fault::Effect;

use crate::fake_agent::State;
use crate::world::{World, holds, injected, shown, word};

mod away;
mod clocks;
mod odd;
mod speed;
mod time;

/// Runs one after the other: they share a cluster.
pub(crate) async fn run_all(world: &mut World) {
    macro_rules! scenarios {
        ($($name:path),* $(,)?) => {$(
            let began = Instant::now();
            let result = $name(world).await;
            let name = stringify!($name).rsplit("::").next().unwrap_or_default().replace('_', " ");
            println!("{} {name} ({:.1?})", if result.is_ok() { "ok  " } else { "FAIL" }, began.elapsed());
            if let Err(error) = result {
                panic!("{name}: {error:?}");
            }
        )*};
    }
    scenarios!(
        a_delay_reaches_the_agent_and_goes_away_again,
        a_bad_document_gets_its_answer_in_two_seconds_and_nothing_else,
        without_a_match_it_waits_for_a_pod,
        pods_join_leave_and_change_their_address,
        what_a_node_cannot_have_is_said_and_deleted_at_once,
        what_fails_is_told_once_and_tried_again,
        a_partition_names_both_sides,
        clocks::a_skew_reaches_the_first_container_of_each_pod,
        time::a_duration_ends_by_itself,
        time::pausing_recovers_and_going_on_injects_the_same_pods,
        time::rounds_draw_anew_and_wait_between,
        away::a_new_operator_goes_on_without_a_gap,
        away::an_agent_that_is_away_holds_up_a_delete_but_not_a_forced_one,
        away::what_no_agent_was_ever_told_is_deleted_at_once,
        away::a_node_that_is_gone_is_clean,
        odd::an_object_that_cannot_be_read_harms_nobody_else,
        odd::two_experiments_on_a_pod_are_apart,
        odd::an_object_whose_finalizer_is_torn_off_is_recovered,
        odd::health_and_metrics_are_served,
        speed::from_apply_to_the_agent_takes_milliseconds,
        odd::while_chaos_mesh_leads_this_operator_does_not,
    );
}

pub(crate) const DELAY: &str = "{action: delay, mode: all, selector: {labelSelectors: {app: web}},
    delay: {latency: 100ms}}";

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
    ensure!(injected(&object) == [".shop/web-0", ".shop/web-1"]);
    let held = world.agent.state().faults;
    for held in held.into_values() {
        let Some(Effect::Network(effect)) = held.fault.effect else {
            anyhow::bail!("no network effect");
        };
        ensure!(
            effect
                .delay
                .is_some_and(|delay| delay.latency_ns == 100_000_000)
                && effect.all_peers
                && effect.egress
        );
    }
    world.agent.set(|agent| agent.hits = 7);
    let object = world
        .until("slow", "hits", |o| shown(o, "hits") == "14")
        .await?;
    world.agent.set(|agent| agent.hits = 0);
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

async fn a_bad_document_gets_its_answer_in_two_seconds_and_nothing_else(
    world: &mut World,
) -> Result<()> {
    let began = Instant::now();
    // The schema only sees that there are five fields.
    let spec = DELAY.replace(
        "delay: {",
        "duration: 1s, scheduler: {cron: '99 * * * *'}, delay: {",
    );
    world.apply("bad", &spec).await?;
    let message = world.event("bad", "Failed").await?;
    let took = began.elapsed();
    ensure!(took < Duration::from_secs(2), "the answer took {took:?}");
    println!("     {message}");
    ensure!(
        message.starts_with("spec.scheduler.cron: 99 * * * *: "),
        "{message}"
    );
    ensure!(message.contains("; "), "it says what to do: {message}");
    let object = world
        .until("bad", "a status", |o| word(o) == "Failed")
        .await?;
    ensure!(object.metadata.finalizers.is_none());
    ensure!(
        object
            .status
            .is_some_and(|s| s.chaos.experiment.container_records.is_empty())
    );
    let took = world.delete("bad").await?;
    ensure!(took < Duration::from_secs(1), "deleting took {took:?}");
    Ok(())
}

async fn without_a_match_it_waits_for_a_pod(world: &mut World) -> Result<()> {
    let spec = "{action: partition, mode: one, selector: {labelSelectors: {app: late}}}";
    world.apply("early", spec).await?;
    let message = world.event("early", "Failed").await?;
    ensure!(message.contains("no pod matches"), "{message}");
    let object = world
        .until("early", "a word", |o| word(o) == "Pending")
        .await?;
    ensure!(!holds(&object, "Selected"));
    world.pod("late-0", "late", "n1", "10.0.0.9").await?;
    world
        .until("early", "injected", |o| holds(o, "AllInjected"))
        .await?;
    let events = world.events("early").await?;
    ensure!(
        events.iter().filter(|event| event.0 == "Failed").count() == 1,
        "{events:?}"
    );
    world.delete("early").await?;
    world.delete_pod("late-0").await
}

async fn pods_join_leave_and_change_their_address(world: &mut World) -> Result<()> {
    let spec = "{action: partition, mode: all, selector: {labelSelectors: {app: web}},
        target: {mode: all, selector: {labelSelectors: {app: db}}}}";
    world.pod("db-0", "db", "n1", "10.0.1.1").await?;
    world.apply("follow", spec).await?;
    world
        .until("follow", "injected", |o| injected(o).len() == 3)
        .await?;
    world.pod("web-2", "web", "n1", "10.0.0.3").await?;
    world
        .until("follow", "a fourth", |o| injected(o).len() == 4)
        .await?;
    let of_db = peers(&world.agent.state(), "shop/db-0");
    ensure!(of_db == ["10.0.0.1", "10.0.0.2", "10.0.0.3"], "{of_db:?}");
    world.pod_status("db-0", "Running", "10.0.1.7").await?;
    let is_new = |agent: &State| peers(agent, "shop/web-2") == ["10.0.1.7"];
    world.agent.until("the new address", is_new).await?;
    world.delete_pod("web-2").await?;
    let three = |o: &NetworkChaos| injected(o).len() == 3 && holds(o, "AllInjected");
    world.until("follow", "three again", three).await?;
    world.delete("follow").await?;
    world.delete_pod("db-0").await
}

fn peers(agent: &State, record: &str) -> Vec<String> {
    let mut held = agent.faults.values();
    let held = held.find(|held| held.fault.record == record);
    match held.and_then(|held| held.fault.effect.clone()) {
        Some(Effect::Network(effect)) => effect.peers.into_iter().map(|peer| peer.net).collect(),
        _ => Vec::new(),
    }
}

async fn what_a_node_cannot_have_is_said_and_deleted_at_once(world: &mut World) -> Result<()> {
    let answer = (Phase::NotSupported, "this kernel is too old".to_owned());
    world.agent.set(|agent| agent.answer = Some(answer));
    world.apply("cannot", DELAY).await?;
    let message = world.event("cannot", "NotSupported").await?;
    ensure!(message.contains("this kernel is too old"), "{message}");
    let object = world
        .until("cannot", "a word", |o| word(o) == "NotSupported")
        .await?;
    ensure!(injected(&object).is_empty() && !holds(&object, "AllInjected"));
    let took = world.delete("cannot").await?;
    ensure!(took < Duration::from_secs(1), "deleting took {took:?}");
    world.agent.set(|agent| agent.answer = None);
    Ok(())
}

async fn what_fails_is_told_once_and_tried_again(world: &mut World) -> Result<()> {
    let answer = (Phase::Failed, "the map is full".to_owned());
    world.agent.set(|agent| agent.answer = Some(answer));
    world.apply("fails", DELAY).await?;
    let object = world
        .until("fails", "a word", |o| word(o) == "Failed")
        .await?;
    ensure!(shown(&object, "reason").contains("the map is full"));
    world.agent.set(|agent| agent.answer = None);
    world
        .until("fails", "injected after all", |o| holds(o, "AllInjected"))
        .await?;
    let events = world.events("fails").await?;
    let failed = events.iter().filter(|event| event.0 == "Failed").count();
    ensure!(failed == 2, "one per record: {events:?}");
    world.delete("fails").await?;
    Ok(())
}

async fn a_partition_names_both_sides(world: &mut World) -> Result<()> {
    let manifest = "apiVersion: chaos-mesh.org/v1alpha1
kind: NetworkChaos
metadata: {name: split, namespace: shop}
spec:
  action: partition
  mode: one
  selector: {pods: {shop: [web-0]}}
  direction: both
  target: {mode: one, selector: {labelSelectors: {app: web}}}
";
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), manifest)?;
    let kubectl = |arguments: &[&str]| world.control_plane.kubectl(arguments);
    kubectl(&["apply", "-f", &file.path().display().to_string()])?;
    let wait = "--for=condition=AllInjected";
    kubectl(&[
        "-n",
        "shop",
        "wait",
        wait,
        "networkchaos/split",
        "--timeout=10s",
    ])?;
    let table = kubectl(&["-n", "shop", "get", "networkchaos"])?;
    println!("{table}");
    ensure!(
        table.contains("Running") && table.contains("2/2"),
        "{table}"
    );
    let object = world.chaos().get("split").await?;
    ensure!(
        injected(&object) == [".shop/web-0", ".Targetshop/web-1"],
        "{:?}",
        injected(&object)
    );
    world.delete("split").await?;
    Ok(())
}
