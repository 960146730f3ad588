//! Connections that changed their protocol.

use std::sync::Arc;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{self, AsyncReadExt as _, copy_bidirectional};

use crate::{http1_guard::Handoff, upstream::SwitchedConnection};

/// Passes bytes both ways until both sides have ended.
///
/// `handoff` is of the client's connection, which keeps its place meanwhile.
pub(super) async fn join(client: OnUpgrade, application: SwitchedConnection, handoff: Option<Arc<Handoff>>) {
    let client = match client.await {
        Ok(client) => client,
        Err(error) => return tracing::debug!(%error, "a protocol upgrade failed"),
    };
    let Some((stream, received)) = application.take() else { return };
    let (reader, writer) = stream.into_split();
    let mut application = io::join((&received[..]).chain(reader), writer);
    if let Err(error) = copy_bidirectional(&mut TokioIo::new(client), &mut application).await {
        tracing::debug!(%error, "an upgraded connection failed");
    }
    drop(handoff);
}
