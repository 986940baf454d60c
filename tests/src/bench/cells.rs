//! What one more cell costs: from the spawn of a jailer to the first instruction of the program in the cell that it built.
//!
//! Owns the cells that it makes: each is killed, and its cgroup and directories are removed, when it is dropped. Refuses a
//! jailer that ends without a cell. Invariant: the program, which says itself when it began, is the same for every jailer, and
//! so are its size on disk, its user, and the limits on it.

use super::stages::now_ns;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Where Husk's cells find their control socket.
const CONTROL: i32 = 3;
/// Whoever runs in the cells.
const USER: &str = "654321";
/// cgroup of Husk's cells here.
const PARENT: &str = "husk-bench";
/// Namespaces that Husk makes once.
const POOL: &str = "/run/husk/ns";
/// Above what else is open, in the jailer as here.
const INHERITED: i32 = 700;
/// How long a cell may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the program in the cell does: says `began`, nanoseconds of `CLOCK_MONOTONIC`, and sleeps.
pub fn stub(began: u64) {
    let bytes = began.to_le_bytes();
    let tell = |number| {
        #[expect(unsafe_code, reason = "what 3 and 4 are is the cell's rule")]
        // SAFETY: a plain number: whether a socket is there is what the call tells.
        let socket = unsafe { BorrowedFd::borrow_raw(number) };
        send(socket, &bytes, SendFlags::NOSIGNAL).is_ok()
    };
    // A network's program has no control socket, but the one behind it.
    if !tell(CONTROL) && !tell(CONTROL + 1) {
        let _ = rustix::io::write(rustix::stdio::stdout(), &bytes);
    }
    loop {
        std::thread::park();
    }
}

/// Whose jailer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// Husk's.
    Husk,
    /// Firecracker's, with a process id namespace and a cgroup, which it makes only when asked. A network namespace it never makes.
    Firecracker,
}

/// A jailer and what it executes.
#[derive(Debug)]
pub struct Maker {
    whose: Whose,
    jailer: PathBuf,
    program: PathBuf,
    base: PathBuf,
}

/// A cell that lives until it is dropped.
#[derive(Debug)]
pub struct Living {
    whose: Whose,
    id: String,
    base: PathBuf,
    jailer: Child,
    said: OwnedFd,
    spawned: u64,
    began: u64,
}

impl Maker {
    /// `program` is the stub's file, absolute; directories are made below `base`.
    #[must_use]
    pub fn new(whose: Whose, jailer: &Path, program: &Path, base: &Path) -> Self {
        Self { whose, jailer: jailer.to_owned(), program: program.to_owned(), base: base.to_owned() }
    }

    /// Makes a cell and waits until its program runs.
    ///
    /// # Errors
    /// The jailer or the cell failed.
    pub fn make(&self) -> io::Result<Living> {
        let mut living = self.begin()?;
        living.wait()?;
        Ok(living)
    }

    /// Does what is done off a cell's path: Husk's pool is filled, as husk has it done once a sandbox runs.
    ///
    /// # Errors
    /// It fails.
    pub fn get_ready(&self) -> io::Result<()> {
        if self.whose != Whose::Husk {
            return Ok(());
        }
        fs::create_dir_all(Path::new(POOL).parent().unwrap_or(Path::new("/")))?;
        let done = Command::new(&self.jailer).args(["pool", "fill", POOL]).status()?;
        if done.success() { Ok(()) } else { Err(io::Error::other("husk-jailer pool fill failed")) }
    }

    /// Starts to make a cell.
    ///
    /// # Errors
    /// The jailer cannot be executed.
    pub fn begin(&self) -> io::Result<Living> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("b{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut command = Command::new(&self.jailer);
        command.env_clear().stdin(Stdio::null()).stderr(Stdio::inherit());
        command.args(["--id", &id, "--uid", USER, "--gid", USER, "--exec-file"]).arg(&self.program);
        command.args([
            "--cgroup-version",
            "2",
            "--cgroup",
            "pids.max=64",
            "--cgroup",
            "memory.max=201326592",
        ]);
        let (said, theirs) = match self.whose {
            Whose::Husk => {
                let (ours, theirs) =
                    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
                // Not closed at the jailer's execution, nor on another jailer's that is started meanwhile, which does no harm.
                let theirs = inherited(theirs.as_fd())?;
                let number = rustix::fd::AsRawFd::as_raw_fd(&theirs).to_string();
                command.args(["--parent-cgroup", PARENT, "--control-fd", &number, "--pool"]).arg(POOL);
                command.stdout(Stdio::null());
                (ours, theirs)
            }
            Whose::Firecracker => {
                command.arg("--chroot-base-dir").arg(&self.base).arg("--new-pid-ns");
                let (ours, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
                command.stdout(Stdio::from(theirs.try_clone()?));
                (ours, theirs)
            }
        };
        command.arg("--");
        let spawned = now_ns();
        let jailer = command.spawn()?;
        drop(theirs);
        let base = self.base.join(self.program.file_name().unwrap_or_default()).join(&id);
        Ok(Living { whose: self.whose, id, base, jailer, said, spawned, began: 0 })
    }
}

/// What runs in a cell of its own beside a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    /// The server of a volume.
    Volume,
    /// The process that is a network.
    Network,
}

impl Maker {
    /// Makes the cell of what is beside the sandbox `living`, with which it ends, and waits until its program runs. `pool`: out of
    /// Husk's pool. Returns how long it took from the jailer's spawn, in nanoseconds.
    ///
    /// # Errors
    /// The jailer or the cell failed.
    pub fn make_beside(&self, living: &Living, what: Beside, pool: bool) -> io::Result<u64> {
        let (control, far) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let (served, served_far) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let directory = fs::File::open(&self.base)?;
        let [far, served_far, directory] =
            [inherited(far.as_fd())?, inherited(served_far.as_fd())?, inherited(directory.as_fd())?];
        let number = |file: &OwnedFd| rustix::fd::AsRawFd::as_raw_fd(file).to_string();
        let mut command = Command::new(&self.jailer);
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        command.args(["--id", &living.id, "--cgroup-version", "2", "--parent-cgroup", PARENT, "--exec-file"]);
        command.arg(&self.program).args(["--cgroup", "pids.max=64", "--control-fd", &number(&far)]);
        let said = match what {
            Beside::Volume => {
                command.args([
                    "--volume-fd",
                    &number(&directory),
                    "--volume-socket-fd",
                    &number(&served_far),
                ]);
                control
            }
            Beside::Network => {
                command.args(["--uid", USER, "--gid", USER, "--network-socket-fd", &number(&served_far)]);
                served
            }
        };
        command.args(pool.then_some(["--pool", POOL]).into_iter().flatten()).arg("--");
        let spawned = now_ns();
        let jailer = command.spawn()?;
        drop((far, served_far, directory));
        let mut one = Living {
            whose: self.whose,
            id: living.id.clone(),
            base: PathBuf::new(),
            jailer,
            said,
            spawned,
            began: 0,
        };
        let waited = one.wait();
        let took = one.took();
        // With it the sandbox ends, whose cgroup it is in.
        drop(one);
        waited.map(|()| took)
    }
}

/// The same file where a jailer that is started finds it.
fn inherited(file: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let file = fcntl_dupfd_cloexec(file, INHERITED)?;
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty())?;
    Ok(file)
}

impl Living {
    /// Waits until its program runs.
    ///
    /// # Errors
    /// It never will.
    pub fn wait(&mut self) -> io::Result<()> {
        let limit = Timespec { tv_sec: 120, tv_nsec: 0 };
        let mut bytes = [0; 8192];
        loop {
            if poll(&mut [PollFd::new(&self.said, PollFlags::IN)], Some(&limit))? == 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let count = match self.whose {
                Whose::Husk => recv(&self.said, &mut bytes[..], RecvFlags::empty())?.0,
                Whose::Firecracker => rustix::io::read(self.said.as_fd(), &mut bytes[..])?,
            };
            match bytes[..count].try_into().map(u64::from_le_bytes) {
                Ok(began) => {
                    self.began = began;
                    return Ok(());
                }
                // The jailer's own words, which begin with a brace.
                Err(_) if count > 0 && bytes[0] == b'{' => {}
                Err(_) => return Err(io::Error::other(format!("the jailer of {} made no cell", self.id))),
            }
        }
    }

    /// From the jailer's spawn to the program's first instruction, in nanoseconds.
    #[must_use]
    pub fn took(&self) -> u64 {
        self.began.saturating_sub(self.spawned)
    }

    /// When the jailer was spawned and when the program began.
    #[must_use]
    pub fn span(&self) -> (u64, u64) {
        (self.spawned, self.began)
    }
}

impl Drop for Living {
    fn drop(&mut self) {
        let parent = match self.whose {
            Whose::Husk => PARENT.as_ref(),
            Whose::Firecracker => self.base.parent().and_then(Path::file_name).unwrap_or_default(),
        };
        let cgroup = Path::new("/sys/fs/cgroup").join(parent).join(&self.id);
        drop(fs::write(cgroup.join("cgroup.kill"), "1"));
        drop(self.jailer.wait());
        let since = Instant::now();
        while let Err(error) = fs::remove_dir(&cgroup) {
            if error.kind() == io::ErrorKind::NotFound || since.elapsed() > PATIENCE {
                break;
            }
            // The cell is this process's child, if the jailer is Husk's.
            let _ = rustix::process::wait(rustix::process::WaitOptions::NOHANG);
            std::thread::sleep(Duration::from_millis(1));
        }
        if self.whose == Whose::Firecracker {
            drop(fs::remove_dir_all(&self.base));
        }
    }
}

/// Mounts that a host may have, until dropped.
#[derive(Debug)]
pub struct Mounts {
    places: Vec<PathBuf>,
}

impl Mounts {
    /// Binds a directory of `base` to `count` others.
    ///
    /// # Errors
    /// This is not root, or the host's limit of mounts is reached.
    pub fn make(base: &Path, count: usize) -> io::Result<Self> {
        let mut mounts = Self { places: Vec::with_capacity(count) };
        for number in 0..count {
            let place = base.join(format!("mount-{number}"));
            fs::create_dir_all(&place)?;
            rustix::mount::mount_bind(base, &place)?;
            mounts.places.push(place);
        }
        Ok(mounts)
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        for place in &self.places {
            let _ = rustix::mount::unmount(place, rustix::mount::UnmountFlags::DETACH);
            drop(fs::remove_dir(place));
        }
    }
}
