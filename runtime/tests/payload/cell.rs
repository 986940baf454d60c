//! A runtime of its own, and the test at the other end of its control socket.

use husk_protocol::control::{FromCell, Stage};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    recv, sendmsg, socketpair,
};
use std::fs::File;
use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Where the image's only segment is loaded and entered.
pub(crate) const BASE: u64 = 0x10_0000;
const RUNTIME: &str = env!("CARGO_BIN_EXE_husk-runtime");

/// An ELF kernel whose code is `code`.
pub(crate) fn kernel(code: &[&[u8]]) -> OwnedFd {
    let code = code.concat();
    let mut image = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    for word in [BASE, 64, 0] {
        image.extend(word.to_le_bytes());
    }
    image.extend([0; 4]);
    image.extend([64_u16, 56, 1, 0, 0, 0].into_iter().flat_map(u16::to_le_bytes));
    image.extend([1_u32, 7].into_iter().flat_map(u32::to_le_bytes));
    let length = code.len() as u64;
    image.extend([120, BASE, BASE, length, length, 0x1000].into_iter().flat_map(u64::to_le_bytes));
    image.extend(&code);
    let fd = rustix::fs::memfd_create("kernel", rustix::fs::MemfdFlags::empty()).unwrap();
    File::from(fd.try_clone().unwrap()).write_all(&image).unwrap();
    fd
}

/// A runtime that was sent its start message.
pub(crate) struct Cell {
    pub(crate) control: OwnedFd,
    child: Child,
}

/// `None` (and a line that says so) where there is no KVM.
pub(crate) fn start(spec: &str, kernel: OwnedFd) -> Option<Cell> {
    start_beside(spec, [kernel])
}

/// The same, with whatever files come after /dev/kvm.
pub(crate) fn start_beside<const N: usize>(spec: &str, files: [OwnedFd; N]) -> Option<Cell> {
    let kvm = match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(kvm) => kvm,
        Err(error) => {
            println!("HUSK-SKIP /dev/kvm: {error}");
            return None;
        }
    };
    let descriptors: Vec<OwnedFd> = std::iter::once(kvm.into()).chain(files).collect();
    Some(start_with(spec, &descriptors))
}

pub(crate) fn start_with(spec: &str, descriptors: &[OwnedFd]) -> Cell {
    start_by(Command::new(RUNTIME), spec, descriptors)
}

/// Started by `nice`, so that it takes what others leave.
pub(crate) fn start_humbly(spec: &str, descriptors: &[OwnedFd]) -> Cell {
    let mut command = Command::new("nice");
    command.args(["-n", "5", RUNTIME]);
    start_by(command, spec, descriptors)
}

fn start_by(mut command: Command, spec: &str, descriptors: &[OwnedFd]) -> Cell {
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let (control, theirs) = pair;
    let message = format!(r#"{{"start": {{"spec": {spec}}}}}"#);
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)));
    sendmsg(&control, &[IoSlice::new(message.as_bytes())], &mut ancillary, SendFlags::empty()).unwrap();
    // The child's copy has no close-on-exec; it stays open here until the child has its own.
    let inherited = rustix::io::dup(&theirs).unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&inherited).to_string();
    let child = command.args(["--control-fd", &number]).spawn().unwrap();
    Cell { control, child }
}

impl Cell {
    fn next(&self) -> Option<FromCell> {
        let mut buffer = vec![0; 64 * 1024];
        let (length, _) = recv(&self.control, &mut buffer[..], RecvFlags::empty()).unwrap();
        (length > 0).then(|| serde_json::from_slice(&buffer[..length]).unwrap())
    }

    pub(crate) fn say(&self, text: &str) {
        rustix::net::send(&self.control, text.as_bytes(), SendFlags::empty()).unwrap();
    }

    /// The same to a runtime that may have ended.
    pub(crate) fn say_if_there(&self, text: &str) {
        let _ = rustix::net::send(&self.control, text.as_bytes(), SendFlags::NOSIGNAL);
    }

    /// All messages to the end, and the exit status.
    pub(crate) fn finish(mut self) -> (Vec<FromCell>, Option<i32>) {
        let mut messages = Vec::new();
        while let Some(message) = self.next() {
            messages.push(message);
        }
        (messages, self.wait())
    }

    pub(crate) fn wait(&mut self) -> Option<i32> {
        let patience = Instant::now() + Duration::from_secs(60);
        while Instant::now() < patience {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.child.kill().unwrap();
        panic!("the runtime did not end");
    }

    /// Reads until the guest has been entered.
    pub(crate) fn entered(&self) {
        while let Some(message) = self.next() {
            if matches!(message, FromCell::Stage { stage: Stage::KernelEntry, .. }) {
                return;
            }
            assert!(!matches!(message, FromCell::Failed { .. }), "{message:?}");
        }
        panic!("the guest was not entered");
    }
}
