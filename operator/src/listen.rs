//! Listen addresses.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener},
    str::FromStr,
};

/// A listen address: `:9443` is port 9443 on every address of the pod; `127.0.0.1:9443` and `[::1]:9443` only on that
/// one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenAddress {
    /// The address; `None` means every address.
    pub ip: Option<IpAddr>,
    /// The port.
    pub port: u16,
}

/// A text that is not a listen address.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} is not an address to listen on: write :9443 for every address, or one address such as 127.0.0.1:9443"
)]
pub struct InvalidAddress(String);

impl ListenAddress {
    /// Binds the address.
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
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidAddress(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let port = port.parse().map_err(|_| invalid())?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let ip = if host.is_empty() { None } else { Some(host.parse().map_err(|_| invalid())?) };
        Ok(Self { ip, port })
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            None => write!(f, ":{}", self.port),
            Some(IpAddr::V4(ip)) => write!(f, "{ip}:{}", self.port),
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip() {
        for text in [":9443", "127.0.0.1:9443", "[::1]:9443", "0.0.0.0:8081"] {
            assert_eq!(text.parse::<ListenAddress>().unwrap().to_string(), text);
        }
        for text in ["9443", ":", ":70000", "localhost:1"] {
            assert!(text.parse::<ListenAddress>().is_err(), "{text}");
        }
    }
}
