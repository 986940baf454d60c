//! What the peer's guest and the benchmark say to each other on one vsock connection.
//!
//! The guest says hello (two stamps of its time-stamp counter), the benchmark sends a command, and everything after that
//! is the command's output as it comes. Refuses a command that is empty or longer than [`MAX_COMMAND`]. Invariant: both
//! ends are built from this file.

use std::io::{self, Read, Write};

/// The port on the host that the guest connects to.
pub const PORT: u32 = 52;
/// Longest command, bytes, with its separators.
pub const MAX_COMMAND: usize = 4096;

/// The guest's first words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// The guest's counter as the first thing in its PID 1.
    pub init: u64,
    /// The guest's counter once its file systems are mounted and it is connected.
    pub connected: u64,
}

impl Hello {
    /// Sends it.
    ///
    /// # Errors
    /// The connection's.
    pub fn send(self, to: &mut impl Write) -> io::Result<()> {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.init.to_le_bytes());
        bytes[8..].copy_from_slice(&self.connected.to_le_bytes());
        to.write_all(&bytes)
    }

    /// Receives it.
    ///
    /// # Errors
    /// The connection's.
    pub fn receive(from: &mut impl Read) -> io::Result<Self> {
        let mut half = || {
            let mut bytes = [0; 8];
            from.read_exact(&mut bytes).map(|()| u64::from_le_bytes(bytes))
        };
        Ok(Self { init: half()?, connected: half()? })
    }
}

/// Sends a command: a little-endian length and the arguments, each followed by a NUL.
///
/// # Errors
/// The command is empty or too long, or the connection's.
pub fn send_command(to: &mut impl Write, args: &[&str]) -> io::Result<()> {
    let mut body = Vec::new();
    for arg in args {
        body.extend_from_slice(arg.as_bytes());
        body.push(0);
    }
    if body.is_empty() || body.len() > MAX_COMMAND {
        return Err(io::Error::other(format!(
            "a command of {} bytes: 1 to {MAX_COMMAND} are allowed",
            body.len()
        )));
    }
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    let mut message = length.to_le_bytes().to_vec();
    message.append(&mut body);
    to.write_all(&message)
}

/// Receives a command.
///
/// # Errors
/// Its length is not allowed, it is no text, or the connection's.
pub fn receive_command(from: &mut impl Read) -> io::Result<Vec<String>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_le_bytes(length)).map_err(io::Error::other)?;
    if length == 0 || length > MAX_COMMAND {
        return Err(io::Error::other(format!("a command of {length} bytes: 1 to {MAX_COMMAND} are allowed")));
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    let text = String::from_utf8(body).map_err(io::Error::other)?;
    Ok(text.split_terminator('\0').map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_received() {
        let mut pipe = Vec::new();
        Hello { init: 7, connected: 9 }.send(&mut pipe).unwrap();
        send_command(&mut pipe, &["/bin/busybox", "echo", "", "hi"]).unwrap();
        let mut pipe = pipe.as_slice();
        assert_eq!(Hello::receive(&mut pipe).unwrap(), Hello { init: 7, connected: 9 });
        assert_eq!(receive_command(&mut pipe).unwrap(), ["/bin/busybox", "echo", "", "hi"]);
    }

    #[test]
    fn a_command_has_bounds() {
        assert!(send_command(&mut Vec::new(), &[]).is_err());
        assert!(receive_command(&mut u32::MAX.to_le_bytes().as_slice()).is_err());
        assert!(receive_command(&mut [0u8; 4].as_slice()).is_err());
    }
}
