//! The cell: the process that a sandbox's runtime becomes, with nothing around it.
//!
//! [`Plan::from`] says what is done in which order; [`enter`] does it. The binary is a few lines around this library,
//! so that a probe can be put into the very same cell and asked what it can reach.
//!
//! What the cell is: new user, mount, pid, net, ipc, uts and cgroup namespaces; an empty read-only root; descriptors 0 to 2
//! on the null device, the control socket at 3 and no other; its own user and group, no capability and no way to get one; its
//! own cgroups, limits, session and core scheduling cookie; an empty environment; dead when its parent is. The runtime adds
//! landlock and its threads' filters.
//!
//! There is one user and one group in the user namespace, with the same numbers inside and outside: those of `--uid` and
//! `--gid` where root started the jailer, else the caller's own. Without root the caller's other groups stay, because the kernel
//! lets nobody else drop them; there is no file in the cell that they could open.
//!
//! A volume's cell (`--volume-fd`) differs: its root holds the volume and a /proc; the socket that the volume is served on is
//! at 4; its user is root, with the capabilities for serving files and for one chroot, which its program gives up; and its
//! cgroups are the sandbox's own, which must be there. Started by root it has no user namespace, for files belong to many users;
//! otherwise it is called root in one whose only user is the caller. It leaves nothing behind.
//!
//! A time namespace there is not: nobody reads the host's clocks from inside but by their values, which a guest gets anyway.
//!
//! # What the host does not permit
//! ends the jailer, by name. With `--isolation best-effort` it is reported on the control socket, a `missing` message each, and
//! the cell is built without: limits, the cgroup, or, where there are no user namespaces for the caller, every wall that takes
//! one. A volume is not served then.
//!
//! A network's cell (`--network-socket-fd`) is that of a program of the host's, as passt, which is the network behind the socket
//! at 4: it is in the jailer's network namespace, for that is what it gives access to; its root holds the host's /usr and libraries,
//! read-only, /etc/resolv.conf, an empty /tmp and a /proc, for such a program is linked dynamically and makes itself an empty
//! root; it speaks on the jailer's standard error, and the control socket closes at its execution. User, cgroups and the rest
//! are the sandbox's. It leaves nothing behind.
//!
//! With `--layout firecracker` the cell is that of Firecracker's jailer, called as that is: [`layout`] says what differs.
//!
//! # Who is whose parent
//! The cell is cloned with `CLONE_PARENT`: its parent is the jailer's parent, which reaps it and with which it dies. (The
//! parent-death signal comes with the end of the *thread* that started the jailer.) With `--daemonize` it is an orphan.
//! The jailer ends with 0 once the clone is reported; a step that fails in the clone is reported by the clone.
//!
//! # What is left behind
//! At most two names, whenever the jailer or the cell dies, and both follow from the command line:
//! - with `--chroot-base-dir`, the directory `<chroot-base-dir>/<file name of exec-file>/<id>`, holding at most one empty
//!   directory `root` (with `--layout firecracker` what is mounted there is mounted in the cell's mount namespace only, and goes with
//!   it; otherwise nothing ever is);
//! - the cgroups `<mount>/<parent-cgroup>/<id>`, of version 2 and of each version 1 controller that `--cgroup` or
//!   `--cpus` named.
//!
//! Removing them is the caller's: first whatever runs in the cgroups ends, then each is one `rmdir`. A step that fails before the
//! clone takes both back itself. What existed before is never taken over: it is refused by name.
//!
//! With `--pool`, that directory and what is bound there are for all cells to come, and no cell's: `husk-jailer pool remove DIR` removes
//! them. `husk-jailer pool fill DIR` (`refill`: without waiting for it) makes network namespaces ready, of which each cell has one, or
//! makes its own.

mod act;
pub mod args;
mod best_effort;
pub mod caller;
mod cell;
pub mod cgroup;
mod executable;
mod host;
mod jail;
pub mod layout;
pub mod limits;
pub mod plan;
mod pool;
pub mod report;
mod roots;
mod sealed;
mod sys;
mod user_namespace;

pub use act::{CellError, Side};
pub use args::{Args, ArgsError};
pub use caller::{Caller, Isolation};
pub use cell::CONTROL;
pub use cgroup::CgroupError;
pub use executable::ExecutableError;
pub use jail::JailError;
pub use plan::{Plan, Step};
pub use pool::PoolError;

use act::Site;
use report::Fault;
use std::ffi::OsString;
use std::process::ExitCode;

/// Carries `plan` out. Returns twice, as `fork` does: outside, and, if the plan holds no program, inside. The process
/// must have one thread only. Only [`Side::Outside`]'s process id is reported on the control socket; errors are the
/// caller's to report, on the side where they are returned.
///
/// # Errors
/// The first step that failed.
pub fn enter(args: &Args, plan: &Plan) -> Result<Side, CellError> {
    Site::new(args)?.carry_out(plan)
}

/// The whole program: command line, the program's own name first, to exit status.
pub fn run(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    let started = report::now_ns();
    let words = layout::called(words);
    if let Some((_, rest)) = words.split_first().filter(|(first, _)| *first == "pool") {
        return pool::command(rest);
    }
    let args = match Args::parse(words.iter().cloned(), Caller::current()) {
        Ok(args) => args,
        Err(ArgsError::Asked(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            let site = Site::with_control(args::control_fd(&words)).unwrap_or_default();
            site.complain(Fault::Operator, &error);
            return ExitCode::FAILURE;
        }
    };
    match build(&args, started) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// From well-formed arguments to the cell; has reported whatever it returns.
fn build(args: &Args, started: u64) -> Result<(), CellError> {
    let mut site = Site::new(args).inspect_err(|error| eprintln!("husk-jailer: {error}"))?;
    site.tell(&report::stage("jailer", started));
    let result = site.carry_out(&Plan::from(args));
    result.map(drop).inspect_err(|error| site.complain(error.fault(), error))
}
