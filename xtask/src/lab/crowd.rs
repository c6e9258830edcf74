//! A node with many pods, and how long after `kubectl apply` each of them has its fault.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{
    Lab, Wanted,
    chaos::{PATIENCE, condition},
};
use crate::step;

/// How many pods a node of the reference figures has.
pub(crate) const MANY: usize = 24;

/// How many of them start together: an emulated node that starts all at once has no time left for anything
/// else, the operator's probes included.
const AT_A_TIME: usize = 3;

/// For how long nobody asks how far it is: who asks takes a CPU that the emulated node would have.
const UNASKED: Duration = Duration::from_secs(3);

/// When faults were in force, in milliseconds from `kubectl apply` returning. Late rather than early, by what it
/// takes to end a command on the node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InForce {
    /// The first of them.
    pub(crate) first: f64,
    /// All of them.
    pub(crate) last: f64,
}

impl Lab<'_> {
    /// Starts them on a node, and waits until it is as calm as it gets: what is measured is a node with many
    /// pods, not one that starts them.
    ///
    /// # Errors
    /// If a pod does not start, or the operator is not well afterwards.
    pub(crate) fn start_crowd(&self, node: &str) -> Result<()> {
        let names: Vec<String> = (0..MANY).map(|n| format!("crowd-{n}")).collect();
        let labels = [("app", "crowd")];
        let pods: Vec<Wanted<'_>> = names
            .iter()
            .map(|name| Wanted::new(name, &labels).on(node))
            .collect();
        for some in pods.chunks(AT_A_TIME) {
            self.create(some)?;
            let crowd = ["--selector=app=crowd"];
            let ready = ["wait", "pods", "--for=condition=Ready", "--timeout=300s"];
            step::output(&mut self.kubectl(ready.into_iter().chain(crowd)))?;
        }
        self.comes_to_rest(node)?;
        let words = [
            "rollout",
            "status",
            "deployment/chaos-operator",
            "--timeout=180s",
        ];
        step::output(self.cluster().in_namespace().args(words)).map(drop)
    }

    /// Delays what so many of them send, and ends that.
    ///
    /// # Errors
    /// If not each of them has its fault, or if one is left in the end.
    pub(crate) fn inject_crowd(&self, count: usize) -> Result<InForce> {
        let mode = if count == MANY {
            "mode: all".to_owned()
        } else {
            format!("mode: fixed\n  value: \"{count}\"")
        };
        let document = format!(
            "apiVersion: chaos-mesh.org/v1alpha1\nkind: NetworkChaos\nmetadata:\n  name: crowd\nspec:\n  \
             {mode}\n  selector:\n    namespaces: [{}]\n    labelSelectors: {{app: crowd}}\n  \
             action: delay\n  delay: {{latency: 100ms}}\n",
            self.namespace()
        );
        let applied = self.apply(&document)?;
        std::thread::sleep(UNASKED);
        let is_done = |status: &_| condition(status, "AllInjected") == Some(true);
        let status = self.wait_for(&applied.name, "AllInjected", PATIENCE * 3, is_done)?;
        let held = self.held()?;
        let ours: Vec<_> = held.iter().filter(|one| one.name == "crowd").collect();
        ensure!(
            ours.len() == count && ours.iter().all(|one| one.phase == "Injected"),
            "{held:?}"
        );
        ensure!(self.armed()?.len() == count, "not one rule for each pod");
        ensure!(
            status.experiment.container_records.len() == count,
            "{status:?}"
        );
        self.delete(&applied.name)?;
        let left = self.held()?;
        ensure!(left.is_empty(), "{left:?}");

        let late = |armed: u64| (armed.cast_signed() - applied.returned.cast_signed()) as f64 / 1e6;
        let armed = || ours.iter().map(|one| one.armed);
        let first = armed().min().context("nothing was armed")?;
        let last = armed().max().context("nothing was armed")?;
        Ok(InForce {
            first: late(first),
            last: late(last),
        })
    }
}
