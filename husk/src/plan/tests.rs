use super::*;
use crate::options::{DriveOption, NetworkOption, VolumeOption};
use husk_protocol::exec::Disk;
use husk_protocol::spec::{IoEngine, RawNetwork, RawPart};

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
fn a_balloon_is_smaller_than_the_memory_that_the_options_leave() {
    let with = |amount_mib, stats_polling_interval_s| {
        let (deflate_on_oom, free_page_reporting) = (false, false);
        let balloon = husk_protocol::spec::RawBalloon {
            amount_mib,
            deflate_on_oom,
            stats_polling_interval_s,
            free_page_reporting,
        };
        RawSpec { balloon: Some(balloon), ..RawSpec::default() }
    };
    machine(&options(), &with(112, 0)).unwrap();
    let small = Options { memory_mib: Some(64), ..options() };
    for (options, amount) in [(options(), 113), (options(), u64::MAX), (small, 49)] {
        let text = machine(&options, &with(amount, 0)).unwrap_err().to_string();
        assert!(text.contains(&format!("balloon.amount_mib {amount} is out of range; 0 to ")), "{text}");
    }
    machine(&options(), &with(1, 65_535)).unwrap();
    let text = machine(&options(), &with(1, 65_536)).unwrap_err().to_string();
    assert!(
        text.contains("balloon.stats_polling_interval_s 65536 is out of range; 0 (never) to 65535"),
        "{text}"
    );
}

#[test]
fn memory_that_grows_is_plugged_in() {
    let grows = |memory_mib, max| Options { memory_mib, memory_max_mib: Some(max), ..options() };
    let plain = RawSpec::default();
    let sizes = |options: &Options, base: &RawSpec| {
        let spec = machine(options, base).unwrap();
        let hotplug = spec.memory_hotplug.clone();
        let sizes = hotplug.map(|it| (it.total_size_mib, it.slot_size_mib, it.requested_size_mib));
        (spec.machine_config.mem_size_mib, sizes, most_memory_mib(&spec), wanted_memory_mib(&spec))
    };
    assert_eq!(sizes(&grows(Some(64), 256), &plain), (64, Some((256, 128, 192)), 320, 256));
    // Half a block is not asked for, and nothing is not either.
    assert_eq!(sizes(&grows(None, 259), &plain).1, Some((256, 128, 130)));
    assert_eq!(sizes(&grows(None, 128), &plain), (128, None, 128, 128));
    assert_eq!(sizes(&grows(None, 129), &plain).1, None);
    // A large guest adds memory in larger units; the largest is as large as it may be.
    assert_eq!(sizes(&grows(Some(64 << 10), 65 << 10), &plain).1, Some((2048, 2048, 1024)));
    assert_eq!(sizes(&grows(Some(100), 512 << 10), &plain).1, Some((524_160, 128, 524_160)));
    // The option replaces the configuration's.
    let mut base = RawSpec::default();
    base.machine_config.mem_size_mib = 100;
    base.memory_hotplug = Some(hotplug(1024, 128, 2));
    assert_eq!(sizes(&options(), &base).1, Some((1024, 128, 2)));
    assert_eq!(sizes(&grows(None, 200), &base), (100, Some((128, 128, 100)), 228, 200));
    let refused = |options: &Options| machine(options, &plain).unwrap_err().to_string();
    let text = refused(&grows(None, 127));
    assert_eq!(text, "--memory-max 127M is out of range; 128M to 524288M is allowed");
    assert!(refused(&grows(None, (512 << 10) + 1)).starts_with("--memory-max 524289M is out of range"));
    let text = refused(&Options { hugepages: true, ..grows(None, 256) });
    assert!(text.contains("--memory-max 256M cannot be had with huge pages"), "{text}");
}

fn hotplug(total: u64, slot: u64, requested: u64) -> husk_protocol::spec::RawMemoryHotplug {
    husk_protocol::spec::RawMemoryHotplug {
        total_size_mib: total,
        block_size_mib: 2,
        slot_size_mib: slot,
        requested_size_mib: requested,
    }
}

#[test]
fn a_configurations_hotplug_has_bounds() {
    let of = |hotplug| RawSpec { memory_hotplug: Some(hotplug), ..RawSpec::default() };
    for right in [hotplug(128, 128, 128), hotplug(524_160, 128, 0), hotplug(4096, 2048, 2)] {
        machine(&options(), &of(right)).unwrap();
    }
    let odd = husk_protocol::spec::RawMemoryHotplug { block_size_mib: 4, ..hotplug(128, 128, 0) };
    for (wrong, text) in [
        (hotplug(0, 128, 0), "total_size_mib 0 is out of range; a multiple of 128"),
        (hotplug(192, 128, 0), "total_size_mib 192 is"),
        (
            hotplug(524_288, 128, 0),
            "total_size_mib 524288 is out of range; a multiple of 128, the slot_size_mib, up to 524160",
        ),
        (hotplug(u64::MAX - 127, 128, 0), "total_size_mib 18446744073709551488 is"),
        (hotplug(128, 64, 0), "slot_size_mib 64 is out of range; a power of two of 128"),
        (hotplug(384, 384, 0), "slot_size_mib 384 is"),
        (hotplug(128, 0, 0), "slot_size_mib 0 is"),
        (hotplug(128, 128, 130), "requested_size_mib 130 is out of range; a multiple of 2 up to 128"),
        (hotplug(128, 128, 3), "requested_size_mib 3 is"),
        (odd, "block_size_mib 4 is out of range; 2 (MiB)"),
    ] {
        let said = machine(&options(), &of(wrong)).unwrap_err().to_string();
        assert!(said.starts_with(&format!("config: memory-hotplug.{text}")), "{said}");
    }
    let huge = Options { hugepages: true, ..options() };
    let said = machine(&huge, &of(hotplug(128, 128, 0))).unwrap_err().to_string();
    assert!(said.contains("no memory-hotplug with huge pages"), "{said}");
}

#[test]
fn memory_must_hold_kernel_initrd_and_the_books_of_images() {
    check_memory(32, 20 << 20, 1 << 20, 0).unwrap();
    assert_eq!(check_memory(16, 20 << 20, 1 << 20, 0), Err(PlanError::Memory { memory: 16, needs: 26 }));
    assert_eq!(
        check_memory(32, 20 << 20, 1 << 20, 1 << 30),
        Err(PlanError::Memory { memory: 32, needs: 42 })
    );
    check_memory(1 << 30, u64::MAX, u64::MAX, u64::MAX).unwrap_err();
}

fn card() -> NetworkOption {
    NetworkOption {
        tap: Some("husk0".into()),
        allow: vec!["10.0.0.1:80".parse().unwrap()],
        addresses: vec!["10.0.0.2/24".parse().unwrap()],
        ..NetworkOption::default()
    }
}

fn at_data(engine: IoEngine) -> DriveOption {
    DriveOption { file: "f".into(), target: "/data".into(), writable: true, engine }
}

/// The configuration's card, then that of the options.
#[track_caller]
fn check_cards(cards: &[RawNetwork]) {
    let [configured, asked] = cards else { panic!("two cards") };
    assert_eq!((&configured.tap, &configured.host_dev_name), (&Some(FileRef::Fd(8)), &None));
    assert_eq!((&configured.tap_queues[..], &asked.tap_queues[..]), (&[FileRef::Fd(11)][..], &[][..]));
    assert_eq!((configured.mtu, configured.guest_mac.as_deref()), (Some(9000), Some("02:00:00:00:00:01")));
    assert_eq!((&asked.tap, &asked.host_dev_name), (&Some(FileRef::Fd(9)), &None));
    assert_eq!((asked.mtu, asked.guest_mac.as_deref()), (Some(1400), Some("06:06:06:06:06:06")));
    assert_eq!(
        (&asked.allow[..], &asked.guest_ip[..]),
        (&["10.0.0.1/32:80".into()][..], &["10.0.0.2/24".into()][..])
    );
}

#[test]
fn files_take_their_places_and_the_guest_finds_them_by_serial() {
    let over = Options {
        drives: vec![at_data(IoEngine::Async)],
        hugepages: true,
        network: Some(card()),
        ..options()
    };
    let base = RawSpec {
        drives: vec![drive("old-root", true), drive("scratch", false)],
        network_interfaces: vec![RawNetwork {
            iface_id: "net0".into(),
            host_dev_name: Some("tap0".into()),
            guest_mac: Some("02:00:00:00:00:01".into()),
            mtu: Some(9000),
            ..RawNetwork::default()
        }],
        ..RawSpec::default()
    };
    let spec = machine(&over, &base).unwrap();
    let root_part = Some(RawPart { offset: 4096, bytes: 8192 });
    let places = Places {
        drives: vec![4, 5],
        root_part,
        wires: vec![(vec![8, 11], 1500, [2; 6]), (vec![9], 1400, [6; 6])],
        listener: Some(7),
        console: Some(10),
        ..places()
    };
    let spec = with_files(spec, &over, &places);
    let RawConsole { output, device } = spec.console.as_ref().unwrap();
    assert_eq!((output, *device), (&FileRef::Fd(10), ConsoleDevice::Virtio));
    let seen: Vec<_> =
        spec.drives.iter().map(|d| (d.drive_id.as_str(), d.path_on_host.clone(), d.is_read_only)).collect();
    assert_eq!(
        seen,
        [
            ("husk-root", FileRef::Fd(3), true),
            ("scratch", FileRef::Fd(4), false),
            ("husk-drive0", FileRef::Fd(5), false)
        ]
    );
    let kinds: Vec<_> = spec.drives.iter().map(|drive| (drive.part, drive.io_engine)).collect();
    assert_eq!(kinds, [(root_part, IoEngine::Sync), (None, IoEngine::Sync), (None, IoEngine::Async)]);
    check_cards(&spec.network_interfaces);
    assert_eq!(spec.vsock.unwrap().uds_path, Some(FileRef::Fd(7)));
    assert_eq!(spec.exec.unwrap().channel, FileRef::Fd(6));
    assert!(spec.placement.unwrap().prefault, "huge pages imply it");
    assert_eq!(spec.boot_source.boot_protocol, BootProtocol::Linux64, "its own kernel's cheaper entry");
    let named = with_files(machine(&over, &base).unwrap(), &over, &Places { own_kernel: false, ..places });
    assert_eq!(named.boot_source.boot_protocol, BootProtocol::Auto, "another kernel may have one only");
    assert_eq!(named.console.unwrap().device, ConsoleDevice::Serial, "and no driver for the other");
    let mounts = mounts(&over, &base);
    assert_eq!(mounts.root.disk, Disk::Drive("husk-root".into()));
    assert_eq!(
        (&mounts.drives[0].disk, mounts.drives[0].read_only),
        (&Disk::Drive("husk-drive0".into()), false)
    );
}

#[test]
fn limits_stay_with_the_drives_of_the_configuration() {
    let limited = |drive: RawDrive, size| {
        let ops = Some(RawTokenBucket { size, one_time_burst: None, refill_time: 100 });
        RawDrive { rate_limiter: Some(RawRateLimiter { bandwidth: None, ops }), ..drive }
    };
    let drives = vec![drive("a", false), limited(drive("r", true), 1), limited(drive("b", false), 2)];
    let base = RawSpec { drives, ..RawSpec::default() };
    let sizes = |over: &Options| {
        let places = Places { drives: vec![4, 5, 6], exec: 7, ..places() };
        let spec = with_files(machine(over, &base).unwrap(), over, &places);
        let size = |drive: &RawDrive| Some(drive.rate_limiter?.ops?.size);
        spec.drives.iter().map(size).collect::<Vec<_>>()
    };
    let mut over = options();
    over.drives =
        vec![DriveOption { file: "x".into(), target: "/x".into(), writable: false, engine: IoEngine::Sync }];
    assert_eq!(sizes(&over), [Some(1), None, Some(2), None]);
    over.rootfs = Some("other".into());
    assert_eq!(sizes(&over), [None, None, Some(2), None]);
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

#[test]
fn a_volume_takes_its_place_and_is_mounted_by_its_tag() {
    let over = Options { volumes: vec!["d:/src:rw".parse().unwrap()], ..options() };
    let places = Places { volumes: vec![10], ..places() };
    let spec = with_files(machine(&over, &RawSpec::default()).unwrap(), &over, &places);
    let expected = RawVolume { tag: "husk-volume0".into(), socket: FileRef::Fd(10), rate_limiter: None };
    assert_eq!(spec.volumes, std::slice::from_ref(&expected));
    let limited = Options { volumes: vec!["d:/src:bandwidth=1M:ops=9".parse().unwrap()], ..options() };
    let spec = with_files(machine(&limited, &RawSpec::default()).unwrap(), &limited, &places);
    let bucket = |size| Some(RawTokenBucket { size, one_time_burst: None, refill_time: 1000 });
    let rate_limiter = Some(RawRateLimiter { bandwidth: bucket(1 << 20), ops: bucket(9) });
    assert_eq!(spec.volumes, [RawVolume { rate_limiter, ..expected }]);
    let [mount] = &mounts(&over, &RawSpec::default()).drives[..] else { panic!("one volume, one mount") };
    assert_eq!(mount.disk, Disk::Volume("husk-volume0".into()));
    assert_eq!((mount.target.as_str(), mount.read_only), ("/src", false));
    assert_eq!(writable_drives(&over), ["husk-volume0"]);
    assert!(writable_drives(&Options { volumes: vec!["d:/src".parse().unwrap()], ..options() }).is_empty());
}
