//! The command line's grammar, as argh sees it after [`super::normal`] has tidied it.
//!
//! Owns the names of commands and options and their help. Refuses values that mean nothing by themselves. Invariant: nothing here looks
//! at the machine.

mod run;

pub(super) use run::{Run, Telling};

use crate::change::Ask;
use crate::limits::Limit;
use crate::units;
use argh::FromArgs;

/// Run commands in sandboxes: microVMs, each with a kernel of its own, in a jail, behind seccomp filters.
#[derive(Debug, FromArgs)]
#[argh(
    example = "{command_name} run -- echo hi",
    example = "{command_name} run -it --memory 256M -- sh",
    example = "{command_name} ps",
    note = "`{command_name} run --help` lists the options of run.",
    error_code(125, "Husk itself failed; the message on standard error says why.")
)]
pub(crate) struct Husk {
    /// print husk's version
    #[argh(switch)]
    pub(crate) version: bool,
    #[argh(subcommand)]
    pub(crate) command: Option<Subcommand>,
}

#[derive(Debug, FromArgs)]
#[argh(subcommand)]
pub(crate) enum Subcommand {
    Run(Box<Run>),
    Ps(Ps),
    Kill(Kill),
    Update(Update),
    Gc(Gc),
    Doctor(Doctor),
    Version(Version),
}

/// List the sandboxes that run now.
#[derive(Debug, FromArgs)]
#[argh(subcommand, name = "ps")]
pub(crate) struct Ps {
    /// print a JSON array
    #[argh(switch)]
    pub(crate) json: bool,
}

/// Send a signal to a sandbox's command, or end the sandbox at once with KILL.
#[derive(Debug, FromArgs)]
#[argh(
    subcommand,
    name = "kill",
    example = "{command_name} 3f9a",
    note = "HUP, INT, QUIT and TERM end the sandbox if sent twice, or after 10 s. USR1 and USR2 are passed on only."
)]
pub(crate) struct Kill {
    /// signal: HUP, INT, QUIT, TERM, USR1, USR2 or KILL; default: TERM
    #[argh(option, arg_name = "signal", default = "libc::SIGTERM", from_str_fn(signal))]
    pub(crate) signal: i32,
    /// the sandbox: its id, or the beginning of it
    #[argh(positional)]
    pub(crate) id: String,
}

/// Change a sandbox while it runs. What is refused has changed nothing.
#[derive(Debug, FromArgs)]
#[argh(
    subcommand,
    name = "update",
    example = "{command_name} 3f9a --drive data=new.ext4",
    example = "{command_name} 3f9a --limit cpu.max=25% --limit memory.high=100M",
    error_code(125, "It was not changed; one line on standard error says why.")
)]
pub(crate) struct Update {
    /// the file to put behind a drive, DRIVE=FILE; the guest sees its size, and is not asked whether it uses the old one
    #[argh(option, arg_name = "drive=file")]
    pub(crate) drive: Vec<String>,
    /// the memory that the guest is to have, as in 512M: what it booted in to what --memory-max said
    #[argh(option, arg_name = "size", from_str_fn(mebibytes))]
    pub(crate) memory: Option<u64>,
    /// limit of its cgroup, as husk run takes it; may be repeated: all or none come about
    #[argh(option, arg_name = "name=value")]
    pub(crate) limit: Vec<Limit>,
    /// print the result as one JSON object
    #[argh(switch)]
    pub(crate) json: bool,
    /// the sandbox: its id, or the beginning of it
    #[argh(positional)]
    pub(crate) id: String,
}

impl Update {
    /// What is asked for: one thing.
    pub(crate) fn ask(&self) -> Result<Ask, String> {
        let drive = match (self.drive.as_slice(), self.memory, self.limit.as_slice()) {
            ([], Some(mib), []) => return Ok(Ask::Memory(mib)),
            ([], None, [_, ..]) => return Ok(Ask::Limits(self.limit.clone())),
            ([drive], None, []) => drive,
            _ => {
                return Err(
                    "one change at a time: --drive DRIVE=FILE or --memory SIZE, once, or any --limit".into(),
                );
            }
        };
        match drive.split_once('=') {
            Some((id, file)) if !id.is_empty() && !file.is_empty() => {
                Ok(Ask::Drive { id: id.to_owned(), file: file.into() })
            }
            _ => Err(format!("--drive {drive:?} is not DRIVE=FILE")),
        }
    }
}

/// Remove what sandboxes left whose husk was killed: state, user ids, cgroups and what runs in them, sockets; and old packed images.
#[derive(Debug, FromArgs)]
#[argh(subcommand, name = "gc")]
pub(crate) struct Gc {
    /// print one JSON object
    #[argh(switch)]
    pub(crate) json: bool,
    /// remove as well what is kept for sandboxes to come: the namespaces that were made once
    #[argh(switch)]
    pub(crate) all: bool,
}

/// Say what this machine offers and lacks for sandboxes of strangers' code, and what mends it.
#[derive(Debug, FromArgs)]
#[argh(
    subcommand,
    name = "doctor",
    note = "Exit status: that of the worst check.",
    error_code(0, "Everything is fine, or worth knowing (ok, note)."),
    error_code(1, "A wall is thinner than it could be, or something is slow (degraded)."),
    error_code(2, "A known way to another's secrets, or out of a sandbox, is open (unsafe)."),
    error_code(3, "husk run cannot work here (unusable)."),
    error_code(125, "Husk itself failed.")
)]
pub(crate) struct Doctor {
    /// print one JSON object
    #[argh(switch)]
    pub(crate) json: bool,
    /// print the seccomp filters of all threads instead, one rule a line
    #[argh(switch)]
    pub(crate) filters: bool,
}

/// Print husk's version.
#[derive(Debug, FromArgs)]
#[argh(subcommand, name = "version")]
pub(crate) struct Version {}

fn mebibytes(text: &str) -> Result<u64, String> {
    units::memory_mib(text).map_err(|error| error.to_string())
}

fn signal(text: &str) -> Result<i32, String> {
    let number = units::signal(text).map_err(|error| error.to_string())?;
    if crate::signals::TAKEN.contains(&number) && number != libc::SIGWINCH || number == libc::SIGKILL {
        return Ok(number);
    }
    Err(format!(
        "{} cannot be sent; HUP, INT, QUIT, TERM, USR1, USR2 and KILL can",
        units::signal_name(number)
    ))
}
