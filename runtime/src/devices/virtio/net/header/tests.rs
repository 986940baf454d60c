use super::*;
use crate::devices::virtio::net::TAP_FEATURES;
use crate::devices::virtio::net::frames::{MAC, arp, tcp_with, udp};
use crate::devices::virtio::net::policy::{JUDGED_BYTES, Policy};

const MTU: u16 = 1500;

fn summary(frame: &[u8]) -> Summary {
    let allow = ["0.0.0.0/0:*", "[::/0]:*"].map(|text| text.parse().unwrap()).to_vec();
    let policy = Policy::new(allow, Vec::new());
    policy.judge(&MAC, &frame[..frame.len().min(JUDGED_BYTES)], frame.len()).unwrap()
}

fn check(header: Header, frame: &[u8]) -> Result<Header, Refused> {
    header.check(TAP_FEATURES, frame.len(), MTU, &summary(frame))
}

fn long(six: bool) -> (Header, Vec<u8>) {
    let frame = match six {
        false => tcp_with("10.0.0.2", "10.0.0.1", 80, 9000),
        true => tcp_with("fd00::2", "fd00::1", 80, 9000),
    };
    let header = Header {
        flags: NEEDS_CHECKSUM,
        gso: if six { GSO_TCP6 } else { GSO_TCP4 },
        header_bytes: if six { 74 } else { 54 },
        gso_bytes: 1400,
        checksum_start: if six { 54 } else { 34 },
        checksum_offset: 16,
    };
    (header, frame)
}

#[test]
fn the_bytes_are_the_fields() {
    let (header, _) = long(false);
    assert_eq!(header.to_bytes(), [1, 1, 54, 0, 0x78, 5, 34, 0, 16, 0, 0, 0]);
    assert_eq!(Header::from_bytes(header.to_bytes()), header);
}

#[test]
fn long_frames_and_partial_checksums_pass() {
    for six in [false, true] {
        let (header, frame) = long(six);
        assert_eq!(check(header, &frame), Ok(header));
        // The hint is corrected.
        assert_eq!(check(Header { header_bytes: 0xffff, ..header }, &frame), Ok(header));
    }
    let frame = udp("10.0.0.2", "10.0.0.1", 1, 53);
    let header =
        Header { flags: NEEDS_CHECKSUM, checksum_start: 34, checksum_offset: 6, ..Header::default() };
    assert_eq!(check(header, &frame), Ok(header));
    assert_eq!(check(Header::default(), &arp(1, MAC, "10.0.0.2", "10.0.0.1")), Ok(Header::default()));
}

#[test]
fn item_11_a_checksum_goes_nowhere_but_into_its_field() {
    let (header, frame) = long(false);
    for start in 0..=u16::MAX {
        let moved = Header { checksum_start: start, ..header };
        assert_eq!(check(moved, &frame).is_ok(), start == 34, "start {start}");
        let moved = Header { checksum_offset: start, ..header };
        assert_eq!(check(moved, &frame).is_ok(), start == 16, "offset {start}");
        // The same place by another way: the destination address lies at 30.
        let moved = Header { checksum_start: start, checksum_offset: 50_u16.wrapping_sub(start), ..header };
        assert_eq!(check(moved, &frame).is_ok(), start == 34, "start {start}");
    }
    let frame = arp(1, MAC, "10.0.0.2", "10.0.0.1");
    assert_eq!(check(Header { flags: NEEDS_CHECKSUM, ..Header::default() }, &frame), Err(Refused));
}

#[test]
fn item_11_kinds_and_sizes_are_checked() {
    let (header, frame) = long(false);
    for gso in (0..=255).filter(|gso| *gso != GSO_TCP4) {
        assert_eq!(check(Header { gso, ..header }, &frame), Err(Refused), "type {gso}");
    }
    for flags in (0..=255).filter(|flags| *flags != NEEDS_CHECKSUM) {
        assert_eq!(check(Header { flags, ..header }, &frame), Err(Refused), "flags {flags:#x}");
    }
    for gso_bytes in 0..=u16::MAX {
        let right = (1..=MTU).contains(&gso_bytes);
        assert_eq!(check(Header { gso_bytes, ..header }, &frame).is_ok(), right, "{gso_bytes} bytes");
    }
    let frame = udp("10.0.0.2", "10.0.0.1", 1, 53);
    assert_eq!(check(Header { checksum_offset: 6, ..header }, &frame), Err(Refused));
}

#[test]
fn item_11_a_frame_is_not_longer_than_the_interface_takes() {
    let frame = |data| tcp_with("10.0.0.2", "10.0.0.1", 80, data);
    assert!(check(Header::default(), &frame(1460)).is_ok());
    assert_eq!(check(Header::default(), &frame(1461)), Err(Refused));
    let (header, _) = long(false);
    assert!(check(header, &frame(65_535 - 40)).is_ok());
    assert_eq!(header.check(TAP_FEATURES, LONGEST_FRAME + 1, MTU, &summary(&frame(100))), Err(Refused));
}

#[test]
fn what_was_not_negotiated_is_refused() {
    for six in [false, true] {
        let (header, frame) = long(six);
        let own = if six { net::VIRTIO_NET_F_HOST_TSO6 } else { net::VIRTIO_NET_F_HOST_TSO4 };
        for feature in [own, net::VIRTIO_NET_F_CSUM] {
            let features = TAP_FEATURES & !(1 << feature);
            assert_eq!(header.check(features, frame.len(), MTU, &summary(&frame)), Err(Refused));
        }
    }
}
