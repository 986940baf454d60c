//! Which layout was chosen, and whether it goes with who chose it and with the other flags.

use super::check::exclude;
use super::{ArgsError, Flags};
use crate::caller::Caller;
use crate::layout::{FIRECRACKER, Layout};

pub(super) fn layout(flags: &Flags, caller: Caller) -> Result<Layout, ArgsError> {
    match flags.layout.as_deref() {
        Some(FIRECRACKER) => {}
        None | Some("empty") if flags.copy_binary => return Err(ArgsError::Missing("layout firecracker")),
        None | Some("empty") => return Ok(Layout::Empty),
        Some(other) => {
            let (value, allowed) = (other.to_owned(), "empty or firecracker is allowed");
            return Err(ArgsError::Number { flag: "layout", value, allowed });
        }
    }
    if !caller.is_root() {
        let (value, allowed) = (FIRECRACKER.to_owned(), "only empty is possible".to_owned());
        return Err(ArgsError::NotRoot { flag: "layout", value, allowed });
    }
    let excluded = [
        ("control-fd", flags.control_fd.is_some()),
        ("volume-fd", flags.volume_fd.is_some()),
        ("network-socket-fd", flags.network_socket_fd.is_some()),
    ];
    exclude("layout firecracker", &excluded)?;
    Ok(Layout::Firecracker { copy: flags.copy_binary, new_pid: flags.new_pid_ns })
}
