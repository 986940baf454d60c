//! Says, in one JSON object on descriptor 3, what a program sees from inside a cell. With `--wait` it then waits for
//! the end of that socket; with `--report FILE` it says it there, and then waits for a line of standard input if that is a
//! pipe. The tests of the jailer execute it.

#![expect(unsafe_code, reason = "asks the kernel what no safe function asks")]

use serde_json::{Value, json};
use std::os::fd::{AsRawFd, BorrowedFd};

fn main() {
    let seen = json!({
        "arguments": std::env::args().collect::<Vec<_>>(),
        "environment": std::env::vars_os().count(),
        "descriptors": (0..4096).filter(|&fd| is_open(fd)).collect::<Vec<_>>(),
        "standard": (0..3).map(device).collect::<Vec<_>>(),
        "uids": ids(libc::getresuid),
        "gids": ids(libc::getresgid),
        "groups": rustix::process::getgroups().map(|groups| groups.len()).unwrap_or(99),
        "capabilities": capabilities(),
        "bounding": (0..64).filter(|&number| in_bounding_set(number)).count(),
        "no_new_privs": rustix::thread::no_new_privs().ok(),
        "dies_with_parent": rustix::process::parent_process_death_signal().ok().flatten().map(|signal| signal.as_raw()),
        "pid": std::process::id(),
        "parent": rustix::process::getppid().map(rustix::process::Pid::as_raw_pid),
        "session_is_own": session() == std::process::id().cast_signed(),
        "host": rustix::system::uname().nodename().to_string_lossy(),
        "core": rustix::process::getrlimit(rustix::process::Resource::Core).current,
        "files": rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
        "umask": rustix::process::umask(rustix::fs::Mode::empty()).as_raw_mode(),
        "root": std::fs::read_dir("/").map(Iterator::count).unwrap_or(99),
        "above": std::fs::read_dir("..").map(Iterator::count).unwrap_or(99),
        "directory": std::env::current_dir().ok(),
        "volume": std::fs::read("/volume/file").ok().map(|bytes| bytes.len()),
        "volume_write": std::fs::write("/volume/new", "x").map_err(|error| error.raw_os_error()).err(),
        "write": std::fs::write("/x", "x").map_err(|error| error.raw_os_error()).err(),
        "make": std::fs::create_dir("/x").map_err(|error| error.raw_os_error()).err(),
        "mount": format!("{:?}", rustix::fs::statvfs("/").map(|status| status.f_flag)),
        "interfaces": interfaces(),
        "signals_not_default": signals_not_default(),
        "signals_blocked": signals_blocked(),
        "names": names("/").into_iter().chain(names("/dev")).chain(names("/dev/net")).collect::<Vec<_>>(),
        "mount_of_nodes": format!("{:?}", rustix::fs::statvfs("/dev").map(|status| status.f_flag)),
        "attempts": attempts(),
    });
    if let Some(path) = std::env::args().skip_while(|word| word != "--report").nth(1) {
        // Whoever waits for it sees all of it or nothing: he waits for its newline.
        std::fs::write(path, format!("{seen}\n")).ok();
        let _ = std::io::stdin().read_line(&mut String::new());
        return;
    }
    // SAFETY: descriptor 3 is the control socket by contract and stays open to the end.
    let control = unsafe { BorrowedFd::borrow_raw(3) };
    let text = seen.to_string();
    let _ = rustix::net::send(control, text.as_bytes(), rustix::net::SendFlags::NOSIGNAL);
    if std::env::args().any(|word| word == "--wait") {
        let _ = rustix::net::recv(control, &mut [0_u8; 16][..], rustix::net::RecvFlags::empty());
    }
}

/// What is in a directory: path, kind, mode, owner, group and device number.
fn names(directory: &str) -> Vec<Value> {
    use std::os::unix::fs::MetadataExt;
    let mut entries: Vec<_> = std::fs::read_dir(directory).into_iter().flatten().flatten().collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    let about = |entry: &std::fs::DirEntry| {
        let status = entry.metadata().ok()?;
        let number = status.rdev();
        let device = (rustix::fs::major(number), rustix::fs::minor(number));
        let mode = format!("{:o}", status.mode());
        Some(json!([entry.path(), mode, status.uid(), status.gid(), device]))
    };
    entries.iter().filter_map(about).collect()
}

/// What came of things that a program in a root of its own may want to do: an error's number, or null.
fn attempts() -> Value {
    use rustix::fs::{CWD, FileType, Mode, mknodat, open, symlinkat, unlink};
    let number = |result: rustix::io::Result<()>| result.err().map(rustix::io::Errno::raw_os_error);
    let make = |path: &str, kind, device| {
        number(mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), device).and_then(|()| unlink(path)))
    };
    let read_write = |path: &str| number(open(path, rustix::fs::OFlags::RDWR, Mode::empty()).map(drop));
    json!({
        "make a FIFO": make("/fifo", FileType::Fifo, 0),
        "make a node": make("/node", FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
        "make a node among the nodes": make("/dev/node", FileType::Fifo, 0),
        "make a link": number(symlinkat("/", CWD, "/link")),
        "open /dev/urandom": read_write("/dev/urandom"),
        "open /proc": read_write("/proc/self/status"),
        "remove a node": number(unlink("/dev/kvm")),
        "execute": execute("/run"),
        "signal the parent": number(rustix::process::getppid().map_or(Ok(()), rustix::process::test_kill_process)),
        "become root": number(rustix::thread::set_thread_uid(rustix::thread::Uid::ROOT)),
        "listen": std::net::TcpListener::bind("127.0.0.1:0").err().and_then(|error| error.raw_os_error()),
        "make a socket": number(socket("/run/socket")),
    })
}

/// Executes a file that everybody might execute, made in `directory`.
fn execute(directory: &str) -> Option<i32> {
    use std::os::unix::fs::PermissionsExt;
    let path = format!("{directory}/program");
    std::fs::write(&path, "").ok()?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).ok()?;
    let outcome = std::process::Command::new(&path).status().err().and_then(|error| error.raw_os_error());
    std::fs::remove_file(&path).ok()?;
    outcome
}

fn socket(path: &str) -> rustix::io::Result<()> {
    let listener = std::os::unix::net::UnixListener::bind(path);
    let errno =
        |error: std::io::Error| rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO);
    listener.map(drop).map_err(errno)?;
    rustix::fs::unlink(path)
}

fn is_open(fd: i32) -> bool {
    // SAFETY: asks for flags only.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// Major and minor number of the device behind a descriptor.
fn device(fd: i32) -> Value {
    // SAFETY: 0 to 2 are open in any process of std.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let number = rustix::fs::fstat(fd).map(|status| status.st_rdev).unwrap_or_default();
    json!([rustix::fs::major(number), rustix::fs::minor(number)])
}

fn ids(ask: unsafe extern "C" fn(*mut u32, *mut u32, *mut u32) -> i32) -> [u32; 3] {
    let [mut real, mut effective, mut saved] = [0; 3];
    // SAFETY: three numbers that outlive the call.
    unsafe { ask(&raw mut real, &raw mut effective, &raw mut saved) };
    [real, effective, saved]
}

/// 0 where its leader is outside of the namespace of process ids.
fn session() -> i32 {
    // SAFETY: plain numbers.
    unsafe { libc::getsid(0) }
}

fn capabilities() -> u64 {
    let sets = rustix::thread::capabilities(None);
    sets.map(|sets| (sets.effective | sets.permitted | sets.inheritable).bits()).unwrap_or(u64::MAX)
}

fn in_bounding_set(number: u64) -> bool {
    let capability = rustix::thread::CapabilitySet::from_bits_retain(1 << number);
    rustix::thread::capability_is_in_bounding_set(capability).unwrap_or(false)
}

/// Names and whether up, of all network interfaces.
fn interfaces() -> Vec<(String, bool)> {
    let Ok(socket) = std::net::UdpSocket::bind("0.0.0.0:0") else { return vec![("no socket".into(), true)] };
    let mut found = Vec::new();
    for index in 1..16 {
        let Ok(name) = rustix::net::netdevice::index_to_name(&socket, index) else { continue };
        // SAFETY: all zero is a request without a name.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        // SAFETY: the request outlives the call, which writes into it.
        unsafe { libc::syscall(libc::SYS_ioctl, socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) };
        // SAFETY: the call above has stored flags.
        let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
        found.push((name, flags & libc::IFF_UP != 0));
    }
    found
}

/// Signals that are ignored or handled, beside those that std sets up itself.
fn signals_not_default() -> Vec<i32> {
    let own = [libc::SIGPIPE, libc::SIGSEGV, libc::SIGBUS];
    (1..=31).filter(|signal| !own.contains(signal) && !is_default(*signal)).collect()
}

fn is_default(signal: i32) -> bool {
    // SAFETY: all zero is a valid action to be written over.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: asks only; the action outlives the call.
    unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) };
    action.sa_sigaction == libc::SIG_DFL
}

fn signals_blocked() -> usize {
    // SAFETY: all zero is a set to be written over.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: asks only; the set outlives the call.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut set) };
    // SAFETY: the set was written by the call above.
    (1..=64).filter(|&signal| unsafe { libc::sigismember(&raw const set, signal) } == 1).count()
}
