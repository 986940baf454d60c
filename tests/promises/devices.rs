//! The lesser devices do what they are there for: random bytes from the host.

use husk_tests::husk::Husk;

#[test]
fn the_guest_gets_random_bytes_of_the_host() {
    let script = "cat /sys/class/misc/hw_random/rng_current >&2; head -c 4096 /dev/hwrng";
    let read = || {
        let outcome = Husk::run(&["--entropy"], &["sh", "-c", script]).output().expect_status(0);
        assert!(outcome.stderr.contains("virtio_rng.0"), "{}", outcome.stderr);
        assert_eq!(outcome.stdout.len(), 4096);
        outcome.stdout
    };
    let (one, other) = (read(), read());
    let distinct = |bytes: &[u8]| bytes.chunks(16).collect::<std::collections::BTreeSet<_>>().len();
    assert_eq!((distinct(&one), distinct(&other)), (256, 256), "a block of 16 bytes came twice");
    assert!(one.chunks(16).zip(other.chunks(16)).all(|(one, other)| one != other));
}

#[test]
fn without_the_option_there_is_no_such_device() {
    let outcome = Husk::sh("head -c 1 /dev/hwrng 2>&1 || echo none").output().expect_status(0);
    assert!(outcome.text().ends_with("none\n"), "{}", outcome.text());
}
