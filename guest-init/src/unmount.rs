//! Unmounting the writable drives at the end. Owns the process that does it, because an unmount of a sick disk can
//! block for ever and PID 1 must not; refuses nothing. Invariant: a drive of which nothing is reported is unmounted, and
//! its device held by nobody.

use crate::poll::{Events, Poll, Token, Watch};
use crate::root::{Device, WritableDrive};
use crate::sys;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, major, minor, statat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, UnmountFlags, fsconfig_create, fsmount, fsopen,
    mount_remount, unmount,
};
use rustix::pipe::{PipeFlags, pipe_with};
use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long everything may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a device may stay busy after its unmount: the kernel drops dead processes' mounts a little later.
const RELEASE: Duration = Duration::from_secs(2);
/// Most drives of which trouble is reported (the protocol's bound).
const MOST_REPORTS: usize = 16;
/// Most bytes of the mount table that are read.
const MOST_TABLE_BYTES: u64 = 1 << 20;
/// Most bytes that the process may report.
const MOST_REPORT_BYTES: usize = 4096;
/// The process's last word. Without it the process died (killed for want of memory, say), and nothing is known of any
/// drive.
const LAST_WORD: &str = "\0done";

/// The process that unmounts, at work.
#[derive(Debug)]
pub(crate) struct Unmounter {
    report: Watch,
    text: Vec<u8>,
    deadline: Instant,
    drives: Vec<String>,
}

impl Unmounter {
    /// Starts it; what cannot be started is what the host is told.
    pub(crate) fn start(drives: &[WritableDrive], poll: &Poll) -> Result<Self, Vec<String>> {
        let serials = || drives.iter().map(|drive| drive.serial.clone());
        let failed = |errno: Errno| each(serials(), &format!("no process to unmount it: {errno}"));
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(failed)?;
        rustix::io::ioctl_fionbio(&ours, true).map_err(failed)?;
        if sys::fork().map_err(failed)?.is_none() {
            // Where memory is short it must not be the one that is killed. Commands may have unmounted /proc.
            let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
            let mut text: String = drives.iter().filter_map(|it| unmount_drive(it).err()).collect();
            if !text.is_empty() {
                // What could not be unmounted is at least written out.
                rustix::fs::sync();
            }
            text.truncate(text.floor_char_boundary(MOST_REPORT_BYTES - LAST_WORD.len()));
            text.push_str(LAST_WORD);
            let _ = rustix::io::write(theirs, text.as_bytes());
            sys::exit_now(0);
        }
        let mut report = Watch::new(ours, Token::Unmounter);
        report.listen(poll, Events::IN).map_err(failed)?;
        let deadline = Instant::now() + PATIENCE;
        Ok(Self { report, text: Vec::new(), deadline, drives: serials().collect() })
    }

    /// When it has had its time.
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// What it has to report, if it is done or its time is over.
    pub(crate) fn result(&mut self) -> Option<Vec<String>> {
        let room = MOST_REPORT_BYTES.saturating_sub(self.text.len());
        let done = match sys::read_append(&self.report, &mut self.text, room) {
            Ok(count) => count == 0,
            Err(Errno::AGAIN | Errno::INTR) => false,
            Err(_) => true,
        };
        if done {
            return Some(self.heard());
        }
        let late = Instant::now() >= self.deadline;
        late.then(|| {
            each(self.drives.iter().cloned(), &format!("not unmounted after {} s", PATIENCE.as_secs()))
        })
    }

    /// What it said, at the end of what it can say.
    fn heard(&self) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.text);
        match text.strip_suffix(LAST_WORD) {
            Some(text) => text.lines().take(MOST_REPORTS).map(str::to_owned).collect(),
            None => each(self.drives.iter().cloned(), "the process that unmounts it died"),
        }
    }
}

fn each(serials: impl Iterator<Item = String>, reason: &str) -> Vec<String> {
    serials.take(MOST_REPORTS).map(|serial| format!("{serial}: {reason}")).collect()
}

/// In the process: unmounts a drive from everywhere; an error is a line to report.
fn unmount_drive(drive: &WritableDrive) -> Result<(), String> {
    let problem = |what: String| format!("{}: {what}\n", drive.serial);
    let number = match &drive.device {
        Device::Number(number) => number.clone(),
        Device::Node(path) => {
            let device = statat(CWD, path.as_str(), AtFlags::empty());
            let device = device.map_err(|errno| problem(format!("{path} is gone: {errno}")))?;
            format!("{}:{}", major(device.st_rdev), minor(device.st_rdev))
        }
    };
    let table = read_mount_table().map_err(|errno| problem(format!("no mount table: {errno}")))?;
    let mut trouble = None;
    for place in places(&table, &number, &drive.target).into_iter().rev() {
        let Err(errno) = unmount(&place, UnmountFlags::NOFOLLOW) else { continue };
        // Nobody is left to write; read-only at least settles what is on the disk.
        let settled = mount_remount(&place, MountFlags::RDONLY, c"").is_ok();
        let _ = unmount(&place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        let how = if settled { "made read-only instead" } else { "and cannot be made read-only" };
        trouble = Some(problem(format!("cannot unmount {}: {errno}; {how}", place.display())));
    }
    if let Device::Node(path) = &drive.device {
        wait_until_released(path)
            .map_err(|errno| problem(format!("still in use after unmounting: {errno}")))?;
    }
    trouble.map_or(Ok(()), Err)
}

/// An exclusive open is what a mounted file system denies.
fn wait_until_released(device: &str) -> Result<(), Errno> {
    let deadline = Instant::now() + RELEASE;
    loop {
        match rustix::fs::open(device, OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC, Mode::empty()) {
            Err(Errno::BUSY) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            other => return other.map(drop),
        }
    }
}

/// Read from a procfs of its own: commands may have unmounted /proc, or put something else there.
fn read_mount_table() -> Result<Vec<u8>, Errno> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let proc = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let table = rustix::fs::openat(proc, "self/mountinfo", flags, Mode::empty())?;
    let mut text = Vec::new();
    let read = std::fs::File::from(table).take(MOST_TABLE_BYTES).read_to_end(&mut text);
    read.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(text)
}

/// Mount points of device `number`, and those under `target`, in the order in which they were mounted
/// (proc_pid_mountinfo(5): third and fifth field).
fn places(table: &[u8], number: &str, target: &str) -> Vec<PathBuf> {
    let target = PathBuf::from(target.trim_end_matches('/'));
    let lines = table.split(|&byte| byte == b'\n');
    let entries = lines.filter_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ').skip(2);
        let device = fields.next()?;
        let place = unescape(fields.nth(1)?);
        (device == number.as_bytes() || place.starts_with(&target)).then_some(place)
    });
    entries.collect()
}

/// Space, tab, newline and backslash stand as three octal digits in the table.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        let code =
            after.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            bytes.push(byte);
            rest = &after[3..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    const TABLE: &[u8] = b"20 1 0:20 / / rw - overlay overlay rw\n\
        21 20 254:16 / /data rw,relatime - ext4 /dev/vdb rw\n\
        22 21 0:30 / /data/in\\040side rw - tmpfs tmpfs rw\n\
        23 20 254:16 /sub /elsewhere rw - ext4 /dev/vdb rw\n\
        24 20 254:160 / /other rw - ext4 /dev/vdk rw\n\
        25 20 0:31 / /database rw - tmpfs tmpfs rw\n\n";

    #[test]
    fn a_drive_is_found_wherever_commands_bound_it_and_what_is_mounted_in_it() {
        let found = places(TABLE, "254:16", "/data/");
        assert_eq!(found, ["/data", "/data/in side", "/elsewhere"].map(PathBuf::from));
    }

    #[test]
    fn escapes_are_undone_and_broken_ones_kept() {
        assert_eq!(unescape(br"/a\134b\011c\"), PathBuf::from("/a\\b\tc\\"));
        assert_eq!(unescape(br"/a\9zz").as_os_str().as_bytes(), br"/a\9zz");
    }

    #[test]
    fn a_process_that_died_has_unmounted_nothing() {
        let poll = Poll::new().unwrap();
        let (ours, _) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let mut report = Watch::new(ours, Token::Unmounter);
        report.listen(&poll, Events::IN).unwrap();
        let mut unmounter = Unmounter {
            report,
            text: b"half a li".to_vec(),
            deadline: Instant::now(),
            drives: vec!["data".into()],
        };
        assert_eq!(unmounter.heard(), ["data: the process that unmounts it died"]);
        unmounter.text = b"data: busy\n\0done".to_vec();
        assert_eq!(unmounter.heard(), ["data: busy"]);
        unmounter.text = b"\0done".to_vec();
        assert!(unmounter.heard().is_empty());
    }

    #[test]
    fn a_drive_that_does_not_exist_is_reported_by_its_id() {
        let drive = WritableDrive {
            serial: "data".into(),
            device: Device::Node("/dev/no-such-disk".into()),
            target: "/data".into(),
        };
        let line = unmount_drive(&drive).unwrap_err();
        assert!(line.starts_with("data: /dev/no-such-disk is gone: ") && line.ends_with('\n'), "{line}");
    }
}
