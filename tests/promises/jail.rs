//! The jail holds. Each attempt is a start of its own, of code that wears the runtime's confinement in a cell that the
//! real jailer built; and each attempt succeeds outside, so that what is denied inside is denied by the cell.

use husk_seccomp::Role;
use husk_tests::alive::Alive;
use husk_tests::attempts::{Outside, Wall, all};
use husk_tests::cell::{Ending, behind_landlock, inside, outside};
use husk_tests::husk::Husk;
use husk_tests::processes;
use husk_tests::scratch::Scratch;
use std::process::Command;

/// Runs `attempt` for each name and says at once which ones did not end as they should.
pub(crate) fn none(what: &str, wrong: Vec<String>) {
    assert!(wrong.is_empty(), "{what}, {} of them:\n{}", wrong.len(), wrong.join("\n"));
}

fn denied(ending: &Ending) -> bool {
    matches!(ending, Ending::Denied(_) | Ending::Trapped)
}

#[test]
fn every_attempt_succeeds_outside() {
    let mut world = Alive::new();
    let mut wrong = Vec::new();
    for attempt in all() {
        let ending = outside(&world, attempt.name);
        let as_told = match attempt.outside {
            Outside::Reached => ending == Ending::Reached,
            Outside::Nobody(_) => ending != Ending::Reached,
            Outside::WhereBuilt => true,
        };
        if !as_told {
            wrong.push(format!("{}: {ending:?}", attempt.name));
        }
    }
    none("attempts that end otherwise than told outside", wrong);
    assert!(world.is_unharmed().unwrap());
}

#[test]
fn no_attempt_succeeds_in_the_cell_alone() {
    let mut world = Alive::new();
    assert_eq!(inside(&world, "nothing", None), Ending::Reached);
    let held = all().filter(|attempt| attempt.wall == Wall::Cell);
    let endings = held.map(|attempt| (attempt.name, inside(&world, attempt.name, None)));
    let wrong = endings.filter(|(_, ending)| !matches!(ending, Ending::Denied(_)));
    none(
        "attempts that the cell does not deny",
        wrong.map(|(name, ending)| format!("{name}: {ending:?}")).collect(),
    );
    assert!(world.is_unharmed().unwrap());
}

#[test]
fn no_attempt_succeeds_behind_the_filters() {
    let mut world = Alive::new();
    for role in Role::RUNTIME {
        assert_eq!(inside(&world, "nothing", Some(role.name())), Ending::Reached, "{role:?}");
    }
    let mut wrong = Vec::new();
    for attempt in all() {
        // Every thread wears the first phase's filter below its own: what that one denies, none can be allowed. What it allows
        // is tried behind each.
        let roles = if attempt.allowed.is_empty() { &[Role::Shell][..] } else { &Role::RUNTIME[..] };
        for &role in roles {
            let ending = inside(&world, attempt.name, Some(role.name()));
            let as_told =
                if attempt.allowed.contains(&role) { ending != Ending::Trapped } else { denied(&ending) };
            if !as_told {
                wrong.push(format!("{role:?}: {}: {ending:?}", attempt.name));
            }
        }
    }
    none("attempts that filters do not deny, or deny though they are told to allow them", wrong);
    assert!(world.is_unharmed().unwrap());
}

/// The kernel's interface of landlock, as the doctor says; none where it is off.
fn landlock_interface() -> Option<u32> {
    let object: serde_json::Value =
        serde_json::from_str(&Husk::new(["doctor", "--json"]).output().text()).unwrap();
    let check = object["checks"].as_array()?.iter().find(|check| check["name"] == "landlock")?;
    let (_, rest) = check["found"].as_str()?.split_once("interface ")?;
    rest.split(';').next()?.parse().ok()
}

/// Attempts that landlock alone denies, and the first interface that does.
const BY_LANDLOCK: &[(&str, u32)] = &[
    ("open-file", 1),
    ("create-file", 1),
    ("list-root", 1),
    ("execute", 1),
    ("trace-process", 1),
    ("read-process-memory", 1),
    ("truncate-file", 3),
    ("listen-inet", 4),
    ("connect-inet", 4),
    ("connect-abstract", 6),
    ("signal-process", 6),
    ("signal-thread-of-process", 6),
    ("queue-signal", 6),
    ("signal-by-handle", 6),
    ("connect-unix", 9),
];

#[test]
fn item_27_landlock_alone_denies_files_ports_abstract_sockets_and_signals_to_the_outside() {
    let Some(interface) = landlock_interface() else { husk_tests::skip!("this kernel has landlock off") };
    let mut world = Alive::new();
    assert_eq!(behind_landlock(&world, "nothing"), Ending::Reached);
    let mut wrong = Vec::new();
    for (attempt, since) in BY_LANDLOCK {
        let ending = behind_landlock(&world, attempt);
        // Its own words, not those of what an attempt might stumble over otherwise.
        let by_it = |error: &str| error.contains("Permission denied") || error.contains("not permitted");
        let as_told = match &ending {
            Ending::Denied(error) => interface >= *since && by_it(error),
            Ending::Reached => interface < *since,
            Ending::Trapped => false,
        };
        if !as_told {
            wrong.push(format!("{attempt} (interface {since}, this kernel has {interface}): {ending:?}"));
        }
    }
    none("attempts that end otherwise than landlock's interface says", wrong);
    assert!(world.is_unharmed().unwrap());
}

#[test]
fn a_guest_has_no_virtualization_of_its_own() {
    let outcome = Husk::sh("grep -c hypervisor /proc/cpuinfo; grep -cwE 'svm|vmx' /proc/cpuinfo").output();
    assert_eq!(outcome.text(), "1\n0\n", "{}", outcome.stderr);
}

/// Descriptors of a process that lead to `path`.
fn descriptors_of(pid: u32, path: &str) -> usize {
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    links
        .filter(|link| std::fs::read_link(link.path()).is_ok_and(|target| target.to_str() == Some(path)))
        .count()
}

#[test]
fn item_26_the_runtime_inherits_neither_environment_nor_descriptors() {
    let scratch = Scratch::new();
    let path = scratch.file("secret", b"x");
    let secret = std::fs::File::open(&path).unwrap();
    // Left open across execve, as a careless parent leaves one.
    rustix::io::fcntl_setfd(&secret, rustix::io::FdFlags::empty()).unwrap();
    let husk = Husk::sh("echo up; sleep 1000").env("HUSK_TEST_SECRET", "hunter2").spawn().up();
    let runtimes = processes::named("husk-control");
    assert_eq!(runtimes.len(), 1, "one runtime, not {runtimes:?}");
    assert_eq!(descriptors_of(husk.pid(), &path), 1, "husk itself did not inherit it, so this says nothing");
    assert_eq!(descriptors_of(runtimes[0], &path), 0);
    let environment =
        |pid| String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/environ")).unwrap()).into_owned();
    assert!(environment(husk.pid()).contains("hunter2"));
    assert_eq!(environment(runtimes[0]), "");
    husk.terminate();
}

#[test]
fn item_25_the_same_cell_cannot_be_made_twice() {
    let scratch = Scratch::new();
    let base = scratch.name("jail");
    let jail = format!("{base}/husk-probe/twice/root");
    let jailer = |id: &str| {
        let output = Command::new(husk_tests::husk::libexec().join("husk-jailer"))
            .args([
                "--id",
                id,
                "--uid",
                "654321",
                "--gid",
                "654321",
                "--chroot-base-dir",
                &base,
                "--exec-file",
            ])
            .arg(husk_tests::rootfs::sibling("husk-probe"))
            .args(["--", "-c", "exit 0"])
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    std::fs::create_dir_all(&jail).unwrap();
    let (made, error) = jailer("twice");
    assert!(!made && error.contains("twice"), "an existing jail was taken: {error}");
    std::os::unix::fs::symlink("/etc", format!("{base}/husk-probe/link")).unwrap();
    let (made, error) = jailer("link");
    assert!(!made && error.contains("link"), "a symlinked jail was taken: {error}");
    for id in ["", "..", "a/b", "a b", &"x".repeat(65)] {
        let (made, error) = jailer(id);
        assert!(!made, "the id {id:?} was taken");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    assert!(!std::path::Path::new("/sys/fs/cgroup/husk/twice").exists());
}
