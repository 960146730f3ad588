//! Permission of requests to purge.

use std::net::IpAddr;

use http::HeaderName;

use crate::Network;

/// Methods that ask for a purge: PURGE and BAN are Varnish's by convention, PURGEKEYS (xkey) and PURGETAGS (Symfony's `HttpCache`)
/// FOSHttpCache's.
pub const PURGE_METHODS: [&str; 4] = ["PURGE", "BAN", "PURGEKEYS", "PURGETAGS"];

/// Compiled `invalidation.requests`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PurgeAccess {
    pub(super) networks: Vec<Network>,
    /// Header that may have the token, besides `Authorization`.
    pub token_header: Option<HeaderName>,
}

impl PurgeAccess {
    /// Returns true if requests from an address need no token.
    pub fn allows(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(address))
    }
}
