//! Service `Local`: the whole node, for root of that node.

use chaos_planner::observed::Observed;
use chaos_proto::local::local_server::Local;
use chaos_proto::local::recover_request::Which as WireWhich;
use chaos_proto::local::{
    FaultsReply, FaultsRequest, LocalFault, PanicReply, PanicRequest, RecoverReply, RecoverRequest,
    ResumeReply, ResumeRequest,
};
use tonic::{Request, Response, Status};

use crate::node_thread::{NodeHandle, Which};
use crate::wire;

pub(super) struct LocalService {
    node: NodeHandle,
}

impl LocalService {
    pub(super) fn new(node: NodeHandle) -> Self {
        Self { node }
    }
}

#[tonic::async_trait]
impl Local for LocalService {
    async fn faults(
        &self,
        _request: Request<FaultsRequest>,
    ) -> Result<Response<FaultsReply>, Status> {
        let report = self
            .node
            .report()
            .await
            .map_err(|e| Status::unavailable(e.to_string()))?;
        Ok(Response::new(FaultsReply {
            faults: report.faults.into_iter().map(local).collect(),
            halted: report.halted,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    }

    async fn recover(
        &self,
        request: Request<RecoverRequest>,
    ) -> Result<Response<RecoverReply>, Status> {
        let which = match request.into_inner().which {
            Some(WireWhich::Name(name)) => Which::Named(name),
            Some(WireWhich::All(true)) => Which::All,
            Some(WireWhich::All(false)) | None => {
                return Err(Status::invalid_argument(
                    "which: none: must be set; name a fault",
                ));
            }
        };
        let done = self
            .node
            .recover(which)
            .await
            .map_err(Status::failed_precondition)?;
        Ok(Response::new(RecoverReply {
            ids: done.ids,
            left: done.left.into_iter().map(local).collect(),
        }))
    }

    async fn panic(&self, _request: Request<PanicRequest>) -> Result<Response<PanicReply>, Status> {
        let done = self
            .node
            .panic()
            .await
            .map_err(Status::failed_precondition)?;
        Ok(Response::new(PanicReply {
            left: done.left.into_iter().map(local).collect(),
        }))
    }

    async fn resume(
        &self,
        _request: Request<ResumeRequest>,
    ) -> Result<Response<ResumeReply>, Status> {
        self.node
            .resume()
            .await
            .map_err(Status::failed_precondition)?;
        Ok(Response::new(ResumeReply {}))
    }
}

fn local(observed: Observed) -> LocalFault {
    let message = wire::observed(&observed);
    LocalFault {
        kind: observed.kind,
        namespace: observed.namespace,
        name: observed.name,
        record: observed.record,
        observed: Some(message),
    }
}
