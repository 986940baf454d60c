//! `husk-fs`: serves the directory /volume, in the cell that the jailer built, to the guest behind descriptor 4.
//!
//! Its arguments may be `rw`, and `single-owner`: every user of the guest makes files as the server's own. It ends when the socket does; its last words, if it has any, go to the control socket, also when its filter denies it a call.

use husk_fs::{Volume, confine, serve};
use rustix::net::{SendFlags, send};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

/// Where the jailer puts the directory.
const DIRECTORY: &str = "/volume";

fn main() -> ExitCode {
    let has = |flag: &str| std::env::args_os().skip(1).any(|word| word == flag);
    let (writable, single_owner) = (has("rw"), has("single-owner"));
    let [control, socket] = match husk_fs::inherited::descriptors() {
        Some(descriptors) => descriptors,
        None => return ExitCode::FAILURE,
    };
    // Open until the end of the process: the handler has but its number.
    let told = husk_fs::report::tell(control.as_fd(), writable).map_err(Into::into);
    match told.and_then(|()| run(socket, writable, single_owner)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = error.to_string().replace(['"', '\\'], "'");
            let line = format!(r#"{{"failed":{{"fault":"host","message":"volume server: {text}"}}}}"#);
            let _ = send(control, line.as_bytes(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
            ExitCode::FAILURE
        }
    }
}

fn run(socket: OwnedFd, writable: bool, single_owner: bool) -> Result<(), Box<dyn std::error::Error>> {
    // Executed from a descriptor, it would be called by its number. A name is for people; without it all is the same. It
    // tells the filter, as those of the runtime's threads do.
    let _unnamed = rustix::thread::set_name(if writable { c"husk-fs-rw" } else { c"husk-fs" });
    let volume = Volume::new("/", writable)?.with_single_owner(single_owner);
    confine::enter(DIRECTORY, writable)?;
    serve(UnixStream::from(socket), volume)?;
    Ok(())
}
