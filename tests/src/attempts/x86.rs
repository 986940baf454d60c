//! x86_64: calls that newer ones replaced, instructions' privileges, and the entries of other calling conventions.

use super::call::{at, born, call, done, int, past, path, text};
use super::files::text_of;
use super::{Attempt, World};
use std::io::{Error, Result};

/// The bit of calls of the x32 convention.
const X32: i64 = 0x4000_0000;

pub(super) const ALL: &[Attempt] = &[
    Attempt::out("old-open", |w, _| named(libc::SYS_open, w)),
    Attempt::out("old-stat", |w, _| {
        let mut room = [0_u8; 256];
        done(libc::SYS_stat, &[text_of(&path(&w.targets.file)?), at(&mut room)])
    }),
    Attempt::out("old-access", |w, _| named(libc::SYS_access, w)),
    Attempt::out("old-create", |w, _| {
        done(libc::SYS_creat, &[text_of(&path(&w.targets.new)?), 0o600])?;
        done(libc::SYS_unlink, &[text_of(&path(&w.targets.new)?)])
    }),
    Attempt::out("old-chmod", |w, _| done(libc::SYS_chmod, &[text_of(&path(&w.targets.file)?), 0o777])),
    Attempt::out("old-readlink", |_, _| {
        let mut room = [0_u8; 64];
        done(libc::SYS_readlink, &[text(c"/proc/self/exe"), at(&mut room), 64])
    }),
    Attempt::out("old-mknod", |w, _| {
        done(libc::SYS_mknod, &[text_of(&path(&w.targets.new)?), 0o020_600, 0x0101])?;
        done(libc::SYS_unlink, &[text_of(&path(&w.targets.new)?)])
    }),
    Attempt::surface("old-fork", |_, _| born(call(libc::SYS_fork, &[]))),
    Attempt::surface("old-pipe", |_, _| done(libc::SYS_pipe, &[at(&mut [0_i32; 2])])),
    Attempt::surface("old-alarm", |_, _| done(libc::SYS_alarm, &[0])),
    Attempt::out("ports-of-the-machine", |_, _| done(libc::SYS_ioperm, &[0x80, 1, 1])).where_built(),
    Attempt::out("all-ports-of-the-machine", |_, _| done(libc::SYS_iopl, &[3])).where_built(),
    Attempt::surface("read-own-segments", |_, _| done(libc::SYS_modify_ldt, &[0, at(&mut [0_u8; 64]), 64]))
        .where_built(),
    Attempt::surface("change-own-segments", |_, _| {
        // Entry 0: 32-bit data, all of memory.
        let mut entry = [0_u32, 0, 0xf_ffff, 0b101_0001];
        done(libc::SYS_modify_ldt, &[1, at(&mut entry), 16])
    })
    .where_built(),
    Attempt::surface("read-own-base", |_, _| done(libc::SYS_arch_prctl, &[0x1003, at(&mut 0_usize)])),
    Attempt::surface("trap-cpuid", |_, _| past(&[libc::ENODEV], call(libc::SYS_arch_prctl, &[0x1012, 1]))),
    Attempt::surface("ask-for-more-registers", |_, _| {
        past(&[libc::EINVAL, libc::EOPNOTSUPP, libc::ENODEV], call(libc::SYS_arch_prctl, &[0x1023, 18]))
    }),
    Attempt::surface("entry-of-32-bit", |_, _| compatibility(20).map(drop)).where_built(),
    Attempt::surface("write-by-32-bit-entry", |_, _| past(&[libc::EBADF], compatibility(6))).where_built(),
    Attempt::out("entry-of-x32", |_, _| done(X32 | libc::SYS_getpid, &[]))
        .nobody("ENOSYS where the kernel was built without it, as distributions' are"),
    Attempt::out("open-by-x32", |w, _| named(X32 | libc::SYS_open, w)).nobody("ENOSYS, as before"),
    Attempt::out("execute-by-x32", |_, _| done(X32 | 520, &[text(c"/bin/true"), 0, 0]))
        .nobody("ENOSYS, as before"),
    Attempt::out("old-sysctl", |_, _| done(libc::SYS__sysctl, &[0])).nobody("ENOSYS since Linux 5.5"),
    Attempt::out("old-library", |_, _| done(libc::SYS_uselib, &[text(c"/bin/true")]))
        .nobody("ENOSYS where the kernel was built without it"),
];

fn named(number: i64, world: &World) -> Result<()> {
    done(number, &[text_of(&path(&world.targets.file)?), 0, 0])
}

/// A call by the 32-bit entry, whose one argument is a descriptor that is none.
fn compatibility(number: usize) -> Result<usize> {
    let mut result = number.cast_signed();
    #[expect(unsafe_code, reason = "there is no other way in")]
    // SAFETY: the call takes one number and touches no memory; rbx, which holds it, is put back; the kernel changes r8 to r11.
    unsafe {
        std::arch::asm!(
            "xchg {argument}, rbx",
            "int 0x80",
            "xchg {argument}, rbx",
            argument = inout(reg) int(-1) => _,
            inout("rax") result,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    let answer = i32::try_from(result & 0xffff_ffff).unwrap_or_else(|_| {
        // A negative `int`.
        i32::try_from((result & 0xffff_ffff) - (1 << 32)).unwrap_or(-libc::EINVAL)
    });
    if answer < 0 { Err(Error::from_raw_os_error(-answer)) } else { Ok(answer.cast_unsigned() as usize) }
}
