//! `husk-fs`: serves the directory /volume, in the cell that the jailer built, to the guest behind descriptor 4.
//!
//! One of its arguments may be `rw`. It ends when the socket does; its last words, if it has any, go to the control socket.

use husk_fs::{Volume, confine, serve};
use rustix::net::{SendFlags, send};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

/// Where the jailer puts the directory.
const DIRECTORY: &str = "/volume";

fn main() -> ExitCode {
    let writable = std::env::args_os().skip(1).any(|word| word == "rw");
    let [control, socket] = match husk_fs::inherited::descriptors() {
        Some(descriptors) => descriptors,
        None => return ExitCode::FAILURE,
    };
    match run(socket, writable) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = error.to_string().replace(['"', '\\'], "'");
            let line = format!(r#"{{"failed":{{"fault":"host","message":"volume server: {text}"}}}}"#);
            let _ = send(control, line.as_bytes(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
            ExitCode::FAILURE
        }
    }
}

fn run(socket: OwnedFd, writable: bool) -> Result<(), Box<dyn std::error::Error>> {
    let volume = Volume::new("/", writable)?;
    confine::enter(DIRECTORY, writable)?;
    serve(UnixStream::from(socket), volume)?;
    Ok(())
}
