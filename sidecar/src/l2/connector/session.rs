//! Connections with a subscription to the bus.

use std::sync::Arc;

use futures::future::BoxFuture;

use super::super::{connection::Connection, link::Link, subscription::Subscription};

/// A connection, with a subscription to the bus at the same server.
pub(super) struct Session {
    pub(super) connection: Connection,
    pub(super) bus: Subscription,
    /// Ends when another server has become the master.
    pub(super) superseded: BoxFuture<'static, ()>,
}

/// A session that was opened beside the one that there is, to take its place.
pub(super) struct Replacement {
    pub(super) session: Session,
    /// A link to the server that would be left by taking it.
    pub(super) left: Option<Arc<Link>>,
}
