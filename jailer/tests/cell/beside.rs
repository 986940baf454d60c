//! Cells that take something of the host's along, out of the pool: they are the same cells, and no mount of the host's is copied
//! but what they take.

use crate::pool::{Pool, Waiting};
use crate::start::{GROUP, Outcome, PARENT, USER, World, finish, inherited, start};
use rustix::fs::{AtFlags, StatxFlags, statx};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, UnmountFlags,
    fsconfig_create, fsmount, fsopen, mount, mount_bind, mount_change, unmount,
};
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Mounts of the host's, beside those that it has.
const MANY: u64 = 100;
/// `STATX_MNT_ID_UNIQUE` of linux/stat.h.
const UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// The number of a mount that is new: the kernel counts all that it makes, and gives no number twice. None before Linux 6.8.
fn number_of_a_new_mount() -> Option<u64> {
    let filesystem = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    fsconfig_create(filesystem.as_fd()).unwrap();
    let new = fsmount(filesystem.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
    let told = statx(&new, "", AtFlags::EMPTY_PATH, UNIQUE).ok()?;
    (told.stx_mask & UNIQUE.bits() != 0).then_some(told.stx_mnt_id)
}

/// Mounts on the host, until dropped.
struct Mounts(Vec<PathBuf>);

impl Mounts {
    fn of(base: &Path, count: u64) -> Self {
        let places: Vec<_> = (0..count).map(|number| base.join(format!("mount-{number}"))).collect();
        for place in &places {
            fs::create_dir(place).unwrap();
            mount_bind(base, place).unwrap();
        }
        Self(places)
    }

    /// A file system, with a file in it.
    fn file_system(&mut self, place: PathBuf) {
        mount("tmpfs", &place, "tmpfs", MountFlags::empty(), None).unwrap();
        fs::write(place.join("hidden"), "").unwrap();
        self.0.push(place);
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        for place in self.0.iter().rev() {
            let _ = unmount(place, UnmountFlags::DETACH);
        }
    }
}

/// A directory and a socket for the sandbox `id`, which has run and whose cgroup is there.
struct Beside<'a> {
    world: &'a World,
    id: &'static str,
    directory: OwnedFd,
    socket: OwnedFd,
}

impl<'a> Beside<'a> {
    fn new(world: &'a World, id: &'static str, directory: &Path) -> Self {
        assert!(world.run(id, &[], &[]).status.success());
        let directory = inherited(fs::File::open(directory).unwrap());
        Self { world, id, directory, socket: inherited(UnixStream::pair().unwrap().0) }
    }

    fn volume(&self) -> Command {
        self.world.volume_jailer(self.id, &self.directory, &self.socket)
    }

    /// The network's program is a shell, which says what it sees of mounts, their numbers left out.
    fn network(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_husk-jailer"));
        command.args(["--id", self.id, "--uid", USER, "--gid", GROUP, "--control-fd", "3"]);
        command.args([
            "--parent-cgroup",
            PARENT,
            "--network-socket-fd",
            &self.socket.as_raw_fd().to_string(),
        ]);
        command.arg("--exec-file").arg(fs::canonicalize("/bin/sh").unwrap());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }
}

const SAY_MOUNTS: [&str; 3] =
    ["--", "-c", "while read -r _ _ _ rest; do echo \"$rest\"; done < /proc/self/mountinfo >&2"];

fn run(mut command: Command, more: &[&str]) -> Outcome {
    command.args(more);
    let (control, child) = start(command);
    let outcome = finish(&control, child);
    assert!(outcome.status.success(), "{outcome:?}");
    outcome
}

#[test]
fn no_cell_out_of_the_pool_copies_the_hosts_mounts() {
    let Some(world) = World::new("beside::no_cell_out_of_the_pool_copies_the_hosts_mounts") else { return };
    if number_of_a_new_mount().is_none() {
        return World::lacks("numbers of mounts (Linux 6.8)");
    }
    let pool = Pool::new(&world);
    let shared = world.base.join("shared");
    fs::create_dir(&shared).unwrap();
    let beside = Beside::new(&world, "beside", &shared);
    let flags = ["--pool", pool.path.to_str().unwrap()];
    let made = |kind: &str, flags: &[&str]| {
        pool.fill();
        let first = number_of_a_new_mount().unwrap();
        match kind {
            "directory" => drop(run(world.jailer("one"), flags)),
            "volume" => drop(run(beside.volume(), flags)),
            "network" => drop(run(beside.network(), &[flags, &SAY_MOUNTS].concat())),
            _ => {
                let output = world.drop_in("one", flags).output().unwrap();
                assert!(output.status.success(), "{output:?}");
                fs::remove_dir_all(world.jail("one")).unwrap();
            }
        }
        let count = number_of_a_new_mount().unwrap() - first - 1;
        assert!(!matches!(kind, "directory" | "layout") || world.remove("one"));
        count
    };
    let kinds = ["directory", "volume", "network", "layout"];
    let few = kinds.map(|kind| (made(kind, &flags), made(kind, &[])));
    let _mounts = Mounts::of(&world.base, MANY);
    let many = kinds.map(|kind| (made(kind, &flags), made(kind, &[])));
    for (kind, (few, many)) in kinds.iter().zip(few.iter().zip(&many)) {
        println!("{kind}: {} mounts out of the pool, {} and {} without", few.0, few.1, many.1);
        assert_eq!(few.0, many.0, "{kind}");
        assert_eq!(few.1 + MANY, many.1, "{kind}: without the pool all are copied");
    }
    assert!(world.remove("beside"));
}

#[test]
fn a_volumes_cell_out_of_the_pool_holds_its_directory_and_nothing_else() {
    let name = "beside::a_volumes_cell_out_of_the_pool_holds_its_directory_and_nothing_else";
    let Some(world) = World::new(name) else { return };
    let pool = Pool::new(&world);
    let tree = world.base.join("tree");
    fs::create_dir(&tree).unwrap();
    let mut mounts = Mounts(Vec::new());
    mounts.file_system(tree.clone());
    mount_change(&tree, MountPropagationFlags::SHARED).unwrap();
    let shared = tree.join("shared");
    ["", "below", "later"].iter().for_each(|name| fs::create_dir(shared.join(name)).unwrap());
    fs::write(shared.join("file"), "seven b").unwrap();
    mounts.file_system(shared.join("below"));
    let beside = Beside::new(&world, "beside", &shared);
    let flags = ["--pool", pool.path.to_str().unwrap()];
    for writable in [&[][..], &["--volume-writable"]] {
        let plain = run(beside.volume(), writable);
        pool.fill();
        let free = pool.count("free");
        let out_of_pool = run(beside.volume(), &[&flags, writable].concat());
        assert_eq!(out_of_pool.seen, plain.seen);
        assert_eq!(out_of_pool.seen["volume"], 7);
        assert_eq!(pool.count("free"), free - 1, "a network namespace of the pool's is its own");
    }
    let mut command = beside.volume();
    command.args(flags);
    let mut cell = Waiting::start(command, "beside");
    cell.up().unwrap();
    mounts.file_system(shared.join("later"));
    let table = fs::read_to_string(format!("/proc/{}/mountinfo", cell.pid)).unwrap();
    let lines: Vec<Vec<_>> = table.lines().map(|line| line.split(' ').collect()).collect();
    // In the table's order a volume that was taken ahead comes first.
    let mut points: Vec<_> = lines.iter().map(|fields| (fields[4], fields[3])).collect();
    points.sort_unstable();
    assert_eq!(points, [("/", "/"), ("/proc", "/"), ("/volume", "/shared")], "{table}");
    for fields in &lines {
        assert!(fields[5].starts_with("ro,nosuid,nodev,noexec") && fields[6] == "-", "{table}");
    }
    let inside = PathBuf::from(format!("/proc/{}/root/volume", cell.pid));
    for name in ["below", "later"] {
        assert!(shared.join(name).join("hidden").exists());
        assert_eq!(fs::read_dir(inside.join(name)).unwrap().count(), 0, "{name} is another file system's");
    }
    for kind in ["mnt", "net", "pid", "ipc", "uts", "cgroup"] {
        assert_ne!(cell.namespace(kind), fs::read_link(format!("/proc/self/ns/{kind}")).unwrap(), "{kind}");
    }
    cell.end(&world);
}

#[test]
fn a_networks_cell_out_of_the_pool_is_the_same_cell() {
    let Some(world) = World::new("beside::a_networks_cell_out_of_the_pool_is_the_same_cell") else { return };
    let pool = Pool::new(&world);
    let beside = Beside::new(&world, "beside", &world.base);
    let plain = run(beside.network(), &SAY_MOUNTS).complaint;
    let flags = ["--pool", pool.path.to_str().unwrap()];
    let out_of_pool = run(beside.network(), &[&flags[..], &SAY_MOUNTS].concat()).complaint;
    assert_eq!(out_of_pool, plain);
    assert!(
        plain.contains("/ / ro,nosuid,nodev,noexec") && plain.contains(" /usr ro,nosuid,nodev"),
        "{plain}"
    );
    let is_cut_off = |line: &str| line.split(' ').nth(3) == Some("-");
    assert!(plain.lines().all(is_cut_off), "{plain}");
    let network = ["--", "-c", "readlink /proc/self/ns/net >&2"];
    let named = run(beside.network(), &[&flags[..], &network].concat()).complaint;
    assert_eq!(Path::new(named.trim()), fs::read_link("/proc/self/ns/net").unwrap());
    assert!(world.remove("beside"));
}

#[test]
fn a_cell_of_firecrackers_layout_out_of_the_pool_is_the_same_cell() {
    let name = "beside::a_cell_of_firecrackers_layout_out_of_the_pool_is_the_same_cell";
    let Some(world) = World::new(name) else { return };
    let pool = Pool::new(&world);
    let flags = ["--pool", pool.path.to_str().unwrap(), "--new-pid-ns"];
    let [plain, out_of_pool] = [&flags[2..], &flags].map(|flags| {
        let output = world.drop_in("fc", flags).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let mut seen = world.seen("fc");
        // What it took and when is in the arguments.
        seen["arguments"].take();
        assert!(world.clear("fc"));
        seen
    });
    assert_eq!(out_of_pool, plain);
}
