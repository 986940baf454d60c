//! `--net user`: a network without a tap. A passt of the sandbox's own, in a cell, makes the host's connections for the guest.
//!
//! Owns passt's end of the socket until it runs, and then passt. Refuses a host that has no passt. Invariant: it is started
//! only when the sandbox's cgroup is there for it to live in, at most once, and none is left after [`Passt::finish`]. One that
//! cannot be started, or dies, is a link that is down in the guest, and a line for the operator.

use crate::isolation::Isolation;
use crate::options::NetworkOption;
use crate::serving::Serving;
use crate::spawn::{CONTROL_FD, JailerOrder, walls};
use crate::sys::ChildExit;
use husk_protocol::network::{AllowRule, GuestAddress, Prefix};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// Where distributions put it.
const PLACES: [&str; 2] = ["/usr/bin/passt", "/usr/local/bin/passt"];
/// Largest packet in bytes. A frame of it goes into the socket whole or not at all (the kernel cuts what is longer than some
/// 48 KiB), and passt, as Debian 12 has it, loses its place in the stream when it meets the half of a frame.
pub(crate) const MTU: u64 = 32_768;
/// The guest's address and router where nothing is said; nobody else ever sees the former.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const ADDRESS_BITS: u8 = 24;
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The address at which passt forwards questions to the host's own name server.
const FORWARDER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// The router's Ethernet address; without it passt would show the guest one of the host's.
const ROUTER_MAC: &str = "02:68:75:73:6b:01";
/// Where the host's name servers are written.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Descriptor at which passt finds its socket.
const SOCKET: &str = "4";

/// Descriptor at which its jailer finds it.
const NETWORK_FD: i32 = CONTROL_FD + 1;
/// Files that passt may have open: one a connection.
const FILES: u64 = 2048;

/// There can be no such network.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PasstError {
    /// Not installed.
    #[error("--net user needs passt, which is not at {}; install it: apt-get install passt", PLACES.join(" or "))]
    Missing,
    /// No descriptors.
    #[error("--net user: no socket: {0}")]
    Socket(Errno),
}

/// What `option` leaves open, filled in: an address with a router, and the host's name server where there is one. A guest that
/// may send anywhere may ask for names, too.
pub(crate) fn with_defaults(option: &NetworkOption) -> NetworkOption {
    fill(option, host_has_resolver(&std::fs::read_to_string(RESOLV_CONF).unwrap_or_default()))
}

fn fill(option: &NetworkOption, resolver: bool) -> NetworkOption {
    let mut option = option.clone();
    if option.addresses.is_empty() {
        option.addresses.push(GuestAddress(Prefix { address: ADDRESS.into(), bits: ADDRESS_BITS }));
        if option.gateways.is_empty() {
            option.gateways.push(ROUTER.into());
        }
    }
    let four = option.addresses.iter().any(|address| address.0.address.is_ipv4());
    if resolver && four && option.dns.is_empty() {
        option.dns.push(FORWARDER.into());
        let anywhere = |rule: &AllowRule| rule.network.address.is_ipv4() && rule.network.bits == 0;
        if option.allow.iter().any(anywhere) {
            let network = Prefix { address: FORWARDER.into(), bits: 32 };
            option.allow.push(AllowRule { network, port: Some(53) });
        }
    }
    option
}

/// Whether passt, which reads the same file, finds a name server there for IPv4.
fn host_has_resolver(text: &str) -> bool {
    text.lines().any(|line| {
        line.strip_prefix("nameserver ").is_some_and(|address| address.trim().parse::<Ipv4Addr>().is_ok())
    })
}

/// What passt is told; `option` has its defaults.
pub(crate) fn arguments(option: &NetworkOption) -> Vec<OsString> {
    // In the foreground, quiet, no ports from outside, nothing of the host's loopback; the guest is configured already.
    let fixed =
        "--foreground --quiet --no-map-gw --no-dhcp --no-dhcpv6 --no-ra --tcp-ports none --udp-ports none";
    let mut words: Vec<String> = fixed.split(' ').map(str::to_owned).collect();
    let mut say = |flag: &str, value: String| words.extend([flag.to_owned(), value]);
    say("--fd", SOCKET.to_owned());
    say("--mtu", MTU.to_string());
    say("--mac-addr", ROUTER_MAC.to_owned());
    for address in &option.addresses {
        say("--address", address.0.address.to_string());
        if address.0.address.is_ipv4() {
            say("--netmask", address.0.bits.to_string());
        }
    }
    for gateway in &option.gateways {
        say("--gateway", gateway.to_string());
    }
    if option.dns.contains(&IpAddr::from(FORWARDER)) {
        say("--dns-forward", FORWARDER.to_string());
    }
    let has = |six: bool| option.addresses.iter().any(|address| address.0.address.is_ipv6() == six);
    let only = [(!has(true), "--ipv4-only"), (!has(false), "--ipv6-only")];
    words.extend(only.into_iter().filter(|(only, _)| *only).map(|(_, flag)| flag.to_owned()));
    words.into_iter().map(OsString::from).collect()
}

/// The program.
pub(crate) fn program() -> Result<PathBuf, PasstError> {
    PLACES.into_iter().map(PathBuf::from).find(|path| path.is_file()).ok_or(PasstError::Missing)
}

/// A socket for it: the runtime's end, and passt's.
pub(crate) fn socket() -> Result<(OwnedFd, OwnedFd), PasstError> {
    socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(PasstError::Socket)
}

/// What it takes: the program, what it is told, and its end of the socket.
pub(crate) type Parts = (PathBuf, Vec<OsString>, OwnedFd);

/// What the jailer is told about the passt of a sandbox that runs already.
#[derive(Debug, Clone, PartialEq, Eq)]
struct NetworkOrder {
    id: String,
    /// User and group, if they are not the caller's.
    uid: Option<u32>,
    isolation: Isolation,
    program: PathBuf,
    /// Directory of namespaces that are made once; none without root.
    pool: Option<PathBuf>,
    /// The cgroup below which the sandbox's is.
    parent_cgroup: String,
    /// `FILE=VALUE`, as for the sandbox: by them its cgroups are found.
    limits: Vec<String>,
    /// What passt is told.
    arguments: Vec<OsString>,
}

impl NetworkOrder {
    /// The jailer's arguments.
    fn arguments(&self) -> Vec<OsString> {
        let mut arguments = walls(self.isolation, self.uid.is_none());
        let mut option = |name: &str, value: OsString| arguments.extend([name.into(), value]);
        option("--id", self.id.clone().into());
        if let Some(uid) = self.uid {
            option("--uid", uid.to_string().into());
            option("--gid", uid.to_string().into());
        }
        option("--exec-file", self.program.clone().into());
        if let Some(pool) = &self.pool {
            option("--pool", pool.into());
        }
        option("--parent-cgroup", self.parent_cgroup.clone().into());
        for limit in &self.limits {
            option("--cgroup", limit.into());
        }
        option("--resource-limit", format!("no-file={FILES}").into());
        option("--network-socket-fd", NETWORK_FD.to_string().into());
        option("--control-fd", CONTROL_FD.to_string().into());
        arguments.push("--".into());
        arguments.extend_from_slice(&self.arguments);
        arguments
    }
}

/// A passt that is not started yet.
#[derive(Debug)]
pub(crate) struct Start {
    jailer: PathBuf,
    order: NetworkOrder,
    socket: OwnedFd,
}

impl Start {
    /// Of `parts`, by `jailer`, in the cell of the sandbox that `sandbox` is the order for.
    pub(crate) fn new((program, arguments, socket): Parts, jailer: PathBuf, sandbox: &JailerOrder) -> Self {
        let order = NetworkOrder {
            id: sandbox.id.clone(),
            uid: sandbox.uid,
            isolation: sandbox.isolation,
            program,
            pool: sandbox.pool_beside(),
            parent_cgroup: sandbox.parent_cgroup.clone(),
            limits: sandbox.limits.clone(),
            arguments,
        };
        Self { jailer, order, socket }
    }
}

/// The passt of a sandbox that has one.
#[derive(Debug, Default)]
pub(crate) struct Passt {
    start: Option<Start>,
    serving: Option<Serving>,
    failed: Option<String>,
}

impl Passt {
    /// It does not run yet. `start`: without it there is none.
    pub(crate) fn new(start: Option<Start>) -> Self {
        Self { start, ..Self::default() }
    }

    /// Starts it; nobody waits for it. The sandbox's cgroup must be there.
    pub(crate) fn start(&mut self) {
        let Some(Start { jailer, order, socket }) = self.start.take() else { return };
        match Serving::start(&jailer, order.arguments(), vec![socket]) {
            Ok(serving) => self.serving = Some(serving),
            Err(error) => self.failed = Some(error.to_string()),
        }
    }

    /// Ends and reaps it, after the runtime has ended; returns what went wrong, in a line.
    pub(crate) fn finish(self) -> Option<String> {
        let failed = self.failed.or_else(|| {
            let served = self.serving?.finish();
            served.failed.or_else(|| died(served.exit?, &served.words))
        });
        failed.map(|error| crate::text::line(&format!("--net user: {error}")))
    }
}

/// What is to be said of a passt that ended so; nothing if it ended because the sandbox did.
fn died(exit: ChildExit, words: &[u8]) -> Option<String> {
    let how = match exit {
        ChildExit::Status(0) => return None,
        ChildExit::Status(status) => format!("ended with status {status}"),
        ChildExit::Signal(signal) => format!("was killed by {}", crate::units::signal_name(signal)),
    };
    // It complains of each word that the system's log, which its cell does not have, did not take.
    let said = String::from_utf8_lossy(words);
    let said = said.lines().rev().find(|line| !line.is_empty() && !line.contains("syslog"));
    Some(said.map_or_else(|| format!("passt {how}"), |said| format!("passt {how}: {said}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option(allow: &[&str]) -> NetworkOption {
        NetworkOption {
            allow: allow.iter().map(|text| text.parse().unwrap()).collect(),
            ..NetworkOption::default()
        }
    }

    #[test]
    fn what_is_not_said_is_filled_in() {
        let filled = fill(&option(&["192.0.2.1:443"]), true);
        assert_eq!(filled.addresses[0].0.to_string(), "10.0.2.15/24");
        assert_eq!(filled.gateways, [IpAddr::from(ROUTER)]);
        assert_eq!(filled.dns, [IpAddr::from(FORWARDER)]);
        assert_eq!(filled.allow.len(), 1, "a name is a way out, too");
        assert!(fill(&option(&[]), false).dns.is_empty());
        let asked = NetworkOption {
            addresses: vec!["fd00::2/64".parse().unwrap()],
            dns: vec!["192.0.2.53".parse().unwrap()],
            ..option(&["0.0.0.0/0:443"])
        };
        assert_eq!(fill(&asked, true), asked);
    }

    #[test]
    fn who_may_send_anywhere_may_ask_for_names() {
        let rules = |allow: &[&str], resolver| {
            let filled = fill(&option(allow), resolver);
            filled.allow.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(rules(&["0.0.0.0/0:443"], true), ["0.0.0.0/0:443", "10.0.2.3/32:53"]);
        assert_eq!(rules(&["0.0.0.0/0:443"], false), ["0.0.0.0/0:443"]);
        assert_eq!(rules(&["[::/0]:443", "10.0.0.0/8:1"], true).len(), 2);
    }

    #[test]
    fn resolvers_are_read_as_passt_reads_them() {
        assert!(host_has_resolver("# x\nsearch a\nnameserver 127.0.0.53\n"));
        for text in ["", "nameserver ::1\n", "#nameserver 1.2.3.4\n", "nameserver x\n"] {
            assert!(!host_has_resolver(text), "{text}");
        }
    }

    #[test]
    fn passt_is_told_what_the_guest_is_told() {
        let text = |option: &NetworkOption| {
            let words = arguments(option).into_iter().map(|word| word.into_string().unwrap());
            words.collect::<Vec<_>>().join(" ")
        };
        let told = text(&fill(&option(&[]), true));
        for words in [
            "--no-map-gw",
            "--fd 4 --mtu 32768",
            "--address 10.0.2.15 --netmask 24 --gateway 10.0.2.2 --dns-forward 10.0.2.3 --ipv4-only",
        ] {
            assert!(told.contains(words), "{told}");
        }
        let both = NetworkOption {
            addresses: vec!["fd00::2/64".parse().unwrap(), "10.9.0.2/16".parse().unwrap()],
            gateways: vec!["fd00::1".parse().unwrap(), "10.9.0.1".parse().unwrap()],
            ..option(&[])
        };
        let told = text(&both);
        let expected =
            "--address fd00::2 --address 10.9.0.2 --netmask 16 --gateway fd00::1 --gateway 10.9.0.1";
        assert!(told.ends_with(expected), "{told}");
    }

    #[test]
    fn its_death_is_told_with_its_last_words_and_its_end_is_not() {
        assert_eq!(died(ChildExit::Status(0), b"bye\n"), None);
        let words = b"No external routable interface for IPv4\nExternal interface not usable\nFailed to send 5 bytes to syslog\n";
        let line = died(ChildExit::Status(1), words).unwrap();
        assert_eq!(line, "passt ended with status 1: External interface not usable");
        assert_eq!(died(ChildExit::Signal(9), b"").unwrap(), "passt was killed by SIGKILL");
    }

    #[test]
    fn a_networks_jailer_is_told_everything() {
        let order = NetworkOrder {
            id: "one".into(),
            uid: Some(7),
            isolation: Isolation::Strict,
            program: "/usr/bin/passt".into(),
            pool: Some("/run/husk/ns".into()),
            parent_cgroup: "husk".into(),
            limits: vec!["pids.max=3".into()],
            arguments: vec!["--quiet".into()],
        };
        let text = |order: &NetworkOrder| {
            let words = order.arguments().into_iter().map(|word| word.into_string().unwrap());
            words.collect::<Vec<_>>().join(" ")
        };
        let rootless =
            NetworkOrder { uid: None, pool: None, isolation: Isolation::BestEffort, ..order.clone() };
        let start = "--isolation best-effort --cgroup-version 2 --id one --exec-file /usr/bin/passt ";
        assert!(text(&rootless).starts_with(start), "{}", text(&rootless));
        assert_eq!(
            text(&order),
            "--id one --uid 7 --gid 7 --exec-file /usr/bin/passt --pool /run/husk/ns --parent-cgroup husk \
             --cgroup pids.max=3 --resource-limit no-file=2048 --network-socket-fd 4 --control-fd 3 -- --quiet"
        );
    }

    #[test]
    fn one_that_cannot_be_started_is_told_and_its_socket_ends() {
        let (runtimes, socket) = socket().unwrap();
        let order = NetworkOrder {
            id: "one".into(),
            uid: Some(7),
            isolation: Isolation::Strict,
            program: "/no/passt".into(),
            pool: None,
            parent_cgroup: "husk".into(),
            limits: Vec::new(),
            arguments: Vec::new(),
        };
        let mut passt = Passt::new(Some(Start { jailer: "/bin/false".into(), order, socket }));
        passt.start();
        let line = passt.finish().unwrap();
        assert!(line.starts_with("--net user: no server was started"), "{line}");
        assert_eq!(rustix::io::read(runtimes, &mut [0; 1]), Ok(0));
        assert!(Passt::default().finish().is_none());
    }
}
