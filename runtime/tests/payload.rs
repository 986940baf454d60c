//! The built runtime with guests of a few instructions: what it says on the control socket, and how it exits.
//!
//! Needs /dev/kvm (a software KVM suffices); without it each test says `HUSK-SKIP` and why.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use husk_protocol::control::{EndReason, Ended, Fault, FromCell, Stage};
use husk_protocol::exit::RuntimeExit;
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

const BASE: u64 = 0x10_0000;
/// Prints "hi\n" on the serial port.
const HELLO: &[u8] = b"\x66\xba\xf8\x03\xb0h\xee\xb0i\xee\xb0\n\xee";
/// The keyboard controller's reset, then a halt.
const RESET: &[u8] = b"\xb0\xfe\xe6\x64\xf4\xeb\xfd";
/// An interrupt table of nothing, then an invalid instruction.
const TRIPLE_FAULT: &[u8] = b"\x0f\x01\x1d\x00\x00\x00\x00\x0f\x0b";
/// An endless loop.
const LOOP: &[u8] = b"\xeb\xfe";

/// An ELF kernel whose code is `code`.
fn kernel(code: &[&[u8]]) -> OwnedFd {
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
struct Cell {
    control: OwnedFd,
    child: Child,
}

/// `None` (and a line that says so) where there is no KVM.
fn start(spec: &str, kernel: OwnedFd) -> Option<Cell> {
    let kvm = match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(kvm) => kvm,
        Err(error) => {
            println!("HUSK-SKIP /dev/kvm: {error}");
            return None;
        }
    };
    Some(start_with(spec, &[kvm.into(), kernel]))
}

fn start_with(spec: &str, descriptors: &[OwnedFd]) -> Cell {
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
    let child =
        Command::new(env!("CARGO_BIN_EXE_husk-runtime")).args(["--control-fd", &number]).spawn().unwrap();
    Cell { control, child }
}

impl Cell {
    fn next(&self) -> Option<FromCell> {
        let mut buffer = vec![0; 64 * 1024];
        let (length, _) = recv(&self.control, &mut buffer[..], RecvFlags::empty()).unwrap();
        (length > 0).then(|| serde_json::from_slice(&buffer[..length]).unwrap())
    }

    fn say(&self, text: &str) {
        rustix::net::send(&self.control, text.as_bytes(), SendFlags::empty()).unwrap();
    }

    /// All messages to the end, and the exit status.
    fn finish(mut self) -> (Vec<FromCell>, Option<i32>) {
        let mut messages = Vec::new();
        while let Some(message) = self.next() {
            messages.push(message);
        }
        (messages, self.wait())
    }

    fn wait(&mut self) -> Option<i32> {
        let patience = Instant::now() + Duration::from_secs(20);
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
    fn entered(&self) {
        while let Some(message) = self.next() {
            if matches!(message, FromCell::Stage { stage: Stage::KernelEntry, .. }) {
                return;
            }
            assert!(!matches!(message, FromCell::Failed { .. }), "{message:?}");
        }
        panic!("the guest was not entered");
    }
}

const SPEC: &str = r#"{"boot-source": {"kernel_image_path": {"fd": 1}, "boot_args": ""}, "machine-config": {"mem_size_mib": 32}}"#;

fn ended(messages: &[FromCell]) -> &Ended {
    match messages.last() {
        Some(FromCell::Ended(ended)) => ended,
        other => panic!("{other:?} of {messages:?}"),
    }
}

#[test]
fn a_guest_prints_and_resets() {
    let Some(cell) = start(SPEC, kernel(&[HELLO, RESET])) else { return };
    let (messages, status) = cell.finish();
    assert_eq!(ended(&messages), &Ended { reason: EndReason::GuestReset, console_tail: vec!["hi".into()] });
    assert_eq!(status, Some(RuntimeExit::Ended as i32));
    let stages: Vec<(Stage, u64)> = messages
        .iter()
        .filter_map(|message| match message {
            FromCell::Stage { stage, at_ns } => Some((*stage, *at_ns)),
            _ => None,
        })
        .collect();
    let names: Vec<Stage> = stages.iter().map(|(stage, _)| *stage).collect();
    assert_eq!(names, [Stage::Runtime, Stage::Built, Stage::Loaded, Stage::KernelEntry]);
    assert!(stages.is_sorted_by_key(|(_, at)| *at));
    assert!(messages.iter().any(|message| matches!(message, FromCell::GuestClock { hz: 1_000_000.., .. })));
}

#[test]
fn a_triple_fault_is_a_shutdown() {
    let Some(cell) = start(SPEC, kernel(&[HELLO, TRIPLE_FAULT])) else { return };
    let (messages, status) = cell.finish();
    assert_eq!(ended(&messages).reason, EndReason::GuestShutdown);
    assert_eq!(status, Some(RuntimeExit::Ended as i32));
}

#[test]
fn an_endless_guest_stops_when_asked() {
    let Some(cell) = start(SPEC, kernel(&[LOOP])) else { return };
    cell.entered();
    cell.say("\"stop\"");
    let (messages, status) = cell.finish();
    assert_eq!(ended(&messages).reason, EndReason::Requested);
    assert_eq!(status, Some(RuntimeExit::Ended as i32));
}

#[test]
fn an_endless_guest_ends_with_husk() {
    let Some(mut cell) = start(SPEC, kernel(&[LOOP])) else { return };
    cell.entered();
    let (other, _end) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    drop(std::mem::replace(&mut cell.control, other));
    assert_eq!(cell.wait(), Some(RuntimeExit::Ended as i32));
}

#[test]
fn a_second_start_ends_the_sandbox_by_name() {
    let Some(cell) = start(SPEC, kernel(&[LOOP])) else { return };
    cell.entered();
    cell.say(&format!(r#"{{"start": {{"spec": {SPEC}}}}}"#));
    let (messages, status) = cell.finish();
    let Some(FromCell::Failed { fault: Fault::Operator, message }) = messages.last() else {
        panic!("{messages:?}")
    };
    assert!(message.contains("started once"), "{message}");
    assert_eq!(status, Some(RuntimeExit::Operator as i32));
}

/// The last message of a runtime that refuses to start.
fn refusal(cell: Cell) -> (Fault, String) {
    let (mut messages, status) = cell.finish();
    match messages.pop() {
        Some(FromCell::Failed { fault, message }) => {
            let expected = if fault == Fault::Host { RuntimeExit::Host } else { RuntimeExit::Operator };
            assert_eq!(status, Some(expected as i32), "{message}");
            (fault, message)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_cannot_be_is_refused_by_key() {
    let null = || OwnedFd::from(File::options().read(true).write(true).open("/dev/null").unwrap());
    let refused = |spec: &str, descriptors: &[OwnedFd]| refusal(start_with(spec, descriptors));
    let (fault, message) =
        refused(r#"{"boot-source": {"kernel_image_path": {"fd": 1}}, "cpu": 1}"#, &[null()]);
    assert_eq!(fault, Fault::Operator);
    assert!(message.contains("unknown field `cpu`"), "{message}");
    let spec = r#"{"boot-source": {"kernel_image_path": {"fd": 1}}, "machine-config": {"vcpu_count": 0}}"#;
    assert!(refused(spec, &[null()]).1.starts_with("machine-config.vcpu_count: 0"));
    assert!(
        refused(SPEC, &[null()]).1.starts_with("boot-source.kernel_image_path: there is no descriptor 1")
    );
    let (fault, message) = refused(SPEC, &[null(), kernel(&[LOOP])]);
    assert_eq!(fault, Fault::Operator);
    assert!(message.contains("is not /dev/kvm"), "{message}");
}

#[test]
fn a_pin_to_a_cpu_that_is_not_there_is_refused() {
    let spec = r#"{"boot-source": {"kernel_image_path": {"fd": 1}}, "placement": {"pin": [1023]}}"#;
    let Some(cell) = start(spec, kernel(&[LOOP])) else { return };
    let (fault, message) = refusal(cell);
    assert_eq!(fault, Fault::Operator);
    assert!(message.contains("husk-vcpu0 cannot run on CPU 1023"), "{message}");
}

#[test]
fn a_descriptor_that_is_no_socket_is_a_clear_error() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_husk-runtime")).args(["--control-fd", "999"]).output().unwrap();
    assert_eq!(output.status.code(), Some(RuntimeExit::Operator as i32));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--control-fd 999"));
}
