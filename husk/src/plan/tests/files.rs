//! The machine with its files.

use super::*;
use crate::options::DriveOption;
use husk_protocol::exec::Disk;
use husk_protocol::spec::{BootProtocol, ConsoleDevice, RawConsole, RawPart, RawRateLimiter, RawTokenBucket};

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
