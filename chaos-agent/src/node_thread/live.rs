//! The node of a running agent as [`NodePort`].

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context;
use chaos_abi::control;
use chaos_planner::capabilities::Capabilities;
use chaos_planner::fault::Fault;
use chaos_planner::observed::Observed;

use super::NodePort;
use crate::journal::Journal;
use crate::kernel::maps::Pinned;
use crate::node::{Node, Options, Owner};

/// A node with a kernel.
pub struct LiveNode {
    node: Node,
    maps: Pinned,
    adopted: Vec<(Owner, Fault)>,
}

/// Opens the node: takes the host's lock, loads and pins the programs.
///
/// # Errors
/// What the node says; it names what is missing and what to do.
pub fn open(options: Options) -> anyhow::Result<LiveNode> {
    let bpffs = options.bpffs.clone();
    let journal =
        Journal::new(&options.run_dir, &options.proc_root).context("failed to read the boot id")?;
    let mut node = Node::open(options)?;
    let maps = Pinned::open(&bpffs).context("failed to open the maps that were just pinned")?;
    let adopted: Vec<_> = journal
        .read()
        .armed
        .into_iter()
        .map(|e| (Owner(e.owner), e.armed.fault))
        .collect();
    // Nobody is connected now; the operator will be soon.
    for owner in adopted
        .iter()
        .map(|(owner, _)| owner)
        .collect::<BTreeSet<_>>()
    {
        node.orphan(owner.clone());
    }
    Ok(LiveNode {
        node,
        maps,
        adopted,
    })
}

impl NodePort for LiveNode {
    fn capabilities(&self) -> &Capabilities {
        self.node.capabilities()
    }

    fn adopted(&self) -> Vec<(Owner, Fault)> {
        self.adopted.clone()
    }

    fn set_desired(&mut self, owner: Owner, faults: Vec<Fault>) {
        self.node.set_desired(owner, faults);
    }

    fn orphan(&mut self, owner: Owner) {
        self.node.orphan(owner);
    }

    fn reconcile(&mut self) -> Duration {
        self.node.reconcile()
    }

    fn load_ahead(&mut self) -> bool {
        self.node.load_ahead()
    }

    fn observed(&mut self, owner: Option<&Owner>) -> Vec<Observed> {
        self.node.observed(owner)
    }

    fn hand_over(&mut self) {
        self.node.hand_over();
    }

    fn purge(self) -> Result<(), String> {
        self.node
            .purge()
            .map_err(|error| format!("{:#}", anyhow::Error::from(error)))
    }

    fn halted(&self) -> bool {
        self.maps.halted().unwrap_or(false)
    }

    fn set_halted(&mut self, halted: bool) -> Result<(), String> {
        self.maps
            .set_control(control::HALTED, u32::from(halted))
            .map_err(|error| format!("failed to write the halt word: {error}"))
    }
}
