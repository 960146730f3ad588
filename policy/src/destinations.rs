//! Bounds on the servers that a policy's tiers may connect to: Redis, sources and the collector of metrics.
//!
//! A policy's author has the network position of every pod that the policy selects. Without bounds, a source such as
//! `http://169.254.169.254/` would serve a cloud's credentials to whoever can send a request to the application.
//!
//! A name says nothing about its address. So hosts are checked as they are written, and addresses again when a connection is opened: by
//! then a name may resolve to another address than when the policy was accepted.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Networks that are refused in a cluster unless the chart says otherwise: this host, link-local addresses (at which clouds serve
/// credentials), no host, many hosts, and the metadata services of clouds at other addresses.
pub const DENIED_NETWORKS: [&str; 13] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "255.255.255.255/32",
    "::/128",
    "::1/128",
    "fe80::/10",
    "ff00::/8",
    // Alibaba Cloud, Azure, AWS and Google Cloud.
    "100.100.100.200/32",
    "168.63.129.16/32",
    "fd00:ec2::254/128",
    "fd20:ce::254/128",
];

/// Bounds on the servers that a policy's tiers may connect to. The default has none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Destinations {
    /// Hosts that may be named; any host if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_hosts: Vec<HostPattern>,
    /// Networks to which connections may be opened; any network if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_networks: Vec<IpNet>,
    /// Networks to which connections may not be opened.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub denied_networks: Vec<IpNet>,
}

impl Destinations {
    /// Returns the bounds of a cluster whose chart sets none.
    pub fn of_cluster() -> Self {
        let denied_networks =
            DENIED_NETWORKS.iter().map(|network| network.parse().expect("each is a network")).collect();
        Self { denied_networks, ..Self::default() }
    }

    /// Returns true if every server is allowed.
    pub fn is_unbounded(&self) -> bool {
        self.allowed_hosts.is_empty() && self.allowed_networks.is_empty() && self.denied_networks.is_empty()
    }

    /// Checks a host as a URL has it, a name or an address.
    ///
    /// # Errors
    /// The bound that it violates.
    pub fn check_host(&self, host: &str) -> Result<(), DestinationError> {
        let host = host.trim_matches(['[', ']']);
        if let Ok(address) = host.parse() {
            self.check_address(host, address)?;
        }
        if self.allowed_hosts.is_empty() || self.allowed_hosts.iter().any(|pattern| pattern.matches(host)) {
            return Ok(());
        }
        let allowed: Vec<_> = self.allowed_hosts.iter().map(ToString::to_string).collect();
        Err(DestinationError::Host { host: host.to_owned(), allowed: allowed.join(", ") })
    }

    /// Checks an address to which `host` was resolved.
    ///
    /// # Errors
    /// The bound that it violates.
    pub fn check_address(&self, host: &str, address: IpAddr) -> Result<(), DestinationError> {
        let forms = forms(address);
        let contains = |network: &&IpNet| forms.iter().any(|form| network.contains(form));
        let host = host.to_owned();
        if let Some(network) = self.denied_networks.iter().find(contains) {
            return Err(DestinationError::Denied { host, address, network: *network });
        }
        let is_allowed =
            self.allowed_networks.is_empty() || self.allowed_networks.iter().any(|n| contains(&n));
        if is_allowed { Ok(()) } else { Err(DestinationError::NotAllowed { host, address }) }
    }
}

/// Returns an address and the IPv4 address that it stands for: mapped, compatible, or translated (RFC 6052, RFC 3056).
fn forms(address: IpAddr) -> Vec<IpAddr> {
    let IpAddr::V6(v6) = address else { return vec![address] };
    let [a, b, c, d, e, f, g, h] = v6.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    let embedded = match [a, b, c, d, e, f] {
        [0, 0, 0, 0, 0, 0xffff] | [0x64, 0xff9b, 0, 0, 0, 0] => Some(v4(g, h)),
        [0, 0, 0, 0, 0, 0] if !matches!(v6, Ipv6Addr::UNSPECIFIED | Ipv6Addr::LOCALHOST) => Some(v4(g, h)),
        [0x2002, high, low, ..] => Some(v4(high, low)),
        _ => None,
    };
    embedded.map(IpAddr::V4).into_iter().chain([address]).collect()
}

/// A bound that a server violates.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DestinationError {
    /// The host is not among those that are allowed.
    #[error(
        "host {host} is not allowed: policies of this cluster may name {allowed} (policies.sources.allowedHosts of the chart)"
    )]
    Host {
        /// The host.
        host: String,
        /// The patterns of allowed hosts.
        allowed: String,
    },
    /// The address is in a network that is denied.
    #[error("{}, which is in the denied network {network} (policies.sources.deniedNetworks of the chart)", named(.host, .address))]
    Denied {
        /// The host.
        host: String,
        /// The address of the host.
        address: IpAddr,
        /// The network.
        network: IpNet,
    },
    /// The address is in none of the networks that are allowed.
    #[error("{}, which is in none of policies.sources.allowedNetworks of the chart", named(.host, .address))]
    NotAllowed {
        /// The host.
        host: String,
        /// The address of the host.
        address: IpAddr,
    },
}

fn named(host: &str, address: &IpAddr) -> String {
    if host.parse() == Ok(*address) {
        format!("the address is {address}")
    } else {
        format!("host {host} has the address {address}")
    }
}

/// A host, or `*.` and a domain for every host below it; `*` is every host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPattern(String);

impl HostPattern {
    /// Returns true if a host matches, without regard to case and a dot at its end.
    pub fn matches(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        match self.0.strip_prefix('*') {
            Some("") => true,
            Some(domain) => host.len() > domain.len() && host.ends_with(domain),
            None => host == self.0,
        }
    }
}

/// A text that is not a pattern of hosts.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a host: write a name such as redis.shop.svc, or *. and a domain such as *.example.com")]
pub struct PatternError(String);

impl FromStr for HostPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let pattern = text.trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase();
        let name = pattern.strip_prefix("*.").unwrap_or(&pattern);
        let is_name = |name: &str| {
            !name.is_empty()
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte))
        };
        if text == "*" || is_name(name) { Ok(Self(pattern)) } else { Err(PatternError(text.to_owned())) }
    }
}

impl TryFrom<String> for HostPattern {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<HostPattern> for String {
    fn from(HostPattern(pattern): HostPattern) -> Self {
        pattern
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_this_host_and_of_metadata_services_are_denied_in_every_form() {
        let bounds = Destinations::of_cluster();
        for address in [
            "127.0.0.1",
            "127.255.0.9",
            "169.254.169.254",
            "169.254.170.2",
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "febf::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "2002:7f00:1::",
            "100.100.100.200",
            "168.63.129.16",
            "fd00:ec2::254",
            "fd20:ce::254",
        ] {
            let error = bounds.check_host(address).unwrap_err().to_string();
            assert!(
                error.contains("the address is") && error.contains("deniedNetworks"),
                "{address}: {error}"
            );
            assert!(bounds.check_address("a.example", address.parse().unwrap()).is_err(), "{address}");
        }
        for address in [
            "10.0.0.1",
            "192.168.1.1",
            "8.8.8.8",
            "fd00::1",
            "2001:db8::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
        ] {
            assert_eq!(bounds.check_host(address), Ok(()), "{address}");
        }
        assert_eq!(bounds.check_host("[2001:db8::1]"), Ok(()));
        assert!(bounds.check_host("[::1]").is_err());
        assert_eq!(bounds.check_host("localhost"), Ok(()), "its address is checked when it is resolved");
        let error = bounds.check_address("a.example", "127.0.0.1".parse().unwrap()).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("host a.example has the address 127.0.0.1, which is in the denied network")
        );
        assert_eq!(Destinations::default().check_host("127.0.0.1"), Ok(()));
    }

    #[test]
    fn hosts_are_matched_by_name_and_by_domain() {
        let hosts = |patterns: &[&str]| Destinations {
            allowed_hosts: patterns.iter().map(|pattern| pattern.parse().unwrap()).collect(),
            ..Destinations::default()
        };
        let bounds = hosts(&["*.Example.com", "redis", "10.0.0.7"]);
        for host in ["a.example.com", "a.b.EXAMPLE.com.", "redis", "Redis", "10.0.0.7"] {
            assert_eq!(bounds.check_host(host), Ok(()), "{host}");
        }
        for host in ["example.com", "notexample.com", "a.example.com.evil", "redis.evil", "10.0.0.70", ""] {
            let error = bounds.check_host(host).unwrap_err().to_string();
            assert!(error.contains("*.example.com, redis, 10.0.0.7"), "{error}");
        }
        assert_eq!(hosts(&["*"]).check_host("anything"), Ok(()));
        for invalid in ["", "*", "a*", "*a.example", "a b", "https://a", "a.*.b", "*."] {
            assert_eq!(invalid.parse::<HostPattern>().is_ok(), invalid == "*", "{invalid}");
        }
    }

    #[test]
    fn allowed_networks_close_all_others() {
        let bounds = Destinations {
            allowed_networks: vec!["10.0.0.0/8".parse().unwrap()],
            denied_networks: vec!["10.1.0.0/16".parse().unwrap()],
            ..Destinations::default()
        };
        assert_eq!(bounds.check_host("10.2.0.1"), Ok(()));
        assert_eq!(bounds.check_host("::ffff:10.2.0.1"), Ok(()));
        assert!(bounds.check_host("10.1.0.1").unwrap_err().to_string().contains("10.1.0.0/16"));
        assert!(bounds.check_host("192.168.0.1").unwrap_err().to_string().contains("allowedNetworks"));
    }

    #[test]
    fn bounds_are_written_as_they_are_read() {
        let text = r#"{"allowedHosts":["*.example.com"],"deniedNetworks":["169.254.0.0/16"]}"#;
        let bounds: Destinations = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&bounds).unwrap(), text);
        assert!(serde_json::from_str::<Destinations>(r#"{"deniedNetworks":["169.254"]}"#).is_err());
        assert!(Destinations::default().is_unbounded() && !bounds.is_unbounded());
    }
}
