//! Service `Agent`: desired sets in, observed sets out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chaos_proto::agent::agent_server::Agent;
use chaos_proto::agent::{CapabilitiesReply, CapabilitiesRequest, DesiredSet, ObservedSet};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status, Streaming};

use crate::node_thread::{Desired, NodeHandle, OPERATOR, Owner, Stopped};
use crate::wire::{self, Origin};

/// Session and, by being dropped, the end of it.
type Streams = HashMap<Owner, (u64, oneshot::Sender<()>)>;

pub(super) struct AgentService {
    node: NodeHandle,
    origin: Origin,
    /// Streams by owner, each with the way to end it.
    streams: Arc<Mutex<Streams>>,
}

impl AgentService {
    pub(super) fn new(node: NodeHandle, origin: Origin) -> Self {
        Self {
            node,
            origin,
            streams: Arc::default(),
        }
    }

    /// There is one operator, whichever replica of it leads. Each command line is its own.
    fn owner<T>(&self, request: &Request<T>, session: u64) -> Owner {
        match self.origin {
            Origin::Network => Owner(OPERATOR.to_owned()),
            Origin::Local => {
                let peer = request.extensions().get::<UdsConnectInfo>();
                let pid = peer
                    .and_then(|info| info.peer_cred?.pid())
                    .unwrap_or_default();
                Owner(format!("local:{pid}.{session}"))
            }
        }
    }
}

#[tonic::async_trait]
impl Agent for AgentService {
    type SyncStream = ReceiverStream<Result<ObservedSet, Status>>;

    async fn sync(
        &self,
        request: Request<Streaming<DesiredSet>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let session = self.node.next_session();
        let owner = self.owner(&request, session);
        let peer = request.remote_addr();
        tracing::info!(owner = owner.0, session, ?peer, "stream opened");
        let (end, ended) = oneshot::channel();
        {
            let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
            // Dropping the older one's sender ends it.
            streams.insert(owner.clone(), (session, end));
        }
        let stream = Client {
            node: self.node.clone(),
            origin: self.origin,
            owner: owner.clone(),
            session,
        };
        let (out, answers) = mpsc::channel(1);
        let streams = Arc::clone(&self.streams);
        tokio::spawn(async move {
            let replaced = stream.talk(request.into_inner(), &out, ended).await;
            tracing::info!(owner = owner.0, session, replaced, "stream closed");
            {
                let mut streams = streams.lock().unwrap_or_else(PoisonError::into_inner);
                if streams
                    .get(&owner)
                    .is_some_and(|(current, _)| *current == session)
                {
                    streams.remove(&owner);
                }
            }
            if replaced {
                // The newer one has the faults, and their end as orphans, from here on.
                let farewell = out.send(Err(Status::aborted("replaced by a newer stream")));
                let _ = tokio::time::timeout(Duration::from_secs(1), farewell).await;
            } else {
                stream.node.gone(owner, session);
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn capabilities(
        &self,
        _request: Request<CapabilitiesRequest>,
    ) -> Result<Response<CapabilitiesReply>, Status> {
        Ok(Response::new(wire::capabilities(
            self.node.name(),
            self.node.capabilities(),
        )))
    }
}

/// One stream.
struct Client {
    node: NodeHandle,
    origin: Origin,
    owner: Owner,
    session: u64,
}

impl Client {
    /// Takes sets in and passes answers out until either side has enough; returns whether a newer
    /// stream has taken over. A client that reads slowly gets only the newest answer.
    async fn talk(
        &self,
        mut sets: Streaming<DesiredSet>,
        out: &mpsc::Sender<Result<ObservedSet, Status>>,
        mut ended: oneshot::Receiver<()>,
    ) -> bool {
        let (answers, mut newest) = watch::channel(None);
        let mut news = false;
        loop {
            tokio::select! {
                message = sets.message() => match message {
                    Ok(Some(set)) => {
                        if self.desire(set, &answers).is_err() {
                            return false;
                        }
                    }
                    Ok(None) => return false,
                    Err(status) => {
                        tracing::info!(owner = self.owner.0, %status, "stream broke");
                        return false;
                    }
                },
                changed = newest.changed(), if !news => match changed {
                    Ok(()) => news = true,
                    Err(_) => return false,
                },
                permit = out.reserve(), if news => {
                    let Ok(permit) = permit else { return false };
                    news = false;
                    if let Some(set) = newest.borrow_and_update().clone() {
                        permit.send(Ok(set));
                    }
                }
                () = out.closed() => return false,
                _ = &mut ended => return true,
            }
        }
    }

    fn desire(
        &self,
        set: DesiredSet,
        answers: &watch::Sender<Option<ObservedSet>>,
    ) -> Result<(), Stopped> {
        let (faults, refused) = wire::desired(set.faults, self.origin);
        self.node.desire(Desired {
            owner: self.owner.clone(),
            session: self.session,
            generation: set.generation,
            faults,
            refused,
            answers: answers.clone(),
        })
    }
}
