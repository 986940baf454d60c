//! The receiving side of the control socket.
//!
//! Owns the buffer of one message. Refuses messages that are cut, malformed or larger than the protocol allows, naming the key.
//! Invariant: every descriptor that arrives is either returned or closed, and carries close-on-exec.

use husk_protocol::control::{MAX_FILES, MAX_MESSAGE, ToCell};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

/// A message of husk's cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The socket failed.
    #[error("the control socket: {0}")]
    Receive(#[from] io::Error),
    /// The message was cut.
    #[error("a control message is longer than {MAX_MESSAGE} bytes, or has more than {MAX_FILES} descriptors")]
    TooLong,
    /// It is not of the protocol.
    #[error("a control message is malformed at {path}: {source}")]
    Malformed {
        /// Path of the key.
        path: String,
        /// What is wrong there.
        source: serde_json::Error,
    },
}

/// One message with what came beside it.
#[derive(Debug)]
pub struct Received {
    /// The message.
    pub message: ToCell,
    /// Its descriptors, in order.
    pub descriptors: Vec<OwnedFd>,
}

/// Takes the next message; waits for one unless `now`. `None`: husk has closed its end.
///
/// # Errors
/// See [`ControlError`]; with `now`, `WouldBlock` if there is none.
pub fn receive(control: impl AsFd, now: bool) -> Result<Option<Received>, ControlError> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let wait = if now { RecvFlags::DONTWAIT } else { RecvFlags::empty() };
    let result = loop {
        let mut buffers = [IoSliceMut::new(&mut bytes)];
        match recvmsg(&control, &mut buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC | wait) {
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Ok(None),
            other => break other.map_err(io::Error::from)?,
        }
    };
    // Taken before anything is refused: what is dropped is closed.
    let descriptors: Vec<OwnedFd> = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    if result.bytes == 0 {
        return Ok(None);
    }
    // The buffer is rounded up, so one descriptor too many may fit it.
    let cut = result.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    if cut || descriptors.len() > MAX_FILES {
        return Err(ControlError::TooLong);
    }
    let message = parse(&bytes[..result.bytes])?;
    Ok(Some(Received { message, descriptors }))
}

fn parse(bytes: &[u8]) -> Result<ToCell, ControlError> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let message = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        ControlError::Malformed { path, source: error.into_inner() }
    })?;
    json.end().map_err(|source| ControlError::Malformed { path: "its end".into(), source })?;
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
        sendmsg, socketpair,
    };
    use std::io::IoSlice;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    fn send(to: &OwnedFd, bytes: &[u8], descriptors: usize) {
        let null = std::fs::File::open("/dev/null").unwrap();
        let borrowed = vec![null.as_fd(); descriptors];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(descriptors == 0 || ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)));
        sendmsg(to, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::empty()).unwrap();
    }

    #[test]
    fn a_message_comes_with_its_descriptors() {
        let (ours, theirs) = pair();
        send(&theirs, br#"{"vsock_connected": {"request": 7, "connected": true}}"#, 1);
        let received = receive(&ours, false).unwrap().unwrap();
        assert_eq!(received.descriptors.len(), 1);
        assert!(matches!(received.message, ToCell::VsockConnected { request: 7, connected: true }));
    }

    #[test]
    fn the_end_is_not_an_error_and_nothing_there_is_would_block() {
        let (ours, theirs) = pair();
        let error = receive(&ours, true).unwrap_err();
        assert!(
            matches!(&error, ControlError::Receive(e) if e.kind() == io::ErrorKind::WouldBlock),
            "{error}"
        );
        drop(theirs);
        assert!(receive(&ours, false).unwrap().is_none());
    }

    #[test]
    fn what_is_too_long_is_refused_and_its_descriptors_closed() {
        let (ours, theirs) = pair();
        send(&theirs, &vec![b' '; MAX_MESSAGE + 1], 0);
        assert!(matches!(receive(&ours, false), Err(ControlError::TooLong)));
        send(&theirs, b"\"stop\"", MAX_FILES + 1);
        assert!(matches!(receive(&ours, false), Err(ControlError::TooLong)));
        send(&theirs, b"\"stop\"", 0);
        assert!(matches!(receive(&ours, false).unwrap().unwrap().message, ToCell::Stop));
    }

    #[test]
    fn a_wrong_key_is_named_with_its_path() {
        let error = |text: &[u8]| parse(text).unwrap_err().to_string();
        let text = br#"{"start": {"spec": {"boot-source": {"kernel_image_path": {"fd": 1}},
                       "machine-config": {"vcpu_count": "two"}}}}"#;
        let message = error(text);
        assert!(message.contains("machine-config.vcpu_count"), "{message}");
        assert!(message.contains("string \"two\""), "{message}");
        assert!(error(br#"{"start": {"spec": {"boot-source": {"kernel": 1}}}}"#).contains("`kernel`"));
        assert!(error(b"\"stop\" 1").contains("its end"));
        assert!(error(b"\xff\xfe").contains("malformed"));
    }

    #[test]
    fn deep_nesting_is_an_error_not_a_stack_overflow() {
        let mut text = b"{\"start\":".to_vec();
        text.extend(std::iter::repeat_n(b'[', 60_000));
        assert!(parse(&text).is_err());
    }

    #[test]
    fn numbers_that_do_not_fit_are_errors() {
        let text = br#"{"start": {"spec": {"boot-source": {"kernel_image_path": {"fd": 1}},
                       "machine-config": {"mem_size_mib": 18446744073709551616}}}}"#;
        assert!(parse(text).unwrap_err().to_string().contains("mem_size_mib"));
    }
}
