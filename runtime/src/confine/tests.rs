use super::*;
use crate::memory::{Backing, DeviceMemory, Image, map};
use crate::report::{Reporter, install_handlers};
use husk_protocol::control::{Fault, FromCell};
use husk_protocol::exit::RuntimeExit;
use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, ftruncate, memfd_create, openat};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use vm_memory::{Bytes, GuestAddress};

#[test]
fn a_cpu_that_is_not_there_is_named() {
    let error = pin("husk-vcpu1", Some(1023)).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("husk-vcpu1 cannot run on CPU 1023"), "{text}");
    assert!(pin("any", None).is_ok());
}

#[test]
fn the_newest_interface_is_the_one_that_the_host_is_judged_by() {
    assert_eq!(NEWEST as u32, husk_protocol::control::LANDLOCK_ABI);
}

#[test]
fn landlock_says_how_much_it_enforces() {
    // On a thread of its own, because it cannot be undone.
    #[expect(clippy::disallowed_methods, reason = "a test's own thread")]
    let thread = std::thread::spawn(|| {
        let landlock = deny_files().unwrap();
        (landlock, std::fs::File::open("/proc/self/status").is_ok())
    });
    let (landlock, opened) = thread.join().unwrap();
    assert_eq!(opened, landlock == Landlock::Absent, "{landlock:?}");
}

/// What a process of this test is to do: `ROLE CALL`.
const ORDER: &str = "HUSK_TEST_DENIED";

/// Makes a call that no filter allows.
fn make(call: &str) {
    // Whatever they return: behind a filter they do not.
    match call {
        "openat" => drop(openat(CWD, "/", OFlags::RDONLY, Mode::empty())),
        "socket" => drop(std::net::UdpSocket::bind("127.0.0.1:0")),
        "rt_sigaction" => drop(crate::sys::signal::handle(libc::SIGSYS, quiet)),
        "seccomp" | "prctl" => drop(husk_seccomp::install(Role::Vcpu)),
        _ => {
            #[expect(unsafe_code, reason = "a call that has no name")]
            // SAFETY: no kernel has this call.
            let _ = unsafe { libc::syscall(0x4000_0000 | 999) };
        }
    }
}

/// What a process does instead of a call: a device's look at a page of guest memory that the host does not have any more.
const GONE: &str = "a-page-that-is-gone";

/// What is to be done for `call` behind the filter, with all that it takes made before.
fn prepared(call: &str) -> Box<dyn FnOnce() + Send> {
    const IMAGE: GuestAddress = GuestAddress(1 << 30);
    if call != GONE {
        let call = call.to_owned();
        return Box::new(move || make(&call));
    }
    let file = memfd_create("image", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, 4096).unwrap();
    let image = Image::map(&file, "gone", 4096, IMAGE).unwrap();
    let memory = map(&[(GuestAddress(0), 4096)], Backing::Anonymous).unwrap();
    let memory = DeviceMemory::new(&memory, &[image]).unwrap();
    ftruncate(&file, 0).unwrap();
    Box::new(move || drop(memory.read_obj::<u8>(IMAGE)))
}

extern "C" fn quiet(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// The process: a thread of the role, made as the runtime makes it, makes the call. The control socket is standard input.
fn obey(order: &str) {
    let (name, call) = order.split_once(' ').unwrap();
    let role = Role::ALL.into_iter().find(|role| role.name() == name).unwrap();
    let reporter = Reporter::new(io::stdin().as_fd().try_clone_to_owned().unwrap());
    install_handlers(&reporter).unwrap();
    let act = prepared(call);
    install(Role::Shell).unwrap();
    if role != Role::Shell {
        install(Role::Build).unwrap();
    }
    match role {
        Role::Shell | Role::Build => act(),
        Role::Control => {
            install(role).unwrap();
            act();
        }
        _ => {
            spawn(role, "husk-denied", None, move |_| act()).unwrap();
            std::thread::park();
        }
    }
    crate::sys::exit_now(0);
}

/// Starts the process as the `test` that calls this; what it said last, and its status.
fn ordered(test: &str, order: &str) -> (FromCell, Option<i32>) {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let name = format!("confine::tests::{test}");
    let mut process = Command::new(std::env::current_exe().unwrap());
    process.args(["--exact", &name]).env(ORDER, order).stdin(theirs).stdout(Stdio::null());
    let status = process.status().unwrap();
    // Its end of the socket goes with it.
    drop(process);
    let mut bytes = [0; 512];
    let (length, _) = recv(&ours, &mut bytes[..], RecvFlags::empty()).unwrap();
    (serde_json::from_slice(&bytes[..length]).unwrap(), status.code())
}

#[test]
fn item_27_a_denied_call_ends_the_process_and_is_told_with_role_and_name() {
    const TEST: &str = "item_27_a_denied_call_ends_the_process_and_is_told_with_role_and_name";
    if let Ok(order) = std::env::var(ORDER) {
        return obey(&order);
    }
    let threads = [Role::Shell, Role::Build].into_iter().chain(Role::RUNNING);
    for role in threads {
        for call in ["openat", "socket", "rt_sigaction", "prctl", "nameless"] {
            // The phases before the guest runs put filters on.
            if call == "prctl" && !Role::RUNNING.contains(&role) {
                continue;
            }
            let (message, status) = ordered(TEST, &format!("{} {call}", role.name()));
            let what = format!("{role:?} {call}: {message:?} {status:?}");
            let FromCell::Failed { fault: Fault::Bug, message } = message else { panic!("{what}") };
            assert!(message.contains(&format!("(role {})", role.name())), "{what}");
            let named =
                if call == "nameless" { "1073742823 (which has no name".into() } else { format!("({call})") };
            assert!(message.contains(&named), "{what}");
            assert_eq!(status, Some(RuntimeExit::Seccomp as i32), "{what}");
        }
    }
}

#[test]
fn item_30_memory_that_the_host_has_no_page_for_ends_the_process_and_is_told_with_the_role() {
    const TEST: &str =
        "item_30_memory_that_the_host_has_no_page_for_ends_the_process_and_is_told_with_the_role";
    if let Ok(order) = std::env::var(ORDER) {
        return obey(&order);
    }
    for role in [Role::Shell, Role::Build].into_iter().chain(Role::RUNNING) {
        let (message, status) = ordered(TEST, &format!("{} {GONE}", role.name()));
        let what = format!("{role:?}: {message:?} {status:?}");
        let FromCell::Failed { fault: Fault::Host, message } = message else { panic!("{what}") };
        let words = ["SIGBUS: memory went away (no huge page left", &format!("(role {})", role.name())];
        assert!(words.iter().all(|word| message.contains(word)), "{what}");
        assert_eq!(status, Some(RuntimeExit::Host as i32), "{what}");
    }
}
