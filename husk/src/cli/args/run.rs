//! The options of `husk run`.
//!
//! Owns their names, their help and their conversion to [`Options`]. Refuses values that mean nothing by themselves; what needs a look at
//! the machine is refused later, by `plan`. Invariant: an option that was not given leaves the default of [`Options`], or the
//! configuration's value, as it is.

use super::mebibytes;
use crate::isolation::Isolation;
use crate::limits::Limit;
use crate::options::{BOOT_TIMEOUT, DriveOption, NetworkOption, Options, PmemOption, VolumeOption};
use crate::units;
use argh::FromArgs;
use husk_protocol::network::{AllowRule, GuestAddress};
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Run a command in a new sandbox and wait for it. Write -- before the command; everything after it is the command's.
#[derive(Debug, FromArgs)]
#[argh(
    subcommand,
    name = "run",
    example = "{command_name} -- echo hi",
    example = "{command_name} -i --rootfs ./python-root --timeout 30s -- python3 handler.py < event.json",
    example = "{command_name} -it --vcpus 2 --memory 512M -- sh",
    example = "{command_name} --drive data.ext4:/data:rw --user 1000:1000 --workdir /data -- make",
    note = "Exit status: the command's own, 128+n if signal n ended it, and as below.",
    note = "The first SIGINT, SIGTERM, SIGHUP or SIGQUIT goes to the command; the second, or 10 s, ends the sandbox.",
    note = "SIGUSR1 and SIGUSR2 go to the command each time.",
    error_code(124, "--timeout ended the sandbox."),
    error_code(125, "Husk itself failed; one line on standard error says who is at fault."),
    error_code(126, "The command was found but could not be executed."),
    error_code(127, "The command was not found.")
)]
pub(crate) struct Run {
    /// root file system: an erofs or ext4 image, or a directory (packed once per content); default: busybox
    #[argh(option, arg_name = "file|dir")]
    rootfs: Option<PathBuf>,
    /// guest kernel, an ELF vmlinux or a bzImage; default: Husk's own
    #[argh(option, arg_name = "file")]
    kernel: Option<PathBuf>,
    /// initial RAM file system in place of Husk's own; /init in it must be husk-init
    #[argh(option, arg_name = "file")]
    initrd: Option<PathBuf>,
    /// number of vCPUs, 1 to 32; default: 1
    #[argh(option, arg_name = "n")]
    vcpus: Option<u64>,
    /// guest memory with a unit, K, M or G; default: 128M
    #[argh(option, arg_name = "size", from_str_fn(mebibytes))]
    memory: Option<u64>,
    /// what memory grows to once the guest is ready, paid for as it is used; default: it does not grow
    #[argh(option, arg_name = "size", from_str_fn(mebibytes))]
    memory_max: Option<u64>,
    /// environment variable K=V of the command; may be repeated; PATH and HOME are set by default
    #[argh(option, arg_name = "k=v")]
    env: Vec<String>,
    /// working directory of the command, absolute; default: /
    #[argh(option, arg_name = "dir")]
    workdir: Option<String>,
    /// who runs the command: NAME, UID, NAME:GROUP or UID:GID of the guest; default: root
    #[argh(option, arg_name = "user")]
    user: Option<String>,
    /// time with a unit, ms, s, m or h, from the sandbox's start to its end; default: none
    #[argh(option, arg_name = "time", from_str_fn(duration))]
    timeout: Option<Duration>,
    /// time from the sandbox's start until it is ready for the command; default: $HUSK_BOOT_TIMEOUT, else 10s
    #[argh(option, arg_name = "time", from_str_fn(duration))]
    boot_timeout: Option<Duration>,
    /// guest memory from huge pages of this size: 2M; implies --prefault
    #[argh(option, arg_name = "2M", from_str_fn(huge_page))]
    hugepages: Option<()>,
    /// populate all guest memory before the first instruction
    #[argh(switch)]
    prefault: bool,
    /// host CPU of each vCPU, as in 0,1 or 2-3; default: not pinned
    #[argh(option, arg_name = "list", from_str_fn(cpus))]
    pin: Option<Vec<u32>>,
    /// pass standard input on; without it the command reads /dev/null
    #[argh(switch, short = 'i')]
    interactive: bool,
    /// give the command a terminal, sized as this one; implies -i; standard input must be a terminal
    #[argh(switch, short = 't')]
    tty: bool,
    /// show what the guest's kernel prints, and what programs write to /dev/hvc0, on standard error
    #[argh(switch)]
    console: bool,
    /// print the result as one JSON line on standard error, and nothing else of husk's
    #[argh(switch)]
    json: bool,
    /// print on standard error how long each stage took
    #[argh(switch)]
    timings: bool,
    /// attach an erofs or ext4 image and mount it, FILE:GUESTDIR[:rw]; read-only without :rw; :async (or :rw,async) works
    /// through io_uring; may be repeated
    #[argh(option, arg_name = "drive")]
    drive: Vec<DriveOption>,
    /// put an erofs or ext4 image into the guest's memory and mount it, FILE:GUESTDIR; read-only; may be repeated
    #[argh(option, arg_name = "image")]
    pmem: Vec<PmemOption>,
    /// mount a directory of the host, HOSTDIR:GUESTDIR[:rw]; read-only without :rw; :bandwidth=10M and :ops=500 limit its bytes
    /// and messages a second; may be repeated, up to 8 times
    #[argh(option, arg_name = "volume")]
    volume: Vec<VolumeOption>,
    /// a machine in Firecracker's JSON; the other options change it
    #[argh(option, arg_name = "file")]
    config: Option<PathBuf>,
    /// unix socket to make: host programs say CONNECT <port> to reach the guest, the guest reaches <path>_<port>
    #[argh(option, arg_name = "path")]
    vsock: Option<PathBuf>,
    /// give the guest the host's random bytes: a virtio device behind /dev/hwrng
    #[argh(switch)]
    entropy: bool,
    /// put devices on a PCI bus in place of MMIO: less work per operation, a longer boot
    #[argh(switch)]
    pci: bool,
    /// network: none, user (through passt, as any program of the host's), or tap=NAME[,queues=N] for a tap that is there; by default the guest may send nowhere; default: none
    #[argh(option, arg_name = "net", from_str_fn(net))]
    net: Option<Net>,
    /// where the guest may send TCP and UDP to, as in 10.0.0.0/8:443, 192.0.2.1:*, [2001:db8::/32]:443; may be repeated
    #[argh(option, arg_name = "cidr:port")]
    allow: Vec<AllowRule>,
    /// address of the guest, as in 10.0.0.2/24 or fd00::2/64, from which alone it may send then; may be repeated
    #[argh(option, arg_name = "address/prefix")]
    guest_ip: Vec<GuestAddress>,
    /// router of the guest in a network of --guest-ip; one a family
    #[argh(option, arg_name = "address")]
    gateway: Vec<IpAddr>,
    /// name server, written to the guest's /etc/resolv.conf; up to three
    #[argh(option, arg_name = "address")]
    dns: Vec<IpAddr>,
    /// refuse to run where husk doctor says unsafe
    #[argh(switch)]
    strict: bool,
    /// strict: what the host does not permit of the jail is refused; best-effort: it is left out and reported; default: strict
    #[argh(option, arg_name = "how", from_str_fn(isolation))]
    isolation: Option<Isolation>,
    /// limit of the sandbox's cgroup, as in cpu.max=50%, memory.high=200M, pids.max=64, io.max=DRIVE:rbps=10M; may be repeated
    #[argh(option, arg_name = "name=value")]
    limit: Vec<Limit>,
    /// name of the sandbox: letters, digits and hyphens, at most 64; default: random
    #[argh(option, arg_name = "id")]
    id: Option<String>,
    /// the same as --id
    #[argh(option, arg_name = "id")]
    name: Option<String>,
}

impl Run {
    fn network(&mut self) -> Result<Option<NetworkOption>, String> {
        let option = NetworkOption {
            tap: None,
            queues: None,
            allow: std::mem::take(&mut self.allow),
            addresses: std::mem::take(&mut self.guest_ip),
            gateways: std::mem::take(&mut self.gateway),
            dns: std::mem::take(&mut self.dns),
        };
        match self.net.take() {
            Some(Net::Tap(tap, queues)) => Ok(Some(NetworkOption { tap: Some(tap), queues, ..option })),
            Some(Net::User) => Ok(Some(option)),
            _ if option == NetworkOption::default() => Ok(None),
            _ => Err("--allow, --guest-ip, --gateway and --dns need --net user or --net tap=NAME".into()),
        }
    }

    /// How to tell the result.
    pub(crate) fn telling(&self) -> Telling {
        Telling { json: self.json, timings: self.timings }
    }

    /// The options; `command` is what stood after `--`.
    pub(crate) fn into_options(mut self, command: Vec<OsString>) -> Result<Options, String> {
        if let (Some(id), Some(name)) = (&self.id, &self.name)
            && id != name
        {
            return Err(format!("--id {id} and --name {name} mean the same and differ"));
        }
        let boot_timeout = match self.boot_timeout {
            Some(time) => time,
            None => boot_timeout(std::env::var("HUSK_BOOT_TIMEOUT").ok().as_deref())?,
        };
        let network = self.network()?;
        Ok(Options {
            id: self.id.or(self.name),
            rootfs: self.rootfs,
            kernel: self.kernel,
            initrd: self.initrd,
            vcpus: self.vcpus,
            memory_mib: self.memory,
            memory_max_mib: self.memory_max,
            hugepages: self.hugepages.is_some(),
            prefault: self.prefault,
            pci: self.pci,
            pin: self.pin.unwrap_or_default(),
            env: self.env.into_iter().map(OsString::from).collect(),
            workdir: self.workdir,
            user: self.user,
            timeout: self.timeout,
            boot_timeout,
            stdin: self.interactive || self.tty,
            terminal: self.tty,
            console: self.console,
            drives: self.drive,
            pmem: self.pmem,
            volumes: self.volume,
            config: self.config,
            network,
            vsock: self.vsock,
            entropy: self.entropy,
            strict: self.strict,
            isolation: self.isolation.unwrap_or_default(),
            limits: self.limit,
            command,
        })
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    units::duration(text).map_err(|error| error.to_string())
}

/// The limit where no option names one. A machine that is slow for all (the lab) sets the variable once.
fn boot_timeout(variable: Option<&str>) -> Result<Duration, String> {
    match variable.filter(|text| !text.is_empty()) {
        Some(text) => duration(text).map_err(|error| format!("HUSK_BOOT_TIMEOUT {text}: {error}")),
        None => Ok(BOOT_TIMEOUT),
    }
}

fn cpus(text: &str) -> Result<Vec<u32>, String> {
    units::cpu_list(text).map_err(|error| error.to_string())
}

fn huge_page(text: &str) -> Result<(), String> {
    if text == "2M" { Ok(()) } else { Err("only huge pages of 2M are supported".into()) }
}

/// What `--net` names.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Net {
    None,
    User,
    Tap(String, Option<u64>),
}

fn net(text: &str) -> Result<Net, String> {
    match (text, text.strip_prefix("tap=")) {
        ("none", _) => Ok(Net::None),
        ("user", _) => Ok(Net::User),
        (_, Some(tap)) if !tap.is_empty() => {
            let (name, queues) = tap.split_once(",queues=").map_or((tap, None), |(a, b)| (a, Some(b)));
            let number = queues.map(str::parse).transpose();
            let number = number.map_err(|_| format!("queues={} is no number", queues.unwrap_or_default()))?;
            Ok(Net::Tap(name.to_owned(), number))
        }
        _ => Err("a network is none, user or tap=NAME[,queues=N]".into()),
    }
}

fn isolation(text: &str) -> Result<Isolation, String> {
    match text {
        "strict" => Ok(Isolation::Strict),
        "best-effort" => Ok(Isolation::BestEffort),
        _ => Err("isolation is strict or best-effort".into()),
    }
}

/// How the result of a run is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Telling {
    /// One JSON line.
    pub(crate) json: bool,
    /// One line of stage times.
    pub(crate) timings: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn isolation_is_strict_or_best_effort() {
        assert_eq!(isolation("strict"), Ok(Isolation::Strict));
        assert_eq!(isolation("best-effort"), Ok(Isolation::BestEffort));
        assert!(isolation("none").is_err());
    }

    #[test]
    fn a_network_is_none_a_users_or_a_tap() {
        assert_eq!(net("none"), Ok(Net::None));
        assert_eq!(net("user"), Ok(Net::User));
        assert_eq!(net("tap=husk0"), Ok(Net::Tap("husk0".into(), None)));
        assert_eq!(net("tap=husk0,queues=2"), Ok(Net::Tap("husk0".into(), Some(2))));
        assert!(net("tap=husk0,queues=two").unwrap_err().contains("queues=two is no number"));
        for wrong in ["", "tap", "tap=", "users", "husk0", "bridge=br0"] {
            assert!(net(wrong).unwrap_err().contains("none, user or tap=NAME"), "{wrong}");
        }
    }

    #[test]
    fn the_boot_timeout_comes_from_the_variable_where_no_option_names_it() {
        assert_eq!(boot_timeout(None), Ok(BOOT_TIMEOUT));
        assert_eq!(boot_timeout(Some("")), Ok(BOOT_TIMEOUT));
        assert_eq!(boot_timeout(Some("30s")), Ok(Duration::from_secs(30)));
        assert!(boot_timeout(Some("soon")).unwrap_err().contains("HUSK_BOOT_TIMEOUT soon"));
    }
}
