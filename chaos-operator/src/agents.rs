//! What each node should have, and what its agent says it has.
//!
//! One table for all experiments: each puts its own share in, and each agent always gets the whole
//! set of its node. Nothing is sent before every experiment that exists has put its share in once
//! (see [`Agents::expect`]): a set that lacks one would take its faults away.
//!
//! `connection.rs` carries sets and reports between this table and an agent, `sets.rs` says when a
//! set is sent, `discovery.rs` finds agents. What a report *means* is decided in `phase.rs`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chaos_proto::agent::{DesiredSet, Fault, ObservedFault, ObservedSet};
use jiff::Timestamp;
use tokio::sync::{Notify, watch};

use crate::assign::owner_of;
use crate::view::{NodeView, Seen, View};

mod connection;
pub mod discovery;
mod sets;

pub use connection::Tls;

/// The table. Cheap to clone; all clones are the same table.
#[derive(Clone, Debug)]
pub struct Agents {
    table: Arc<Mutex<Table>>,
    open: Arc<watch::Sender<bool>>,
    started: Timestamp,
}

#[derive(Debug, Default)]
struct Table {
    nodes: BTreeMap<String, Node>,
    /// Who is to be woken, by uid.
    wakers: HashMap<String, Arc<Notify>>,
    /// Kinds whose experiments are not listed yet, and experiments that have not put in their
    /// share yet.
    missing_kinds: BTreeSet<&'static str>,
    missing: BTreeSet<String>,
    /// Experiments that are older than this table, by uid.
    inherited: BTreeSet<String>,
    last_generation: u64,
}

#[derive(Debug)]
struct Node {
    /// By uid of the experiment.
    desired: BTreeMap<String, Share>,
    /// Grows with each change of `desired`, and with each new stream.
    generation: watch::Sender<u64>,
    /// Experiments that wait for news of this node.
    interested: BTreeSet<String>,
    /// Experiments of which a fault was in a set that was sent.
    sent: BTreeSet<String>,
    connected: bool,
    since: Timestamp,
    carried_out: u64,
    /// By fault id, so that those of an experiment are next to each other.
    observed: BTreeMap<String, Seen>,
    /// The last words on faults that have gone lately, by id.
    ended: BTreeMap<String, ObservedFault>,
}

/// What one experiment wants of a node.
#[derive(Clone, Debug, PartialEq)]
struct Share {
    faults: Vec<Fault>,
    ends_at: Option<Timestamp>,
}

impl Agents {
    /// An empty table that stays closed until the experiments of all `kinds` are listed.
    #[must_use]
    pub fn new(kinds: &[&'static str], now: Timestamp) -> Self {
        let table = Table {
            missing_kinds: kinds.iter().copied().collect(),
            // Not from 1: an agent may remember the sets of the operator before.
            last_generation: u64::try_from(now.as_microsecond()).unwrap_or_default(),
            ..Table::default()
        };
        Self {
            table: Arc::new(Mutex::new(table)),
            open: Arc::new(watch::Sender::new(kinds.is_empty())),
            started: now,
        }
    }

    /// The experiments of a kind that exist now: those of operators before this one. Once each of
    /// them has put in its share, or is gone, sets are sent.
    pub fn expect(&self, kind: &'static str, uids: impl IntoIterator<Item = String>) {
        let mut table = self.lock();
        if table.missing_kinds.remove(kind) {
            for uid in uids {
                table.inherited.insert(uid.clone());
                table.missing.insert(uid);
            }
        }
        self.open_if_complete(&table);
    }

    /// Kinds whose experiments are not listed yet: as long as there are any, nothing is sent.
    #[must_use]
    pub fn missing_kinds(&self) -> Vec<&'static str> {
        self.lock().missing_kinds.iter().copied().collect()
    }

    /// Whom to wake when something changes that concerns an experiment.
    pub fn register(&self, uid: &str, waker: Arc<Notify>) {
        self.lock().wakers.insert(uid.to_owned(), waker);
    }

    /// Replaces what an experiment wants of all nodes, and returns the generation that says so of
    /// each node that it ever wanted something of, and of those `also`.
    pub fn publish(
        &self,
        uid: &str,
        mut faults: BTreeMap<String, Vec<Fault>>,
        ends_at: Option<Timestamp>,
        also: &[String],
        now: Timestamp,
    ) -> BTreeMap<String, u64> {
        let mut guard = self.lock();
        let table = &mut *guard;
        for name in faults.keys().chain(also) {
            if !table.nodes.contains_key(name) {
                table.last_generation += 1;
                let node = Node::new(table.last_generation, self.started.max(now));
                table.nodes.insert(name.clone(), node);
            }
            if let Some(node) = table.nodes.get_mut(name) {
                node.interested.insert(uid.to_owned());
            }
        }
        let mut generations = BTreeMap::new();
        for (name, node) in &mut table.nodes {
            let new = faults.remove(name).map(|faults| Share { faults, ends_at });
            if node.desired.get(uid) != new.as_ref() {
                match new {
                    Some(share) => node.desired.insert(uid.to_owned(), share),
                    None => node.desired.remove(uid),
                };
                table.last_generation += 1;
                node.generation.send_replace(table.last_generation);
            }
            if node.interested.contains(uid) {
                generations.insert(name.clone(), *node.generation.borrow());
            }
        }
        table.missing.remove(uid);
        self.open_if_complete(table);
        generations
    }

    /// All nodes that are known.
    #[must_use]
    pub fn nodes(&self) -> Vec<String> {
        self.lock().nodes.keys().cloned().collect()
    }

    /// The experiment is gone for good: it wants nothing, and is not woken any more.
    pub fn forget(&self, uid: &str, now: Timestamp) {
        self.publish(uid, BTreeMap::new(), None, &[], now);
        let mut table = self.lock();
        table.wakers.remove(uid);
        table.inherited.remove(uid);
        for node in table.nodes.values_mut() {
            node.interested.remove(uid);
            node.sent.remove(uid);
        }
    }

    /// What agents have said of an experiment.
    #[must_use]
    pub fn view(&self, uid: &str) -> View {
        let table = self.lock();
        let mut view = View {
            started: self.started,
            inherited: table.inherited.contains(uid),
            ..View::default()
        };
        for (name, node) in &table.nodes {
            view.nodes.insert(
                name.clone(),
                NodeView {
                    connected: node.connected,
                    since: node.since,
                    generation: node.carried_out,
                    sent: node.sent.contains(uid),
                },
            );
            let prefix = format!("{uid}/");
            let own = node.observed.range(prefix.clone()..);
            let own = own.take_while(|(id, _)| id.starts_with(&prefix));
            view.faults
                .extend(own.map(|(id, seen)| ((name.clone(), id.clone()), seen.clone())));
            let ended = node.ended.range(prefix.clone()..);
            let ended = ended.take_while(|(id, _)| id.starts_with(&prefix));
            view.ended
                .extend(ended.map(|(id, last)| ((name.clone(), id.clone()), last.clone())));
        }
        view
    }

    /// Nodes with and without a connection, for metrics.
    #[must_use]
    pub fn connections(&self) -> (usize, usize) {
        let table = self.lock();
        let connected = table.nodes.values().filter(|node| node.connected).count();
        (connected, table.nodes.len() - connected)
    }

    /// Resolves once sets may be sent.
    async fn opened(&self) {
        // The sender lives as long as this table.
        let _ = self.open.subscribe().wait_for(|open| *open).await;
    }

    /// A new stream: a new generation, and the way to hear of the next ones.
    fn begin_stream(&self, name: &str, now: Timestamp) -> watch::Receiver<u64> {
        let mut guard = self.lock();
        let table = &mut *guard;
        table.last_generation += 1;
        let generation = table.last_generation;
        let node = table
            .nodes
            .entry(name.to_owned())
            .or_insert_with(|| Node::new(generation, now));
        node.generation.send_replace(generation);
        let mut receiver = node.generation.subscribe();
        receiver.mark_changed();
        receiver
    }

    /// The set that a node should have now, to be sent: from here on, what is in it may be there.
    fn desired(&self, name: &str, now: Timestamp) -> DesiredSet {
        let mut table = self.lock();
        let Some(node) = table.nodes.get_mut(name) else {
            return DesiredSet::default();
        };
        let mut faults = Vec::new();
        for (uid, share) in &node.desired {
            let own = share.at(now);
            if !own.is_empty() && !node.sent.contains(uid) {
                node.sent.insert(uid.clone());
            }
            faults.extend(own);
        }
        DesiredSet {
            generation: *node.generation.borrow(),
            faults,
        }
    }

    /// How many faults a node should have, without sending them.
    #[cfg(test)]
    pub(crate) fn wanted(&self, name: &str) -> usize {
        let table = self.lock();
        let shares = table.nodes.get(name).into_iter();
        let shares = shares.flat_map(|node| node.desired.values());
        shares.map(|share| share.faults.len()).sum()
    }

    /// What an agent has said. Wakes those whom it concerns.
    fn observe(&self, name: &str, set: ObservedSet, now: Timestamp) {
        let mut guard = self.lock();
        let table = &mut *guard;
        let Some(node) = table.nodes.get_mut(name) else {
            return;
        };
        let mut concerned: BTreeSet<String> = BTreeSet::new();
        if !node.connected || node.carried_out != set.generation {
            concerned.extend(node.interested.iter().cloned());
        }
        if !node.connected {
            node.connected = true;
            node.since = now;
        }
        node.carried_out = set.generation;
        let new: BTreeMap<String, Seen> = set
            .faults
            .into_iter()
            .map(|fault| (fault.id.clone(), Seen { fault, at: now }))
            .collect();
        for (id, seen) in &new {
            let old = node.observed.get(id);
            if old.is_none_or(|old| news(&old.fault) != news(&seen.fault)) {
                concerned.insert(owner_of(id).to_owned());
            }
        }
        for id in node.observed.keys().filter(|id| !new.contains_key(*id)) {
            concerned.insert(owner_of(id).to_owned());
        }
        node.observed = new;
        node.ended = set
            .ended
            .into_iter()
            .map(|fault| (fault.id.clone(), fault))
            .collect();
        table.wake(&concerned);
    }

    /// The stream has ended.
    fn lost(&self, name: &str, now: Timestamp) {
        let mut guard = self.lock();
        let table = &mut *guard;
        let Some(node) = table.nodes.get_mut(name).filter(|node| node.connected) else {
            return;
        };
        node.connected = false;
        node.since = now;
        let mut concerned = node.interested.clone();
        // Also those that this operator has asked for nothing here: a deletion may wait for them.
        concerned.extend(node.observed.keys().map(|id| owner_of(id).to_owned()));
        table.wake(&concerned);
    }

    fn open_if_complete(&self, table: &Table) {
        if table.missing_kinds.is_empty() && table.missing.is_empty() {
            self.open
                .send_if_modified(|open| !std::mem::replace(open, true));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // A panic elsewhere leaves the table as consistent as any other moment does.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn wake(&self, uids: &BTreeSet<String>) {
        for waker in uids.iter().filter_map(|uid| self.wakers.get(uid)) {
            waker.notify_one();
        }
    }
}

impl Node {
    fn new(generation: u64, now: Timestamp) -> Self {
        Self {
            desired: BTreeMap::new(),
            generation: watch::Sender::new(generation),
            interested: BTreeSet::new(),
            sent: BTreeSet::new(),
            connected: false,
            since: now,
            carried_out: 0,
            observed: BTreeMap::new(),
            ended: BTreeMap::new(),
        }
    }
}

impl Share {
    /// Its faults with the time that is left; none when it is over.
    fn at(&self, now: Timestamp) -> Vec<Fault> {
        let Some(end) = self.ends_at else {
            return self.faults.clone();
        };
        let left = end.duration_since(now).as_millis();
        let Ok(left) = u64::try_from(left) else {
            return Vec::new();
        };
        if left == 0 {
            return Vec::new();
        }
        let timed = |fault: &Fault| Fault {
            remaining_ms: Some(left),
            ..fault.clone()
        };
        self.faults.iter().map(timed).collect()
    }
}

/// What of a report is worth waking somebody: counters and clocks are read when they are needed.
fn news(fault: &ObservedFault) -> ObservedFault {
    ObservedFault {
        counters: None,
        expires_in_ms: 0,
        armed_ms_ago: 0,
        first_hit_ms_ago: fault.first_hit_ms_ago.map(|_| 0),
        ..fault.clone()
    }
}

#[cfg(test)]
mod tests;
