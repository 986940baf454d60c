use super::*;
use crate::memory::Backing;
use husk_protocol::spec::{
    ConsoleDevice, HugePages, RawBalloon, RawEntropy, RawExec, RawMemoryHotplug, RawPart, RawPlacement,
    RawPmem, RawRateLimiter, RawTokenBucket, RawVolume, RawVsock,
};

fn raw() -> RawSpec {
    let mut raw = RawSpec::default();
    raw.boot_source.kernel_image_path = FileRef::Fd(1);
    raw
}

fn drive(id: &str) -> RawDrive {
    RawDrive {
        drive_id: id.into(),
        path_on_host: FileRef::Fd(2),
        is_root_device: false,
        is_read_only: true,
        cache_type: Default::default(),
        io_engine: Default::default(),
        queues: 1,
        rate_limiter: None,
        part: None,
    }
}

/// The error of a spec that differs from a good one by `change`.
fn refused(change: impl FnOnce(&mut RawSpec)) -> String {
    let mut raw = raw();
    change(&mut raw);
    MachineSpec::try_from(raw).unwrap_err().to_string()
}

fn accepted(change: impl FnOnce(&mut RawSpec)) -> MachineSpec {
    let mut raw = raw();
    change(&mut raw);
    MachineSpec::try_from(raw).unwrap()
}

#[test]
fn the_least_that_can_be_said_is_a_machine() {
    let spec = accepted(|_| {});
    assert_eq!((spec.vcpus(), spec.memory().bytes()), (1, 128 << 20));
    assert_eq!(spec.memory().backing(), Backing::Anonymous);
    assert!(spec.vsock().is_none() && spec.exec().is_none() && spec.console().is_none());
    assert!(!spec.placement().prefault());
}

#[test]
fn vcpus_are_1_to_32() {
    for count in [0, 33, 256, 257, u64::MAX] {
        let error = refused(|raw| raw.machine_config.vcpu_count = count);
        assert_eq!(error, format!("machine-config.vcpu_count: {count} is not allowed; allowed is 1 to 32"));
    }
    assert_eq!(accepted(|raw| raw.machine_config.vcpu_count = 32).vcpus(), 32);
}

#[test]
fn memory_is_bounded_and_its_bytes_do_not_wrap() {
    for mib in [0, 15, (512 << 10) + 1, 1 << 44, (1 << 44) + 128, u64::MAX] {
        let error = refused(|raw| raw.machine_config.mem_size_mib = mib);
        assert_eq!(
            error,
            format!("machine-config.mem_size_mib: {mib} is not allowed; allowed is 16 to 524288 MiB")
        );
    }
    assert_eq!(accepted(|raw| raw.machine_config.mem_size_mib = 512 << 10).memory().bytes(), 512 << 30);
    assert_eq!(accepted(|raw| raw.machine_config.mem_size_mib = 17).memory().bytes(), 17 << 20);
}

#[test]
fn huge_pages_need_whole_pages_and_imply_prefault() {
    let huge = |mib: u64| {
        move |raw: &mut RawSpec| {
            raw.machine_config.huge_pages = HugePages::TwoMiB;
            raw.machine_config.mem_size_mib = mib;
        }
    };
    assert!(refused(huge(129)).contains("a multiple of 2 with huge_pages 2M"));
    let spec = accepted(huge(130));
    assert!(spec.placement().prefault());
    assert_eq!(spec.memory().backing(), Backing::HugeTlb2M);
}

#[test]
fn what_is_not_built_yet_is_refused_with_the_reason() {
    let error = refused(|raw| raw.limits = Some(husk_protocol::spec::RawLimits::default()));
    assert!(error.contains("limits") && error.contains("husk itself writes them"), "{error}");
    let error = refused(|raw| raw.machine_config.smt = true);
    assert!(error.starts_with("machine-config.smt: true is not supported: "), "{error}");
    let error = refused(|raw| raw.machine_config.track_dirty_pages = true);
    assert!(error.contains("there are no snapshots yet"), "{error}");
}

#[test]
fn drive_ids_are_distinct_and_plain() {
    let error = refused(|raw| raw.drives = vec![drive("a"), drive("b"), drive("a")]);
    assert!(error.starts_with("drives[2].drive_id: \"a\" is there already"), "{error}");
    for id in ["", "a b", "a/b", "ä", "a\n", "a\0"] {
        let error = refused(|raw| raw.drives = vec![drive("ok"), drive(id)]);
        assert!(error.starts_with(&format!("drives[1].drive_id: {id:?} is not allowed")), "{error}");
    }
    let spec = accepted(|raw| raw.drives = vec![drive("12345678901234567890"), drive("a.B_c-1")]);
    assert_eq!(spec.drives()[1].id(), "a.B_c-1");
    let twins = vec![drive("12345678901234567890a"), drive("12345678901234567890b")];
    assert!(refused(|raw| raw.drives = twins).contains("is there already"));
    assert!(refused(|raw| raw.drives = vec![drive(&"x".repeat(65))]).contains("is not allowed"));
    let long = refused(|raw| raw.drives = vec![drive(&"x".repeat(100_000))]);
    assert!(long.len() < 250, "an error is one line: {}", long.len());
}

#[test]
fn one_drive_is_root() {
    let error = refused(|raw| {
        raw.drives = vec![drive("a"), drive("b")];
        raw.drives.iter_mut().for_each(|drive| drive.is_root_device = true);
    });
    assert!(error.starts_with("drives[1].is_root_device"), "{error}");
}

#[test]
fn the_twentieth_device_is_refused_by_name() {
    let drives = |count: usize| (0..count).map(|n| drive(&format!("d{n}"))).collect::<Vec<_>>();
    assert_eq!(accepted(|raw| raw.drives = drives(19)).device_specs().count(), 19);
    let error = refused(|raw| raw.drives = drives(20));
    assert!(error.contains("20 devices; at most 19") && error.contains("drive \"d19\""), "{error}");
    let error = refused(|raw| {
        raw.drives = drives(19);
        raw.exec = Some(RawExec { channel: FileRef::Fd(3), port: 1024 });
    });
    assert!(error.contains("vsock is one too many"), "{error}");
    let error = refused(|raw| {
        raw.drives = drives(19);
        raw.entropy = Some(RawEntropy::default());
    });
    assert!(error.contains("entropy is one too many"), "{error}");
}

#[test]
fn memory_that_comes_later_has_bounds() {
    let hotplug = |total, block, slot, requested| {
        let hotplug = Some(RawMemoryHotplug {
            total_size_mib: total,
            block_size_mib: block,
            slot_size_mib: slot,
            requested_size_mib: requested,
        });
        move |raw: &mut RawSpec| raw.memory_hotplug = hotplug
    };
    let spec = accepted(hotplug(1024, 2, 256, 130));
    let Some(DeviceSpec::Hotplug(it)) = spec.device_specs().last() else { panic!("{spec:?}") };
    assert_eq!((it.bytes(), it.requested()), (1 << 30, 130 << 20));
    accepted(hotplug((512 << 10) - 128, 2, 128, 0));
    for (wrong, text) in [
        (hotplug(0, 2, 128, 0), "total_size_mib: 0"),
        (hotplug(130, 2, 128, 0), "total_size_mib: 130"),
        (hotplug(512 << 10, 2, 128, 0), "total_size_mib: 524288"),
        (hotplug(u64::MAX - 127, 2, 128, 0), "total_size_mib: 18446744073709551488"),
        (hotplug(128, 4, 128, 0), "block_size_mib: 4"),
        (hotplug(128, 2, 64, 0), "slot_size_mib: 64"),
        (hotplug(384, 2, 384, 0), "slot_size_mib: 384"),
        (hotplug(128, 2, 128, 130), "requested_size_mib: 130"),
        (hotplug(128, 2, 128, 1), "requested_size_mib: 1"),
    ] {
        let error = refused(wrong);
        assert!(error.starts_with(&format!("memory-hotplug.{text} is not allowed; allowed is ")), "{error}");
    }
    let error = refused(|raw| {
        hotplug(128, 2, 128, 0)(raw);
        raw.machine_config.huge_pages = HugePages::TwoMiB;
    });
    assert!(error.contains("without machine-config.huge_pages"), "{error}");
}

#[test]
fn a_pin_list_is_as_long_as_there_are_vcpus() {
    let pin = |list: &[u32]| {
        let placement = Some(RawPlacement { pin: list.to_vec(), prefault: false });
        move |raw: &mut RawSpec| {
            raw.machine_config.vcpu_count = 2;
            raw.placement = placement;
        }
    };
    assert!(refused(pin(&[0])).starts_with("placement.pin: 1 entries; 2 are needed"));
    assert!(refused(pin(&[0, 1, 2])).starts_with("placement.pin: 3 entries; 2 are needed"));
    assert!(refused(pin(&[0, 1024])).starts_with("placement.pin[1]: 1024 is not allowed"));
    let spec = accepted(pin(&[5, 7]));
    assert_eq!((spec.placement().cpu(0), spec.placement().cpu(1)), (Some(5), Some(7)));
    assert_eq!(accepted(pin(&[])).placement().cpu(0), None);
}

#[test]
fn the_command_line_is_one_line_that_fits() {
    let args = |text: &str| {
        let text = text.to_owned();
        move |raw: &mut RawSpec| raw.boot_source.boot_args = Some(text)
    };
    assert!(refused(args("a\nb")).contains("byte 1 is 0x0a"));
    assert!(refused(args("a\0")).contains("byte 1 is 0x00"));
    assert!(refused(args(&"x".repeat(2048))).contains("2048 bytes"));
    assert_eq!(accepted(args("quiet")).boot().args(), Some("quiet"));
}

#[test]
fn context_ids_start_at_3() {
    let cid = |guest_cid: u64| {
        move |raw: &mut RawSpec| raw.vsock = Some(RawVsock { guest_cid, uds_path: None, vsock_id: None })
    };
    for bad in [0, 1, 2, 0xffff_ffff, 1 << 32, (1 << 32) + 3, u64::MAX] {
        assert!(refused(cid(bad)).starts_with(&format!("vsock.guest_cid: {bad} is not allowed")));
    }
    assert_eq!(accepted(cid(3)).vsock().unwrap().cid(), 3);
}

#[test]
fn a_balloon_leaves_the_guest_something() {
    let balloon = |amount_mib: u64, stats_polling_interval_s: u64| {
        move |raw: &mut RawSpec| {
            let (deflate_on_oom, free_page_reporting) = (true, false);
            let balloon =
                RawBalloon { amount_mib, deflate_on_oom, stats_polling_interval_s, free_page_reporting };
            raw.balloon = Some(balloon);
        }
    };
    for amount in [113, 128, 1 << 32, (1 << 32) + 1, u64::MAX] {
        let error = refused(balloon(amount, 0));
        let start = format!("balloon.amount_mib: {amount} is not allowed; allowed is 0 to 112 MiB");
        assert!(error.starts_with(&start), "{error}");
    }
    for seconds in [1 << 16, u64::MAX] {
        let error = refused(balloon(1, seconds));
        let start =
            format!("balloon.stats_polling_interval_s: {seconds} is not allowed; allowed is 0 (never) to");
        assert!(error.starts_with(&start), "{error}");
    }
    let polled = accepted(balloon(1, 65_535));
    let Some(DeviceSpec::Balloon(it)) = polled.device_specs().last() else { panic!("{polled:?}") };
    assert_eq!(it.statistics(), std::num::NonZeroU16::new(65_535));
    let spec = accepted(balloon(112, 0));
    let Some(DeviceSpec::Balloon(it)) = spec.device_specs().last() else { panic!("{spec:?}") };
    assert_eq!(it.statistics(), None);
    assert_eq!((it.amount_mib(), it.deflate_on_oom(), it.free_page_reporting()), (112, true, false));
}

#[test]
fn a_console_is_a_device_if_it_is_asked_for_as_one() {
    let console = |device| {
        let output = FileRef::Fd(3);
        accepted(|raw| raw.console = Some(husk_protocol::spec::RawConsole { output, device }))
    };
    let serial = console(ConsoleDevice::Serial);
    assert_eq!((serial.console_device(), serial.device_specs().count()), (Some(ConsoleDevice::Serial), 0));
    let virtio = console(ConsoleDevice::Virtio);
    assert!(matches!(virtio.device_specs().last(), Some(DeviceSpec::Console)));
    assert_eq!(virtio.console(), Some(&FileRef::Fd(3)));
    assert_eq!(accepted(|_| {}).console_device(), None);
}

#[test]
fn an_exec_channel_brings_a_vsock() {
    let exec =
        |port: u32| move |raw: &mut RawSpec| raw.exec = Some(RawExec { channel: FileRef::Fd(3), port });
    assert_eq!(accepted(exec(1024)).vsock().unwrap().cid(), DEFAULT_CID);
    assert!(refused(exec(0)).starts_with("exec.port: 0 is not allowed"));
    assert!(refused(exec(u32::MAX)).starts_with("exec.port: 4294967295"));
}

#[test]
fn a_drive_has_no_more_queues_than_there_are_vcpus() {
    let queues = |queues: u64| {
        move |raw: &mut RawSpec| {
            raw.machine_config.vcpu_count = 4;
            raw.drives = vec![RawDrive { queues, ..drive("d") }];
        }
    };
    for bad in [0, 5, 256, 257, u64::MAX] {
        let error = refused(queues(bad));
        assert!(
            error.starts_with(&format!("drives[0].queues: {bad} is not allowed; allowed is 1 to 4")),
            "{error}"
        );
    }
    assert_eq!(accepted(queues(4)).drives()[0].queues(), 4);
}

#[test]
fn a_part_of_a_file_is_a_read_only_disk() {
    let part = |offset, bytes, is_read_only| {
        let part = Some(RawPart { offset, bytes });
        move |raw: &mut RawSpec| raw.drives = vec![drive("a"), RawDrive { part, is_read_only, ..drive("b") }]
    };
    assert_eq!(accepted(part(4096, 1024, true)).drives()[1].part(), Some(4096..5120));
    assert_eq!(accepted(|raw| raw.drives = vec![drive("a")]).drives()[0].part(), None);
    assert!(refused(part(0, 1024, false)).starts_with("drives[1].is_read_only: \"false\" is not allowed"));
    assert!(refused(part(511, 1024, true)).starts_with("drives[1].part.offset: 511 is not allowed"));
    for (offset, bytes) in [(0, 0), (0, 511), (1 << 63, 1 << 63), (512, u64::MAX)] {
        let error = refused(part(offset, bytes, true));
        assert!(error.starts_with(&format!("drives[1].part.bytes: {bytes} is not allowed")), "{error}");
    }
}

#[test]
fn a_limiter_is_named_by_its_place_and_belongs_to_its_device() {
    let limiter = |size, refill_time| {
        let bandwidth = Some(RawTokenBucket { size, one_time_burst: None, refill_time });
        Some(RawRateLimiter { bandwidth, ops: None })
    };
    let late = limiter(1, 86_400_001);
    let error = refused(|raw| {
        raw.drives = vec![drive("a"), RawDrive { rate_limiter: late, ..drive("b") }];
    });
    assert!(error.starts_with("drives[1].rate_limiter.bandwidth.refill_time: 86400001 is not"), "{error}");
    let error = refused(|raw| raw.entropy = Some(RawEntropy { rate_limiter: late }));
    assert!(error.starts_with("entropy.rate_limiter.bandwidth.refill_time: 86400001 is not"), "{error}");
    let spec = accepted(|raw| {
        raw.drives = vec![drive("a"), RawDrive { rate_limiter: limiter(3, 1), ..drive("b") }];
        raw.entropy = Some(RawEntropy { rate_limiter: limiter(4, 1) });
    });
    let size = |limiter: Option<LimiterSpec>| Some(limiter?.bandwidth()?.size().get());
    let [a, b] = spec.drives() else { panic!("{spec:?}") };
    assert_eq!((size(a.limiter()), size(b.limiter())), (None, Some(3)));
    let Some(DeviceSpec::Entropy(it)) = spec.device_specs().last() else { panic!("{spec:?}") };
    assert_eq!(size(it.limiter()), Some(4));
}

fn image(id: &str, root_device: bool) -> RawPmem {
    RawPmem { id: id.into(), path_on_host: FileRef::Fd(2), root_device, read_only: None }
}

#[test]
fn an_image_is_never_written() {
    let with =
        |read_only| move |raw: &mut RawSpec| raw.pmem = vec![RawPmem { read_only, ..image("a", true) }];
    for fine in [None, Some(true)] {
        let spec = accepted(with(fine));
        assert_eq!((spec.pmem()[0].id(), spec.pmem()[0].is_root()), ("a", true));
        assert_eq!(spec.device_specs().map(|device| device.name()).collect::<Vec<_>>(), ["pmem \"a\""]);
    }
    let error = refused(with(Some(false)));
    assert!(error.starts_with("pmem[0].read_only: \"false\" is not allowed"), "{error}");
    assert!(error.contains("a pmem image is never written"), "{error}");
}

#[test]
fn images_have_ids_of_their_own_and_the_machine_one_root() {
    for wrong in ["", "a b", "a/b", &"x".repeat(65)] {
        let error = refused(|raw| raw.pmem = vec![image("a", false), image(wrong, false)]);
        assert!(error.starts_with("pmem[1].id: "), "{error}");
    }
    let error = refused(|raw| raw.pmem = vec![image("a", false), image("a", false)]);
    assert!(error.starts_with("pmem[1].id: \"a\" is there already"), "{error}");
    let error = refused(|raw| raw.pmem = vec![image("a", true), image("b", true)]);
    assert!(error.starts_with("pmem[1].root_device: "), "{error}");
    let error = refused(|raw| {
        raw.drives = vec![RawDrive { is_root_device: true, ..drive("d") }];
        raw.pmem = vec![image("a", true)];
    });
    assert!(error.starts_with("pmem[0].root_device: "), "{error}");
    let error = refused(|raw| raw.pmem = (0..20).map(|n| image(&format!("i{n}"), false)).collect());
    assert!(error.contains("20 devices") && error.contains("pmem \"i19\" is one too many"), "{error}");
}

#[test]
fn volumes_are_few_and_told_apart_by_their_tags() {
    let volumes = |tags: &[&str]| {
        let socket = FileRef::Fd(3);
        let volumes = tags.iter().map(|tag| RawVolume {
            tag: (*tag).into(),
            socket: socket.clone(),
            rate_limiter: None,
        });
        let volumes: Vec<_> = volumes.collect();
        move |raw: &mut RawSpec| raw.volumes = volumes
    };
    for bad in ["", "a b", "a/b", "\u{e9}", &"x".repeat(37)] {
        let error = refused(volumes(&["ok", bad]));
        assert!(error.starts_with("volumes[1].tag: "), "{error}");
    }
    assert!(refused(volumes(&["a", "b", "a"])).starts_with("volumes[2].tag: \"a\" is there already"));
    let error = refused(volumes(&["a", "b", "c", "d", "e", "f", "g", "h", "i"]));
    assert_eq!(error, "volumes: 9 is not allowed; allowed is 0 to 8 volumes");
    let longest = "x".repeat(36);
    let spec = accepted(volumes(&["a", &longest]));
    let Some(DeviceSpec::Volume(it)) = spec.device_specs().last() else { panic!("{spec:?}") };
    assert_eq!((it.tag(), it.socket(), it.limiter()), (longest.as_str(), &FileRef::Fd(3), None));
    let limited = |refill_time| {
        let bucket = RawTokenBucket { size: 5, one_time_burst: None, refill_time };
        let rate_limiter = Some(RawRateLimiter { bandwidth: Some(bucket), ops: None });
        vec![RawVolume { tag: "a".into(), socket: FileRef::Fd(3), rate_limiter }]
    };
    let spec = accepted(|raw| raw.volumes = limited(1000));
    let Some(DeviceSpec::Volume(it)) = spec.device_specs().last() else { panic!("{spec:?}") };
    assert_eq!(it.limiter().unwrap().bandwidth().unwrap().size().get(), 5);
    let error = refused(|raw| raw.volumes = limited(u64::MAX));
    assert!(error.starts_with("volumes[0].rate_limiter.bandwidth.refill_time: 1844"), "{error}");
}
