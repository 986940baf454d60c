//! Over PCI the guest has the same devices, each with interrupts of its own; without the option it has no PCI bus.

use crate::net::{BODY_BYTES, Server, fetch};
use husk_tests::husk::Husk;
use husk_tests::rootfs::{busybox_and_tool, ext4_of};
use husk_tests::scratch::Scratch;
use husk_tests::tap::Tap;

#[test]
fn without_the_option_there_is_no_bus() {
    let script = "ls /sys/bus/pci/devices; ls /sys/bus/virtio/devices | wc -l; grep -c pci=off /proc/cmdline";
    let outcome = Husk::sh(script).output().expect_status(0);
    // The root, and the socket device that the command comes by.
    assert_eq!(outcome.text(), "2\n1\n");
}

#[test]
fn every_device_works_and_its_interrupts_are_messages() {
    let scratch = Scratch::new();
    let content = scratch.path().join("content");
    std::fs::create_dir(&content).unwrap();
    std::fs::write(content.join("file"), "from the host\n").unwrap();
    let image = scratch.name("image.ext4");
    ext4_of(&content, &image, 8);
    let json = br#"{"machine-config": {"pci": true},
        "balloon": {"amount_mib": 8, "deflate_on_oom": false, "stats_polling_interval_s": 1}}"#;
    let config = scratch.file("machine.json", json);
    let (drive, pmem) = (format!("{image}:/drive:async"), format!("{image}:/pmem"));
    let volume = format!("{}:/volume:rw", content.display());
    // Memory that came, and the balloon's statistics, take a moment.
    let script = "cat /drive/file /pmem/file /volume/file; echo from the guest > /volume/new; \
        head -c 4096 /dev/hwrng | wc -c; \
        for i in $(seq 100); do t=$(sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo); \
          [ $t -gt 200000 ] && break; sleep 0.1; done; [ $t -gt 200000 ] && echo grown; sleep 2; \
        ls /sys/bus/pci/devices | wc -l; ls /sys/bus/virtio/devices | wc -l; \
        ls /sys/bus/platform/drivers/virtio-mmio 2>/dev/null | grep -c '^virtio'; grep virtio /proc/interrupts";
    let options =
        ["--config", &config, "--drive", &drive, "--pmem", &pmem, "--volume", &volume, "--entropy", "--json"];
    let options = [&options[..], &["--memory-max", "256M", "--console"]].concat();
    let outcome = Husk::run(&options, &["sh", "-c", script]).output().expect_status(0);
    let text = outcome.text();
    let (said, interrupts) =
        text.split_at(text.find("PCI-MSIX").and_then(|at| text[..at].rfind('\n')).unwrap() + 1);
    // Root, drive (on a ring), vsock, entropy, balloon, memory, image, volume, console; and the host bridge.
    assert_eq!(said, format!("{}4096\ngrown\n10\n9\n0\n", "from the host\n".repeat(3)));
    let messages = interrupts.lines().filter(|line| line.contains("PCI-MSIX")).count();
    assert_eq!(messages, interrupts.lines().count(), "nothing else interrupts: {interrupts}");
    let taken = |name: &str| {
        let line = interrupts.lines().find(|line| line.ends_with(name)).unwrap_or_else(|| panic!("{name}"));
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    for queue in ["virtio0-req.0", "virtio1-req.0", "virtio2-rx", "virtio3-input", "virtio8-output"] {
        assert!(taken(queue) > 0, "{queue}: {interrupts}");
    }
    assert_eq!(std::fs::read(content.join("new")).unwrap(), b"from the guest\n");
    let balloon = &outcome.json()["balloon"];
    assert_eq!(balloon["actual_mib"], 8, "{balloon}");
}

#[test]
fn a_network_card_carries_what_its_rules_allow() {
    let (tap, server, scratch) = (Tap::new("husk-pci", &["10.97.0.1/24"]), Server::new(), Scratch::new());
    let root = busybox_and_tool(scratch.path()).to_string_lossy().into_owned();
    let net = tap.option();
    let allow = format!("10.97.0.1/32:{}", server.port);
    let options =
        ["--pci", "--rootfs", &root, "--net", &net, "--guest-ip", "10.97.0.2/24", "--allow", &allow];
    let script =
        format!("{}; grep -c 'PCI-MSIX.*virtio1-' /proc/interrupts", fetch("10.97.0.1", server.port));
    let outcome = Husk::run(&options, &["sh", "-c", &script]).output().expect_status(0);
    // The configuration, and a vector each way.
    assert_eq!(outcome.text(), format!("{BODY_BYTES}\n3\n"), "{}", outcome.stderr);
}

#[test]
fn a_kernel_that_is_told_there_is_no_bus_is_refused_one() {
    let scratch = Scratch::new();
    let config = scratch
        .file("machine.json", br#"{"boot-source": {"kernel_image_path": "k", "boot_args": "pci=off"}}"#);
    let outcome = Husk::run(&["--pci", "--config", &config], &["true"]).output().expect_status(125);
    assert!(outcome.stderr.contains("boot-source.boot_args say pci=off, and --pci"), "{}", outcome.stderr);
}
