use super::*;
use crate::state::State;
use crate::state::tests::record;
use std::fs;

/// A registered sandbox, and a directory that stands for its hierarchies' mounts.
struct Rig {
    base: PathBuf,
    state: State,
    registration: Registration,
    hierarchies: Hierarchies,
}

impl Rig {
    /// `mounts`: file system, its place below the base, and its options.
    fn new(name: &str, mounts: &[(&str, &str, &str)]) -> Self {
        let base = std::env::temp_dir().join(format!("husk-live-{}-{name}", std::process::id()));
        let state = State::at(&base.join("state"));
        let registration = state.register("box").unwrap();
        let line = |(kind, place, options): &(&str, &str, &str)| {
            let place = base.join(place);
            fs::create_dir_all(place.join("husk")).unwrap();
            format!("30 23 0:27 / {} rw - {kind} x rw,{options}\n", place.display())
        };
        let table: String = mounts.iter().map(line).collect();
        Self { hierarchies: Hierarchies::parse(&table, "husk".into()), base, state, registration }
    }

    fn file(&self, path: &str, content: &str) {
        let path = self.base.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.base.join(path)).unwrap()
    }

    fn live(&self) -> Live<'_> {
        let limits = ["memory.max=64M", "memory.swap.max=0", "pids.max=20"];
        Live {
            hierarchies: &self.hierarchies,
            registration: &self.registration,
            record: record("box", 1),
            limits: Limits::once(limits.iter().map(|word| word.parse().unwrap())).unwrap(),
            drives: vec![("data".into(), Some(crate::limits::Device { major: 7, minor: 1 }))],
            pinned: vec![1],
            moving: None,
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.base);
    }
}

fn change(live: &mut Live<'_>, words: &[&str]) -> Result<(), LiveError> {
    live.change(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
}

const UNIFIED: [(&str, &str, &str); 1] = [("cgroup2", "two", "x")];

#[test]
fn what_is_named_is_written_and_told_and_the_rest_stays() {
    let rig = Rig::new("written", &UNIFIED);
    rig.file("two/husk/box/cpu.max", "max 100000\n");
    rig.file("two/husk/box/io.max", "8:0 rbps=5 wbps=max riops=max wiops=max\n");
    let mut live = rig.live();
    change(&mut live, &["cpu.max=25%", "io.max=data:rbps=1M"]).unwrap();
    assert!(rig.read("two/husk/box/cpu.max").starts_with("25000 100000"));
    assert!(rig.read("two/husk/box/io.max").starts_with("7:1 rbps=1048576"));
    let told = rig.state.record("box").unwrap().limits;
    let expected = [
        "memory.max=67108864",
        "memory.swap.max=0",
        "pids.max=20",
        "cpu.max=25000 100000",
        "io.max=7:1:rbps=1048576",
    ];
    assert_eq!(told, expected);
}

#[test]
fn a_file_that_does_not_take_its_value_has_the_others_put_back() {
    let rig = Rig::new("back", &UNIFIED);
    rig.file("two/husk/box/cpu.max", "50000 100000");
    rig.file("two/husk/box/cpuset.cpus", "\n");
    // Nobody can read or write what is a directory.
    fs::create_dir(rig.base.join("two/husk/box/memory.high")).unwrap();
    let mut live = rig.live();
    let error = change(&mut live, &["cpu.max=2", "cpuset.cpus=0-1", "memory.high=32M"]).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("box/memory.high=\"33554432\": Is a directory"), "{text}");
    assert!(text.ends_with("; no limit was changed"), "{text}");
    assert_eq!(error.fault(), Fault::Host);
    assert!(rig.read("two/husk/box/cpu.max").starts_with("50000 100000"));
    assert!(rig.read("two/husk/box/cpuset.cpus").starts_with('\n'));
    assert!(rig.state.record("box").is_none() && live.limits.texts().len() == 3);
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_written() {
    let rig = Rig::new("refused", &[("cgroup", "memory", "memory"), ("cgroup2", "two", "x")]);
    rig.file("two/husk/box/cpu.max", "max 100000");
    let mut live = rig.live();
    for (words, says) in [
        (["cpu.max=1", "cpu.max=2"], "--limit cpu.max=200000 100000 is given twice"),
        (["cpu.max=1", "cpu.weight=0"], "--limit cpu.weight \"0\" is not allowed; a whole number"),
        (["cpu.max=1", "cpuset.cpus=0"], "a list with CPU 1, to which a vCPU is pinned, is"),
        (["cpu.max=1", "io.max=root:rbps=1M"], "\"root\" is not one of the sandbox's drives; it has data"),
        (["cpu.max=1", "memory.high=32M"], "--limit memory.high: cgroup v1 slows nobody down"),
    ] {
        let error = change(&mut live, &words).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(error.fault(), Fault::Operator);
        assert_eq!(rig.read("two/husk/box/cpu.max"), "max 100000", "{words:?}");
    }
}

#[test]
fn version_one_moves_memory_and_swap_in_the_order_that_it_takes() {
    let rig = Rig::new("order", &[("cgroup", "memory", "memory")]);
    let live = rig.live();
    let planned = |word: &str| -> Vec<String> {
        let asked = Limits::once([word.parse().unwrap()]).unwrap();
        let limits = live.limits.clone().under(&asked);
        let planned = live.planned(&asked, &limits).unwrap();
        planned.into_iter().map(|(file, needed)| format!("{}={} {needed}", file.name, file.value)).collect()
    };
    let both = |bytes: u64| {
        [format!("memory.limit_in_bytes={bytes} true"), format!("memory.memsw.limit_in_bytes={bytes} false")]
    };
    assert_eq!(planned("memory.max=32M"), both(32 << 20));
    let mut raised = both(128 << 20);
    raised.reverse();
    assert_eq!(planned("memory.max=128M"), raised);
    assert_eq!(planned("memory.swap.max=1M"), [format!("memory.memsw.limit_in_bytes={} true", 65 << 20)]);
    // A kernel that does not count swap has no second file, and the first counts.
    rig.file("memory/husk/box/memory.limit_in_bytes", "67108864");
    let mut live = rig.live();
    change(&mut live, &["memory.max=128M"]).unwrap();
    assert_eq!(rig.read("memory/husk/box/memory.limit_in_bytes"), "134217728");
    assert!(change(&mut live, &["memory.swap.max=1M"]).unwrap_err().to_string().contains("memory.memsw"));
}

#[test]
fn a_drive_with_another_file_is_on_its_device_once_the_cell_has_it() {
    use husk_protocol::control::DriveChange;
    use husk_protocol::spec::FileRef;
    let rig = Rig::new("moved", &UNIFIED);
    rig.file("two/husk/box/io.max", "");
    let mut live = rig.live();
    let moved = Change::Drive(DriveChange { drive_id: "data".into(), path_on_host: FileRef::Fd(0) });
    let file = OwnedFd::from(fs::File::open("/proc/self/status").unwrap());
    for (number, done, device) in [(1, false, true), (2, true, false)] {
        live.asked(number, &moved, Some(&file));
        live.answered(7, true);
        live.answered(number, done);
        assert_eq!(live.drives[0].1.is_some(), device, "/proc is on no device");
    }
    let error = change(&mut live, &["io.max=data:rbps=1M"]).unwrap_err().to_string();
    assert!(error.contains("drive data: it is on no single block device"), "{error}");
}

#[test]
fn an_old_value_of_a_device_is_found_among_others() {
    let target = Target { version: Version::Two, controller: "io" };
    let file = |name: &str, value: &str| File { target, name: name.into(), value: value.into() };
    let io = file("io.max", "7:1 rbps=5");
    let line = "7:1 rbps=9 wbps=max riops=max wiops=max";
    assert_eq!(inverse(&io, &format!("8:0 rbps=1\n{line}\n")), line);
    assert_eq!(inverse(&io, "8:0 rbps=1\n"), "7:1 rbps=max wbps=max riops=max wiops=max");
    assert_eq!(inverse(&file("blkio.throttle.read_bps_device", "7:1 5"), "8:0 3\n"), "7:1 0");
    assert_eq!(inverse(&file("pids.max", "5"), "max\n"), "max");
}
