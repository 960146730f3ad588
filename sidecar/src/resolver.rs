//! Name resolution for connections to tiers, within the bounds of the cluster.
//!
//! # Guarantees
//! - Whoever asks connects to the addresses that it returns, and to no others: a name that changes its address between a check and
//!   the connection gains nothing.
//! - Addresses that are written as such pass through here too, in each of their spellings (`2130706433`, `127.1`, `::ffff:7f00:1`).

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    vec,
};

use arc_swap::ArcSwapOption;
use hyper_util::client::legacy::connect::dns::Name;
use larder_policy::{Destinations, destinations::DestinationError};
use redis::{RedisFuture, io::AsyncDNSResolver};
use tokio::net::lookup_host;
use tower_service::Service;

/// A resolver of the hosts of one tier. Clones share the last refusal.
#[derive(Clone, Debug, Default)]
pub struct Resolver {
    destinations: Arc<Destinations>,
    refused: Arc<ArcSwapOption<String>>,
}

impl Resolver {
    /// Creates a resolver within bounds.
    pub fn within(destinations: &Arc<Destinations>) -> Self {
        Self { destinations: Arc::clone(destinations), refused: Arc::default() }
    }

    /// Returns the bounds.
    pub const fn destinations(&self) -> &Arc<Destinations> {
        &self.destinations
    }

    /// Returns the reason that the last host or address was refused; `None` once another was not.
    pub fn refused(&self) -> Option<String> {
        self.refused.load().as_deref().cloned()
    }

    /// Checks a host as the configuration has it.
    ///
    /// # Errors
    /// The bound that it violates.
    pub fn check_host(&self, host: &str) -> io::Result<()> {
        self.destinations.check_host(host).map_err(|error| self.refuse(&error))
    }

    /// Checks an address that the configuration has for a host.
    ///
    /// # Errors
    /// The bound that it violates.
    pub fn check_address(&self, host: &str, address: IpAddr) -> io::Result<()> {
        self.destinations.check_address(host, address).map_err(|error| self.refuse(&error))
    }

    /// Returns the allowed addresses of a host.
    ///
    /// # Errors
    /// If it has none.
    pub async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let (mut allowed, mut error) = (Vec::new(), None);
        for address in lookup_host((host, port)).await? {
            match self.destinations.check_address(host, address.ip()) {
                Ok(()) => allowed.push(address),
                Err(denied) => error = Some(denied),
            }
        }
        match error {
            Some(error) if allowed.is_empty() => Err(self.refuse(&error)),
            _ => {
                if self.refused.load().is_some() {
                    self.refused.store(None);
                }
                Ok(allowed)
            }
        }
    }

    fn refuse(&self, error: &DestinationError) -> io::Error {
        let text = error.to_string();
        if self.refused.load().as_deref() != Some(&text) {
            tracing::error!(error = text, "a connection was refused");
            self.refused.store(Some(Arc::new(text.clone())));
        }
        io::Error::new(io::ErrorKind::PermissionDenied, text)
    }
}

impl Service<Name> for Resolver {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let resolver = self.clone();
        // The connector sets the port.
        Box::pin(async move { Ok(resolver.resolve(name.as_str(), 0).await?.into_iter()) })
    }
}

impl AsyncDNSResolver for Resolver {
    fn resolve<'a, 'b: 'a>(
        &'a self,
        host: &'b str,
        port: u16,
    ) -> RedisFuture<'a, Box<dyn Iterator<Item = SocketAddr> + Send + 'a>> {
        Box::pin(async move {
            let addresses: Box<dyn Iterator<Item = SocketAddr> + Send> =
                Box::new(Self::resolve(self, host, port).await?.into_iter());
            Ok(addresses)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_and_numbers_of_this_host_are_refused_after_resolution() {
        let resolver = Resolver::within(&Arc::new(Destinations::of_cluster()));
        for host in [
            "localhost",
            "2130706433",
            "0x7f000001",
            "127.1",
            "0177.0.0.1",
            "127.0.0.1",
            "0",
            "::1",
            "::ffff:127.0.0.1",
        ] {
            // Not every system reads each of these as an address; no one may connect.
            let Err(error) = resolver.resolve(host, 80).await else { panic!("{host} was resolved") };
            if error.kind() == io::ErrorKind::PermissionDenied {
                assert!(error.to_string().contains("deniedNetworks"), "{host}: {error}");
                assert_eq!(resolver.refused(), Some(error.to_string()));
            }
        }
        assert_eq!(resolver.resolve("10.0.0.1", 80).await.unwrap(), ["10.0.0.1:80".parse().unwrap()]);
        assert_eq!(resolver.refused(), None);
        assert!(resolver.check_host("169.254.169.254").is_err() && resolver.refused().is_some());
        assert!(!Resolver::default().resolve("localhost", 80).await.unwrap().is_empty());
    }
}
