//! What this node answers to members.

use std::sync::{Arc, Weak};

use cluster::message::{Refusal, Reply, Request};
use cluster::{Asked, Home, Opened, Replica};
use futures_util::future::BoxFuture;
use types::{EndpointId, Name};
use volume::BlockDevice as _;

use super::records::{TAKING, TakingRecord};
use crate::api::{ApiError, ErrorCode, TaskKind};
use crate::error::blocking;
use crate::node::Node;
use crate::record::Record as _;

/// Where Linux says what it is called until it is started again (proc_sys_kernel(5)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The node, as members see it.
#[derive(Clone, Debug)]
pub(super) struct NodeHome(pub(super) Weak<Node>);

impl NodeHome {
    fn node(&self) -> Result<Arc<Node>, Refusal> {
        self.0.upgrade().ok_or_else(|| refusal(ApiError::new(ErrorCode::Unreachable, "the node is shutting down")))
    }
}

/// An error of the API, as a member gets it.
pub(super) fn refusal(error: ApiError) -> Refusal {
    let code = serde_json::to_value(error.code).ok().and_then(|code| code.as_str().map(str::to_owned));
    Refusal { code: code.unwrap_or_default(), message: error.message, hint: error.hint }
}

/// The error of the API that a member meant.
pub(super) fn api_error(refusal: Refusal) -> ApiError {
    let code = serde_json::from_value(serde_json::Value::String(refusal.code)).unwrap_or(ErrorCode::Internal);
    ApiError { code, message: refusal.message, hint: refusal.hint }
}

impl Home for NodeHome {
    fn open(&self, volume: &Name) -> Result<Opened, Refusal> {
        let node = self.node()?;
        let device = node.find_volume(volume).map_err(refusal)?;
        let epoch = node.epoch_of(volume).map_err(refusal)?;
        let since = node.since_of(volume).map_err(refusal)?;
        Ok(Opened { device, epoch, since: since.unwrap_or(0) })
    }

    fn replica(&self, member: EndpointId, asked: Asked) -> BoxFuture<'static, Result<Arc<dyn Replica>, Reply>> {
        let node = self.node();
        Box::pin(async move { node.map_err(Reply::Refused)?.replica(member, asked).await })
    }

    fn boot(&self) -> String {
        // Where it cannot be told, each process counts as another machine: then more is written again than was lost.
        let told = std::fs::read_to_string(BOOT_ID).map(|boot| boot.trim().to_owned());
        told.unwrap_or_else(|_| std::process::id().to_string())
    }

    fn answer(&self, member: EndpointId, request: Request) -> BoxFuture<'static, Result<Reply, Refusal>> {
        let node = self.node();
        Box::pin(async move { node?.answer_member(member, request).await.map_err(refusal) })
    }
}

impl Node {
    async fn answer_member(self: &Arc<Self>, member: EndpointId, request: Request) -> Result<Reply, ApiError> {
        match request {
            Request::Find { volume } => self.tell_where(&volume),
            Request::Offer { volume } => self.offer(member, &volume).await.map(Reply::Offered),
            Request::Give { volume } => self.give(member, &volume).await.map(|given| Reply::Given(Box::new(given))),
            Request::Settle { volume, epoch } => self.settle(member, &volume, epoch).await.map(|()| Reply::Settled),
            Request::Forward { method, path, body } => {
                let (status, body) = self.answer_forwarded(&method, &path, body.into()).await?;
                Ok(Reply::Answered { status, body: body.into() })
            }
            Request::Outdate { volume, epoch } => {
                let node = Arc::clone(self);
                blocking(move || node.outdate_replica(member, &volume, epoch)).await
            }
            Request::Dismiss { volume, epoch } => {
                let node = Arc::clone(self);
                blocking(move || node.dismiss_replica(member, &volume, epoch)).await
            }
            Request::Witness { volume, epoch, replica, testimony } => {
                self.witness(member, volume, epoch, replica, testimony).await
            }
            Request::Device { .. } | Request::Replicate { .. } | Request::Begin { .. } | Request::Continue { .. } => {
                Err(ApiError::new(ErrorCode::Internal, "that is no question"))
            }
        }
    }

    /// Whether a volume that is not here may have been given to this node already: it is being taken, or was when the node last stopped.
    fn is_taking(&self, volume: &Name) -> Result<bool, ApiError> {
        if self.tasks.find_running(TaskKind::Take, volume.as_str()).is_some() {
            return Ok(true);
        }
        // Who has given it away since has it no more.
        Ok(self.means_to_take(volume)? && self.given_record(volume)?.is_none())
    }

    /// Whether it is recorded that a volume is to be taken.
    pub(super) fn means_to_take(&self, volume: &Name) -> Result<bool, ApiError> {
        let damaged = |error: crate::record::RecordError| ApiError::from_error(ErrorCode::Damaged, &error);
        Ok(TakingRecord::read(&*self.store, format!("{TAKING}{volume}")).map_err(damaged)?.is_some())
    }

    fn tell_where(&self, volume: &Name) -> Result<Reply, ApiError> {
        // Looked at first: it ends after the volume is here.
        let taken = self.is_taking(volume)?;
        if let Some(found) = self.volumes.get(volume).filter(|_| !self.cluster.replicas.holds(volume)) {
            let epoch = self.epoch_of(volume)?;
            return Ok(Reply::Here { size_bytes: found.size_bytes(), epoch });
        }
        if taken {
            // It may have been given to this node already: who asks must not believe that nobody has it.
            return Err(ApiError::new(ErrorCode::Conflict, format!("{volume} is being taken by this node")));
        }
        Ok(match self.given_record(volume)? {
            Some(given) => Reply::Elsewhere { home: given.to, epoch: given.epoch },
            None => Reply::Absent,
        })
    }
}
