//! The host's files, by name.

use super::call::{CWD, at, call, done, int, past, path};
use super::{Attempt, World};
use rustix::io::Errno;
use std::io::Result;

pub(super) const ALL: &[Attempt] = &[
    Attempt::out("open-file", |w, _| open(&w.targets.file, libc::O_RDONLY).map(drop)),
    Attempt::out("open-file-to-write", |w, _| open(&w.targets.file, libc::O_WRONLY).map(drop)),
    Attempt::out("open-file-as-path", |w, _| open(&w.targets.file, libc::O_PATH).map(drop)),
    Attempt::out("openat2-file", openat2),
    Attempt::out("open-up-and-away", |w, _| {
        open(&format!("../../../../../../../..{}", w.targets.file), libc::O_RDONLY).map(drop)
    }),
    Attempt::out("open-unnamed", |_, _| {
        past(&[libc::EOPNOTSUPP], open("/tmp", libc::O_TMPFILE | libc::O_RDWR))
    }),
    Attempt::out("list-root", |_, _| list_root()),
    Attempt::out("list-host-etc", |_, _| open("/etc", libc::O_DIRECTORY).map(drop)),
    Attempt::out("read-host-passwd", |_, _| open("/etc/passwd", libc::O_RDONLY).map(drop)),
    Attempt::out("stat-file", |w, _| {
        let mut room = [0_u8; 256];
        done(libc::SYS_newfstatat, &[CWD, text_of(&path(&w.targets.file)?), at(&mut room), 0])
    }),
    Attempt::out("statx-file", |w, _| {
        let mut room = [0_u8; 512];
        done(libc::SYS_statx, &[CWD, text_of(&path(&w.targets.file)?), 0, 0xfff, at(&mut room)])
    }),
    Attempt::out("statfs-file", |w, _| {
        let mut room = [0_u8; 256];
        done(libc::SYS_statfs, &[text_of(&path(&w.targets.file)?), at(&mut room)])
    }),
    Attempt::out("access-file", |w, _| named(libc::SYS_faccessat, w, &[0])),
    Attempt::out("access2-file", |w, _| named(libc::SYS_faccessat2, w, &[0, int(libc::AT_EACCESS)])),
    Attempt::out("create-file", |w, _| create(&w.targets.new)),
    Attempt::out("create-in-root", |_, _| create("/husk-probe-was-here")),
    Attempt::out("create-directory", |_, _| {
        done(libc::SYS_mkdirat, &[CWD, c"/husk-probe-made".as_ptr().expose_provenance(), 0o700])?;
        done(
            libc::SYS_unlinkat,
            &[CWD, c"/husk-probe-made".as_ptr().expose_provenance(), int(libc::AT_REMOVEDIR)],
        )
    }),
    Attempt::out("create-link", |w, _| {
        let new = path(&w.targets.new)?;
        done(libc::SYS_symlinkat, &[c"/".as_ptr().expose_provenance(), CWD, text_of(&new)])?;
        unlink(&w.targets.new)
    }),
    Attempt::out("create-second-name", |w, _| {
        let (old, new) = (path(&w.targets.file)?, path(&w.targets.new)?);
        done(libc::SYS_linkat, &[CWD, text_of(&old), CWD, text_of(&new), 0])?;
        unlink(&w.targets.new)
    }),
    Attempt::out("rename-file", |w, _| {
        let (old, new) = (path(&w.targets.file)?, path(&w.targets.new)?);
        done(libc::SYS_renameat2, &[CWD, text_of(&old), CWD, text_of(&new), 0])?;
        done(libc::SYS_renameat2, &[CWD, text_of(&new), CWD, text_of(&old), 0])
    }),
    Attempt::out("remove-file", |w, _| {
        // Outside there is none of this name, and that is said after the directory was found.
        let new = path(&w.targets.new)?;
        let directory =
            open(w.targets.new.rsplit_once('/').map_or("/", |(directory, _)| directory), libc::O_PATH)?;
        past(&[libc::ENOENT], call(libc::SYS_unlinkat, &[directory, text_of(&new), 0]))
    }),
    Attempt::out("truncate-file", |w, _| done(libc::SYS_truncate, &[text_of(&path(&w.targets.file)?), 1])),
    Attempt::out("change-mode", |w, _| named(libc::SYS_fchmodat, w, &[0o777])),
    Attempt::out("change-owner", |w, _| named(libc::SYS_fchownat, w, &[usize::MAX, usize::MAX, 0])),
    Attempt::out("change-times", |w, _| named(libc::SYS_utimensat, w, &[0, 0])),
    Attempt::out("read-attributes", |w, _| {
        done(libc::SYS_listxattr, &[text_of(&path(&w.targets.file)?), 0, 0])
    }),
    Attempt::out("change-attributes", |w, _| {
        let file = path(&w.targets.file)?;
        let name = c"user.husk".as_ptr().expose_provenance();
        past(&[libc::EOPNOTSUPP], call(libc::SYS_setxattr, &[text_of(&file), name, name, 1, 0]))
    }),
    Attempt::out("make-memory-device", |w, _| device(w, libc::makedev(1, 1))),
    Attempt::out("make-disk-device", |w, _| device(w, libc::makedev(8, 0))),
    Attempt::out("make-fifo", |w, _| {
        let mode = usize::try_from(libc::S_IFIFO | 0o600).unwrap_or_default();
        done(libc::SYS_mknodat, &[CWD, text_of(&path(&w.targets.new)?), mode, 0])?;
        unlink(&w.targets.new)
    }),
    Attempt::out("enter-directory", |_, _| done(libc::SYS_chdir, &[c"/usr".as_ptr().expose_provenance()])),
    Attempt::out("watch-file", |w, _| {
        let inotify = call(libc::SYS_inotify_init1, &[0])?;
        done(libc::SYS_inotify_add_watch, &[inotify, text_of(&path(&w.targets.file)?), 2])
    }),
    Attempt::out("open-null-device", |_, _| open("/dev/null", libc::O_RDWR).map(drop)),
    Attempt::out("open-kvm-device", |_, _| open("/dev/kvm", libc::O_RDWR).map(drop)).where_built(),
    Attempt::out("open-tun-device", |_, _| open("/dev/net/tun", libc::O_RDWR).map(drop)).where_built(),
    Attempt::out("open-random-device", |_, _| open("/dev/urandom", libc::O_RDONLY).map(drop)),
    Attempt::out("open-kernel-log", |_, _| open("/dev/kmsg", libc::O_RDONLY).map(drop)),
    Attempt::out("open-memory-device", |_, _| open("/dev/mem", libc::O_RDONLY).map(drop)).where_built(),
    Attempt::out("open-sysfs", |_, _| open("/sys/kernel", libc::O_DIRECTORY).map(drop)),
    Attempt::out("open-cgroups", |_, _| open("/sys/fs/cgroup", libc::O_DIRECTORY).map(drop)),
];

pub(super) fn text_of(name: &std::ffi::CString) -> usize {
    name.as_ptr().expose_provenance()
}

pub(super) fn open(name: &str, flags: i32) -> Result<usize> {
    call(libc::SYS_openat, &[CWD, text_of(&path(name)?), int(flags), 0o600])
}

pub(super) fn unlink(name: &str) -> Result<()> {
    done(libc::SYS_unlinkat, &[CWD, text_of(&path(name)?), 0])
}

/// A call on the file with a directory, a name and more.
fn named(number: i64, world: &World, more: &[usize]) -> Result<()> {
    let file = path(&world.targets.file)?;
    let arguments: Vec<usize> = [CWD, text_of(&file)].iter().chain(more).copied().collect();
    done(number, &arguments)
}

fn openat2(world: &World, _: usize) -> Result<()> {
    let (file, mut how) = (path(&world.targets.file)?, [0_u64; 3]);
    done(libc::SYS_openat2, &[CWD, text_of(&file), at(&mut how), size_of_val(&how)])
}

fn create(name: &str) -> Result<()> {
    open(name, libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY)?;
    unlink(name)
}

fn device(world: &World, number: u64) -> Result<()> {
    let new = path(&world.targets.new)?;
    let mode = usize::try_from(libc::S_IFCHR | 0o600).unwrap_or_default();
    done(libc::SYS_mknodat, &[CWD, text_of(&new), mode, usize::try_from(number).unwrap_or_default()])?;
    unlink(&world.targets.new)
}

/// The host's root has many directories; the cell's has nothing.
fn list_root() -> Result<()> {
    match std::fs::read_dir("/")?.next() {
        Some(_) => Ok(()),
        None => Err(Errno::NOENT.into()),
    }
}
