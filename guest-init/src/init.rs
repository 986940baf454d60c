//! PID 1's life outside the loop: the first mounts, the connection, the end. Owns the order of these; refuses to run as
//! anything but PID 1. Invariant: whatever goes wrong before there is a connection is one line in the kernel's log and
//! a reset.

use crate::console;
use crate::fault::ServeError;
use crate::identity;
use crate::mounts::{MountsError, mount_dev, mount_sys};
use crate::poll::timespec;
use crate::server::{Place, Server};
use crate::sys;
use husk_protocol::exec::PORT;
use rustix::event::{PollFd, PollFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};
use std::ffi::CStr;
use std::time::{Duration, Instant};

/// How long the host may take to accept the connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// Pause before another attempt, while there is no vsock device.
const CONNECT_PAUSE: Duration = Duration::from_millis(20);
/// Open files that a command may have, and may raise that to.
const OPEN_FILES: (u64, u64) = (1024, 1 << 20);

/// PID 1 cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// Started by hand.
    #[error("this is PID 1 of a guest; as process {0} it does nothing")]
    NotFirst(i32),
    /// A wrong argument.
    #[error("argument {0:?}: the only one is --channel-fd N, N an open stream socket")]
    Argument(String),
    /// The first mounts.
    #[error(transparent)]
    Mounts(#[from] MountsError),
    /// No connection.
    #[error(
        "cannot connect to the host (vsock CID 2, port {PORT}): {0}; is there a vsock device with an exec channel?"
    )]
    Connect(Errno),
    /// The loop cannot be made.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// Lives PID 1's life; does not come back where PID 1 owns the machine. `ticks` is what the counter said at the start.
pub fn live(ticks: u64, arguments: &[&CStr]) -> i32 {
    let channel = match channel_argument(arguments) {
        Ok(channel) => channel,
        Err(error) => return complain(&error),
    };
    let pid = rustix::process::getpid();
    if !pid.is_init() {
        return complain(&InitError::NotFirst(pid.as_raw_nonzero().get()));
    }
    if let Some(socket) = channel {
        return match Server::new(socket, Place::Namespace, ticks) {
            Ok(server) => {
                server.run();
                0
            }
            Err(error) => complain(&error.into()),
        };
    }
    console::install_panic_hook();
    match begin(ticks) {
        Ok(server) => server.run(),
        Err(error) => console::die(&error),
    }
    console::restart()
}

fn complain(error: &InitError) -> i32 {
    let _ = rustix::io::write(rustix::stdio::stderr(), format!("husk-init: {error}\n").as_bytes());
    1
}

/// `--channel-fd N`: a socket that is there already, and no machine to set up. The kernel hands PID 1 what it does not
/// understand of its own command line; that is not for us.
fn channel_argument(arguments: &[&CStr]) -> Result<Option<OwnedFd>, InitError> {
    let Some(at) = arguments.iter().position(|it| *it == c"--channel-fd") else { return Ok(None) };
    let value = arguments.get(at + 1).map_or("", |it| it.to_str().unwrap_or("?"));
    let wrong = || InitError::Argument(value.to_owned());
    let number = value.parse().ok().filter(|number| *number >= 0).ok_or_else(wrong)?;
    let socket = sys::adopt(number).map_err(|_| wrong())?;
    rustix::io::ioctl_fionbio(&socket, true).map_err(|_| wrong())?;
    Ok(Some(socket))
}

fn begin(ticks: u64) -> Result<Server, InitError> {
    mount_dev()?;
    let (socket, deadline) = start_connecting()?;
    // The host answers while this is done.
    mount_sys()?;
    identity::loopback();
    let (current, maximum) = (Some(OPEN_FILES.0), Some(OPEN_FILES.1));
    let _ = rustix::process::setrlimit(Resource::Nofile, Rlimit { current, maximum });
    finish_connecting(&socket, deadline)?;
    Ok(Server::new(socket, Place::Guest, ticks)?)
}

/// A device that is not there yet is waited for.
fn start_connecting() -> Result<(OwnedFd, Instant), InitError> {
    let deadline = Instant::now() + CONNECT_PATIENCE;
    loop {
        match sys::vsock_to_host(PORT) {
            Ok(socket) => return Ok((socket, deadline)),
            Err(Errno::NODEV | Errno::NETUNREACH | Errno::ADDRNOTAVAIL) if Instant::now() < deadline => {
                std::thread::sleep(CONNECT_PAUSE);
            }
            Err(error) => return Err(InitError::Connect(error)),
        }
    }
}

fn finish_connecting(socket: &OwnedFd, deadline: Instant) -> Result<(), InitError> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut polled = [PollFd::new(socket, PollFlags::OUT)];
        match rustix::event::poll(&mut polled, Some(&timespec(left))) {
            Ok(0) => return Err(InitError::Connect(Errno::TIMEDOUT)),
            Err(Errno::INTR) => {}
            Err(error) => return Err(InitError::Connect(error)),
            Ok(_) => break,
        }
    }
    match rustix::net::sockopt::socket_error(socket) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) | Err(error) => Err(InitError::Connect(error)),
    }
}
