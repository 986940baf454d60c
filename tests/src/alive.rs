//! Everything that attempts aim at, alive while they are made.

use crate::attempts::Targets;
use crate::handed::Files;
use crate::rootfs::sibling;
use crate::scratch::Scratch;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use std::fs::{File, OpenOptions, Permissions, set_permissions};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::{Child, Command, Stdio};

/// See the module. Dropping it ends it.
pub struct Alive {
    targets: Targets,
    victim: Child,
    program: File,
    image: File,
    disk: File,
    terminal: OwnedFd,
    kvm: Option<File>,
    _terminals_other_end: OwnedFd,
    _unix: UnixListener,
    _abstract: UnixListener,
    _inet: TcpListener,
    _scratch: Scratch,
}

impl Alive {
    /// With a victim that is this user's.
    #[must_use]
    pub fn new() -> Self {
        Self::with_victim(Command::new("sleep"))
    }

    /// `sleep` is the start of the process that attempts aim at.
    ///
    /// # Panics
    /// Something of it cannot be made.
    #[must_use]
    pub fn with_victim(sleep: Command) -> Self {
        Self::make(sleep).unwrap_or_else(|error| panic!("what attempts aim at: {error}"))
    }

    fn make(mut sleep: Command) -> std::io::Result<Self> {
        let scratch = Scratch::new();
        // Whoever runs in a cell could come here if he saw it.
        set_permissions(scratch.path(), Permissions::from_mode(0o777))?;
        let (file, disk) = (scratch.file("secret", &[b'x'; 4096]), scratch.file("disk", &[0; 1 << 16]));
        for path in [&file, &disk] {
            set_permissions(path, Permissions::from_mode(0o666))?;
        }
        let socket = scratch.name("socket");
        let abstract_name = format!("husk-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(abstract_name.as_bytes())?;
        let inet = TcpListener::bind("127.0.0.1:0")?;
        let program = sibling("husk-probe");
        let (master, terminal) = terminal()?;
        let victim = sleep.arg("10000").stdin(Stdio::null()).spawn()?;
        Ok(Self {
            targets: Targets {
                pid: victim.id().cast_signed(),
                new: scratch.name("new"),
                port: inet.local_addr()?.port(),
                program: program.to_string_lossy().into_owned(),
                segment: segment(),
                socket: socket.clone(),
                abstract_name,
                file: file.clone(),
            },
            victim,
            program: File::open(program)?,
            image: File::open(file)?,
            disk: OpenOptions::new().read(true).write(true).open(disk)?,
            terminal,
            kvm: OpenOptions::new().read(true).write(true).open("/dev/kvm").ok(),
            _terminals_other_end: master,
            _unix: UnixListener::bind(socket)?,
            _abstract: UnixListener::bind_addr(&address)?,
            _inet: inet,
            _scratch: scratch,
        })
    }

    /// Their names.
    #[must_use]
    pub fn targets(&self) -> &Targets {
        &self.targets
    }

    /// What a probe is handed.
    #[must_use]
    pub fn files(&self) -> Files<'_> {
        let always = [self.program.as_fd(), self.image.as_fd(), self.disk.as_fd(), self.terminal.as_fd()];
        Files { always, kvm: self.kvm.as_ref().map(AsFd::as_fd), filter: None }
    }

    /// Whether the victim is as it was: alive.
    ///
    /// # Errors
    /// Nobody can tell.
    pub fn is_unharmed(&mut self) -> std::io::Result<bool> {
        Ok(self.victim.try_wait()?.is_none())
    }
}

impl Default for Alive {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        drop(self.victim.kill());
        drop(self.victim.wait());
        #[expect(unsafe_code, reason = "the segment is nobody else's")]
        // SAFETY: no pointer is passed that the call would follow.
        let _gone = unsafe { libc::shmctl(self.targets.segment, libc::IPC_RMID, std::ptr::null_mut()) };
    }
}

/// A pseudo-terminal: master and slave.
fn terminal() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?;
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
    let slave = rustix::fs::open(&name, flags, rustix::fs::Mode::empty())?;
    Ok((master, slave))
}

/// A segment of shared memory that everybody may attach, or none where the kernel has no such thing.
fn segment() -> i32 {
    #[expect(unsafe_code, reason = "std has no System V shared memory")]
    // SAFETY: no pointer is passed.
    unsafe {
        libc::shmget(libc::IPC_PRIVATE, 4096, 0o666 | libc::IPC_CREAT)
    }
}
