//! Addresses and rules of a sandbox's network, as they are written on command lines and in specifications.
//!
//! Owns their grammar. Refuses host names, ranges, bits behind a network's prefix and everything that could be read in
//! two ways. Invariant: what is displayed reads back as the same value.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Most rules of one network card; each frame that the guest sends is compared with them in turn.
pub const MAX_RULES: usize = 64;
/// Most addresses of one network card.
pub const MAX_ADDRESSES: usize = 8;
/// Most pairs of queues of one network card.
pub const MAX_QUEUES: u64 = 8;
/// Least and most bytes of a packet: IPv6 needs the first, IPv4's length field holds the second.
pub const MTUS: std::ops::RangeInclusive<u64> = 1280..=65_535;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// A text of the wrong form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// Of a rule.
    #[error("CIDR:PORT is allowed, as in 10.0.0.0/8:443, 192.0.2.1:*, [2001:db8::/32]:443; no names")]
    Rule,
    /// Of an address.
    #[error(
        "ADDRESS/PREFIX is allowed, as in 10.0.0.2/24 or fd00::2/64; no loopback, link-local or multicast address"
    )]
    Address,
    /// Of an Ethernet address.
    #[error("six pairs of hexadecimal digits between colons are allowed, the first pair even, not all zero")]
    Mac,
}

/// An address and how many of its leading bits are the network's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// The address.
    pub address: IpAddr,
    /// 0 to 32 or 128.
    pub bits: u8,
}

impl Prefix {
    /// `ADDRESS/BITS`, or the address alone for all its bits.
    fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let address: IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            // No sign, no zeros before it.
            Some(bits) => bits.parse().ok().filter(|number: &u8| number.to_string() == bits)?,
            None => most,
        };
        (bits <= most).then_some(Self { address, bits })
    }

    /// Whether `address` lies in the network.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let shift = |width: u32| width - u32::from(self.bits);
        match (self.address, address) {
            (IpAddr::V4(ours), IpAddr::V4(other)) => {
                let differing = ours.to_bits() ^ other.to_bits();
                differing.checked_shr(shift(32)).unwrap_or(0) == 0
            }
            (IpAddr::V6(ours), IpAddr::V6(other)) => {
                let differing = ours.to_bits() ^ other.to_bits();
                differing.checked_shr(shift(128)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }

    fn is_network(&self) -> bool {
        match self.address {
            IpAddr::V4(it) => it.to_bits().trailing_zeros() >= 32 - u32::from(self.bits),
            IpAddr::V6(it) => it.to_bits().trailing_zeros() >= 128 - u32::from(self.bits),
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// The address of a guest's interface, with the network that it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestAddress(pub Prefix);

impl FromStr for GuestAddress {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let prefix = Prefix::parse(text).filter(|_| text.contains('/')).ok_or(NetworkError::Address)?;
        let right = prefix.bits != 0 && is_host(prefix.address);
        if right { Ok(Self(prefix)) } else { Err(NetworkError::Address) }
    }
}

/// Whether one machine somewhere can have this address.
#[must_use]
pub fn is_host(address: IpAddr) -> bool {
    let special = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    !special
        && match address {
            IpAddr::V4(it) => !it.is_link_local() && !it.is_broadcast() && it.octets()[0] != 0,
            IpAddr::V6(it) => !it.is_unicast_link_local() && it.to_ipv4_mapped().is_none(),
        }
}

/// Where a guest may send TCP and UDP to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AllowRule {
    /// The destinations.
    pub network: Prefix,
    /// The destination port; `None`: any, and ICMP echo as well.
    pub port: Option<u16>,
}

impl FromStr for AllowRule {
    type Err = NetworkError;

    /// `CIDR:PORT` with brackets around an IPv6 CIDR; PORT is a number from 1, or `*`.
    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let (network, port) = text.rsplit_once(':').ok_or(NetworkError::Rule)?;
        let bare = network.strip_prefix('[').and_then(|network| network.strip_suffix(']'));
        let network = Prefix::parse(bare.unwrap_or(network))
            .filter(|prefix| prefix.is_network() && prefix.address.is_ipv6() == bare.is_some())
            .ok_or(NetworkError::Rule)?;
        let number = |port: &str| {
            let number: u16 = port.parse().ok().filter(|number| *number != 0)?;
            (number.to_string() == port).then_some(number)
        };
        let port = match port {
            "*" => None,
            port => Some(number(port).ok_or(NetworkError::Rule)?),
        };
        Ok(Self { network, port })
    }
}

impl fmt::Display for AllowRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.network.address {
            IpAddr::V4(_) => write!(f, "{}:", self.network)?,
            IpAddr::V6(_) => write!(f, "[{}]:", self.network)?,
        }
        match self.port {
            Some(port) => write!(f, "{port}"),
            None => f.write_str("*"),
        }
    }
}

/// Reads `xx:xx:xx:xx:xx:xx`, the address of one card.
///
/// # Errors
/// [`NetworkError::Mac`]: another form, a group's address, or nobody's.
pub fn parse_mac(text: &str) -> Result<Mac, NetworkError> {
    let mut mac = Mac::default();
    let mut pairs = text.split(':');
    for byte in &mut mac {
        let pair = pairs.next().filter(|pair| pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit()));
        *byte = pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()).ok_or(NetworkError::Mac)?;
    }
    let right = pairs.next().is_none() && mac[0] & 1 == 0 && mac != Mac::default();
    if right { Ok(mac) } else { Err(NetworkError::Mac) }
}

/// Writes it as [`parse_mac`] reads it.
#[must_use]
pub fn format_mac(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_reads_back() {
        for text in ["10.0.0.0/8:443", "0.0.0.0/0:*", "[2001:db8::/32]:65535", "[::/0]:*", "192.0.2.1/32:1"] {
            assert_eq!(text.parse::<AllowRule>().unwrap().to_string(), text);
        }
        assert_eq!("192.0.2.1:80".parse::<AllowRule>().unwrap().to_string(), "192.0.2.1/32:80");
        assert_eq!("[fd00::1]:*".parse::<AllowRule>().unwrap().to_string(), "[fd00::1/128]:*");
    }

    #[test]
    fn what_could_mean_two_things_is_no_rule() {
        for text in [
            "",
            ":",
            "*",
            "*:*",
            "10.0.0.0/8",
            "10.0.0.0/8:",
            "10.0.0.0/8:0",
            "10.0.0.0/8:65536",
            "10.0.0.0/8:+1",
            "10.0.0.0/8:080",
            "10.0.0.1/8:80",
            "10.0.0.0/33:80",
            "10.0.0.0/-1:80",
            "10.0.0.0/08:80",
            "10.0.0/8:80",
            "fd00::1:80",
            "fd00::/8:80",
            "[10.0.0.0/8]:80",
            "[fd00::/129]:80",
            "[fd00::1/8]:80",
            "example.com:80",
            "10.0.0.0/8:80-90",
            " 10.0.0.0/8:80",
            "[fd00::%eth0]:80",
            "1.2.3.4:80:80",
        ] {
            assert!(text.parse::<AllowRule>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_network_contains_what_begins_as_it_does() {
        let in_network =
            |network: &str, address: &str| Prefix::parse(network).unwrap().contains(address.parse().unwrap());
        assert!(in_network("10.0.0.0/8", "10.255.255.255") && !in_network("10.0.0.0/8", "11.0.0.0"));
        assert!(in_network("0.0.0.0/0", "255.255.255.255") && !in_network("0.0.0.0/0", "::1"));
        assert!(in_network("::/0", "ff::") && !in_network("::/0", "1.2.3.4"));
        assert!(in_network("1.2.3.4/32", "1.2.3.4") && !in_network("1.2.3.4/32", "1.2.3.5"));
        assert!(in_network("fd00::/127", "fd00::1") && !in_network("fd00::/127", "fd00::2"));
    }

    #[test]
    fn a_guest_has_an_address_that_a_host_can_have() {
        assert_eq!("10.0.0.2/24".parse::<GuestAddress>().unwrap().0.to_string(), "10.0.0.2/24");
        assert!("fd00::2/64".parse::<GuestAddress>().is_ok());
        for text in [
            "10.0.0.2",
            "10.0.0.2/0",
            "127.0.0.1/8",
            "169.254.1.1/16",
            "fe80::1/64",
            "224.0.0.1/4",
            "0.0.0.0/8",
            "::1/128",
            "::/64",
            "ff02::1/64",
            "255.255.255.255/32",
            "::ffff:1.2.3.4/96",
            "x/8",
            "",
        ] {
            assert!(text.parse::<GuestAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_ethernet_address_is_of_one_card() {
        let mac = parse_mac("02:fc:0A:00:00:01").unwrap();
        assert_eq!(format_mac(mac), "02:fc:0a:00:00:01");
        for text in [
            "",
            "02:fc:00:00:00",
            "02:fc:00:00:00:01:02",
            "01:00:00:00:00:00",
            "00:00:00:00:00:00",
            "2:fc:0:0:0:1",
            "02-fc-00-00-00-01",
            "+2:fc:00:00:00:01",
        ] {
            assert!(parse_mac(text).is_err(), "{text}");
        }
    }
}
