//! Connections to Postgres within the bounds of the cluster.
//!
//! The client resolves hosts by itself, unless it is told their addresses (`hostaddr`). So every host is resolved here, and the client is
//! told the addresses that are allowed.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    task::{Context, Poll},
};

use deadpool_postgres::Connect;
use futures::future::BoxFuture;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::JoinHandle,
};
use tokio_postgres::{Client, Config, Error, NoTls, config::Host};

use crate::resolver::Resolver;

/// An address to which nothing can connect by TCP, in place of those of a host that has none.
const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::BROADCAST);
const DEFAULT_PORT: u16 = 5432;

/// A way to connect that tells the client the addresses.
pub(super) struct Guarded<C> {
    pub(super) inner: C,
    pub(super) resolver: Resolver,
}

impl<C: Connect> Connect for Guarded<C> {
    fn connect(&self, config: &Config) -> BoxFuture<'_, Result<(Client, JoinHandle<()>), Error>> {
        let config = config.clone();
        Box::pin(async move {
            match with_addresses(&self.resolver, config.clone()).await {
                Ok(config) => self.inner.connect(&config).await,
                Err(error) => Err(refusal(&config, error).await),
            }
        })
    }
}

/// Returns a configuration in which each host has its addresses, those that are allowed.
pub(super) async fn with_addresses(resolver: &Resolver, mut config: Config) -> io::Result<Config> {
    if resolver.destinations().is_unbounded() {
        return Ok(config);
    }
    let hosts = config.get_hosts().to_vec();
    let names = || hosts.iter().filter_map(|host| if let Host::Tcp(name) = host { Some(name) } else { None });
    names().try_for_each(|name| resolver.check_host(name))?;
    let given = config.get_hostaddrs().to_vec();
    if !given.is_empty() {
        for (index, address) in given.iter().enumerate() {
            if let Some(name) = names().nth(index) {
                resolver.check_address(name, *address)?;
            }
            // The connection leads to the address, whatever name stands beside it.
            resolver.check_host(&address.to_string())?;
        }
        return Ok(config);
    }
    if names().next().is_none() {
        return Ok(config);
    }
    // The lists have a member for each host, and after these a member for each further address.
    let ports = config.get_ports().to_vec();
    let (mut further, mut failure, mut is_found) = (Vec::new(), None, false);
    for (index, host) in hosts.iter().enumerate() {
        let port = ports.get(index).or(ports.first()).copied().unwrap_or(DEFAULT_PORT);
        let addresses = match host {
            Host::Tcp(name) => resolver.resolve(name, port).await,
            Host::Unix(_) => Ok(vec![]),
        };
        let mut addresses = addresses.unwrap_or_else(|error| {
            failure = Some(error);
            vec![]
        });
        is_found |= !addresses.is_empty();
        let rest = if addresses.is_empty() { vec![] } else { addresses.split_off(1) };
        config.hostaddr(addresses.first().map_or(NOWHERE, SocketAddr::ip));
        further.extend(rest.into_iter().map(|address| (host.clone(), address.ip(), port)));
    }
    if let Some(failure) = failure.filter(|_| !is_found) {
        return Err(failure);
    }
    for (host, address, port) in further {
        if let Host::Tcp(name) = host {
            config.host(name).hostaddr(address);
            if ports.len() > 1 {
                config.port(port);
            }
        }
    }
    Ok(config)
}

/// Makes an error of the client's of a refusal, which is the reason why a first write fails.
async fn refusal(config: &Config, error: io::Error) -> Error {
    let connected = config.connect_raw(Refused(error.to_string()), NoTls).await;
    connected.map(drop).expect_err("nothing can be written")
}

/// A connection that fails with an error.
struct Refused(String);

impl Refused {
    fn error<T>(&self) -> Poll<io::Result<T>> {
        Poll::Ready(Err(io::Error::new(io::ErrorKind::PermissionDenied, self.0.clone())))
    }
}

impl AsyncRead for Refused {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.error()
    }
}

impl AsyncWrite for Refused {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        self.error()
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.error()
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use larder_policy::Destinations;

    use super::*;

    #[tokio::test]
    async fn address_that_a_url_has_for_a_host_must_be_an_allowed_host() {
        let connects = async |hosts: &[&str], url: &str| {
            let allowed_hosts = hosts.iter().map(|host| host.parse().unwrap()).collect();
            let bounds = Destinations { allowed_hosts, ..Destinations::of_cluster() };
            with_addresses(&Resolver::within(&Arc::new(bounds)), url.parse().unwrap()).await
        };
        let named = ["db.example.com"];
        for url in [
            "host=db.example.com hostaddr=203.0.113.9",
            "host=db.example.com,db.example.com hostaddr=203.0.113.8,203.0.113.9",
            "hostaddr=203.0.113.9",
            "postgres://db.example.com/?hostaddr=203.0.113.9",
        ] {
            let hosts = [named[0], "203.0.113.8"];
            let error = connects(&hosts, url).await.unwrap_err().to_string();
            assert!(error.starts_with("host 203.0.113.9 is not allowed"), "{url}: {error}");
            let hosts = [named[0], "203.0.113.8", "203.0.113.9"];
            assert!(connects(&hosts, url).await.is_ok(), "{url}");
            assert!(connects(&[], url).await.is_ok(), "{url}");
        }
        let denied = connects(&[], "host=db.example.com hostaddr=127.0.0.1").await.unwrap_err();
        assert!(denied.to_string().contains("deniedNetworks"), "{denied}");
    }
}
