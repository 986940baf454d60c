//! Memory: executable, writable where it should not be, and the host's files or other people's in it.

use super::call::{at, call, done, int, past, text};
use super::{Attempt, World};
use husk_seccomp::Role;
use std::io::Result;

const PAGE: usize = 4096;
const READ: i32 = libc::PROT_READ;
const WRITE: i32 = libc::PROT_WRITE;
const EXECUTE: i32 = libc::PROT_EXEC;
const ANONYMOUS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

pub(super) const ALL: &[Attempt] = &[
    Attempt::surface("map-executable", |_, _| map(READ | EXECUTE, ANONYMOUS, usize::MAX).map(drop)),
    Attempt::surface("map-writable-and-executable", |_, _| {
        map(READ | WRITE | EXECUTE, ANONYMOUS, usize::MAX).map(drop)
    }),
    Attempt::surface("map-a-program", |w, _| {
        map(READ | EXECUTE, libc::MAP_PRIVATE, int(w.program)).map(drop)
    }),
    Attempt::surface("map-a-disk-writable", |w, _| {
        let flags = [int(READ | WRITE), int(libc::MAP_SHARED)];
        done(libc::SYS_mmap, &[0, 1 << 16, flags[0], flags[1], int(w.disk), 0])
    }),
    Attempt::surface("map-a-page-of-a-disk", |w, _| {
        map(READ | WRITE, libc::MAP_SHARED, int(w.disk)).map(drop)
    })
    .allowed_to(&[Role::Shell]),
    Attempt::surface("map-a-disk-privately", |w, _| {
        map(READ | WRITE, libc::MAP_PRIVATE, int(w.disk)).map(drop)
    }),
    Attempt::surface("map-shared-memory", |_, _| {
        map(READ | WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS, usize::MAX).map(drop)
    }),
    Attempt::surface("make-data-executable", |_, page| protect(page, READ | EXECUTE)).after(page),
    Attempt::surface("make-code-writable", |_, _| {
        let code = (protect as fn(usize, i32) -> Result<()> as usize) & !(PAGE - 1);
        protect(code, READ | WRITE | EXECUTE)
    }),
    Attempt::surface("make-data-executable-by-key", |_, page| {
        let key = int(-1);
        done(libc::SYS_pkey_mprotect, &[page, PAGE, int(READ | EXECUTE), key])
    })
    .after(page),
    Attempt::surface("make-a-key-for-memory", |_, _| {
        past(&[libc::ENOSPC, libc::EINVAL], call(libc::SYS_pkey_alloc, &[0, 0]))
    }),
    Attempt::out("map-address-zero", |_, _| {
        let flags = ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        done(libc::SYS_mmap, &[0, PAGE, int(READ | WRITE), int(flags), usize::MAX, 0])
    }),
    Attempt::surface("move-memory-to-a-place", |_, page| {
        let there = page.wrapping_add(64 * PAGE);
        let flags = int(libc::MREMAP_MAYMOVE | libc::MREMAP_DONTUNMAP);
        done(libc::SYS_mremap, &[page, PAGE, PAGE, flags, there])
    })
    .after(page),
    Attempt::surface("shuffle-a-file", |_, page| done(libc::SYS_remap_file_pages, &[page, PAGE, 0, 0, 0]))
        .after(|w| map(READ | WRITE, libc::MAP_SHARED, int(w.disk))),
    Attempt::surface("make-a-file-in-memory", |_, _| done(libc::SYS_memfd_create, &[text(c"husk"), 0])),
    Attempt::surface("make-secret-memory", |_, _| done(libc::SYS_memfd_secret, &[0])).where_built(),
    Attempt::out("lock-all-memory", |_, _| {
        done(libc::SYS_mlockall, &[int(libc::MCL_ONFAULT | libc::MCL_FUTURE)])
    })
    .after(no_locked_memory),
    Attempt::surface("lock-a-page", |_, page| done(libc::SYS_mlock2, &[page, PAGE, 0])).after(page),
    Attempt::surface("see-what-is-cached", |_, page| {
        done(libc::SYS_mincore, &[page, PAGE, at(&mut [0_u8; 8])])
    })
    .after(|w| map(READ, libc::MAP_SHARED, int(w.disk))),
    Attempt::surface("share-equal-pages", |_, page| done(libc::SYS_madvise, &[page, PAGE, 12]))
        .after(page)
        .where_built(),
    Attempt::surface("place-memory", |_, page| done(libc::SYS_mbind, &[page, PAGE, 0, 0, 0, 0]))
        .after(page)
        .where_built(),
    Attempt::surface("place-all-memory", |_, _| done(libc::SYS_set_mempolicy, &[0, 0, 0])).where_built(),
    Attempt::surface("see-where-memory-is", |_, _| {
        done(libc::SYS_get_mempolicy, &[at(&mut 0_i32), 0, 0, 0, 0])
    })
    .where_built(),
    Attempt::surface("move-own-pages", |_, _| done(libc::SYS_move_pages, &[0, 0, 0, 0, 0, 0])).where_built(),
    Attempt::surface("make-shared-memory", |_, _| {
        let segment = call(libc::SYS_shmget, &[0, PAGE, 0o600])?;
        done(libc::SYS_shmctl, &[segment, 0, 0])
    })
    .where_built(),
    Attempt::out("attach-shared-memory", |w, _| {
        done(libc::SYS_shmat, &[int(w.targets.segment), 0, int(libc::SHM_RDONLY)])
    })
    .where_built(),
    Attempt::out("see-shared-memory", |w, _| {
        let mut room = [0_u8; 256];
        done(libc::SYS_shmctl, &[int(w.targets.segment), int(libc::IPC_STAT), at(&mut room)])
    })
    .where_built(),
    Attempt::surface("make-semaphores", |_, _| {
        let set = call(libc::SYS_semget, &[0, 1, 0o600])?;
        done(libc::SYS_semctl, &[set, 0, 0, 0])
    })
    .where_built(),
    Attempt::surface("make-a-message-queue", |_, _| {
        let queue = call(libc::SYS_msgget, &[0, 0o600])?;
        done(libc::SYS_msgctl, &[queue, 0, 0])
    })
    .where_built(),
    Attempt::surface("make-a-named-queue", |_, _| {
        let name = text(c"husk-probe");
        let flags = int(libc::O_CREAT | libc::O_RDWR);
        done(libc::SYS_mq_open, &[name, flags, 0o600, 0])?;
        done(libc::SYS_mq_unlink, &[name])
    })
    .where_built(),
];

fn map(protection: i32, flags: i32, file: usize) -> Result<usize> {
    call(libc::SYS_mmap, &[0, PAGE, int(protection), int(flags), file, 0])
}

fn protect(page: usize, protection: i32) -> Result<()> {
    done(libc::SYS_mprotect, &[page, PAGE, int(protection)])
}

fn page(_: &World) -> Result<usize> {
    map(READ | WRITE, ANONYMOUS, usize::MAX)
}

/// Whoever has a limit of nothing needs the capability.
fn no_locked_memory(_: &World) -> Result<usize> {
    call(libc::SYS_prlimit64, &[0, 8, at(&mut [0_u64; 2]), 0])
}
