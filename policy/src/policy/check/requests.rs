//! Errors in the permission of requests to purge.

use http::HeaderName;

use super::Check;
use crate::{policy::PurgeAccess, spec::PurgeRequests};

impl Check {
    pub(in crate::policy) fn purge_requests(&mut self, at: &str, requests: &PurgeRequests) -> PurgeAccess {
        let PurgeRequests { allowed_networks, token_header } = requests;
        let mut networks = Vec::with_capacity(allowed_networks.len());
        for (index, text) in allowed_networks.iter().enumerate() {
            match text.parse() {
                Ok(network) => networks.push(network),
                Err(_) => self.refuse(
                    &format!("{at}.allowedNetworks[{index}]"),
                    format!(
                        "{text:?} is no network: write address and length, such as 10.0.0.0/8 or fd00::/8"
                    ),
                ),
            }
        }
        if let Some(name) = token_header {
            self.header(&format!("{at}.tokenHeader"), name);
        }
        let token_header =
            token_header.as_ref().and_then(|name| HeaderName::from_bytes(name.as_bytes()).ok());
        PurgeAccess { networks, token_header }
    }
}
