//! Networks of clients, in CIDR notation (RFC 4632, section 3.1; RFC 4291, section 2.3).

use std::{net::IpAddr, str::FromStr};

/// The addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    length: u8,
}

/// The error of a text that is no network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoNetwork;

impl Network {
    /// Returns true if an address is in the network. An IPv4 address counts as such in an IPv6 socket, too.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let differences = bits(address) ^ bits(self.address);
        address.is_ipv4() == self.address.is_ipv4()
            && differences.checked_shr(u32::from(128 - self.length)).unwrap_or(0) == 0
    }
}

impl FromStr for Network {
    type Err = NoNetwork;

    fn from_str(text: &str) -> Result<Self, NoNetwork> {
        let (address, length) = text.split_once('/').ok_or(NoNetwork)?;
        let address: IpAddr = address.parse().map_err(|_| NoNetwork)?;
        let is_number = length.bytes().all(|byte| byte.is_ascii_digit());
        let length = length.parse().ok().filter(|length| is_number && *length <= width(address));
        // An IPv4 address that is written as one of IPv6 would be in no network.
        let length = length.filter(|_| address.to_canonical() == address).ok_or(NoNetwork)?;
        Ok(Self { address, length })
    }
}

/// Returns the length of an address in bits.
fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Returns the bits of an address, from the highest on.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_contains_the_addresses_that_begin_as_it_does() {
        for (network, inside, outside) in [
            (
                "10.0.0.0/8",
                &["10.0.0.0", "10.255.255.255", "::ffff:10.1.2.3"][..],
                &["11.0.0.0", "a00::"][..],
            ),
            ("10.1.2.3/32", &["10.1.2.3"], &["10.1.2.2"]),
            ("10.1.2.3/8", &["10.9.9.9"], &["9.1.2.3"]),
            ("0.0.0.0/0", &["1.2.3.4", "255.255.255.255"], &["::1"]),
            ("fd00::/8", &["fd12::1"], &["fe00::1", "253.0.0.1"]),
            ("::/0", &["::1", "2001:db8::1"], &["127.0.0.1", "::ffff:127.0.0.1"]),
            ("::1/128", &["::1"], &["::2"]),
        ] {
            let parsed: Network = network.parse().unwrap();
            let contains = |address: &&str| parsed.contains(address.parse().unwrap());
            assert!(inside.iter().all(contains), "{network}");
            assert!(!outside.iter().any(contains), "{network}");
        }
    }

    #[test]
    fn network_has_an_address_and_a_length() {
        for text in [
            "",
            "10.0.0.0",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "10.0.0/8",
            "shop/8",
            "::/129",
            "010.0.0.0/8",
            "10.0.0.0/8 ",
            "10.0.0.0/8/8",
            "::ffff:10.0.0.0/104",
        ] {
            assert_eq!(text.parse::<Network>(), Err(NoNetwork), "{text}");
        }
    }
}
