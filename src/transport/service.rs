//! What a listener hands requests to, and what it says of who sent them.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use super::frame::{Body, ClusterId, Hello, Role};
use super::names::Names;
use super::refusal::Refusal;
use crate::core::server_id::ServerId;

/// Who sent a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The sender's id in the server list.
    pub id: ServerId,
    /// As what it speaks.
    pub role: Role,
    /// The protocol version that it speaks on this connection, and that it is answered in.
    pub version: u8,
    /// The run of its process.
    pub incarnation: u64,
    /// Its cluster incarnation when it sent this request.
    pub cluster_id: ClusterId,
    /// Where it dialled from.
    pub addr: SocketAddr,
    /// Its certificate's names.
    pub names: Names,
}

/// What a request is answered, some time; `None` says that its body is no request at all.
pub type Answer = Pin<Box<dyn Future<Output = Option<Body>> + Send>>;

/// What answers requests.
pub trait Service: Send + Sync + 'static {
    /// Asked at a hello, and again before the body of each frame is looked at. Must not block.
    ///
    /// # Errors
    /// Why the sender is not heard; its connection is closed, and its hello answered with this.
    fn admit(&self, hello: &Hello) -> Result<(), Refusal>;

    /// Takes a one-way message, which gets no answer. `false` says that the body means nothing here: it is
    /// counted and passed over. Runs in the connection's task and must not block.
    fn take_one_way(&self, from: &Caller, body: Body) -> bool;

    /// Answers one request. `None` says that the body is no request at all: the connection is
    /// closed. Requests of one connection are begun in order and go on side by side; the future
    /// is dropped if the connection ends. It runs in the connection's task and must not block.
    fn serve(self: Arc<Self>, from: Caller, body: Body) -> Answer;
}
