//! The command line: Firecracker's flags and Husk's own, checked before anything is touched.
//!
//! Refuses names that could leave their directory, user 0, and values that no kernel file takes. After [`Args::parse`]
//! every part is known to be well formed; whether the host can do it, the steps find out.

use crate::caller::{Caller, Isolation};
use crate::cgroup::{Setting, SettingError};
use crate::layout::Layout;
use crate::limits::{self, Limit, LimitError};
use argh::FromArgs;
use std::ffi::OsString;
use std::path::PathBuf;

/// Longest `--id`, in bytes; Firecracker's.
pub const MAX_ID: usize = 64;
/// Most arguments, and most bytes of one, that are looked at.
const MAX_ARGUMENTS: usize = 256;

/// Builds a cell and executes the runtime in it.
#[derive(FromArgs)]
#[argh(help_triggers("-h", "--help"))]
struct Flags {
    /// name of the sandbox: 1 to 64 letters, digits and hyphens
    #[argh(option)]
    id: Option<String>,
    /// user that the runtime runs as; not 0 (without root: the caller, who need not be named)
    #[argh(option)]
    uid: Option<String>,
    /// group that the runtime runs as; not 0 (without root: the caller's)
    #[argh(option)]
    gid: Option<String>,
    /// program that is executed in the cell, statically linked
    #[argh(option)]
    exec_file: Option<PathBuf>,
    /// what is in the cell's root: empty: nothing; firecracker: what Firecracker's jailer puts there, called as that is
    /// (default empty, or firecracker where this program is called jailer)
    #[argh(option)]
    layout: Option<String>,
    /// with --layout firecracker: execute a copy of the program, made in the root
    #[argh(switch)]
    copy_binary: bool,
    /// directory below which one is made for the cell, its root with --layout firecracker, otherwise empty for ever (default:
    /// none is made; with --layout firecracker /srv/jailer)
    #[argh(option)]
    chroot_base_dir: Option<PathBuf>,
    /// network namespace to join (default: a new, empty one)
    #[argh(option)]
    netns: Option<PathBuf>,
    /// directory of namespaces that are made once for all cells (default: each cell's are all its own)
    #[argh(option)]
    pool: Option<PathBuf>,
    /// cgroup version, 1 or 2 (default: wherever the host has the controller)
    #[argh(option)]
    cgroup_version: Option<String>,
    /// FILE=VALUE, written into the sandbox's cgroup, or FILE?=VALUE, if the host has such a file; repeatable
    #[argh(option)]
    cgroup: Vec<String>,
    /// cgroup below which the sandbox's is made (default husk; with --layout firecracker the program's name)
    #[argh(option)]
    parent_cgroup: Option<String>,
    /// NAME=VALUE, a limit of the process; repeatable
    #[argh(option)]
    resource_limit: Vec<String>,
    /// a new process id namespace: with --layout firecracker only then, otherwise always
    #[argh(switch)]
    new_pid_ns: bool,
    /// the sandbox outlives its parent and is not its child
    #[argh(switch)]
    daemonize: bool,
    /// descriptor of a directory: the program serves it as /volume, beside a running sandbox of this --id, as root with
    /// the few capabilities that takes
    #[argh(option)]
    volume_fd: Option<String>,
    /// descriptor of the socket that the volume is served on, handed on to the program as 4
    #[argh(option)]
    volume_socket_fd: Option<String>,
    /// the volume may be changed
    #[argh(switch)]
    volume_writable: bool,
    /// descriptor of a stream socket, handed on to the program as 4: the program is the network behind it, beside a running
    /// sandbox of this --id, in the network namespace that the jailer is in; it may be linked dynamically
    #[argh(option)]
    network_socket_fd: Option<String>,
    /// descriptor of the control socket, handed on to the program as 3
    #[argh(option)]
    control_fd: Option<String>,
    /// CPUs that the sandbox may use, as in 0,2-3
    #[argh(option)]
    cpus: Option<String>,
    /// strict: what the host does not permit ends the jailer; best-effort: it is reported and left out (default strict)
    #[argh(option)]
    isolation: Option<String>,
    /// print the version and end
    #[argh(switch)]
    version: bool,
}

/// What was asked for, well formed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Args {
    /// Who runs the jailer.
    pub caller: Caller,
    /// What is done about walls that cannot be.
    pub isolation: Isolation,
    /// Name of the sandbox, of its cgroup, its jail directory, and its host name.
    pub id: String,
    /// User of the runtime.
    pub uid: u32,
    /// Group of the runtime.
    pub gid: u32,
    /// Program, absolute or relative to the caller's directory.
    pub exec_file: PathBuf,
    /// Its file name: a directory of the jail's path, and the program's own name.
    pub program: String,
    /// What is in the root, and how the program comes to be.
    pub layout: Layout,
    /// Where a jail's directory is made, absolute; none: nowhere.
    pub chroot_base_dir: Option<PathBuf>,
    /// Network namespace to join.
    pub netns: Option<PathBuf>,
    /// Directory of namespaces that are made once, absolute.
    pub pool: Option<PathBuf>,
    /// The only cgroup version to use.
    pub cgroup_version: Option<u8>,
    /// What is written into the sandbox's cgroups, in this order.
    pub settings: Vec<Setting>,
    /// Components of the path between a hierarchy's mount and the sandbox's cgroup.
    pub parent_cgroup: Vec<String>,
    /// Limits of the process.
    pub limits: Vec<Limit>,
    /// Whether the sandbox outlives its parent.
    pub daemonize: bool,
    /// Descriptor of the control socket.
    pub control_fd: Option<i32>,
    /// The volume that the program serves.
    pub volume: Option<VolumeArgs>,
    /// Descriptor of the socket that the program is the network behind.
    pub network: Option<i32>,
    /// The program's arguments, the first its name.
    pub argv: Vec<OsString>,
}

/// A directory that the program serves, instead of being a runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeArgs {
    /// Descriptor of the directory.
    pub directory: i32,
    /// Descriptor of the socket that it is served on.
    pub socket: i32,
    /// Whether it may be changed.
    pub writable: bool,
}

/// A command line that cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum ArgsError {
    /// Wrong use; the text is argh's.
    #[error("{0}")]
    Usage(String),
    /// `--help` or `--version`: not an error, but the end.
    #[error("{0}")]
    Asked(String),
    /// Not there.
    #[error("--{0} is missing")]
    Missing(&'static str),
    /// Not text.
    #[error("argument {0:?} is not valid UTF-8")]
    NotText(OsString),
    /// Too much.
    #[error("{0} arguments; at most {MAX_ARGUMENTS} are taken")]
    TooMany(usize),
    /// Two flags that exclude each other.
    #[error("--{0} cannot be given with --{1}")]
    Excluded(&'static str, &'static str),
    /// Without root there is one user and the caller's network.
    #[error("--{flag} {value:?}: {allowed}, for the jailer was not started as root")]
    NotRoot {
        /// Which flag.
        flag: &'static str,
        /// What it was given.
        value: String,
        /// What it takes.
        allowed: String,
    },
    /// A bad name.
    #[error("--id {0:?}: 1 to {MAX_ID} letters, digits and hyphens are allowed")]
    Id(String),
    /// A bad number.
    #[error("--{flag} {value:?}: {allowed}")]
    Number {
        /// Which flag.
        flag: &'static str,
        /// What it was given.
        value: String,
        /// What it takes.
        allowed: &'static str,
    },
    /// A bad path.
    #[error("--{flag} {value:?}: {allowed}")]
    Path {
        /// Which flag.
        flag: &'static str,
        /// What it was given.
        value: PathBuf,
        /// What it takes.
        allowed: &'static str,
    },
    /// A bad limit.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// A bad cgroup file or value.
    #[error(transparent)]
    Setting(#[from] SettingError),
}

impl Args {
    /// Reads a command line, the program's own name excluded; who is `caller` may change what is allowed.
    ///
    /// # Errors
    /// Names the flag, its value and what is allowed; or what was asked for with `--help`.
    pub fn parse(words: impl IntoIterator<Item = OsString>, caller: Caller) -> Result<Self, ArgsError> {
        let words: Vec<_> = words.into_iter().take(MAX_ARGUMENTS + 1).collect();
        if words.len() > MAX_ARGUMENTS {
            return Err(ArgsError::TooMany(words.len()));
        }
        let end = words.iter().position(|word| word == "--").unwrap_or(words.len());
        let ours = split_values(&words[..end])?;
        let ours: Vec<_> = ours.iter().map(String::as_str).collect();
        let flags = Flags::from_args(&["husk-jailer"], &ours).map_err(|exit| {
            let text = exit.output.split_whitespace().collect::<Vec<_>>().join(" ");
            if exit.status.is_ok() {
                ArgsError::Asked(exit.output)
            } else {
                ArgsError::Usage(suggest::with(text))
            }
        })?;
        if flags.version {
            return Err(ArgsError::Asked(format!("husk-jailer {}\n", env!("CARGO_PKG_VERSION"))));
        }
        check(flags, words.get(end + 1..).unwrap_or_default(), caller)
    }
}

/// The control socket's descriptor in a command line that is wrong elsewhere, so that the mistake can be reported there.
pub(crate) fn control_fd(words: &[OsString]) -> Option<i32> {
    let end = words.iter().position(|word| word == "--").unwrap_or(words.len());
    let ours = split_values(&words[..end]).ok()?;
    let place = ours.iter().position(|word| word == "--control-fd")?;
    ours.get(place + 1)?.parse().ok().filter(|number| *number > 2)
}

/// Flags without a value.
const SWITCHES: [&str; 6] =
    ["--new-pid-ns", "--daemonize", "--copy-binary", "--volume-writable", "--version", "--help"];

/// `--flag=value` as two words; argh knows only those.
fn split_values(words: &[OsString]) -> Result<Vec<String>, ArgsError> {
    let mut split = Vec::with_capacity(words.len() + 4);
    let mut is_value = false;
    for word in words {
        let word = word.to_str().ok_or_else(|| ArgsError::NotText(word.clone()))?;
        let long = !is_value && word.starts_with("--");
        match word.split_once('=').filter(|_| long) {
            Some((flag, value)) => {
                split.extend([flag.to_owned(), value.to_owned()]);
                is_value = false;
            }
            None => {
                split.push(word.to_owned());
                is_value = long && !SWITCHES.contains(&word);
            }
        }
    }
    Ok(split)
}

fn check(flags: Flags, rest: &[OsString], caller: Caller) -> Result<Args, ArgsError> {
    let volume = volume(&flags)?;
    let network = network(&flags)?;
    let layout = chosen::layout(&flags, caller)?;
    let pool = pool(&flags, caller)?;
    let user = who(&flags, caller, volume.is_some())?;
    let id = flags.id.ok_or(ArgsError::Missing("id"))?;
    if id.is_empty()
        || id.len() > MAX_ID
        || !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    {
        return Err(ArgsError::Id(id));
    }
    let exec_file = layout.program(flags.exec_file.ok_or(ArgsError::Missing("exec-file"))?);
    let program =
        exec_file.file_name().and_then(|name| name.to_str()).map(str::to_owned).ok_or_else(|| {
            ArgsError::Path {
                flag: "exec-file",
                value: exec_file.clone(),
                allowed: "the path of a file is expected",
            }
        })?;
    let chroot_base_dir = flags.chroot_base_dir.or_else(|| layout.base());
    if let Some(base) = chroot_base_dir.as_ref().filter(|base| !base.is_absolute() || has_dots(base)) {
        let allowed = "an absolute path without .. is expected";
        return Err(ArgsError::Path { flag: "chroot-base-dir", value: base.clone(), allowed });
    }
    let control_fd = flags.control_fd.map(|text| descriptor("control-fd", text)).transpose()?;
    let mut argv = vec![OsString::from(&program)];
    if control_fd.is_some() && network.is_none() && rest.iter().all(|word| word != "--control-fd") {
        argv.extend(["--control-fd".into(), "3".into()]);
    }
    if layout != Layout::Empty {
        argv.extend(["--id".into(), OsString::from(&id)]);
    }
    argv.extend_from_slice(rest);
    Ok(Args {
        caller,
        isolation: isolation(flags.isolation)?,
        uid: user.uid,
        gid: user.gid,
        netns: flags.netns,
        pool,
        cgroup_version: version(flags.cgroup_version)?,
        settings: crate::cgroup::settings(&flags.cgroup, flags.cpus)?,
        parent_cgroup: parent(flags.parent_cgroup.as_deref().unwrap_or_else(|| layout.parent(&program)))?,
        limits: limits::parse(&flags.resource_limit, layout.files())?,
        daemonize: flags.daemonize,
        layout,
        chroot_base_dir,
        id,
        exec_file,
        program,
        control_fd,
        volume,
        network,
        argv,
    })
}

fn volume(flags: &Flags) -> Result<Option<VolumeArgs>, ArgsError> {
    let Some(directory) = flags.volume_fd.clone() else {
        let misplaced = flags.volume_socket_fd.is_some() || flags.volume_writable;
        return if misplaced { Err(ArgsError::Missing("volume-fd")) } else { Ok(None) };
    };
    let excluded = [
        ("uid", flags.uid.is_some()),
        ("gid", flags.gid.is_some()),
        ("netns", flags.netns.is_some()),
        ("daemonize", flags.daemonize),
    ];
    exclude("volume-fd", &excluded)?;
    let socket = flags.volume_socket_fd.clone().ok_or(ArgsError::Missing("volume-socket-fd"))?;
    Ok(Some(VolumeArgs {
        directory: descriptor("volume-fd", directory)?,
        socket: descriptor("volume-socket-fd", socket)?,
        writable: flags.volume_writable,
    }))
}

fn network(flags: &Flags) -> Result<Option<i32>, ArgsError> {
    let Some(socket) = flags.network_socket_fd.clone() else { return Ok(None) };
    let excluded = [
        ("volume-fd", flags.volume_fd.is_some()),
        ("netns", flags.netns.is_some()),
        ("daemonize", flags.daemonize),
    ];
    exclude("network-socket-fd", &excluded)?;
    descriptor("network-socket-fd", socket).map(Some)
}

fn pool(flags: &Flags, caller: Caller) -> Result<Option<PathBuf>, ArgsError> {
    let Some(pool) = &flags.pool else { return Ok(None) };
    let beside = flags.volume_fd.as_ref().map(|_| "volume-fd");
    let beside = beside.or_else(|| flags.network_socket_fd.as_ref().map(|_| "network-socket-fd"));
    if let Some(with) = beside.filter(|_| !caller.is_root()) {
        let (value, allowed) = (pool.display().to_string(), format!("none is possible with --{with}"));
        return Err(ArgsError::NotRoot { flag: "pool", value, allowed });
    }
    if !pool.is_absolute() || has_dots(pool) || pool.file_name().is_none() {
        let allowed = "an absolute path without .. is expected";
        return Err(ArgsError::Path { flag: "pool", value: pool.clone(), allowed });
    }
    Ok(Some(pool.clone()))
}

fn exclude(with: &'static str, flags: &[(&'static str, bool)]) -> Result<(), ArgsError> {
    match flags.iter().find(|(_, given)| *given) {
        Some((flag, _)) => Err(ArgsError::Excluded(flag, with)),
        None => Ok(()),
    }
}

fn descriptor(flag: &'static str, text: String) -> Result<i32, ArgsError> {
    // 65535 fits.
    Ok(number(flag, text, 3, "a descriptor from 3 to 65535", 65_535)?.cast_signed())
}

fn has_dots(path: &std::path::Path) -> bool {
    path.components().any(|part| matches!(part, std::path::Component::ParentDir))
}

fn number(
    flag: &'static str,
    value: String,
    least: u32,
    allowed: &'static str,
    most: u32,
) -> Result<u32, ArgsError> {
    let number = value.parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or(ArgsError::Number { flag, value, allowed })
}

/// Who the program runs as.
fn who(flags: &Flags, caller: Caller, serves: bool) -> Result<Caller, ArgsError> {
    if !caller.is_root() {
        if let Some(netns) = &flags.netns {
            let (flag, value) = ("netns", netns.display().to_string());
            return Err(ArgsError::NotRoot { flag, value, allowed: "none can be joined".to_owned() });
        }
        for (flag, given, own) in [("uid", &flags.uid, caller.uid), ("gid", &flags.gid, caller.gid)] {
            if let Some(value) = given.clone().filter(|value| value.parse() != Ok(own)) {
                return Err(ArgsError::NotRoot { flag, value, allowed: format!("only {own} is possible") });
            }
        }
        return Ok(caller);
    }
    // Who serves files of many owners is root; what it may is another step's to say.
    if serves {
        return Ok(caller);
    }
    Ok(Caller { uid: user("uid", flags.uid.clone())?, gid: user("gid", flags.gid.clone())? })
}

fn isolation(value: Option<String>) -> Result<Isolation, ArgsError> {
    match value.as_deref() {
        None | Some("strict") => Ok(Isolation::Strict),
        Some("best-effort") => Ok(Isolation::BestEffort),
        Some(other) => Err(ArgsError::Number {
            flag: "isolation",
            value: other.to_owned(),
            allowed: "strict or best-effort is allowed",
        }),
    }
}

/// Neither 0, nor the id that stands for "leave it as it is".
fn user(flag: &'static str, value: Option<String>) -> Result<u32, ArgsError> {
    let value = value.ok_or(ArgsError::Missing(flag))?;
    number(flag, value, 1, "an id from 1 to 4294967294 is allowed, never 0", u32::MAX - 1)
}

fn version(value: Option<String>) -> Result<Option<u8>, ArgsError> {
    match value.as_deref() {
        None => Ok(None),
        Some("1") => Ok(Some(1)),
        Some("2") => Ok(Some(2)),
        Some(other) => Err(ArgsError::Number {
            flag: "cgroup-version",
            value: other.to_owned(),
            allowed: "1 or 2 is allowed",
        }),
    }
}

fn parent(path: &str) -> Result<Vec<String>, ArgsError> {
    let fits = |part: &str| {
        !part.is_empty() && part.len() <= 255 && part != "." && part != ".." && !part.contains(['\0', '\n'])
    };
    let parts: Vec<_> = path.split('/').map(str::to_owned).collect();
    if parts.len() > 16 || !parts.iter().all(|part| fits(part)) {
        let allowed = "a relative path of at most 16 names without . and .. is expected";
        return Err(ArgsError::Path { flag: "parent-cgroup", value: path.into(), allowed });
    }
    Ok(parts)
}

mod chosen;
mod suggest;
#[cfg(test)]
mod tests;
