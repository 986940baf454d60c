//! Firecracker's configuration file is understood; what is wrong in it is named by key, value and what is allowed.

use husk_tests::husk::{Husk, Outcome, libexec};
use husk_tests::rootfs::{assert_clean, ext4};
use husk_tests::scratch::Scratch;

fn with_config(json: &str, command: &[&str]) -> Outcome {
    let scratch = Scratch::new();
    let path = scratch.file("machine.json", json.as_bytes());
    Husk::run(&["--config", &path], command).output()
}

fn kernel() -> String {
    libexec().join("vmlinux").to_string_lossy().into_owned()
}

#[test]
fn a_machine_is_taken_from_it() {
    let json = format!(
        r#"{{"boot-source": {{"kernel_image_path": "{}"}}, "machine-config": {{"vcpu_count": 2, "mem_size_mib": 256}}}}"#,
        kernel()
    );
    let script = "nproc; sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo";
    let text = with_config(&json, &["sh", "-c", script]).expect_status(0).text();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("2"));
    let kib: u64 = lines.next().unwrap().parse().unwrap();
    assert!((220_000..=262_144).contains(&kib), "{kib}");
}

#[test]
fn its_drives_are_there_and_writable_ones_are_kept() {
    let scratch = Scratch::new();
    let disk = scratch.name("disk.ext4");
    ext4(&disk, 16);
    let json = format!(
        r#"{{"boot-source": {{"kernel_image_path": "{}"}},
            "drives": [{{"drive_id": "scratchdisk", "path_on_host": "{disk}", "is_root_device": false,
                         "is_read_only": false, "cache_type": "Writeback"}}]}}"#,
        kernel()
    );
    let script = "for d in /sys/block/vd*; do test \"$(cat $d/serial)\" = scratchdisk && dev=${d##*/}; done; \
                  mkdir /d && mount -t ext4 /dev/$dev /d && echo kept > /d/x && umount /d && echo done";
    let outcome = with_config(&json, &["sh", "-c", script]).expect_status(0);
    assert_eq!(outcome.text(), "done\n");
    assert_clean(&disk);
    let again = Husk::run(&["--drive", &format!("{disk}:/d")], &["cat", "/d/x"]).output().expect_status(0);
    assert_eq!(again.text(), "kept\n");
}

#[track_caller]
fn refused(json: &str, words: &[&str]) {
    let outcome = with_config(json, &["true"]).expect_status(125);
    for word in words {
        assert!(outcome.stderr.contains(word), "no {word:?} for {json}: {}", outcome.stderr);
    }
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
}

#[test]
fn what_is_wrong_in_it_is_named() {
    let boot = format!(r#""boot-source": {{"kernel_image_path": "{}"}}"#, kernel());
    refused("{", &["machine.json"]);
    refused("[]", &["machine.json"]);
    refused(&format!(r#"{{{boot}, "machine-confg": {{}}}}"#), &["machine-confg"]);
    refused(
        &format!(r#"{{{boot}, "machine-config": {{"vcpu_count": 1, "cpus": 2}}}}"#),
        &["machine-config", "cpus"],
    );
    refused(&format!(r#"{{{boot}, "machine-config": {{"vcpu_count": 0}}}}"#), &["vcpu_count", "0"]);
    refused(&format!(r#"{{{boot}, "machine-config": {{"vcpu_count": "two"}}}}"#), &["vcpu_count", "two"]);
    refused(&format!(r#"{{{boot}, "machine-config": {{"mem_size_mib": 0}}}}"#), &["mem_size_mib", "0"]);
    refused(
        &format!(r#"{{{boot}, "machine-config": {{"mem_size_mib": 18446744073709551615}}}}"#),
        &["mem_size_mib"],
    );
    refused(&format!(r#"{{{boot}, "machine-config": {{"smt": true}}}}"#), &["smt"]);
    refused(&format!(r#"{{{boot}, {boot}}}"#), &["boot-source"]);
    let drive = r#"{"drive_id": "a", "path_on_host": "/bin/busybox", "is_read_only": true}"#;
    refused(&format!(r#"{{{boot}, "drives": [{drive}, {drive}]}}"#), &["drive_id", "a"]);
    refused(
        &format!(r#"{{{boot}, "drives": [{{"drive_id": "a/b", "path_on_host": "/bin/busybox"}}]}}"#),
        &["a/b"],
    );
    refused(
        &format!(r#"{{{boot}, "drives": [{{"drive_id": "a", "path_on_host": "/no/disk"}}]}}"#),
        &["/no/disk"],
    );
    refused(&format!(r#"{{{boot}, "vsock": {{"guest_cid": 2}}}}"#), &["guest_cid", "2"]);
    refused(&format!(r#"{{{boot}, "mmds-config": {{}}}}"#), &["mmds-config"]);
    let card = |keys: &str| format!(r#"{{{boot}, "network-interfaces": [{{"iface_id": "eth0", {keys}}}]}}"#);
    refused(&card(r#""host_dev_name": "nosuchtap0""#), &["nosuchtap0"]);
    refused(&card(r#""host_dev_name": "tap0", "colour": 1"#), &["network-interfaces", "colour"]);
    let limiter = |keys: &str| format!(r#"{{{boot}, "entropy": {{"rate_limiter": {{{keys}}}}}}}"#);
    refused(&limiter(r#""rate": {}"#), &["entropy.rate_limiter", "rate"]);
    refused(&limiter(r#""ops": {"size": 1}"#), &["entropy.rate_limiter.ops", "refill_time"]);
    refused(
        &limiter(r#""bandwidth": {"size": -1, "refill_time": 1}"#),
        &["entropy.rate_limiter.bandwidth.size", "-1"],
    );
    refused(
        &limiter(r#""bandwidth": {"size": 1, "refill_time": 86400001}"#),
        &["entropy.rate_limiter.bandwidth.refill_time", "86400001", "0 to 86400000 ms"],
    );
    let balloon = |keys: &str| format!(r#"{{{boot}, "balloon": {{"deflate_on_oom": false, {keys}}}}}"#);
    refused(&balloon(r#""amount_mib": 113"#), &["balloon.amount_mib", "113", "112"]);
    refused(
        &balloon(r#""amount_mib": 1, "stats_polling_interval_s": 65536"#),
        &["stats_polling_interval_s", "65536", "65535"],
    );
    refused(&balloon(r#""amount_mib": 1, "free_page_hinting": true"#), &["balloon", "free_page_hinting"]);
    refused(r#"{"boot-source": {"kernel_image_path": "k", "boot_args": "a\u0000b"}}"#, &["boot_args"]);
}

#[test]
fn nineteen_devices_fit_and_the_twentieth_is_refused_by_name() {
    let scratch = Scratch::new();
    let disk = scratch.file("disk", &vec![0; 1 << 16]);
    let json = |count: usize| {
        let drives: Vec<String> = (0..count)
            .map(|i| format!(r#"{{"drive_id": "disk{i}", "path_on_host": "{disk}", "is_read_only": true}}"#))
            .collect();
        format!(
            r#"{{"boot-source": {{"kernel_image_path": "{}"}}, "drives": [{}]}}"#,
            kernel(),
            drives.join(",")
        )
    };
    // The root's drive and the vsock device are two of nineteen.
    let outcome = with_config(&json(17), &["sh", "-c", "ls /sys/block | grep -c vd"]).expect_status(0);
    assert_eq!(outcome.text(), "18\n");
    let outcome = with_config(&json(18), &["true"]).expect_status(125);
    assert!(outcome.stderr.contains("19"), "{}", outcome.stderr);
}
