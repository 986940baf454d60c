//! Memory: how much of it there is, grows and is given back.

use super::*;

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
