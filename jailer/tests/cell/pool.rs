//! Cells that are made out of namespaces which were made once: the same cells, and no two share one.

use crate::rootless::{SOMEBODY, Somebody};
use crate::start::{GROUP, Outcome, PARENT, USER, World, finish, hear, reap, start, witness};
use husk_protocol::control::{Fault, FromCell};
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Network namespaces that are kept ready.
const SIZE: usize = 16;

/// A pool, until dropped.
pub(crate) struct Pool<'a> {
    world: &'a World,
    pub(crate) path: PathBuf,
}

impl<'a> Pool<'a> {
    pub(crate) fn new(world: &'a World) -> Self {
        std::fs::set_permissions(&world.base, PermissionsExt::from_mode(0o755)).unwrap();
        Self { world, path: world.base.join("ns") }
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_husk-jailer"));
        command.args(["pool", verb]).arg(&self.path);
        command
    }

    pub(crate) fn fill(&self) {
        assert!(self.command("fill").status().unwrap().success());
    }

    fn jailer(&self, id: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_husk-jailer"));
        command.args(["--id", id, "--uid", USER, "--gid", GROUP, "--control-fd", "3"]);
        command.args(["--parent-cgroup", PARENT, "--exec-file"]).arg(witness());
        command.arg("--pool").arg(&self.path);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    fn run(&self, id: &str) -> Outcome {
        let (ours, child) = start(self.jailer(id));
        let outcome = finish(&ours, child);
        assert!(self.world.remove(id));
        outcome
    }

    pub(crate) fn count(&self, what: &str) -> usize {
        std::fs::read_dir(self.path.join(what)).map(Iterator::count).unwrap_or_default()
    }

    /// Mounts of this machine's on the pool's directory or in it.
    fn mounts(&self) -> usize {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let place = self.path.to_str().unwrap();
        table
            .lines()
            .filter(|line| line.split(' ').nth(4).is_some_and(|point| point.starts_with(place)))
            .count()
    }
}

impl Drop for Pool<'_> {
    fn drop(&mut self) {
        drop(self.command("remove").status());
    }
}

/// A cell whose program waits until the socket is closed.
pub(crate) struct Waiting {
    id: String,
    control: OwnedFd,
    jailer: Child,
    pub(crate) pid: i32,
}

impl Waiting {
    pub(crate) fn start(mut jailer: Command, id: &str) -> Self {
        jailer.args(["--", "--wait"]);
        let (control, jailer) = start(jailer);
        Self { id: id.to_owned(), control, jailer, pid: 0 }
    }

    /// Until the jailer and the program have spoken, in whatever order.
    pub(crate) fn up(&mut self) -> Result<(), String> {
        let mut spoke = false;
        while self.pid == 0 || !spoke {
            let Some(bytes) = hear(&self.control) else {
                use std::io::Read;
                let mut complaint = String::new();
                let _ = self.jailer.stderr.as_mut().unwrap().read_to_string(&mut complaint);
                return Err(format!("{} is no cell: {complaint} ({:?})", self.id, self.jailer.wait()));
            };
            match serde_json::from_slice(&bytes) {
                Ok(FromCell::Cloned { pid }) => self.pid = pid,
                Ok(FromCell::Stage { .. }) => {}
                Ok(other) => return Err(format!("{}: {other:?}", self.id)),
                Err(_) => spoke = true,
            }
        }
        Ok(())
    }

    pub(crate) fn namespace(&self, kind: &str) -> PathBuf {
        std::fs::read_link(format!("/proc/{}/ns/{kind}", self.pid)).unwrap()
    }

    pub(crate) fn end(self, world: &World) {
        drop(self.control);
        assert!(self.jailer.wait_with_output().unwrap().status.success());
        assert!(reap(self.pid));
        assert!(world.remove(&self.id));
    }
}

#[test]
fn a_cell_out_of_the_pool_is_the_same_cell() {
    let Some(world) = World::new("pool::a_cell_out_of_the_pool_is_the_same_cell") else { return };
    let pool = Pool::new(&world);
    let plain = world.run("same", &[], &[]);
    assert!(plain.status.success() && world.remove("same"), "{plain:?}");
    assert!(!pool.path.exists());
    // The first makes the pool, the second has a network namespace out of it, the third finds it empty again.
    for round in 0..3 {
        if round == 1 {
            pool.fill();
        }
        let outcome = pool.run("same");
        assert!(outcome.status.success(), "{outcome:?}");
        assert_eq!(outcome.seen, plain.seen, "round {round}");
        assert_eq!((pool.mounts(), pool.count("free")), (2, [0, SIZE - 1, SIZE - 2][round]));
    }
}

#[test]
fn no_two_cells_share_a_network_namespace() {
    let Some(world) = World::new("pool::no_two_cells_share_a_network_namespace") else { return };
    let pool = Pool::new(&world);
    let mut all = BTreeSet::from([std::fs::read_link("/proc/self/ns/net").unwrap()]);
    let mut living = Vec::new();
    // All at once for what there is, and more of them than that; twice, with the first still alive.
    for round in 0..2 {
        pool.fill();
        let ids: Vec<_> = (0..SIZE + 2).map(|number| format!("many-{round}-{number}")).collect();
        let mut started: Vec<_> = ids.iter().map(|id| Waiting::start(pool.jailer(id), id)).collect();
        started.iter_mut().try_for_each(Waiting::up).unwrap();
        assert_eq!(pool.count("free"), 0);
        living.append(&mut started);
    }
    for cell in &living {
        assert!(all.insert(cell.namespace("net")), "{} is not alone", cell.id);
        let table = std::fs::read_to_string(format!("/proc/{}/mountinfo", cell.pid)).unwrap();
        assert_eq!(table.lines().count(), 1, "{table}");
        assert!(table.contains(" / / ro,nosuid,nodev,noexec"), "{table}");
    }
    // What living cells have is not the pool's any more, and what is new in it is nobody's.
    pool.fill();
    assert_eq!((pool.count("free"), pool.count("net")), (SIZE, SIZE));
    for name in std::fs::read_dir(pool.path.join("free")).unwrap().flatten() {
        let name = PathBuf::from(format!("net:[{}]", name.file_name().to_str().unwrap()));
        assert!(!all.contains(&name), "{}", name.display());
    }
    living.into_iter().for_each(|cell| cell.end(&world));
}

#[test]
fn the_pool_is_bounded_whoever_fills_it() {
    let Some(world) = World::new("pool::the_pool_is_bounded_whoever_fills_it") else { return };
    let pool = Pool::new(&world);
    for _ in 0..3 {
        let fillers: Vec<_> = (0..4).map(|_| pool.command("fill").spawn().unwrap()).collect();
        for filler in fillers {
            assert!(filler.wait_with_output().unwrap().status.success());
        }
        assert_eq!((pool.count("free"), pool.count("net"), pool.mounts()), (SIZE, SIZE, 2));
        assert!(pool.run("one").status.success());
    }
    assert!(pool.command("remove").status().unwrap().success());
    assert!(!pool.path.exists() && pool.mounts() == 0);
    assert!(pool.command("remove").status().unwrap().success(), "nothing is there");
}

#[test]
fn a_maker_that_is_killed_leaves_what_the_next_takes_up() {
    let Some(world) = World::new("pool::a_maker_that_is_killed_leaves_what_the_next_takes_up") else {
        return;
    };
    let pool = Pool::new(&world);
    for round in 0_u64..40 {
        let mut maker = pool.command("fill").spawn().unwrap();
        std::thread::sleep(Duration::from_micros(round * 300));
        maker.kill().unwrap();
        maker.wait().unwrap();
        match round % 4 {
            0 => {
                assert!(pool.command("remove").status().unwrap().success(), "round {round}");
                assert!(!pool.path.exists() && pool.mounts() == 0, "round {round}");
            }
            1 => assert!(pool.run("after").status.success(), "round {round}"),
            2 => {
                pool.fill();
                assert_eq!((pool.count("free"), pool.count("net"), pool.mounts()), (SIZE, SIZE, 2));
            }
            _ => {}
        }
    }
}

#[test]
fn a_hostile_directory_is_refused_by_name() {
    let Some(world) = World::new("pool::a_hostile_directory_is_refused_by_name") else { return };
    let pool = Pool::new(&world);
    let elsewhere = world.base.join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let refused = |why: &str| {
        let outcome = pool.run("refused");
        assert!(!outcome.status.success() && outcome.pid.is_none(), "{outcome:?}");
        let named = format!("namespaces {}", pool.path.display());
        assert!(outcome.complaint.contains(&named) && outcome.complaint.contains(why), "{outcome:?}");
        let told = outcome
            .messages
            .iter()
            .any(|message| matches!(message, FromCell::Failed { fault: Fault::Operator, .. }));
        assert!(told, "{outcome:?}");
    };
    symlink(&elsewhere, &pool.path).unwrap();
    refused("symbolic link");
    std::fs::remove_file(&pool.path).unwrap();
    std::fs::write(&pool.path, "").unwrap();
    refused("no directory");
    std::fs::remove_file(&pool.path).unwrap();
    std::fs::create_dir(&pool.path).unwrap();
    std::fs::set_permissions(&pool.path, PermissionsExt::from_mode(0o777)).unwrap();
    refused("writable by nobody else");
    std::fs::set_permissions(&pool.path, PermissionsExt::from_mode(0o700)).unwrap();
    chown(&pool.path, Some(SOMEBODY), None).unwrap();
    refused("directory of user 0");
    chown(&pool.path, Some(0), None).unwrap();
    std::fs::write(pool.path.join("precious"), "").unwrap();
    refused("nothing of Husk's");
    assert!(pool.path.join("precious").exists());
    std::fs::remove_file(pool.path.join("precious")).unwrap();
    // Files where namespaces should be are none: the pool is made anew.
    std::fs::write(pool.path.join("pool"), "").unwrap();
    std::fs::create_dir_all(pool.path.join("free")).unwrap();
    std::fs::write(pool.path.join("free/4026532001"), "").unwrap();
    assert!(pool.run("anew").status.success());
    assert_eq!((pool.count("free"), pool.mounts()), (0, 2));
    assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0);
}

/// The pool of somebody who is not root.
struct His<'a> {
    somebody: Somebody<'a>,
    world: &'a World,
    path: PathBuf,
}

impl<'a> His<'a> {
    fn new(world: &'a World) -> Option<Self> {
        let somebody = Somebody::new(world)?;
        let his = world.base.join("his");
        std::fs::create_dir(&his).unwrap();
        std::fs::set_permissions(&his, PermissionsExt::from_mode(0o700)).unwrap();
        chown(&his, Some(SOMEBODY), Some(SOMEBODY)).unwrap();
        Some(Self { somebody, world, path: his.join("ns") })
    }

    fn jailer(&self, id: &str) -> Command {
        let mut command = self.somebody.jailer(id, "witness");
        command.arg("--pool").arg(&self.path);
        command
    }

    fn verb(&self, verb: &str) {
        let mut command = self.somebody.bare_jailer();
        command.args(["pool", verb]).arg(&self.path);
        assert!(command.status().unwrap().success(), "{verb}");
    }

    fn holder(&self) -> i32 {
        let word = std::fs::read_to_string(self.path.join("holder")).unwrap();
        word.split(' ').next().unwrap().parse().unwrap()
    }

    fn free(&self) -> usize {
        std::fs::read_dir(self.path.join("free")).unwrap().count()
    }

    fn run(&self) -> serde_json::Value {
        let (control, child) = start(self.jailer("his"));
        let outcome = finish(&control, child);
        assert!(outcome.status.success() && outcome.complaint.is_empty(), "{outcome:?}");
        assert!(self.world.remove("his"));
        outcome.seen
    }
}

impl Drop for His<'_> {
    fn drop(&mut self) {
        let mut command = self.somebody.bare_jailer();
        drop(command.args(["pool", "remove"]).arg(&self.path).status());
    }
}

#[test]
fn without_root_a_process_holds_the_pool() {
    let Some(world) = World::new("pool::without_root_a_process_holds_the_pool") else { return };
    let Some(his) = His::new(&world) else { return World::lacks("cgroup v2") };
    let plain = his.somebody.run("his", &[]);
    assert!(plain.status.success() && world.remove("his"), "{plain:?}");
    assert_eq!(his.run(), plain.seen);
    let holder = his.holder();
    his.verb("fill");
    assert_eq!(his.run(), plain.seen);
    assert_eq!((his.holder(), his.free()), (holder, SIZE - 1));
    let open: Vec<_> = std::fs::read_dir(format!("/proc/{holder}/fd")).unwrap().flatten().collect();
    assert_eq!(open.len(), 4, "the null device and the lock: {open:?}");
    let status = std::fs::read_to_string(format!("/proc/{holder}/status")).unwrap();
    assert!(
        status.contains("Name:\thusk-holder\n") && status.contains("CapEff:\t0000000000000000\n"),
        "{status}"
    );
    // Many at once, of whom each finds one or makes its own.
    let ids: Vec<_> = (0..SIZE + 2).map(|number| format!("his-{number}")).collect();
    let mut living: Vec<_> = ids.iter().map(|id| Waiting::start(his.jailer(id), id)).collect();
    living.iter_mut().try_for_each(Waiting::up).unwrap();
    let networks: BTreeSet<_> = living.iter().map(|cell| cell.namespace("net")).collect();
    assert_eq!((networks.len(), his.free()), (living.len(), 0));
    living.into_iter().for_each(|cell| cell.end(&world));
}

#[test]
fn a_holder_that_is_gone_is_replaced_and_one_that_is_there_can_be_ended() {
    let name = "pool::a_holder_that_is_gone_is_replaced_and_one_that_is_there_can_be_ended";
    let Some(world) = World::new(name) else { return };
    let Some(his) = His::new(&world) else { return World::lacks("cgroup v2") };
    his.run();
    let first = his.holder();
    let process = rustix::process::Pid::from_raw(first).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
    // Its file still says what it said.
    his.run();
    assert_ne!(his.holder(), first);
    his.verb("fill");
    let second = his.holder();
    assert_eq!(his.free(), SIZE);
    his.verb("remove");
    assert!(!his.path.exists());
    assert!(!Path::new(&format!("/proc/{second}")).exists() || is_zombie(second));
    his.verb("remove");
}

fn is_zombie(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}
