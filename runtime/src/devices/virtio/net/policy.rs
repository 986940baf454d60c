//! What a guest may send, judged by the frame's bytes alone.
//!
//! Owns the rules of one network card. Refuses everything that no rule allows, and whatever the rules: link-local and
//! metadata addresses, other special ones, fragments, IPv4 options, IPv6 extension headers, other protocols, another
//! card's or (where the guest's addresses are known) another machine's source address. With no rule nothing passes,
//! not even ARP. With a rule for a family, that family's neighbour discovery and address configuration pass too.
//! Invariant: a pure function; it keeps no state, so answers to connections from outside pass only where a rule covers
//! the peer.

use super::ETHERNET_BYTES;
use husk_protocol::network::{AllowRule, Mac, Prefix};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of a frame that hold all headers that are understood: Ethernet, IPv6, the longest TCP, and some.
pub const JUDGED_BYTES: usize = 128;

const IP4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IP6: u16 = 0x86dd;
const IP4_BYTES: usize = 20;
const IP6_BYTES: usize = 40;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP6: u8 = 58;

/// Why a frame is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// A header is cut off, or contradicts the frame's length or itself.
    Malformed,
    /// Not the card's own Ethernet address, or not an address of the guest's.
    Source,
    /// A protocol, option, extension or fragment that is not understood.
    Protocol,
    /// No rule allows it, or nothing ever does.
    Destination,
}

/// What is transported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// With this many bytes of headers in the frame, Ethernet's and IP's included.
    Tcp {
        /// Bytes.
        headers: usize,
    },
    /// A datagram.
    Udp,
    /// ICMP.
    Other,
}

/// What an allowed frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// What IP transports and where in the frame that begins; `None`: ARP.
    ip: Option<(bool, usize, Transport)>,
}

impl Summary {
    /// Where the checksum of TCP or UDP is: the first byte that it covers, and its own place from there.
    #[must_use]
    pub fn checksum(&self) -> Option<(usize, usize)> {
        match self.ip? {
            (_, start, Transport::Tcp { .. }) => Some((start, 16)),
            (_, start, Transport::Udp) => Some((start, 6)),
            (_, _, Transport::Other) => None,
        }
    }

    /// What IP transports.
    #[must_use]
    pub fn transport(&self) -> Option<Transport> {
        self.ip.map(|(_, _, transport)| transport)
    }

    /// Whether it is an IPv6 packet.
    #[must_use]
    pub fn is_ip6(&self) -> bool {
        matches!(self.ip, Some((true, ..)))
    }
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    allow: Vec<AllowRule>,
    addresses: Vec<Prefix>,
}

/// An IP packet whose headers are sound.
struct Packet<'a> {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    /// IPv4's time to live, IPv6's hop limit.
    hops: u8,
    /// As much as was copied of what it transports.
    payload: &'a [u8],
    /// Bytes of what it transports.
    length: usize,
}

impl Policy {
    /// Allows what `allow` names; with `addresses`, only from those.
    #[must_use]
    pub fn new(allow: Vec<AllowRule>, addresses: Vec<Prefix>) -> Self {
        Self { allow, addresses }
    }

    /// Judges a frame of `length` bytes that begins with `bytes`, sent by the card with address `mac`. `bytes` are all
    /// of the frame, or at least [`JUDGED_BYTES`] of it.
    ///
    /// # Errors
    /// See [`Denied`].
    pub fn judge(&self, mac: &Mac, bytes: &[u8], length: usize) -> Result<Summary, Denied> {
        let (header, body) = bytes.split_at_checked(ETHERNET_BYTES).ok_or(Denied::Malformed)?;
        if header[6..12] != *mac {
            return Err(Denied::Source);
        }
        let room = length.checked_sub(ETHERNET_BYTES).ok_or(Denied::Malformed)?;
        match u16::from_be_bytes([header[12], header[13]]) {
            ARP => self.arp(mac, body).map(|()| Summary { ip: None }),
            IP4 => {
                let packet = ip4(body, room)?;
                let transport = self.packet(&packet, ETHERNET_BYTES + IP4_BYTES)?;
                Ok(Summary { ip: Some((false, ETHERNET_BYTES + IP4_BYTES, transport)) })
            }
            IP6 => {
                let packet = ip6(body, room)?;
                let transport = self.packet(&packet, ETHERNET_BYTES + IP6_BYTES)?;
                Ok(Summary { ip: Some((true, ETHERNET_BYTES + IP6_BYTES, transport)) })
            }
            _ => Err(Denied::Protocol),
        }
    }

    /// Requests and answers about the guest's own address (RFC 826), and probes from none (RFC 5227).
    fn arp(&self, mac: &Mac, body: &[u8]) -> Result<(), Denied> {
        let body: &[u8; 28] = body.first_chunk().ok_or(Denied::Malformed)?;
        // Ethernet, IPv4, addresses of six and four bytes.
        if body[..6] != [0, 1, 8, 0, 6, 4] || body[6] != 0 || !matches!(body[7], 1 | 2) {
            return Err(Denied::Protocol);
        }
        let sender = address4(body, 14);
        let probe = sender == Ipv4Addr::UNSPECIFIED && body[7] == 1;
        if body[8..14] != *mac || !(probe || self.is_own(sender.into())) {
            return Err(Denied::Source);
        }
        if self.has_rules(false) { Ok(()) } else { Err(Denied::Destination) }
    }

    fn packet(&self, packet: &Packet<'_>, headers: usize) -> Result<Transport, Denied> {
        let ip6 = packet.destination.is_ipv6();
        if !self.has_rules(ip6) {
            return Err(Denied::Destination);
        }
        match packet.protocol {
            TCP => {
                let header: &[u8; 20] = packet.payload.first_chunk().ok_or(Denied::Malformed)?;
                let own = usize::from(header[12] >> 4) * 4;
                if own < header.len() || own > packet.length {
                    return Err(Denied::Malformed);
                }
                self.towards(packet, Some(port(header)))?;
                Ok(Transport::Tcp { headers: headers + own })
            }
            UDP => {
                let header: &[u8; 8] = packet.payload.first_chunk().ok_or(Denied::Malformed)?;
                let own = usize::from(u16::from_be_bytes([header[4], header[5]]));
                if own < header.len() || own > packet.length {
                    return Err(Denied::Malformed);
                }
                if !self.configures(packet, header) {
                    self.towards(packet, Some(port(header)))?;
                }
                Ok(Transport::Udp)
            }
            ICMP if !ip6 => {
                let header: &[u8; 8] = packet.payload.first_chunk().ok_or(Denied::Malformed)?;
                // Echo and its answer.
                if !matches!(header[..2], [8 | 0, 0]) {
                    return Err(Denied::Protocol);
                }
                self.towards(packet, None).map(|()| Transport::Other)
            }
            ICMP6 if ip6 => self.icmp6(packet).map(|()| Transport::Other),
            _ => Err(Denied::Protocol),
        }
    }

    /// Whether a rule covers the packet's destination; without a port only rules for all ports do.
    fn towards(&self, packet: &Packet<'_>, port: Option<u16>) -> Result<(), Denied> {
        if !self.is_own(packet.source) || is_never(packet.source) {
            return Err(Denied::Source);
        }
        let covers = |rule: &AllowRule| {
            (rule.port.is_none() || rule.port == port) && rule.network.contains(packet.destination)
        };
        let allowed = !is_never(packet.destination) && self.allow.iter().any(covers);
        if allowed { Ok(()) } else { Err(Denied::Destination) }
    }

    /// A client's DHCP to everybody on the link (RFC 2131, RFC 8415). To a server alone it needs a rule.
    fn configures(&self, packet: &Packet<'_>, header: &[u8; 8]) -> bool {
        let ports = (u16::from_be_bytes([header[0], header[1]]), port(header));
        match (packet.source, packet.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let from = source.is_unspecified() || self.is_own(source.into());
                ports == (68, 67) && destination.is_broadcast() && from
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let servers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
                ports == (546, 547) && destination == servers && source.is_unicast_link_local()
            }
            _ => false,
        }
    }

    /// Echo, and neighbour discovery (RFC 4861) as far as hosts speak it.
    fn icmp6(&self, packet: &Packet<'_>) -> Result<(), Denied> {
        let header: &[u8; 8] = packet.payload.first_chunk().ok_or(Denied::Malformed)?;
        let least = match header[..2] {
            [128 | 129, 0] => return self.towards(packet, None),
            // A router is asked for.
            [133, 0] => 8,
            // A neighbour is asked for; an answer.
            [135 | 136, 0] => 24,
            _ => return Err(Denied::Protocol),
        };
        let (IpAddr::V6(source), IpAddr::V6(destination)) = (packet.source, packet.destination) else {
            return Err(Denied::Protocol);
        };
        if packet.length < least || packet.hops != 255 {
            return Err(Denied::Malformed);
        }
        let nobody = source.is_unspecified() && header[0] != 136;
        if !(nobody || source.is_unicast_link_local() || self.is_own(source.into())) {
            return Err(Denied::Source);
        }
        // Unicast to the link only: a router would carry it on like any packet.
        let covers = |network: &Prefix| network.contains(destination.into());
        let near = self.addresses.iter().any(covers)
            || self.allow.iter().any(|rule| rule.network.bits != 0 && covers(&rule.network));
        let link = destination.segments()[0] == 0xff02 || destination.is_unicast_link_local();
        if link || (near && !is_never(destination.into())) { Ok(()) } else { Err(Denied::Destination) }
    }

    fn has_rules(&self, ip6: bool) -> bool {
        self.allow.iter().any(|rule| rule.network.address.is_ipv6() == ip6)
    }

    fn is_own(&self, source: IpAddr) -> bool {
        self.addresses.is_empty() || self.addresses.iter().any(|own| own.address == source)
    }
}

fn address4(bytes: &[u8], at: usize) -> Ipv4Addr {
    let bytes = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>()).copied();
    Ipv4Addr::from(bytes.unwrap_or_default())
}

fn address6(bytes: &[u8], at: usize) -> Ipv6Addr {
    let bytes = bytes.get(at..).and_then(|rest| rest.first_chunk::<16>()).copied();
    Ipv6Addr::from(bytes.unwrap_or_default())
}

/// The destination's.
fn port(header: &[u8]) -> u16 {
    u16::from_be_bytes([header[2], header[3]])
}

fn ip4(body: &[u8], room: usize) -> Result<Packet<'_>, Denied> {
    let header: &[u8; IP4_BYTES] = body.first_chunk().ok_or(Denied::Malformed)?;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header[0] >> 4 != 4 || header[0] & 15 < 5 || total < IP4_BYTES || total > room {
        return Err(Denied::Malformed);
    }
    // Options, which could lead elsewhere; fragments, of which only the first tells its ports. "Don't fragment" is fine.
    let fragment = u16::from_be_bytes([header[6], header[7]]) & !0x4000;
    if header[0] & 15 != 5 || fragment != 0 {
        return Err(Denied::Protocol);
    }
    let length = total - IP4_BYTES;
    let rest = &body[IP4_BYTES..];
    Ok(Packet {
        source: address4(header, 12).into(),
        destination: address4(header, 16).into(),
        protocol: header[9],
        hops: header[8],
        payload: &rest[..rest.len().min(length)],
        length,
    })
}

fn ip6(body: &[u8], room: usize) -> Result<Packet<'_>, Denied> {
    let header: &[u8; IP6_BYTES] = body.first_chunk().ok_or(Denied::Malformed)?;
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    if header[0] >> 4 != 6 || IP6_BYTES + length > room {
        return Err(Denied::Malformed);
    }
    let rest = &body[IP6_BYTES..];
    Ok(Packet {
        source: address6(header, 8).into(),
        destination: address6(header, 24).into(),
        protocol: header[6],
        hops: header[7],
        payload: &rest[..rest.len().min(length)],
        length,
    })
}

/// Addresses that no rule opens: the link's own, where clouds keep their metadata, this host's, groups.
fn is_never(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(it) => is_never4(it),
        IpAddr::V6(it) => is_never6(it),
    }
}

fn is_never4(it: Ipv4Addr) -> bool {
    // 0/8, 127/8, 169.254/16, 224/4, 240/4 with the broadcast address.
    it.octets()[0] == 0 || it.is_loopback() || it.is_link_local() || it.octets()[0] >= 224
}

fn is_never6(it: Ipv6Addr) -> bool {
    const METADATA: [Ipv6Addr; 2] = [
        Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
        Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    ];
    let [a, b, c, d, e, .., g, h] = it.segments();
    let embedded =
        |high: u16, low: u16| is_never4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    match (a, b) {
        // Unspecified, loopback, IPv4 in three disguises.
        (0, 0) if c == 0 && d == 0 && (e == 0 || e == 0xffff) => true,
        // NAT64 (RFC 6052, RFC 8215) and 6to4 (RFC 3056) carry an IPv4 address.
        (0x64, 0xff9b) => embedded(g, h),
        (0x2002, _) => embedded(b, c),
        _ => it.is_unicast_link_local() || it.is_multicast() || METADATA.contains(&it),
    }
}

#[cfg(test)]
mod tests;
