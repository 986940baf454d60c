//! What could be done with the descriptors that a runtime was handed, beside reading and writing.

use super::call::{at, call, done, int, past, text};
use super::{Attempt, World};
use std::io::Result;

/// `FS_IOC_SETFLAGS` and `FICLONE` of linux/fs.h.
const SET_FLAGS: usize = 0x4008_6602;
const CLONE_FILE: usize = 0x4004_9409;

pub(super) const ALL: &[Attempt] = &[
    Attempt::out("type-on-a-terminal", |w, _| ioctl(w.terminal, 0x5412, at(&mut b'x'))).where_built(),
    // A terminal that is nobody's; one that is somebody's takes a capability.
    Attempt::surface("take-a-terminal", |w, _| ioctl(w.terminal, 0x540e, 0))
        .after(|_| call(libc::SYS_setsid, &[])),
    Attempt::surface("change-a-terminal", |w, _| {
        let mut settings = [0_u8; 64];
        ioctl(w.terminal, 0x5401, at(&mut settings))
    }),
    Attempt::surface("load-a-line-discipline", |w, _| ioctl(w.terminal, 0x5423, at(&mut 0_i32))),
    Attempt::surface("resize-a-terminal", |w, _| ioctl(w.terminal, 0x5414, at(&mut [24_u16, 80, 0, 0]))),
    Attempt::out("signal-by-descriptor", |w, _| {
        past(&[], call(libc::SYS_fcntl, &[int(w.control), int(libc::F_SETOWN), int(w.targets.pid)]))
    }),
    Attempt::surface("choose-a-signal", |w, _| fcntl(w.control, 10, 0)),
    Attempt::surface("copy-a-descriptor", |w, _| fcntl(w.control, libc::F_DUPFD, 100)),
    Attempt::surface("lease-a-file", |w, _| {
        fcntl(w.image, 1024, 1)?;
        // The file is the test's as well, and would be waited for.
        fcntl(w.image, 1024, 2)
    }),
    Attempt::surface("be-told-of-changes", |w, _| {
        past(&[libc::ENOTDIR], call(libc::SYS_fcntl, &[int(w.disk), 1026, 1]))
    }),
    Attempt::surface("seal-a-disk", |w, _| {
        past(&[libc::EPERM, libc::EINVAL], call(libc::SYS_fcntl, &[int(w.disk), 1033, 4]))
    }),
    Attempt::surface("lock-a-disk", |w, _| done(libc::SYS_flock, &[int(w.disk), int(libc::LOCK_SH)])),
    Attempt::surface("grow-a-disk", |w, _| done(libc::SYS_ftruncate, &[int(w.disk), 1 << 20])),
    Attempt::surface("change-a-disks-mode", |w, _| done(libc::SYS_fchmod, &[int(w.disk), 0o666])).of_owner(),
    Attempt::out("give-a-disk-away", |w, _| done(libc::SYS_fchown, &[int(w.disk), 54_321, 54_321])),
    Attempt::out("label-a-disk", |w, _| {
        let name = text(c"trusted.husk");
        past(&[libc::EOPNOTSUPP], call(libc::SYS_fsetxattr, &[int(w.disk), name, name, 1, 0]))
    }),
    Attempt::out("make-a-disk-immutable", |w, _| {
        // To what it is: nothing.
        past(
            &[libc::ENOTTY, libc::EOPNOTSUPP],
            call(libc::SYS_ioctl, &[int(w.disk), SET_FLAGS, at(&mut 0_u64)]),
        )
    })
    .of_owner(),
    Attempt::surface("clone-a-disk", |w, _| {
        let result = call(libc::SYS_ioctl, &[int(w.disk), CLONE_FILE, int(w.image)]);
        past(&[libc::EOPNOTSUPP, libc::EXDEV, libc::ENOTTY, libc::EINVAL], result)
    }),
    Attempt::out("find-a-disks-blocks", |w, _| {
        past(&[libc::ENOTTY, libc::EINVAL], call(libc::SYS_ioctl, &[int(w.disk), 1, at(&mut 0_i32)]))
    })
    .filter_alone(),
    Attempt::surface("ask-a-socket-for-interfaces", |w, _| {
        let mut request = [0_usize; 2];
        past(
            &[libc::ENOTTY, libc::EOPNOTSUPP],
            call(libc::SYS_ioctl, &[int(w.control), 0x8912, at(&mut request)]),
        )
    }),
    Attempt::surface("be-signalled", |w, _| ioctl(w.control, 0x5452, at(&mut 0_i32))),
    Attempt::surface("close-at-exec-by-ioctl", |w, _| ioctl(w.disk, 0x5451, 0)),
    Attempt::surface("copy-within-the-kernel", |w, _| {
        done(libc::SYS_copy_file_range, &[int(w.image), 0, int(w.disk), 0, 1, 0])
    })
    .where_built(),
    Attempt::surface("send-a-file", |w, _| done(libc::SYS_sendfile, &[int(w.disk), int(w.image), 0, 1])),
    Attempt::surface("make-a-pipe", |_, _| done(libc::SYS_pipe2, &[at(&mut [0_i32; 2]), 0])),
    Attempt::surface("splice", |w, pipe| done(libc::SYS_splice, &[int(w.image), 0, pipe >> 32, 0, 1, 0]))
        .after(pipe),
    Attempt::surface("tee", |_, pipe| {
        let result = call(libc::SYS_tee, &[pipe & 0xffff_ffff, pipe >> 32, 1, 2]);
        past(&[libc::EINVAL, libc::EAGAIN], result)
    })
    .after(pipe),
    Attempt::surface("vmsplice", |_, pipe| {
        let mut byte = [0_u8; 8];
        let mut vector = [at(&mut byte), 1];
        done(libc::SYS_vmsplice, &[pipe >> 32, at(&mut vector), 1, 0])
    })
    .after(pipe),
    Attempt::surface("duplicate-over-another", |w, _| done(libc::SYS_dup3, &[int(w.image), int(w.disk), 0])),
    Attempt::surface("write-a-whole-file-system", |w, _| done(libc::SYS_syncfs, &[int(w.disk)])),
    Attempt::surface("advise-about-a-file", |w, _| done(libc::SYS_fadvise64, &[int(w.disk), 0, 0, 0])),
    Attempt::surface("read-ahead", |w, _| done(libc::SYS_readahead, &[int(w.image), 0, 1])),
    Attempt::surface("collapse-a-range", |w, _| {
        let result = call(libc::SYS_fallocate, &[int(w.disk), 8, 0, 4096]);
        past(&[libc::EOPNOTSUPP, libc::EINVAL], result)
    }),
    Attempt::surface("old-asynchronous-io", |_, _| done(libc::SYS_io_setup, &[1, at(&mut 0_usize)])),
    Attempt::surface("signals-as-a-file", |_, _| done(libc::SYS_signalfd4, &[int(-1), at(&mut 0_u64), 8, 0])),
];

impl Attempt {
    /// A file's owner may, and the user of a cell owns none that he is handed.
    const fn of_owner(self) -> Self {
        Self { wall: super::Wall::Cell, ..self }
    }

    /// Where the file system does not know the question it is answered before the permission.
    const fn filter_alone(self) -> Self {
        Self { wall: super::Wall::Filter, ..self }
    }
}

fn ioctl(file: i32, request: usize, argument: usize) -> Result<()> {
    done(libc::SYS_ioctl, &[int(file), request, argument])
}

fn fcntl(file: i32, command: i32, argument: usize) -> Result<()> {
    done(libc::SYS_fcntl, &[int(file), int(command), argument])
}

/// Both ends in one number: the reading end below, the writing one above.
fn pipe(_: &World) -> Result<usize> {
    let mut ends = [0_i32; 2];
    done(libc::SYS_pipe2, &[at(&mut ends), 0])?;
    Ok(int(ends[0]) | int(ends[1]) << 32)
}
