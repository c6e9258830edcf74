//! Who wants what, who was told what: the state of the node's thread.
//!
//! Somebody at the node outranks everybody: what `recover` took off stays off while a client still
//! desires it. (`panic` keeps everything off: that is the kernel's halt word, and the node's part.)

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use chaos_planner::fault::{Fault, FaultId, Lifetime};
use chaos_planner::observed::{Observed, Phase};
use chaos_proto::agent::{ObservedFault, ObservedSet, Phase as WirePhase};
use tokio::sync::{oneshot, watch};

use super::{Command, Desired, NodePort, Owner, RECOVER_TIMEOUT, Recovered, Report};
use crate::metrics::Tally;
use crate::wire::{self, Refusal};

/// The owner that comes back after a break and asks what became of its faults.
pub const OPERATOR: &str = "operator";

/// A client hears at least this often, changed or not.
const REPEAT: Duration = Duration::from_secs(10);
/// How long a client can still hear what a fault that has gone had done.
const EPITAPH: Duration = Duration::from_secs(60);
/// How many of these a client hears of at the most.
const EPITAPHS: usize = 1_000;
/// How soon a fault's first hit is noticed.
const UNTIL_FIRST_HIT: Duration = Duration::from_millis(250);
/// How soon anything else is noticed that happens in the kernel by itself.
const WHILE_ACTIVE: Duration = Duration::from_secs(1);

const HELD: &str = "taken off by hand on the node (`chaos-agent recover`); delete it, or lift the \
                    hold by `chaos-agent panic --resume` on the node";

/// Which faults a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// Id of a fault, or name (`<namespace>/<name>` or `<name>`) of the object that asked for it.
    Named(String),
    /// All of them.
    All,
}

impl Which {
    /// Whether this fault is meant.
    pub fn means(&self, fault: &Observed) -> bool {
        match self {
            Self::All => true,
            Self::Named(name) => {
                *name == fault.id
                    || *name == fault.name
                    || name.split_once('/') == Some((&fault.namespace, &fault.name))
            }
        }
    }
}

struct Client {
    session: u64,
    generation: u64,
    /// The last generation that had nothing pending.
    settled: u64,
    faults: Vec<Fault>,
    received: Instant,
    refused: Vec<Refusal>,
    /// `None` when its stream has ended; its faults may go on.
    answers: Option<watch::Sender<Option<ObservedSet>>>,
    /// What it was told last, without what changes all the time, and when.
    told: Option<(ObservedSet, Instant)>,
    past: Past,
}

/// What the node has said of a client's faults so far.
#[derive(Default)]
struct Past {
    last: BTreeMap<FaultId, ObservedFault>,
    ended: VecDeque<(ObservedFault, Instant)>,
}

impl Past {
    /// Takes in what the node says now; returns the faults that have gone lately.
    fn update(&mut self, faults: &[ObservedFault], now: Instant) -> Vec<ObservedFault> {
        let last: BTreeMap<_, _> = faults.iter().map(|f| (f.id.clone(), f.clone())).collect();
        for (id, fault) in std::mem::replace(&mut self.last, last) {
            if !self.last.contains_key(&id) {
                self.ended.push_back((fault, now));
            }
        }
        let lasts = |at: &Instant| now.saturating_duration_since(*at) < EPITAPH;
        while self.ended.front().is_some_and(|(_, at)| !lasts(at)) || self.ended.len() > EPITAPHS {
            self.ended.pop_front();
        }
        self.ended.iter().map(|(fault, _)| fault.clone()).collect()
    }
}

impl Client {
    /// One whose faults were adopted from a predecessor.
    fn absent() -> Self {
        Self {
            session: 0,
            generation: 0,
            settled: 0,
            faults: Vec::new(),
            received: Instant::now(),
            refused: Vec::new(),
            answers: None,
            told: None,
            past: Past::default(),
        }
    }
}

struct Waiter {
    ids: Vec<FaultId>,
    /// What is desired stays in sight after a panic, as not armed.
    panic: bool,
    until: Instant,
    reply: oneshot::Sender<Result<Recovered, String>>,
}

pub(super) struct Desk<P> {
    name: String,
    port: P,
    clients: BTreeMap<Owner, Client>,
    held: BTreeSet<FaultId>,
    waiters: Vec<Waiter>,
    reports: Vec<oneshot::Sender<Report>>,
    tally: Tally,
}

impl<P: NodePort> Desk<P> {
    pub(super) fn new(name: &str, port: P) -> Self {
        let mut clients: BTreeMap<Owner, Client> = BTreeMap::new();
        for (owner, fault) in port.adopted() {
            clients
                .entry(owner)
                .or_insert_with(Client::absent)
                .faults
                .push(fault);
        }
        Self {
            name: name.to_owned(),
            port,
            clients,
            held: BTreeSet::new(),
            waiters: Vec::new(),
            reports: Vec::new(),
            tally: Tally::default(),
        }
    }

    /// Takes a command in. [`Self::work`] does it.
    pub(super) fn accept(&mut self, command: Command) {
        match command {
            Command::Desired(desired) => self.desire(desired),
            Command::Gone { owner, session } => self.gone(owner, session),
            Command::Report(reply) => self.reports.push(reply),
            Command::Recover { which, reply } => self.recover(&which, reply),
            Command::Panic(reply) => match self.port.set_halted(true) {
                // From here on nothing acts; the node tidies up.
                Ok(()) => {
                    tracing::warn!("panic: everything on this node is off until it is resumed");
                    let ids = self.port.observed(None).into_iter().map(|f| f.id).collect();
                    self.wait_for(ids, true, reply);
                }
                Err(reason) => drop(reply.send(Err(reason))),
            },
            Command::Resume(reply) => {
                let result = self.port.set_halted(false);
                if result.is_ok() {
                    tracing::warn!("resumed: what clients desire is armed again");
                    let held: Vec<FaultId> = std::mem::take(&mut self.held).into_iter().collect();
                    self.desire_again(&held);
                }
                let _ = reply.send(result);
            }
            // They end the thread: it does them itself.
            Command::HandOver(_) | Command::Purge(_) => {}
        }
    }

    /// One round: change the kernel, read it back, tell who must know. Returns when the next one
    /// is due.
    pub(super) fn work(&mut self) -> Duration {
        let again = self.port.reconcile();
        let now = Instant::now();
        let all = self.port.observed(None);
        self.tally.update(&all);
        self.answer_waiters(&all, now);
        for reply in self.reports.drain(..) {
            let _ = reply.send(Report {
                faults: all.clone(),
                hits: self.tally.hits(),
                halted: self.port.halted(),
            });
        }
        self.tell_clients(now);
        let unseen = all
            .iter()
            .any(|f| f.phase == Phase::Injected && f.first_hit_ago.is_none());
        let look = match (all.is_empty() && self.waiters.is_empty(), unseen) {
            (true, _) => REPEAT,
            (false, true) => UNTIL_FIRST_HIT,
            (false, false) => WHILE_ACTIVE,
        };
        again.min(look)
    }

    /// A part of what can be done while nobody waits; whether there was anything to do.
    pub(super) fn work_ahead(&mut self) -> bool {
        self.port.load_ahead()
    }

    pub(super) fn hand_over(&mut self) {
        self.port.hand_over();
    }

    pub(super) fn purge(self) -> Result<(), String> {
        self.port.purge()
    }

    fn desire(&mut self, desired: Desired) {
        let Desired {
            owner,
            session,
            generation,
            faults,
            refused,
            answers,
        } = desired;
        let before = self.clients.get(&owner);
        if before.is_some_and(|client| client.session > session) {
            return;
        }
        for one in &refused {
            tracing::warn!(
                owner = owner.0,
                fault = one.id,
                reason = one.reason,
                "fault refused"
            );
        }
        // A stream that takes over hears of what ended meanwhile, too.
        let before = self.clients.remove(&owner);
        let same_stream = before.as_ref().filter(|client| client.session == session);
        let client = Client {
            session,
            generation,
            settled: same_stream.map_or(0, |client| client.settled),
            faults,
            received: Instant::now(),
            refused,
            answers: Some(answers),
            told: None,
            past: before.map(|client| client.past).unwrap_or_default(),
        };
        self.clients.insert(owner.clone(), client);
        self.release_holds();
        self.pass_on(&owner);
    }

    fn gone(&mut self, owner: Owner, session: u64) {
        let Some(client) = self.clients.get_mut(&owner) else {
            return;
        };
        // A stream that took over and ended without a word ends for the one before it, too.
        if client.session > session {
            return;
        }
        client.answers = None;
        self.port.orphan(owner);
    }

    /// A hold ends with the desire that it suppresses.
    fn release_holds(&mut self) {
        let clients = &self.clients;
        self.held.retain(|id| {
            clients
                .values()
                .any(|c| c.faults.iter().any(|f| f.id == *id))
        });
    }

    /// Hands the node the wishes of those who asked for these faults.
    fn desire_again(&mut self, ids: &[FaultId]) {
        let concerned = |client: &Client| client.faults.iter().any(|f| ids.contains(&f.id));
        let owners = self.clients.iter().filter(|(_, client)| concerned(client));
        let owners: Vec<(Owner, bool)> = owners
            .map(|(owner, client)| (owner.clone(), client.answers.is_none()))
            .collect();
        for (owner, gone) in owners {
            self.pass_on(&owner);
            if gone {
                self.port.orphan(owner);
            }
        }
    }

    /// Hands the node what is left of a client's wishes after holds.
    fn pass_on(&mut self, owner: &Owner) {
        let Some(client) = self.clients.get(owner) else {
            return;
        };
        let aged = client.received.elapsed();
        // What is about to end has its last word.
        self.tally.update(&self.port.observed(None));
        let faults = client
            .faults
            .iter()
            .filter(|fault| !self.held.contains(&fault.id))
            .map(|fault| age(fault, aged))
            .collect();
        self.port.set_desired(owner.clone(), faults);
    }

    fn recover(&mut self, which: &Which, reply: oneshot::Sender<Result<Recovered, String>>) {
        let ids: Vec<FaultId> = self
            .port
            .observed(None)
            .into_iter()
            .filter(|fault| which.means(fault))
            .map(|fault| fault.id)
            .collect();
        if let (true, Which::Named(name)) = (ids.is_empty(), which) {
            let reason = format!(
                "{name}: no fault of this node has this id or name; see `chaos-agent faults`"
            );
            let _ = reply.send(Err(reason));
            return;
        }
        tracing::warn!(?ids, "taken off by hand");
        self.held.extend(ids.iter().cloned());
        self.desire_again(&ids);
        self.wait_for(ids, false, reply);
    }

    fn wait_for(
        &mut self,
        ids: Vec<FaultId>,
        panic: bool,
        reply: oneshot::Sender<Result<Recovered, String>>,
    ) {
        let until = Instant::now() + RECOVER_TIMEOUT;
        self.waiters.push(Waiter {
            ids,
            panic,
            until,
            reply,
        });
    }

    fn answer_waiters(&mut self, all: &[Observed], now: Instant) {
        for waiter in std::mem::take(&mut self.waiters) {
            let left: Vec<Observed> = all
                .iter()
                .filter(|fault| waiter.ids.contains(&fault.id))
                .filter(|fault| !waiter.panic || is_in_kernel(fault.phase))
                .cloned()
                .collect();
            if left.is_empty() || now >= waiter.until {
                let _ = waiter.reply.send(Ok(Recovered {
                    ids: waiter.ids,
                    left,
                }));
            } else {
                self.waiters.push(waiter);
            }
        }
    }

    fn tell_clients(&mut self, now: Instant) {
        let mut ended = Vec::new();
        for (owner, client) in &mut self.clients {
            let observed = self.port.observed(Some(owner));
            let Some(answers) = &client.answers else {
                // Kept for as long as its faults go on: `recover` must know whose they are. The
                // operator comes back and asks; a command line does not.
                let over = |f: &Observed| !is_in_kernel(f.phase) && f.phase != Phase::Pending;
                if observed.is_empty() || (owner.0 != OPERATOR && observed.iter().all(over)) {
                    ended.push(owner.clone());
                }
                continue;
            };
            if !observed.iter().any(|fault| fault.phase == Phase::Pending) {
                client.settled = client.generation;
            }
            let mut faults: Vec<ObservedFault> = observed.iter().map(wire::observed).collect();
            faults.extend(client.refused.iter().map(wire::refusal));
            for fault in client
                .faults
                .iter()
                .filter(|fault| self.held.contains(&fault.id))
            {
                // While it is being removed, the kernel's own word counts.
                if faults.iter().all(|told| told.id != fault.id) {
                    faults.push(ObservedFault {
                        id: fault.id.clone(),
                        phase: WirePhase::Failed.into(),
                        reason: HELD.to_owned(),
                        ..ObservedFault::default()
                    });
                }
            }
            let ended = client.past.update(&faults, now);
            let set = ObservedSet {
                generation: client.settled,
                faults,
                ended,
                node: self.name.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            };
            let essence = essence(&set);
            let known = client.told.as_ref().is_some_and(|(before, at)| {
                *before == essence && now.saturating_duration_since(*at) < REPEAT
            });
            if !known {
                answers.send_replace(Some(set));
                client.told = Some((essence, now));
            }
        }
        for owner in ended {
            self.clients.remove(&owner);
            self.port.set_desired(owner, Vec::new());
        }
    }
}

fn is_in_kernel(phase: Phase) -> bool {
    matches!(phase, Phase::Injected | Phase::Recovering)
}

/// A set without its clocks and counts: two that are equal say the same.
fn essence(set: &ObservedSet) -> ObservedSet {
    let mut set = set.clone();
    for fault in set.faults.iter_mut().chain(&mut set.ended) {
        fault.counters = None;
        fault.expires_in_ms = 0;
        fault.armed_ms_ago = 0;
        // That there was a hit is news, how long ago is not.
        fault.first_hit_ms_ago = fault.first_hit_ms_ago.map(|_| 0);
    }
    set
}

/// The fault as its author would send it now, having sent it `ago`.
fn age(fault: &Fault, ago: Duration) -> Fault {
    let mut fault = fault.clone();
    if let Lifetime::For(left) = fault.lifetime {
        fault.lifetime = Lifetime::For(left.saturating_sub(ago));
    }
    fault
}
