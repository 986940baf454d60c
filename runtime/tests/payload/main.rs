//! The built runtime with guests of a few instructions: what it says on the control socket, and how it exits.
//!
//! Needs /dev/kvm (a software KVM suffices); without it each test says `HUSK-SKIP` and why.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod attacks;
mod cell;
mod devices;
mod driver;
mod function;
mod guest;
mod hostile;
mod over_pci;
mod own;
mod pci;
mod peers;
mod sandbox;
mod tap;

use cell::{Cell, kernel, start, start_beside, start_with};
use husk_protocol::control::{EndReason, Ended, Fault, FromCell, Stage};
use husk_protocol::exit::RuntimeExit;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::Command;

/// Prints "hi\n" on the serial port.
const HELLO: &[u8] = b"\x66\xba\xf8\x03\xb0h\xee\xb0i\xee\xb0\n\xee";
/// The keyboard controller's reset, then a halt.
const RESET: &[u8] = b"\xb0\xfe\xe6\x64\xf4\xeb\xfd";
/// An interrupt table of nothing, then an invalid instruction.
const TRIPLE_FAULT: &[u8] = b"\x0f\x01\x1d\x00\x00\x00\x00\x0f\x0b";
/// An endless loop.
const LOOP: &[u8] = b"\xeb\xfe";

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

const PMEM_SPEC: &str = r#"{"boot-source": {"kernel_image_path": {"fd": 1}, "boot_args": ""}, "machine-config": {"mem_size_mib": 32},
    "pmem": [{"id": "image", "path_on_host": {"fd": 2}}]}"#;
/// Maps 4 GiB, where the first image of a small guest is, one to one: a table at 3 MiB in the fifth place of the one at
/// 0xa000. Leaves the address in rbx and the serial port's in dx.
const MAP_IMAGE: &[u8] = b"\x48\xc7\x04\x25\x20\xa0\x00\x00\x03\x00\x30\x00\
    \x48\xb8\x83\x00\x00\x00\x01\x00\x00\x00\x48\x89\x04\x25\x00\x00\x30\x00\
    \x48\xbb\x00\x00\x00\x00\x01\x00\x00\x00\x66\xba\xf8\x03";
/// Prints the image's first byte.
const PRINT_FIRST: &[u8] = b"\x8a\x03\xee";
/// Writes to it: a byte, four bytes across the end of its file, eight bytes round the caches, and a string of 16.
const WRITE_IMAGE: &[u8] = b"\xc6\x03X\x89\x83\xfe\x0f\x00\x00\x48\x0f\xc3\x43\x08\
    \x48\x89\xdf\xb9\x10\x00\x00\x00\xb0Y\xf3\xaa";
/// Prints a byte of what follows it, plus '0'.
const PRINT_AFTER: &[u8] = b"\x8a\x83\x00\x00\x10\x00\x04\x30\xee";
/// Prints a newline.
const NEWLINE: &[u8] = b"\xb0\n\xee";
/// Reads the image's second page for ever.
const READ_SECOND: &[u8] = b"\x8a\x83\x00\x10\x00\x00\xeb\xf8";

const HOTPLUG_SPEC: &str = r#"{"boot-source": {"kernel_image_path": {"fd": 1}, "boot_args": ""}, "machine-config": {"mem_size_mib": 32},
    "memory-hotplug": {"total_size_mib": 128, "requested_size_mib": 128}}"#;

#[test]
fn memory_that_is_not_plugged_in_ends_the_guest_that_touches_it() {
    // A software KVM goes on, as if no memory were there.
    if !has_virtualization() {
        return;
    }
    // The same place as an image's; what is asked for is not there before it is plugged in.
    for touch in [PRINT_FIRST, WRITE_IMAGE] {
        let code = [HELLO, MAP_IMAGE, touch, RESET];
        let Some(cell) = start_beside(HOTPLUG_SPEC, [kernel(&code)]) else { return };
        let (messages, status) = cell.finish();
        let failed = messages.iter().find_map(|message| match message {
            FromCell::Failed { message, .. } => Some(message.clone()),
            _ => None,
        });
        let message = failed.unwrap_or_else(|| panic!("{messages:?}"));
        assert!(
            message.contains("touched") && message.contains("memory that is not plugged in"),
            "{message}"
        );
        assert_eq!(
            ended(&messages),
            &Ended { reason: EndReason::GuestFault, console_tail: vec!["hi".into()] },
            "{message}"
        );
        // A host before Linux 6.8 does not say which address it was, so it may be the host's fault as well.
        assert!(
            [RuntimeExit::Guest as i32, RuntimeExit::Host as i32].contains(&status.unwrap()),
            "{message}"
        );
    }
}

/// Without, says that the test is skipped.
fn has_virtualization() -> bool {
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let has = processor.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
    if !has {
        println!("HUSK-SKIP hardware virtualization: the processor has none");
    }
    has
}

/// A file of so many bytes, each an 'i', and the same open for reading alone.
fn image(bytes: usize) -> (File, OwnedFd) {
    use std::os::fd::AsRawFd;
    let fd = rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::empty()).unwrap();
    let mut file = File::from(fd);
    file.write_all(&vec![b'i'; bytes]).unwrap();
    let reader = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    (file, reader.into())
}

#[test]
fn a_guest_reads_an_image_and_its_writes_are_lost() {
    let (file, reader) = image(4096);
    let code = [MAP_IMAGE, PRINT_FIRST, WRITE_IMAGE, PRINT_FIRST, PRINT_AFTER, NEWLINE, RESET];
    let Some(cell) = start_beside(PMEM_SPEC, [kernel(&code), reader]) else { return };
    let (messages, status) = cell.finish();
    assert_eq!(ended(&messages), &Ended { reason: EndReason::GuestReset, console_tail: vec!["ii0".into()] });
    assert_eq!(status, Some(RuntimeExit::Ended as i32));
    let mut content = vec![0; 5000];
    let length = std::os::unix::fs::FileExt::read_at(&file, &mut content, 0).unwrap();
    assert!(length == 4096 && content[..4096].iter().all(|&byte| byte == b'i'), "the image was changed");
}

#[test]
fn an_image_that_is_cut_short_is_the_hosts_fault() {
    // A software KVM goes on with the page that it has.
    if !has_virtualization() {
        return;
    }
    let (file, reader) = image(8192);
    let Some(cell) = start_beside(PMEM_SPEC, [kernel(&[MAP_IMAGE, READ_SECOND]), reader]) else { return };
    cell.entered();
    file.set_len(4096).unwrap();
    let (messages, status) = cell.finish();
    let failed = messages.iter().find_map(|message| match message {
        FromCell::Failed { fault, message } => Some((*fault, message.clone())),
        _ => None,
    });
    let (fault, message) = failed.unwrap_or_else(|| panic!("{messages:?}"));
    assert!(fault == Fault::Host && message.contains("a pmem image cut short"), "{message}");
    assert_eq!(status, Some(RuntimeExit::Host as i32));
}
