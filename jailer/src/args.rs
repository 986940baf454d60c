//! The command line: Firecracker's flags and Husk's own, checked before anything is touched.
//!
//! Owns the flags' names and help, and the words of every refusal. Refuses what is not text, too much of it, and unknown flags; values
//! are for `check`. After [`Args::parse`] every part is known to be well formed; whether the host can do it, the steps find out.

use crate::caller::{Caller, Isolation};
use crate::cgroup::{Setting, SettingError};
use crate::layout::Layout;
use crate::limits::{Limit, LimitError};
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
        check::check(flags, words.get(end + 1..).unwrap_or_default(), caller)
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

mod check;
mod chosen;
mod suggest;
#[cfg(test)]
mod tests;
