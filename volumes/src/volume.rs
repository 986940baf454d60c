//! The file system that a guest sees: fuse-backend-rs's, under Husk's rules.
//!
//! Owns the list of operations that there are; what stands here alone is forwarded, everything else (extended
//! attributes, locks, ioctls) is the trait's default, an error. Refuses, whatever the guest's kernel believes, each
//! change of a read-only volume, and the names `.` and `..`; takes set-user-id and set-group-id off every mode. Invariant: a read-only volume opens nothing for writing.

use fuse_backend_rs::abi::fuse_abi::{CreateIn, stat64, statvfs64};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, FsOptions, OpenOptions, SetattrValid, ZeroCopyReader,
    ZeroCopyWriter,
};
use fuse_backend_rs::passthrough::{CachePolicy, Config, PassthroughFs};
use std::ffi::CStr;
use std::io;
use std::time::Duration;

/// For how long a guest may believe what it was told of names and attributes.
const BELIEVED: Duration = Duration::from_secs(1);
/// Flags of an open that would change something.
const CHANGES: i32 = libc::O_TRUNC | libc::O_CREAT | (libc::O_TMPFILE & !libc::O_DIRECTORY);

/// Mode bits that no guest sets: on the host its root's files are root's, and would be executed as root's by anyone.
const PRIVILEGED: u32 = libc::S_ISUID | libc::S_ISGID;

/// What the server offers of what the guest's kernel knows. Without `MAX_PAGES` no message carries more than 32 pages.
const OFFERED: FsOptions = FsOptions::ASYNC_READ
    .union(FsOptions::BIG_WRITES)
    .union(FsOptions::AUTO_INVAL_DATA)
    .union(FsOptions::DO_READDIRPLUS)
    .union(FsOptions::READDIRPLUS_AUTO)
    .union(FsOptions::PARALLEL_DIROPS);

type Opened<T> = io::Result<(T, Option<u64>, OpenOptions, Option<u32>)>;

/// See the module.
pub struct Volume {
    files: PassthroughFs<()>,
    writable: bool,
    single_owner: bool,
}

impl Volume {
    /// The directory `root` as the guest's root. Takes hold of /proc/self/fd, and of nothing else yet.
    ///
    /// # Errors
    /// /proc is not there.
    pub fn new(root: &str, writable: bool) -> io::Result<Self> {
        let config = Config {
            root_dir: root.to_owned(),
            attr_timeout: BELIEVED,
            entry_timeout: BELIEVED,
            cache_policy: CachePolicy::Auto,
            allow_direct_io: false,
            ..Config::default()
        };
        Ok(Self { files: PassthroughFs::new(config)?, writable, single_owner: false })
    }

    /// With `single_owner` what any of the guest's users makes is the server's own, who can become nobody else.
    #[must_use]
    pub fn with_single_owner(self, single_owner: bool) -> Self {
        Self { single_owner, ..self }
    }

    /// In whose name something is made.
    fn maker(&self, ctx: &Context) -> Context {
        let mut maker = *ctx;
        if self.single_owner {
            // The server is root to itself, and changes nothing for root.
            (maker.uid, maker.gid) = (0, 0);
        }
        maker
    }

    fn changes(&self) -> io::Result<()> {
        if self.writable { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EROFS)) }
    }

    /// The flags that a file that exists is opened with.
    fn flags(&self, flags: u32) -> io::Result<u32> {
        let flags = flags.cast_signed();
        if flags & libc::O_ACCMODE != libc::O_RDONLY || flags & CHANGES != 0 {
            self.changes()?;
        }
        Ok((flags & !(CHANGES | libc::O_EXCL) | flags & libc::O_TRUNC).cast_unsigned())
    }
}

/// Neither the directory itself nor what is above it has a name in it; a guest's kernel never asks for them.
fn name(name: &CStr) -> io::Result<&CStr> {
    if name == c"." || name == c".." || name.is_empty() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    Ok(name)
}

impl FileSystem for Volume {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        self.files.init(capable & OFFERED)?;
        Ok(OFFERED)
    }

    fn destroy(&self) {
        self.files.destroy();
    }

    fn lookup(&self, ctx: &Context, parent: u64, entry: &CStr) -> io::Result<Entry> {
        self.files.lookup(ctx, parent, name(entry)?)
    }

    fn forget(&self, ctx: &Context, inode: u64, count: u64) {
        self.files.forget(ctx, inode, count);
    }

    fn batch_forget(&self, ctx: &Context, requests: Vec<(u64, u64)>) {
        self.files.batch_forget(ctx, requests);
    }

    fn getattr(&self, ctx: &Context, inode: u64, handle: Option<u64>) -> io::Result<(stat64, Duration)> {
        self.files.getattr(ctx, inode, handle)
    }

    fn setattr(
        &self,
        ctx: &Context,
        inode: u64,
        mut attr: stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        self.changes()?;
        attr.st_mode &= !PRIVILEGED;
        let to_another = |flag, id| valid.contains(flag) && id != 0;
        let given_away =
            to_another(SetattrValid::UID, attr.st_uid) || to_another(SetattrValid::GID, attr.st_gid);
        if self.single_owner && given_away {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        self.files.setattr(ctx, inode, attr, handle, valid)
    }

    fn readlink(&self, ctx: &Context, inode: u64) -> io::Result<Vec<u8>> {
        self.files.readlink(ctx, inode)
    }

    fn symlink(&self, ctx: &Context, target: &CStr, parent: u64, entry: &CStr) -> io::Result<Entry> {
        self.changes()?;
        self.files.symlink(&self.maker(ctx), target, parent, name(entry)?)
    }

    fn mknod(
        &self,
        ctx: &Context,
        parent: u64,
        entry: &CStr,
        mode: u32,
        rdev: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        self.changes()?;
        self.files.mknod(&self.maker(ctx), parent, name(entry)?, mode & !PRIVILEGED, rdev, umask)
    }

    fn mkdir(&self, ctx: &Context, parent: u64, entry: &CStr, mode: u32, umask: u32) -> io::Result<Entry> {
        self.changes()?;
        self.files.mkdir(&self.maker(ctx), parent, name(entry)?, mode & !PRIVILEGED, umask)
    }

    fn unlink(&self, ctx: &Context, parent: u64, entry: &CStr) -> io::Result<()> {
        self.changes()?;
        self.files.unlink(ctx, parent, name(entry)?)
    }

    fn rmdir(&self, ctx: &Context, parent: u64, entry: &CStr) -> io::Result<()> {
        self.changes()?;
        self.files.rmdir(ctx, parent, name(entry)?)
    }

    fn rename(
        &self,
        ctx: &Context,
        from: u64,
        old: &CStr,
        to: u64,
        new: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        self.changes()?;
        self.files.rename(ctx, from, name(old)?, to, name(new)?, flags)
    }

    fn link(&self, ctx: &Context, inode: u64, parent: u64, entry: &CStr) -> io::Result<Entry> {
        self.changes()?;
        self.files.link(ctx, inode, parent, name(entry)?)
    }

    fn open(
        &self,
        ctx: &Context,
        inode: u64,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        self.files.open(ctx, inode, self.flags(flags)?, fuse_flags)
    }

    fn create(&self, ctx: &Context, parent: u64, entry: &CStr, args: CreateIn) -> Opened<Entry> {
        self.changes()?;
        let args = CreateIn { mode: args.mode & !PRIVILEGED, ..args };
        self.files.create(&self.maker(ctx), parent, name(entry)?, args)
    }

    fn read(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        w: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        owner: Option<u64>,
        flags: u32,
    ) -> io::Result<usize> {
        self.files.read(ctx, inode, handle, w, size, offset, owner, flags)
    }

    fn write(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        r: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        owner: Option<u64>,
        delayed: bool,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<usize> {
        self.changes()?;
        self.files.write(ctx, inode, handle, r, size, offset, owner, delayed, flags, fuse_flags)
    }

    fn flush(&self, ctx: &Context, inode: u64, handle: u64, owner: u64) -> io::Result<()> {
        self.files.flush(ctx, inode, handle, owner)
    }

    fn fsync(&self, ctx: &Context, inode: u64, data_only: bool, handle: u64) -> io::Result<()> {
        self.files.fsync(ctx, inode, data_only, handle)
    }

    fn fallocate(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        self.changes()?;
        self.files.fallocate(ctx, inode, handle, mode, offset, length)
    }

    fn release(
        &self,
        ctx: &Context,
        inode: u64,
        flags: u32,
        handle: u64,
        flush: bool,
        flock: bool,
        owner: Option<u64>,
    ) -> io::Result<()> {
        self.files.release(ctx, inode, flags, handle, flush, flock, owner)
    }

    fn statfs(&self, ctx: &Context, inode: u64) -> io::Result<statvfs64> {
        self.files.statfs(ctx, inode)
    }

    fn opendir(&self, ctx: &Context, inode: u64, flags: u32) -> io::Result<(Option<u64>, OpenOptions)> {
        self.files.opendir(ctx, inode, self.flags(flags)?)
    }

    fn readdir(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.files.readdir(ctx, inode, handle, size, offset, add)
    }

    fn readdirplus(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.files.readdirplus(ctx, inode, handle, size, offset, add)
    }

    fn fsyncdir(&self, ctx: &Context, inode: u64, data_only: bool, handle: u64) -> io::Result<()> {
        self.files.fsyncdir(ctx, inode, data_only, handle)
    }

    fn releasedir(&self, ctx: &Context, inode: u64, flags: u32, handle: u64) -> io::Result<()> {
        self.files.releasedir(ctx, inode, flags, handle)
    }

    fn access(&self, ctx: &Context, inode: u64, mask: u32) -> io::Result<()> {
        if mask.cast_signed() & libc::W_OK != 0 {
            self.changes()?;
        }
        self.files.access(ctx, inode, mask)
    }

    fn lseek(&self, ctx: &Context, inode: u64, handle: u64, offset: u64, whence: u32) -> io::Result<u64> {
        self.files.lseek(ctx, inode, handle, offset, whence)
    }
}
