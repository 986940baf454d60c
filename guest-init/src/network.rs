//! The guest's end of its network: link, addresses, routes, name servers, as the host says them. Owns the messages to
//! the kernel (rtnetlink(7)); refuses a card that is not there. Invariant: what is not said is left as the kernel has it.

use husk_protocol::exec::Network;
use husk_protocol::network::format_mac;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};
use std::fs;
use std::io;
use std::net::IpAddr;

const CARDS: &str = "/sys/class/net";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The network cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No card has that address.
    #[error("no network card has the address {0}; the guest kernel needs CONFIG_VIRTIO_NET")]
    Missing(String),
    /// The kernel refuses.
    #[error("network card {card}: cannot {step}: {errno}")]
    Step {
        /// The kernel's name of it.
        card: String,
        /// What was to be done.
        step: String,
        /// Why not.
        errno: Errno,
    },
    /// The image has no room for name servers.
    #[error("cannot write {RESOLV_CONF}: {0}")]
    NameServers(io::Error),
}

/// Takes the card into use.
///
/// # Errors
/// The first step that fails.
pub(crate) fn configure(network: &Network) -> Result<(), NetworkError> {
    let (card, index) = find(network.mac)?;
    let failed = |step: String| {
        let card = card.clone();
        move |errno| NetworkError::Step { card, step, errno }
    };
    let mut kernel = Kernel::connect().map_err(failed("speak to the kernel".into()))?;
    kernel
        .ask(&link_up(index, network.mtu))
        .map_err(failed(format!("bring it up with MTU {}", network.mtu)))?;
    for &(address, bits) in &network.addresses {
        let step = format!("give it the address {address}/{bits}");
        kernel.ask(&new_address(index, address, bits)).map_err(failed(step))?;
    }
    for &gateway in &network.gateways {
        kernel.ask(&default_route(index, gateway)).map_err(failed(format!("route through {gateway}")))?;
    }
    if network.dns.is_empty() {
        Ok(())
    } else {
        name_servers(&network.dns).map_err(NetworkError::NameServers)
    }
}

/// Name and number of the card with the address `mac`.
fn find(mac: [u8; 6]) -> Result<(String, u32), NetworkError> {
    let wanted = format_mac(mac);
    let read = |card: &str, file: &str| {
        let text = fs::read_to_string(format!("{CARDS}/{card}/{file}")).unwrap_or_default();
        text.trim().to_owned()
    };
    let cards = fs::read_dir(CARDS).into_iter().flatten().flatten();
    cards
        .map(|card| card.file_name().to_string_lossy().into_owned())
        .find(|card| read(card, "address") == wanted)
        .and_then(|card| read(&card, "ifindex").parse().ok().map(|index| (card, index)))
        .ok_or(NetworkError::Missing(wanted))
}

/// Whatever the image has under that name, a link to nowhere perhaps, gives way.
fn name_servers(servers: &[IpAddr]) -> io::Result<()> {
    let text: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    match fs::remove_file(RESOLV_CONF) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => fs::create_dir_all("/etc")?,
    }
    fs::write(RESOLV_CONF, text)
}

/// A route socket.
struct Kernel {
    socket: OwnedFd,
}

impl Kernel {
    fn connect() -> Result<Self, Errno> {
        // Protocol 0 is NETLINK_ROUTE.
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        Ok(Self { socket })
    }

    /// Sends `request`, which asks for an answer, and reads that.
    fn ask(&mut self, request: &Request) -> Result<(), Errno> {
        send(&self.socket, &request.0, SendFlags::empty())?;
        let mut answer = [0_u8; 1024];
        let (count, _) = recv(&self.socket, &mut answer[..], RecvFlags::empty())?;
        // A header of 16 bytes and a negative error number, 0 for success (struct nlmsgerr).
        let number = answer.get(16..20).and_then(|bytes| bytes.first_chunk().copied());
        match number.filter(|_| count >= 20).map(i32::from_ne_bytes) {
            Some(0) => Ok(()),
            Some(number) => Err(Errno::from_raw_os_error(-number)),
            None => Err(Errno::PROTO),
        }
    }
}

/// One message: header, fixed part, attributes (linux/netlink.h).
#[derive(Debug, PartialEq, Eq)]
struct Request(Vec<u8>);

impl Request {
    /// `NLM_F_REQUEST | NLM_F_ACK`.
    const CHANGE: u16 = 0x5;
    /// And `NLM_F_EXCL | NLM_F_CREATE`.
    const CREATE: u16 = 0x605;

    fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(fixed);
        Self(bytes).sealed()
    }

    /// Appends an attribute of 4 or 16 bytes: no padding is needed.
    fn with(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.sealed()
    }

    fn sealed(mut self) -> Self {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(it) => it.octets().to_vec(),
        IpAddr::V6(it) => it.octets().to_vec(),
    }
}

/// `AF_INET` or `AF_INET6`.
fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { 2 } else { 10 }
}

fn link_up(index: u32, mtu: u32) -> Request {
    const RTM_NEWLINK: u16 = 16;
    const IFLA_MTU: u16 = 4;
    const IFF_UP: u32 = 1;
    // struct ifinfomsg: family, type, index, flags, which of them change.
    let mut fixed = vec![0; 4];
    [index, IFF_UP, IFF_UP].iter().for_each(|word| fixed.extend(word.to_ne_bytes()));
    Request::new(RTM_NEWLINK, Request::CHANGE, &fixed).with(IFLA_MTU, &mtu.to_ne_bytes())
}

fn new_address(index: u32, address: IpAddr, bits: u8) -> Request {
    const RTM_NEWADDR: u16 = 20;
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    // The host says that it is nobody else's: without this it could not be used for a second.
    const IFA_F_NODAD: u8 = 2;
    let flags = if address.is_ipv6() { IFA_F_NODAD } else { 0 };
    // struct ifaddrmsg: family, prefix, flags, scope, index.
    let mut fixed = vec![family(address), bits, flags, 0];
    fixed.extend(index.to_ne_bytes());
    let octets = octets(address);
    Request::new(RTM_NEWADDR, Request::CREATE, &fixed).with(IFA_LOCAL, &octets).with(IFA_ADDRESS, &octets)
}

fn default_route(index: u32, gateway: IpAddr) -> Request {
    const RTM_NEWROUTE: u16 = 24;
    const RT_TABLE_MAIN: u8 = 254;
    const RTPROT_STATIC: u8 = 4;
    const RTN_UNICAST: u8 = 1;
    const RTA_OIF: u16 = 4;
    const RTA_GATEWAY: u16 = 5;
    // struct rtmsg: family, destination's and source's prefix, tos, table, protocol, scope, type, flags.
    let fixed = [family(gateway), 0, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNICAST, 0, 0, 0, 0];
    Request::new(RTM_NEWROUTE, Request::CREATE, &fixed)
        .with(RTA_GATEWAY, &octets(gateway))
        .with(RTA_OIF, &index.to_ne_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_as_long_as_they_say() {
        let (four, six): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap());
        for (request, length) in [
            (link_up(2, 1500), 16 + 16 + 8),
            (new_address(2, four, 24), 16 + 8 + 8 + 8),
            (new_address(2, six, 64), 16 + 8 + 20 + 20),
            (default_route(2, four), 16 + 12 + 8 + 8),
            (default_route(2, six), 16 + 12 + 20 + 8),
        ] {
            assert_eq!(request.0.len(), length);
            assert_eq!(request.0[..4], u32::try_from(length).unwrap().to_ne_bytes());
        }
    }

    #[test]
    fn the_kernel_understands_the_question_and_refuses_a_card_that_is_not_there() {
        let Ok(mut kernel) = Kernel::connect() else { return };
        let absent = 0x7fff_fff0;
        // Without privilege it says so before it looks.
        for request in [link_up(absent, 1500), new_address(absent, "10.0.0.1".parse().unwrap(), 24)] {
            let errno = kernel.ask(&request).unwrap_err();
            assert!(matches!(errno, Errno::NODEV | Errno::PERM), "{errno}");
        }
    }

    #[test]
    fn a_card_that_is_not_there_is_named() {
        let error = find([2, 0, 0, 0, 0, 0xee]).unwrap_err().to_string();
        assert!(error.contains("02:00:00:00:00:ee"), "{error}");
    }
}
