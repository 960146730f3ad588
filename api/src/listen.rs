//! Listen addresses.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    str::FromStr,
};

/// A listen address: `:8300` is port 8300 on every address of the host; `127.0.0.1:8300` (or `localhost:8300`) and
/// `[::1]:8300` only on that one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenAddress {
    /// The address; `None` means every address, IPv6 included where there is one.
    pub ip: Option<IpAddr>,
    /// The port; 0 means any that is free.
    pub port: u16,
}

/// A text that is not a listen address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an address to listen on: write :8300 for every address, or one address such as 127.0.0.1:8300 or [::1]:8300"
)]
pub struct AddressError(String);

impl ListenAddress {
    /// Binds the address. The listener is non-blocking.
    ///
    /// # Errors
    /// If the address is taken or does not belong to this host.
    pub fn bind(self) -> io::Result<TcpListener> {
        let listener = match self.ip {
            Some(ip) => TcpListener::bind((ip, self.port)),
            // Where IPv6 exists, its wildcard takes IPv4 too.
            None => match TcpListener::bind((Ipv6Addr::UNSPECIFIED, self.port)) {
                Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                    TcpListener::bind((Ipv4Addr::UNSPECIFIED, self.port))
                }
                outcome => outcome,
            },
        }?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }
}

impl FromStr for ListenAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || AddressError(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let ip = match (host, bare) {
            ("", _) => None,
            ("localhost", _) => Some(Ipv4Addr::LOCALHOST.into()),
            (_, Some(bare)) => Some(bare.parse::<Ipv6Addr>().map_err(|_| invalid())?.into()),
            (_, None) => Some(host.parse::<Ipv4Addr>().map_err(|_| invalid())?.into()),
        };
        Ok(Self { ip, port: port.parse().map_err(|_| invalid())? })
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            None => write!(f, ":{}", self.port),
            Some(ip) => SocketAddr::new(ip, self.port).fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip() {
        for text in [":9443", "127.0.0.1:9443", "[::1]:9443", "0.0.0.0:8081", ":0"] {
            assert_eq!(text.parse::<ListenAddress>().unwrap().to_string(), text);
        }
        assert_eq!("localhost:1".parse::<ListenAddress>().unwrap().to_string(), "127.0.0.1:1");
    }

    #[test]
    fn malformed_addresses_are_refused_with_a_remedy() {
        for text in
            ["", "9443", ":", ":70000", "host:1", "[::1]", "::1:80", "[127.0.0.1]:80", "[:80", "127.0.0.1:x"]
        {
            let error = text.parse::<ListenAddress>().unwrap_err().to_string();
            assert!(error.contains("write :8300"), "{text}: {error}");
        }
    }

    #[test]
    fn wildcard_takes_both_families_where_the_host_has_them() {
        let listener = ListenAddress { ip: None, port: 0 }.bind().unwrap();
        let port = listener.local_addr().unwrap().port();
        std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let taken = ListenAddress { ip: None, port }.bind().unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    }
}
