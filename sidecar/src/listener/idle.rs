//! Closing of idle client connections while the application refuses connections.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use crate::{connections::Connections, upstream::Dialer};

/// Time for which an application must have refused connections before its clients' idle ones are closed: servers that
/// restart their own processes listen again sooner.
const REFUSED_INTERVAL: Duration = Duration::from_millis(500);
/// Interval of checks for idle connections. A connection that was used in the meantime is not closed.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// Ends the idle connections of a target's clients whenever its application is gone, so that they turn to another pod before they
/// send a request that would fail. Never returns.
pub async fn end_idle(connections: Arc<Connections>, target: Option<u16>, dialer: Arc<Dialer>) {
    loop {
        dialer.refused().await;
        while let Some(refused_for) = dialer.refused_for() {
            connections.look_at_idle(target, refused_for >= REFUSED_INTERVAL);
            sleep(CHECK_INTERVAL).await;
        }
    }
}
