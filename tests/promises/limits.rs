//! A rate limiter holds a device to its rate, and nobody else.

use husk_tests::husk::{Husk, libexec};
use husk_tests::scratch::Scratch;

#[test]
fn limited_drives_keep_to_their_rates_and_a_free_one_overtakes_them() {
    let scratch = Scratch::new();
    let disk = scratch.file("disk", &vec![7; 1 << 20]);
    let drive = |id: &str, limiter: &str| {
        format!(r#"{{"drive_id": "{id}", "path_on_host": "{disk}", "is_read_only": true{limiter}}}"#)
    };
    let rate = |bucket: &str, size: u32| {
        format!(r#", "rate_limiter": {{"{bucket}": {{"size": {size}, "refill_time": 1000}}}}"#)
    };
    let drives = [
        drive("bytes", &rate("bandwidth", 256 << 10)),
        drive("requests", &rate("ops", 20)),
        drive("free", ""),
    ];
    let json = format!(
        r#"{{"boot-source": {{"kernel_image_path": "{}"}}, "drives": [{}]}}"#,
        libexec().join("vmlinux").display(),
        drives.join(",")
    );
    let config = scratch.file("machine.json", json.as_bytes());
    // Each page of the second is a request of its own. The guest's clock says how long each took, in hundredths of a second.
    let script = "echo 0 > /sys/block/vdc/queue/read_ahead_kb
        now() { read up idle < /proc/uptime; echo $((${up%.*} * 100 + 1${up#*.} - 100)); }
        read_all() { start=$(now); dd if=/dev/$1 of=/dev/null bs=4k count=$2 2>/dev/null || exit 9; \
            echo $1 $(($(now) - start)); }
        read_all vdb 256 & read_all vdc 80 & sleep 1; read_all vdd 16; wait";
    let outcome = Husk::run(&["--config", &config], &["sh", "-c", script]).output().expect_status(0);
    let text = outcome.text();
    let mut lines = text.lines().map(|line| line.split_once(' ').unwrap());
    assert_eq!(lines.next().unwrap().0, "vdd", "the free drive is not held up by the others: {text}");
    let mut limited: Vec<(&str, u32)> = lines.map(|(name, took)| (name, took.parse().unwrap())).collect();
    limited.sort_unstable();
    // A bucket's full at once, then three seconds for three more; less what the guest's clock may be off.
    let [("vdb", bytes), ("vdc", requests)] = limited[..] else { panic!("{text}") };
    assert!(bytes >= 270 && requests >= 270, "{text}");
}
