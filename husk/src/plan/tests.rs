mod files;
mod memory;

use super::*;
use crate::options::{NetworkOption, VolumeOption};
use husk_protocol::exec::WindowSize;
use husk_protocol::spec::{CacheType, IoEngine, RawDrive, RawNetwork, RawVolume};

fn options() -> Options {
    Options { command: vec!["true".into()], ..Options::default() }
}

pub(super) fn drive(id: &str, root: bool) -> RawDrive {
    RawDrive {
        drive_id: id.into(),
        path_on_host: FileRef::Path("x".into()),
        is_root_device: root,
        is_read_only: false,
        cache_type: CacheType::Unsafe,
        io_engine: IoEngine::Sync,
        queues: 1,
        rate_limiter: None,
        part: None,
    }
}

/// Kernel, initrd, root and exec channel, and nothing else.
fn places() -> Places {
    Places {
        kernel: 1,
        own_kernel: true,
        initrd: 2,
        root: Some(3),
        root_part: None,
        pmem: Vec::new(),
        drives: Vec::new(),
        wires: Vec::new(),
        volumes: Vec::new(),
        exec: 6,
        listener: None,
        console: None,
    }
}

#[test]
fn options_stand_over_the_configuration() {
    let mut base = RawSpec::default();
    base.machine_config.vcpu_count = 2;
    base.machine_config.mem_size_mib = 512;
    let spec = machine(&options(), &base).unwrap();
    assert_eq!((spec.machine_config.vcpu_count, spec.machine_config.mem_size_mib), (2, 512));
    let over = Options { vcpus: Some(3), memory_mib: Some(64), pin: vec![4, 5, 6], ..options() };
    let spec = machine(&over, &base).unwrap();
    assert_eq!((spec.machine_config.vcpu_count, spec.machine_config.mem_size_mib), (3, 64));
    assert_eq!(spec.placement.unwrap().pin, [4, 5, 6]);
}

#[test]
fn what_cannot_be_is_refused_under_its_name() {
    let refused = |options: Options, base: &RawSpec| machine(&options, base).unwrap_err().to_string();
    let plain = RawSpec::default();
    assert!(refused(Options { command: vec![], ..options() }, &plain).contains("no command"));
    let text = refused(Options { vcpus: Some(33), ..options() }, &plain);
    assert!(text.contains("--vcpus 33") && text.contains("1 to 32"), "{text}");
    let text = refused(Options { memory_mib: Some(1), ..options() }, &plain);
    assert!(text.contains("--memory 1M") && text.contains("16M"), "{text}");
    let mut base = RawSpec::default();
    let text = refused(Options { memory_mib: Some((512 << 10) + 1), ..options() }, &plain);
    assert!(text.contains("--memory 524289M") && text.contains("524288M"), "{text}");
    machine(&Options { memory_mib: Some(512 << 10), ..options() }, &plain).unwrap();
    base.machine_config.mem_size_mib = u64::MAX;
    assert!(refused(options(), &base).contains("mem_size_mib 18446744073709551615"));
    assert!(refused(Options { pin: vec![0, 1], ..options() }, &plain).contains("2 CPUs for 1 vCPUs"));
    for wrong in ["=x", "x", ""] {
        assert!(refused(Options { env: vec![wrong.into()], ..options() }, &plain).contains("--env"));
    }
    assert!(
        refused(Options { workdir: Some("tmp".into()), ..options() }, &plain).contains("--workdir \"tmp\"")
    );
    assert!(refused(Options { user: Some("a:b:c".into()), ..options() }, &plain).contains("--user"));
    let mut base = RawSpec::default();
    for (args, refusal) in [("quiet pci=off", true), ("quiet -- pci=off", false), ("pci=conf1", false)] {
        base.boot_source.boot_args = Some(args.into());
        assert!(!machine(&options(), &base).unwrap().machine_config.pci, "it has to be asked for");
        let asked = machine(&Options { pci: true, ..options() }, &base);
        assert_eq!(
            asked.map(|spec| spec.machine_config.pci),
            if refusal { Err(PlanError::PciOff) } else { Ok(true) }
        );
    }
    let odd = Options { hugepages: true, memory_mib: Some(65), ..options() };
    assert!(refused(odd, &plain).contains("even"));
    let base = RawSpec { drives: vec![drive("a", false), drive("a", false)], ..RawSpec::default() };
    assert!(refused(options(), &base).contains("drive_id \"a\""));
    let base = RawSpec { drives: vec![drive("a/b", false)], ..RawSpec::default() };
    assert!(refused(options(), &base).contains("a/b"));
    for wrong in ["a\0b", "a\nb", "ä", &"x".repeat(1025)] {
        let mut base = RawSpec::default();
        base.boot_source.boot_args = Some(wrong.into());
        assert!(refused(options(), &base).contains("boot_args"));
    }
    let mut base = RawSpec::default();
    base.boot_source.kernel_image_path = FileRef::Fd(0);
    assert!(refused(options(), &base).contains("{\"fd\": N}"));
}

#[test]
fn seventeen_drives_fit_beside_root_and_vsock() {
    let drives = |count: usize| (0..count).map(|i| drive(&format!("d{i}"), false)).collect();
    machine(&options(), &RawSpec { drives: drives(17), ..RawSpec::default() }).unwrap();
    let error = machine(&options(), &RawSpec { drives: drives(18), ..RawSpec::default() }).unwrap_err();
    assert_eq!(error, PlanError::Devices(20));
    for over in [Options { entropy: true, ..options() }, Options { console: true, ..options() }] {
        let error = machine(&over, &RawSpec { drives: drives(17), ..RawSpec::default() }).unwrap_err();
        assert_eq!(error, PlanError::Devices(20));
    }
}

#[test]
fn an_entropy_device_is_asked_for_by_the_option_or_by_the_configuration() {
    assert!(machine(&options(), &RawSpec::default()).unwrap().entropy.is_none());
    let over = Options { entropy: true, ..options() };
    assert!(machine(&over, &RawSpec::default()).unwrap().entropy.is_some());
    let base = RawSpec { entropy: Some(husk_protocol::spec::RawEntropy::default()), ..RawSpec::default() };
    assert!(machine(&options(), &base).unwrap().entropy.is_some());
}

#[test]
fn a_network_that_cannot_be_is_refused() {
    let option = |gateways: &[&str]| NetworkOption {
        tap: Some("husk0".into()),
        addresses: vec!["10.0.0.2/24".parse().unwrap(), "fd00::2/64".parse().unwrap()],
        gateways: gateways.iter().map(|text| text.parse().unwrap()).collect(),
        ..NetworkOption::default()
    };
    let try_it = |network| machine(&Options { network: Some(network), ..options() }, &RawSpec::default());
    let refused = |network| try_it(network).unwrap_err().to_string();
    try_it(option(&["10.0.0.1", "fe80::1"])).unwrap();
    try_it(option(&["fd00::1"])).unwrap();
    assert!(refused(option(&["10.0.1.1"])).contains("--gateway 10.0.1.1 is in no network"));
    assert!(refused(option(&["10.0.0.1", "10.0.0.3"])).contains("--gateway 10.0.0.3 is the second"));
    let many = NetworkOption { allow: vec!["10.0.0.1:1".parse().unwrap(); 65], ..option(&[]) };
    assert!(refused(many).contains("--allow is given 65 times; at most 64"));
    let many = NetworkOption { dns: vec!["10.0.0.1".parse().unwrap(); 4], ..option(&[]) };
    assert!(refused(many).contains("--dns is given 4 times; at most 3"));
    let card = |card| RawSpec { network_interfaces: vec![card], ..RawSpec::default() };
    let error = machine(&options(), &card(RawNetwork::default())).unwrap_err().to_string();
    assert!(error.contains("network-interfaces[0].host_dev_name is missing"), "{error}");
    let two = NetworkOption {
        tap: None,
        addresses: vec!["10.0.0.2/24".parse().unwrap(), "10.0.0.3/24".parse().unwrap()],
        ..option(&["10.0.0.1"])
    };
    assert!(refused(two).contains("--guest-ip 10.0.0.3 is the second of its family; --net user takes one"));
    let lost = NetworkOption { tap: None, ..option(&["10.0.0.1"]) };
    assert!(refused(lost).contains("--guest-ip fd00::2 has no --gateway of its family"));
    let stream =
        RawNetwork { host_dev_name: Some("t".into()), stream: Some(FileRef::Fd(3)), ..RawNetwork::default() };
    assert!(machine(&options(), &card(stream)).unwrap_err().to_string().contains("use --net user"));
    for (queues, vcpus, right) in [(1, 1, true), (2, 1, false), (8, 8, true), (9, 16, false), (0, 4, false)] {
        let network = Some(NetworkOption { queues: Some(queues), ..option(&["10.0.0.1"]) });
        let result = machine(&Options { network, vcpus: Some(vcpus), ..options() }, &RawSpec::default());
        assert_eq!(result.is_ok(), right, "{queues} for {vcpus} vCPUs");
        let text = result.err().map_or(String::new(), |error| error.to_string());
        assert!(right || text.starts_with("queues of a network card"), "{text}");
    }
    let fd = RawNetwork { tap: Some(FileRef::Fd(3)), ..RawNetwork::default() };
    assert!(machine(&options(), &card(fd)).unwrap_err().to_string().contains("fd"));
}

#[test]
fn term_is_passed_on_with_a_terminal_only() {
    let size = WindowSize { rows: 1, cols: 2 };
    assert_eq!(exec(&options(), Some(size), Some("vt100")).env, [b"TERM=vt100"]);
    assert!(exec(&options(), None, Some("vt100")).env.is_empty());
    let own = Options { env: vec!["TERM=x".into()], ..options() };
    assert_eq!(exec(&own, Some(size), Some("vt100")).env, [b"TERM=x"]);
}

#[test]
fn volumes_are_bounded_and_go_where_drives_may() {
    let volumes = |target: &str, count| Options {
        volumes: vec![VolumeOption { target: target.into(), .."d:/x".parse().unwrap() }; count],
        ..options()
    };
    let refused = |options| machine(&options, &RawSpec::default()).unwrap_err().to_string();
    machine(&volumes("/src", 8), &RawSpec::default()).unwrap();
    assert_eq!(refused(volumes("/src", 9)), "--volume 9 times is out of range; up to 8 times is allowed");
    for target in ["/dev", "/proc/", "/a/../sys", "//"] {
        assert!(refused(volumes(target, 1)).starts_with("--volume cannot be mounted at"), "{target}");
    }
    let drives = (0..10).map(|i| drive(&format!("d{i}"), false)).collect();
    let base = RawSpec { drives, ..RawSpec::default() };
    assert_eq!(machine(&volumes("/src", 8), &base).unwrap_err(), PlanError::Devices(20));
    let volume = RawVolume { tag: "x".into(), socket: FileRef::Fd(3), rate_limiter: None };
    let base = RawSpec { volumes: vec![volume], ..RawSpec::default() };
    assert!(machine(&options(), &base).unwrap_err().to_string().contains("use --volume"));
}
