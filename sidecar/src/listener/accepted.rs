//! A client's connection, besides its bytes.

use std::{net::IpAddr, sync::Arc};

use tokio_util::sync::CancellationToken;

use crate::{connections::Admitted, proxy::Proxy};

/// An accepted connection of a client, besides its bytes, and what serves it.
#[derive(Clone, Copy)]
pub(super) struct Accepted<'a> {
    pub(super) address: IpAddr,
    pub(super) proxy: &'a Arc<Proxy>,
    /// Cancelled when the process ends.
    pub(super) shutdown: &'a CancellationToken,
    pub(super) place: &'a Arc<Admitted>,
}
