//! Puts operator and agents into a cluster, as a user does: with `kubectl` and what is in `deploy/`.

use std::path::Path;

use anyhow::{Context, Result};

use super::{Cluster, Options, down, open, up};
use crate::{image, out::note, step};

/// How long an image may take to start on a slow node.
const PATIENCE: &str = "--timeout=300s";

/// What is in `deploy/` and has pods.
const WORKLOADS: [&str; 2] = ["deployment/chaos-operator", "daemonset/chaos-agent"];

/// `cargo xtask deploy`: installs operator and agents, from this tree, into the cluster that runs.
///
/// # Errors
/// If a binary does not build, or one of them does not become ready.
pub(crate) fn deploy(root: &Path) -> Result<()> {
    let cluster = open(root)?;
    let archives = image::build(root, cluster.options.profile(), &image::ALL)?;
    cluster.load_images(&archives)?;
    cluster.install(root)
}

/// The cluster that runs, or else a new one; and whether it is new. It has operator and agents of this tree.
/// `meanwhile` is done with a new one while they start.
///
/// # Errors
/// If there is no cluster to be had: none is left then.
pub(crate) fn with_faultline(
    root: &Path,
    options: &Options,
    meanwhile: impl FnOnce(&Cluster) -> Result<()>,
) -> Result<(Cluster, bool)> {
    if let Ok(cluster) = open(root) {
        note!("a cluster runs already: it is used, with the images of this tree");
        deploy(root)?;
        return Ok((cluster, false));
    }
    let cluster = up(root, options, &image::ALL, |cluster| {
        cluster.begin_install(root)?;
        meanwhile(cluster)
    })?;
    if let Err(error) = cluster.install(root) {
        // Else the next run would take what is left for a cluster of the user's.
        down(root)?;
        return Err(error);
    }
    Ok((cluster, true))
}

impl Cluster {
    /// Applies `deploy/` without the agents, and waits for nothing: that can be done while nodes start.
    /// [`Self::install`] goes on from there.
    ///
    /// # Errors
    /// If the API server refuses something.
    pub(crate) fn begin_install(&self, root: &Path) -> Result<()> {
        // An agent that is there before its certificate waits much longer than that takes: the kubelet
        // looks again after 1, 2, 4, … seconds.
        let others = ["--selector", "app.kubernetes.io/name!=chaos-agent"];
        step::output(self.apply(root).args(others)).map(drop)
    }

    /// Applies `deploy/` and waits until operator and agents are ready. Their images must have been
    /// loaded; where they ran already they are started anew, from the images that are there now.
    ///
    /// # Errors
    /// If the API server refuses something, or a pod does not become ready: then with its state.
    pub(crate) fn install(&self, root: &Path) -> Result<()> {
        step::step("install Faultline", |step| {
            let ran = step::output(self.in_namespace().arg("get").args(WORKLOADS)).is_ok();
            if !ran {
                self.begin_install(root)?;
                let secret = "secret/faultline-agent-tls";
                step.run(
                    self.in_namespace()
                        .args(["wait", "--for=create", PATIENCE, secret]),
                )
                .with_context(|| format!("there is no {secret}:\n{}", self.pods()))?;
            }
            step.run(&mut self.apply(root))?;
            if ran {
                step.run(
                    self.in_namespace()
                        .args(["rollout", "restart"])
                        .args(WORKLOADS),
                )?;
            }
            for workload in WORKLOADS {
                step.run(
                    self.in_namespace()
                        .args(["rollout", "status", PATIENCE, workload]),
                )
                .with_context(|| format!("{workload} is not ready:\n{}", self.pods()))?;
            }
            Ok(())
        })
    }

    fn apply(&self, root: &Path) -> std::process::Command {
        let mut command = self.kubectl();
        command.args(["apply", "--server-side", "-k"]);
        command.arg(root.join("deploy"));
        command
    }

    /// `kubectl` about operator and agents.
    pub(crate) fn in_namespace(&self) -> std::process::Command {
        let mut command = self.kubectl();
        command.args(["--namespace", "faultline"]);
        command
    }

    /// What a person would look at first.
    fn pods(&self) -> String {
        [
            vec!["get", "pods", "-o", "wide"],
            vec!["get", "events", "--sort-by=.lastTimestamp"],
            vec!["logs", "deployment/chaos-operator", "--tail=15"],
            vec!["logs", "daemonset/chaos-agent", "--tail=15"],
        ]
        .into_iter()
        .map(
            |words| match step::output(self.in_namespace().args(words)) {
                Ok(text) => text,
                Err(error) => format!("{error:#}\n"),
            },
        )
        .collect()
    }
}
