//! What this server says of itself to another: its id, its run and its cluster incarnation.

use std::sync::Arc;

use super::frame::{ClusterId, Hello, Role, Versions};
use crate::core::server_id::ServerId;

/// What this server says of itself, and the protocol versions that it speaks.
#[derive(Clone)]
pub struct LocalIdentity(Arc<Inner>, Versions);

struct Inner {
    id: ServerId,
    role: Role,
    incarnation: u64,
    cluster_id: Box<dyn Fn() -> ClusterId + Send + Sync>,
}

impl LocalIdentity {
    /// A server with this id and incarnation; `cluster_id` is asked for each frame. It speaks
    /// [`Versions::OURS`].
    pub fn member(
        id: ServerId,
        incarnation: u64,
        cluster_id: impl Fn() -> ClusterId + Send + Sync + 'static,
    ) -> LocalIdentity {
        let (role, cluster_id) = (Role::Member, Box::new(cluster_id));
        LocalIdentity(Arc::new(Inner { id, role, incarnation, cluster_id }), Versions::OURS)
    }

    /// An operator's command that acts for the server with this id.
    pub fn tool(id: ServerId) -> LocalIdentity {
        let cluster_id = Box::new(|| [0; 16]);
        let inner = Inner { id, role: Role::Tool, incarnation: 0, cluster_id };
        LocalIdentity(Arc::new(inner), Versions::OURS)
    }

    /// The same, speaking these protocol versions.
    pub fn speaking(self, versions: Versions) -> LocalIdentity {
        LocalIdentity(self.0, versions)
    }

    /// The protocol versions that this server speaks.
    pub fn versions(&self) -> Versions {
        self.1
    }

    /// This server's id.
    pub fn id(&self) -> ServerId {
        self.0.id
    }

    /// The run of this server's process; 0 for a tool.
    pub fn incarnation(&self) -> u64 {
        self.0.incarnation
    }

    /// Its cluster incarnation at this moment.
    pub(super) fn cluster_id(&self) -> ClusterId {
        (self.0.cluster_id)()
    }

    /// What it says of itself now.
    pub fn hello(&self) -> Hello {
        let Inner { id: sender, role, incarnation, .. } = *self.0;
        Hello { versions: self.1, role, sender, incarnation, cluster_id: self.cluster_id() }
    }
}
