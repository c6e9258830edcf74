//! What is not in the manual.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::DELAY;
use crate::world::{World, holds, injected};

pub(super) async fn an_object_that_cannot_be_read_harms_nobody_else(
    world: &mut World,
) -> Result<()> {
    let kubectl = |arguments: &[&str]| world.control_plane.kubectl(arguments);
    let path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/mode/enum";
    let patch = json!([{ "op": "remove", "path": path }]).to_string();
    let crd = "networkchaos.chaos-mesh.org";
    kubectl(&["patch", "crd", crd, "--type=json", "-p", &patch])?;
    let manifest = "apiVersion: chaos-mesh.org/v1alpha1
kind: NetworkChaos
metadata: {name: odd, namespace: shop}
spec: {action: partition, mode: most, selector: {}}
";
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), manifest)?;
    // The schema is taken in a moment after it was changed.
    let mut applied = Err(anyhow::anyhow!("not tried"));
    for _ in 0..50 {
        applied = kubectl(&["apply", "-f", &file.path().display().to_string()]);
        if applied.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    applied?;
    let message = world.event("odd", "Failed").await?;
    println!("     {message}");
    ensure!(
        message.contains("cannot be read") && message.contains("most"),
        "{message}"
    );
    world.apply("even", DELAY).await?;
    world
        .until("even", "injected", |o| holds(o, "AllInjected"))
        .await?;
    kubectl(&[
        "-n",
        "shop",
        "delete",
        "networkchaos",
        "odd",
        "even",
        "--timeout=5s",
    ])?;
    world.control_plane.install_crd()
}

pub(super) async fn two_experiments_on_a_pod_are_apart(world: &mut World) -> Result<()> {
    world.apply("first", DELAY).await?;
    world.apply("second", DELAY).await?;
    world
        .agent
        .until("four", |agent| agent.faults.len() == 4)
        .await?;
    // The agent may know of it before its finalizer is written.
    world
        .until("first", "injected", |o| injected(o).len() == 2)
        .await?;
    world.delete("first").await?;
    ensure!(world.agent.state().faults.len() == 2);
    world
        .until("second", "injected", |o| injected(o).len() == 2)
        .await?;
    world.delete("second").await?;
    Ok(())
}

pub(super) async fn an_object_whose_finalizer_is_torn_off_is_recovered(
    world: &mut World,
) -> Result<()> {
    world.apply("torn", DELAY).await?;
    world
        .until("torn", "injected", |o| holds(o, "AllInjected"))
        .await?;
    let patch = json!({ "metadata": { "finalizers": null } });
    let params = PatchParams::default();
    world
        .chaos()
        .patch("torn", &params, &Patch::Merge(patch))
        .await?;
    world.ask_to_delete("torn").await?;
    world.until_gone("torn").await?;
    world
        .agent
        .until("nothing", |agent| agent.faults.is_empty())
        .await?;
    Ok(())
}

pub(super) async fn health_and_metrics_are_served(world: &mut World) -> Result<()> {
    world.apply("counted", DELAY).await?;
    world
        .until("counted", "injected", |o| holds(o, "AllInjected"))
        .await?;
    let port = world.metrics_port();
    ensure!(get(port, "/readyz").await?.contains("ok, leading"));
    let lines = [
        r#"chaos_controller_manager_chaos_experiments{namespace="shop",kind="NetworkChaos",phase="running"} 1"#,
        r#"faultline_operator_agents{state="connected"} 1"#,
    ];
    let mut metrics = String::new();
    // The operator hears a little later than we that the one before is gone.
    for _ in 0..50 {
        metrics = get(port, "/metrics").await?;
        if lines.iter().all(|line| metrics.contains(line)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for line in lines {
        ensure!(metrics.contains(line), "{line} in {metrics}");
    }
    world.delete("counted").await?;
    Ok(())
}

/// The last one: it leaves the cluster without an operator.
pub(super) async fn while_chaos_mesh_leads_this_operator_does_not(world: &mut World) -> Result<()> {
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": { "name": "chaos-mesh", "namespace": "shop" },
        "spec": {
            "holderIdentity": "chaos-controller-manager-0", "leaseDurationSeconds": 15,
            "renewTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
        },
    });
    let leases: Api<Lease> = Api::namespaced(world.client.clone(), "shop");
    let params = PatchParams::apply("test");
    leases
        .patch("chaos-mesh", &params, &Patch::Apply(lease))
        .await?;
    let why = world.until_operator_gives_up().await?;
    ensure!(why.contains("held by chaos-controller-manager-0"), "{why}");
    let own: Api<Lease> = Api::namespaced(world.client.clone(), "faultline");
    let holder = own.get("faultline-operator").await?.spec;
    let holder = holder.and_then(|spec| spec.holder_identity);
    ensure!(holder.unwrap_or_default().is_empty(), "it was given back");
    world.start_operator();
    let mut answer = String::new();
    for _ in 0..100 {
        answer = get(world.metrics_port(), "/readyz")
            .await
            .unwrap_or_default();
        if answer.contains("not leading") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let said = answer.lines().last().unwrap_or_default();
    println!("     {said}");
    ensure!(
        said.contains("shop/chaos-mesh is held by chaos-controller-manager-0"),
        "{answer}"
    );
    ensure!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    Ok(())
}

async fn get(port: u16, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))
        .await
        .context("connect")?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
