//! Connections that changed their protocol.

use std::sync::Arc;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;

use crate::http1_guard::Handoff;

/// Passes bytes both ways until both sides have ended.
///
/// `handoff` is of the client's connection, which keeps its place meanwhile.
pub(super) async fn join(client: OnUpgrade, application: OnUpgrade, handoff: Option<Arc<Handoff>>) {
    let (client, application) = match tokio::try_join!(client, application) {
        Ok(both) => both,
        Err(error) => return tracing::debug!(%error, "a protocol upgrade failed"),
    };
    let ended = copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(application)).await;
    if let Err(error) = ended {
        tracing::debug!(%error, "an upgraded connection failed");
    }
    drop(handoff);
}
