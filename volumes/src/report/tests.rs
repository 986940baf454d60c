use super::*;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

/// What a process of this test is to do: `ROLE CALL`.
const ORDER: &str = "HUSK_TEST_DENIED";

/// The process: behind the role's filter it makes a call that no server makes. The control socket is standard input.
fn obey(order: &str) {
    let (role, call) = order.split_once(' ').unwrap();
    let writable = role == Role::VolumeWritable.name();
    tell(io::stdin().as_fd(), writable).unwrap();
    husk_seccomp::install(if writable { Role::VolumeWritable } else { Role::Volume }).unwrap();
    match call {
        "socket" => drop(std::net::UdpSocket::bind("127.0.0.1:0")),
        "rt_sigaction" => drop(tell(io::stdin().as_fd(), writable)),
        "fchmod" => drop(
            std::fs::File::from(rustix::io::dup(io::stdin()).unwrap())
                .set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600)),
        ),
        _ => {
            // SAFETY: no kernel has this call.
            let _ = unsafe { libc::syscall(0x4000_0000 | 999) };
        }
    }
    // SAFETY: takes any integer and does not return.
    unsafe { libc::_exit(0) }
}

#[test]
fn a_denied_call_ends_the_server_and_is_told_with_role_and_name() {
    const TEST: &str = "report::tests::a_denied_call_ends_the_server_and_is_told_with_role_and_name";
    if let Ok(order) = std::env::var(ORDER) {
        return obey(&order);
    }
    let calls = [
        ("volume socket", "(socket)"),
        ("volume_writable socket", "(socket)"),
        ("volume_writable rt_sigaction", "(rt_sigaction)"),
        ("volume fchmod", "(fchmod)"),
        ("volume nameless", "1073742823 (which has no name"),
    ];
    for (order, named) in calls {
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let (ours, theirs) = pair.unwrap();
        let mut process = Command::new(std::env::current_exe().unwrap());
        process.args(["--exact", TEST]).env(ORDER, order).stdin(theirs).stdout(Stdio::null());
        let status = process.status().unwrap();
        drop(process);
        let mut bytes = [0; 512];
        let (length, _) = recv(&ours, &mut bytes[..], RecvFlags::empty()).unwrap();
        let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
        let role = order.split(' ').next().unwrap();
        let start = format!(
            r#"{{"failed":{{"fault":"bug","message":"volume server: a thread (role {role}) made system call "#
        );
        assert!(text.starts_with(&start) && text.contains(named), "{order}: {text}");
        assert!(text.ends_with(r#", which its filter denies"}}"#), "{order}: {text}");
        assert_eq!(status.code(), Some(1), "{order}");
    }
}

#[test]
fn the_longest_message_fits() {
    let longest = Denied { role: "volume_writable", call: u32::MAX, arch: u32::MAX };
    let mut bytes = [0; MOST];
    let length = message(&mut bytes, &longest);
    assert!((100..MOST).contains(&length) && bytes[..length].ends_with(b"}}"));
}
