//! Files by ways around their names: /proc, descriptors, handles, and the running program itself.

use super::call::{CWD, at, call, done, int, past, path};
use super::files::{open, text_of};
use super::{Attempt, World};
use std::io::Result;

pub(super) const ALL: &[Attempt] = &[
    Attempt::out("see-processes", |_, _| open("/proc", libc::O_DIRECTORY).map(drop)),
    Attempt::out("through-own-root", |w, _| through("/proc/self/root", w)),
    Attempt::out("through-the-first-ones-root", |w, _| through("/proc/1/root", w)),
    Attempt::out("through-anothers-root", |w, _| through(&format!("/proc/{}/root", w.targets.pid), w)),
    Attempt::out("through-own-directory", |_, _| open("/proc/self/cwd", libc::O_DIRECTORY).map(drop)),
    Attempt::out("list-anothers-descriptors", |w, _| of_another(w, "fd", libc::O_DIRECTORY)),
    Attempt::out("open-anothers-memory", |w, _| of_another(w, "mem", libc::O_RDWR)),
    Attempt::out("read-anothers-environment", |w, _| of_another(w, "environ", libc::O_RDONLY)),
    Attempt::out("open-own-memory", |_, _| open("/proc/self/mem", libc::O_RDWR).map(drop)),
    Attempt::out("open-own-program", |_, _| open("/proc/self/exe", libc::O_RDONLY).map(drop)),
    Attempt::out("write-own-program", |_, _| past(&[libc::ETXTBSY], open("/proc/self/exe", libc::O_WRONLY))),
    Attempt::out("truncate-own-program", |_, _| {
        let name = c"/proc/self/exe".as_ptr().expose_provenance();
        // To a length that no file system has, so that nothing would be lost.
        past(&[libc::ETXTBSY, libc::EFBIG, libc::EINVAL], call(libc::SYS_truncate, &[name, usize::MAX >> 1]))
    }),
    Attempt::out("write-the-handed-program", |w, _| {
        past(&[libc::ETXTBSY], open(&format!("/proc/self/fd/{}", w.program), libc::O_WRONLY))
    }),
    Attempt::out("reopen-an-image-to-write", |w, _| {
        open(&format!("/proc/self/fd/{}", w.image), libc::O_RDWR).map(drop)
    }),
    Attempt::out("reopen-an-image-in-dev", |w, _| {
        open(&format!("/dev/fd/{}", w.image), libc::O_RDONLY).map(drop)
    }),
    Attempt::out("own-proc-then-own-program", own_proc),
    Attempt::out("name-a-handle", |w, _| {
        let (file, mut handle, mut mount) = (path(&w.targets.file)?, [0_u32; 2], 0_i32);
        let result =
            call(libc::SYS_name_to_handle_at, &[CWD, text_of(&file), at(&mut handle), at(&mut mount), 0]);
        past(&[libc::EOVERFLOW, libc::EOPNOTSUPP], result)
    }),
    Attempt::out("open-a-handle", |w, _| {
        // Eight bytes, of the kind with a number and a generation; of no file, which is found out after the permission.
        let mut handle = [8_u32, 1, 0x7fff_fff1, 0];
        let result = call(libc::SYS_open_by_handle_at, &[int(w.disk), at(&mut handle), 0]);
        past(&[libc::ESTALE, libc::EINVAL, libc::EOPNOTSUPP], result)
    }),
    Attempt::out("link-an-open-file", |w, _| {
        let (new, flag) = (path(&w.targets.new)?, int(libc::AT_EMPTY_PATH));
        let empty = c"".as_ptr().expose_provenance();
        done(libc::SYS_linkat, &[int(w.image), empty, CWD, text_of(&new), flag])?;
        super::files::unlink(&w.targets.new)
    }),
    Attempt::out("execute", |_, _| execute(c"/bin/true")),
    Attempt::out("execute-the-shell", |_, _| execute(c"/bin/sh")),
    Attempt::out("execute-itself-by-name", |w, _| execute(&path(&w.targets.program)?)),
    Attempt::out("execute-itself-by-proc", |_, _| execute(c"/proc/self/exe")),
    Attempt::surface("execute-a-descriptor", |w, _| execute_open(int(w.program))),
    Attempt::surface("execute-from-memory", |_, memory| execute_open(memory)).after(in_memory),
];

fn through(root: &str, world: &World) -> Result<()> {
    open(&format!("{root}{}", world.targets.file), libc::O_RDONLY).map(drop)
}

fn of_another(world: &World, what: &str, flags: i32) -> Result<()> {
    open(&format!("/proc/{}/{what}", world.targets.pid), flags).map(drop)
}

/// A /proc of one's own, in namespaces of one's own, would lead to the program again.
fn own_proc(_: &World, _: usize) -> Result<()> {
    let flags = int(libc::CLONE_NEWUSER | libc::CLONE_NEWNS);
    done(libc::SYS_unshare, &[flags])?;
    let (proc, root) = (c"proc".as_ptr().expose_provenance(), c"/".as_ptr().expose_provenance());
    // Outside there is one already.
    if open("/proc/self", libc::O_PATH).is_err() {
        done(libc::SYS_mount, &[proc, root, proc, 0, 0])?;
    }
    past(&[libc::ETXTBSY, libc::EACCES], open("/proc/self/exe", libc::O_WRONLY))
}

/// In the place of this one; as no program says anything by itself, one that ends well was reached.
fn execute(program: &std::ffi::CStr) -> Result<()> {
    let name = program.as_ptr().expose_provenance();
    let mut arguments = [name, c"-c".as_ptr().expose_provenance(), c"exit 0".as_ptr().expose_provenance(), 0];
    let mut environment = [0_usize];
    done(libc::SYS_execve, &[name, at(&mut arguments), at(&mut environment)])
}

fn execute_open(file: usize) -> Result<()> {
    let empty = c"".as_ptr().expose_provenance();
    let mut arguments = [
        c"probe".as_ptr().expose_provenance(),
        c"-c".as_ptr().expose_provenance(),
        c"exit 0".as_ptr().expose_provenance(),
        0,
    ];
    let mut environment = [0_usize];
    let flag = int(libc::AT_EMPTY_PATH);
    done(libc::SYS_execveat, &[file, empty, at(&mut arguments), at(&mut environment), flag])
}

/// The program as a file in memory.
fn in_memory(world: &World) -> Result<usize> {
    let memory = call(libc::SYS_memfd_create, &[c"probe".as_ptr().expose_provenance(), 0])?;
    let mut offset = 0_u64;
    while call(libc::SYS_sendfile, &[memory, int(world.program), at(&mut offset), 64 << 20])? > 0 {}
    Ok(memory)
}
