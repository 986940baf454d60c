//! The process that holds the pool of a user who is not root, for whom nothing else can: it has made the namespaces, and sleeps.
//!
//! Owns the file `holder`: the process holds its lock as long as it lives, and its word there, written last, says which process
//! and which mount namespace. Refuses a number that is another process's by now. It has nothing else open, no session, and no
//! power but over what it made.

use super::{Door, HOLDER, Place, PoolError, build, locked};
use crate::caller::Caller;
use crate::cell;
use crate::host;
use crate::sys::{self, Cloned};
use crate::user_namespace;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, fstat, openat};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, fchdir, getpid, pidfd_open, pidfd_send_signal, setsid};

/// How the process is called in lists.
const NAME: &std::ffi::CStr = c"husk-holder";
/// Bytes of the word.
const MAX_WORD: usize = 64;

/// A holder that lives.
#[derive(Debug)]
pub(super) struct Holder {
    pub(super) door: Door,
    process: OwnedFd,
}

/// Finds it; `None`: there is none, or it is not ready.
pub(super) fn find(place: &Place) -> Result<Option<Holder>, PoolError> {
    let Ok(file) = open(place, OFlags::RDONLY) else { return Ok(None) };
    let lives = || match flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(Errno::WOULDBLOCK) => true,
        _ => flock(&file, FlockOperation::Unlock).is_err(),
    };
    if !lives() {
        return Ok(None);
    }
    let mut bytes = [0; MAX_WORD];
    let count = rustix::io::read(&file, &mut bytes).map_err(place.failed("holder"))?;
    let found = parse(&bytes[..count]).and_then(|(pid, inode)| {
        let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        let namespace = |kind| {
            let path = format!("/proc/{}/ns/{kind}", pid.as_raw_nonzero());
            host::open(&path, OFlags::RDONLY).ok()
        };
        let door = Door { user: Some(namespace("user")?), mounts: namespace("mnt")? };
        (fstat(&door.mounts).ok()?.st_ino == inode).then_some(Holder { door, process })
    });
    // What was opened is the holder's if it lives still.
    Ok(found.filter(|_| lives()))
}

fn open(place: &Place, access: OFlags) -> Result<OwnedFd, Errno> {
    openat(&place.dir, HOLDER, access | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::from_raw_mode(0o600))
}

/// `PID INODE`.
fn parse(word: &[u8]) -> Option<(Pid, u64)> {
    let (pid, inode) = std::str::from_utf8(word).ok()?.trim_end().split_once(' ')?;
    let pid = pid.parse().ok().filter(|&pid| pid > 1).and_then(Pid::from_raw)?;
    Some((pid, inode.parse().ok()?))
}

/// Starts one, and returns when the pool is there.
pub(super) fn start(place: &Place, caller: Caller) -> Result<(), PoolError> {
    let failed = place.failed("holder");
    let file = open(place, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL).map_err(&failed)?;
    // Others look at it for moments only.
    locked(&file, FlockOperation::LockExclusive).map_err(&failed)?;
    let (ready, say) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(&failed)?;
    let no_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    match sys::clone3(0, no_signal, None).map_err(&failed)? {
        Cloned::Child => {
            drop(ready);
            let _ = hold(place, caller, file, say);
            // What the jailer was about to do is not this process's.
            sys::end_at_once()
        }
        Cloned::Parent(..) => {
            drop((say, file));
            let mut byte = [0];
            match rustix::io::read(&ready, &mut byte) {
                Ok(1) => Ok(()),
                // It has ended without a word: the host does not permit it.
                Ok(_) => Err(failed(Errno::PERM)),
                Err(errno) => Err(failed(errno)),
            }
        }
    }
}

/// In the new process: makes the namespaces, says so, and stays. Returns only what kept it from that.
fn hold(place: &Place, caller: Caller, file: OwnedFd, say: OwnedFd) -> Result<(), Errno> {
    let null = host::open("/dev/null", OFlags::RDWR)?;
    // /proc will not be there any more where the pool is.
    host::keep()?;
    fchdir(&place.dir)?;
    sys::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS)?;
    user_namespace::map(caller, caller)?;
    let pool = build::settle()?;
    host::forget();
    rustix::io::pwrite(
        &file,
        format!("{} {}\n", getpid().as_raw_nonzero(), fstat(&pool)?.st_ino).as_bytes(),
        0,
    )?;
    setsid()?;
    sys::reset_signals()?;
    let _ = rustix::thread::set_name(NAME);
    (0..3).try_for_each(|standard| sys::copy(null.as_fd(), standard))?;
    cell::drop_capabilities()?;
    // The lock and the word; whatever else the jailer had open is closed: its own locks with it.
    let [file, say] = [cell::away(file)?, cell::away(say)?];
    let _file = sys::place(file, 3, true)?;
    let say = sys::place(say, 4, true)?;
    sys::close_from(5)?;
    rustix::io::write(&say, &[1])?;
    drop(say);
    loop {
        sys::sleep_until_killed();
    }
}

/// Ends it, if there is one, and returns when it is gone.
pub(super) fn end(place: &Place) -> Result<(), PoolError> {
    let failed = place.failed("holder");
    let Ok(file) = open(place, OFlags::RDONLY) else { return Ok(()) };
    if let Some(holder) = find(place)? {
        pidfd_send_signal(&holder.process, Signal::KILL).map_err(&failed)?;
    } else if flock(&file, FlockOperation::NonBlockingLockShared).is_err() {
        let why = "holder is locked by a process that is not this user's holder; end it".to_owned();
        return Err(PoolError::Refused { path: place.path.clone(), why });
    }
    locked(&file, FlockOperation::LockShared).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_a_process_and_a_namespace() {
        assert_eq!(
            parse(b"17 4026532001\n").map(|(pid, inode)| (pid.as_raw_nonzero().get(), inode)),
            Some((17, 4_026_532_001))
        );
        for wrong in ["", "17", "1 5", "-3 5", "17 ", "17 x", "x 5", "99999999999 5", "17 5 6"] {
            assert!(parse(wrong.as_bytes()).is_none(), "{wrong}");
        }
    }
}
