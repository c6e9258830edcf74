//! An agent without a kernel: a real gRPC server with mutual TLS that answers as `agent.proto` says
//! an agent does. What it "injects" is a list.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use chaos_proto::agent::agent_server::{Agent, AgentServer};
use chaos_proto::agent::{
    CapabilitiesReply, CapabilitiesRequest, Counters, DesiredSet, Fault, ObservedFault,
    ObservedSet, Phase,
};
use futures::Stream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

/// What the agent has, and how it behaves.
#[derive(Clone, Default)]
pub(crate) struct State {
    pub(crate) generation: u64,
    pub(crate) faults: BTreeMap<String, Held>,
    /// Every set that came: its faults' ids.
    pub(crate) sets: Vec<Vec<String>>,
    /// Answer so for every fault, instead of injecting it.
    pub(crate) answer: Option<(Phase, String)>,
    /// Packets that every fault has hit.
    pub(crate) hits: u64,
}

/// A fault that it has.
#[derive(Clone)]
pub(crate) struct Held {
    pub(crate) fault: Fault,
    pub(crate) since: Instant,
}

#[derive(Clone)]
pub(crate) struct FakeAgent {
    node: String,
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    server: Arc<Mutex<Option<JoinHandle<()>>>>,
    address: SocketAddr,
    /// CA, certificate, key.
    tls: (String, String, String),
}

impl FakeAgent {
    pub(crate) fn start(node: &str, address: SocketAddr, tls: (String, String, String)) -> Self {
        let this = Self {
            node: node.to_owned(),
            state: Arc::default(),
            changed: watch::Sender::new(0),
            server: Arc::default(),
            address,
            tls,
        };
        this.listen();
        this
    }

    /// (Again) takes connections.
    pub(crate) fn listen(&self) {
        let (ca, certificate, key) = &self.tls;
        let tls = ServerTlsConfig::new()
            .client_ca_root(Certificate::from_pem(ca))
            .identity(Identity::from_pem(certificate, key));
        let server = Server::builder()
            .tls_config(tls)
            .unwrap()
            .add_service(AgentServer::new(self.clone()))
            .serve(self.address);
        let task = tokio::spawn(async move { server.await.unwrap() });
        *self.server.lock().unwrap() = Some(task);
    }

    /// Stops listening and breaks its streams, as if the machine were gone. What it holds stays.
    pub(crate) fn vanish(&self) {
        if let Some(task) = self.server.lock().unwrap().take() {
            task.abort();
        }
        self.changed.send_replace(u64::MAX);
    }

    /// Changes the state and reports it.
    pub(crate) fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }

    pub(crate) fn state(&self) -> State {
        self.state.lock().unwrap().clone()
    }

    /// Waits until what it holds is as asked; returns when that was seen.
    pub(crate) async fn until(&self, what: &str, is: impl Fn(&State) -> bool) -> Result<Instant> {
        let deadline = Instant::now() + Duration::from_secs(15);
        let mut changed = self.changed.subscribe();
        loop {
            let state = self.state();
            if is(&state) {
                return Ok(Instant::now());
            }
            let held: Vec<&String> = state.faults.keys().collect();
            if tokio::time::timeout_at(deadline.into(), changed.changed())
                .await
                .is_err()
            {
                anyhow::bail!(
                    "agent of {}: {what}: not in 15 s; it has {held:?}",
                    self.node
                );
            }
        }
    }

    fn take_in(&self, set: DesiredSet) {
        self.set(|state| {
            state
                .sets
                .push(set.faults.iter().map(|f| f.id.clone()).collect());
            let mut old = std::mem::take(&mut state.faults);
            for fault in set.faults {
                let since = old
                    .remove(&fault.id)
                    .filter(|held| held.fault.target == fault.target)
                    .map_or_else(Instant::now, |held| held.since);
                state.faults.insert(fault.id.clone(), Held { fault, since });
            }
            state.generation = set.generation;
        });
    }

    fn report(&self) -> ObservedSet {
        let state = self.state();
        let faults = state.faults.into_iter().map(|(id, held)| {
            let ago = u64::try_from(held.since.elapsed().as_millis()).unwrap();
            let (phase, reason) = state
                .answer
                .clone()
                .unwrap_or((Phase::Injected, String::new()));
            ObservedFault {
                id,
                phase: phase.into(),
                mechanisms: vec!["fake".to_owned()],
                reason,
                degraded: false,
                counters: Some(Counters {
                    matched: state.hits,
                    injected: state.hits,
                    ..Counters::default()
                }),
                expires_in_ms: held.fault.remaining_ms.unwrap_or(30_000),
                armed_ms_ago: ago,
                first_hit_ms_ago: (state.hits > 0).then_some(ago),
            }
        });
        ObservedSet {
            ended: Vec::new(),
            generation: state.generation,
            faults: faults.collect(),
            node: self.node.clone(),
            version: "fake".to_owned(),
        }
    }
}

#[tonic::async_trait]
impl Agent for FakeAgent {
    type SyncStream = Pin<Box<dyn Stream<Item = Result<ObservedSet, Status>> + Send>>;

    async fn sync(
        &self,
        request: Request<Streaming<DesiredSet>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let mut sets = request.into_inner();
        let mut changed = self.changed.subscribe();
        let this = self.clone();
        let reports = async_stream(move |out| async move {
            loop {
                tokio::select! {
                    set = sets.message() => match set {
                        Ok(Some(set)) => this.take_in(set),
                        _ => return,
                    },
                    _ = changed.changed() => {
                        if *changed.borrow_and_update() == u64::MAX {
                            return;
                        }
                        if out.send(Ok(this.report())).await.is_err() {
                            return;
                        }
                    }
                }
            }
        });
        Ok(Response::new(reports))
    }

    async fn capabilities(
        &self,
        _: Request<CapabilitiesRequest>,
    ) -> Result<Response<CapabilitiesReply>, Status> {
        Ok(Response::new(CapabilitiesReply {
            node: self.node.clone(),
            ..CapabilitiesReply::default()
        }))
    }
}

type Out = tokio::sync::mpsc::Sender<Result<ObservedSet, Status>>;

fn async_stream<F: Future<Output = ()> + Send + 'static>(
    body: impl FnOnce(Out) -> F,
) -> Pin<Box<dyn Stream<Item = Result<ObservedSet, Status>> + Send>> {
    let (out, answers) = tokio::sync::mpsc::channel(1);
    tokio::spawn(body(out));
    Box::pin(tokio_stream::wrappers::ReceiverStream::new(answers))
}
