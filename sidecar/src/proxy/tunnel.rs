//! Connections that changed their protocol.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;

/// Passes bytes both ways until both sides have ended.
pub(super) async fn join(client: OnUpgrade, application: OnUpgrade) {
    let (client, application) = match tokio::try_join!(client, application) {
        Ok(both) => both,
        Err(error) => return tracing::debug!(%error, "an upgrade did not happen"),
    };
    let ended = copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(application)).await;
    if let Err(error) = ended {
        tracing::debug!(%error, "an upgraded connection broke");
    }
}
