//! Errors in the permission of requests to purge.

use http::HeaderName;

use super::Check;
use crate::{
    policy::{PURGE_METHODS, PurgeAccess},
    spec::{Invalidation, PurgeRequests},
};

impl Check {
    /// Compiles the permission, if there is one. Rules for writes by the methods that it takes would be dead.
    pub(in crate::policy) fn purge_requests(
        &mut self,
        at: &str,
        invalidation: &Invalidation,
    ) -> Option<PurgeAccess> {
        let PurgeRequests { allowed_networks, token_header } = invalidation.requests.as_ref()?;
        for (index, write) in invalidation.on_write.iter().enumerate() {
            for (place, method) in write.matches.methods.iter().enumerate() {
                if PURGE_METHODS.contains(&method.as_str()) {
                    self.refuse(
                        &format!("{at}.onWrite[{index}].match.methods[{place}]"),
                        format!("no rule gets a {method}, because {at}.requests responds to it: take one of them out"),
                    );
                }
            }
        }
        let at = format!("{at}.requests");
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
        Some(PurgeAccess { networks, token_header })
    }
}
