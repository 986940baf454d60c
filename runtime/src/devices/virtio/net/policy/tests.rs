use super::*;
use crate::devices::virtio::net::frames::{MAC, arp, ethernet, icmp, ip, tcp, udp};

const PEER: Mac = [2, 0, 0, 0, 0, 9];
const OURS: &str = "10.0.0.2";
const OURS6: &str = "fd00::2";

fn rules(texts: &[&str]) -> Policy {
    Policy::new(texts.iter().map(|text| text.parse().unwrap()).collect(), Vec::new())
}

fn known(texts: &[&str], addresses: &[&str]) -> Policy {
    let prefix = |text: &&str| text.parse::<husk_protocol::network::GuestAddress>().unwrap().0;
    Policy { addresses: addresses.iter().map(prefix).collect(), ..rules(texts) }
}

fn judge(policy: &Policy, frame: &[u8]) -> Result<Summary, Denied> {
    policy.judge(&MAC, &frame[..frame.len().min(JUDGED_BYTES)], frame.len())
}

#[track_caller]
fn passes(policy: &Policy, frame: &[u8]) {
    assert!(judge(policy, frame).is_ok(), "{:?}", judge(policy, frame));
}

#[track_caller]
fn denied(why: Denied, policy: &Policy, frame: &[u8]) {
    assert_eq!(judge(policy, frame), Err(why));
}

fn all_kinds() -> Vec<Vec<u8>> {
    let (us, us6) = (OURS, OURS6);
    vec![
        arp(1, MAC, us, "10.0.0.1"),
        arp(2, MAC, us, "10.0.0.1"),
        tcp(us, "10.0.0.1", 80),
        udp(us, "10.0.0.1", 1000, 53),
        icmp(us, "10.0.0.1", 8, 64),
        udp("0.0.0.0", "255.255.255.255", 68, 67),
        tcp(us6, "fd00::1", 80),
        udp(us6, "fd00::1", 1000, 53),
        icmp(us6, "fd00::1", 128, 64),
        icmp("fe80::2", "ff02::2", 133, 255),
        icmp("fe80::2", "ff02::1:ff00:1", 135, 255),
        icmp("fe80::2", "fe80::1", 136, 255),
        udp("fe80::2", "ff02::1:2", 546, 547),
    ]
}

#[test]
fn with_no_rule_nothing_passes() {
    for frame in all_kinds() {
        denied(Denied::Destination, &rules(&[]), &frame);
        denied(Denied::Destination, &known(&[], &["10.0.0.2/24", "fd00::2/64"]), &frame);
    }
}

#[test]
fn a_rule_opens_its_family_only() {
    let (four, six) = (rules(&["0.0.0.0/0:*"]), rules(&["[::/0]:*"]));
    for (index, frame) in all_kinds().iter().enumerate() {
        let (ours, other) = if index < 6 { (&four, &six) } else { (&six, &four) };
        passes(ours, frame);
        denied(Denied::Destination, other, frame);
    }
}

#[test]
fn a_rule_covers_its_network_and_port() {
    let policy = rules(&["10.1.0.0/16:443", "[fd01::/64]:443", "192.0.2.7:*"]);
    for (destination, port, allowed) in [
        ("10.1.0.0", 443, true),
        ("10.1.255.255", 443, true),
        ("10.1.0.1", 444, false),
        ("10.1.0.1", 0, false),
        ("10.0.255.255", 443, false),
        ("10.2.0.0", 443, false),
        ("192.0.2.7", 1, true),
        ("192.0.2.7", 65535, true),
        ("192.0.2.8", 1, false),
        ("fd01::1", 443, true),
        ("fd01::ffff:ffff:ffff:ffff", 443, true),
        ("fd01:0:0:1::", 443, false),
        ("fd01::1", 80, false),
    ] {
        let source = if destination.contains(':') { OURS6 } else { OURS };
        for frame in [tcp(source, destination, port), udp(source, destination, 443, port)] {
            assert_eq!(judge(&policy, &frame).is_ok(), allowed, "{destination} {port}");
        }
    }
}

#[test]
fn echo_needs_a_rule_for_all_ports() {
    denied(Denied::Destination, &rules(&["10.0.0.1:443"]), &icmp(OURS, "10.0.0.1", 8, 64));
    denied(Denied::Destination, &rules(&["[fd00::1]:443"]), &icmp(OURS6, "fd00::1", 128, 64));
    for (kind, allowed) in (0..=255).map(|kind| (kind, matches!(kind, 0 | 8))) {
        let frame = icmp(OURS, "10.0.0.1", kind, 64);
        assert_eq!(judge(&rules(&["10.0.0.1:*"]), &frame).is_ok(), allowed, "ICMP type {kind}");
    }
    for (kind, allowed) in (0..=255).map(|kind| (kind, matches!(kind, 128 | 129 | 133 | 135 | 136))) {
        let frame = icmp(OURS6, "fd00::1", kind, 255);
        assert_eq!(judge(&rules(&["[fd00::1]:*"]), &frame).is_ok(), allowed, "ICMPv6 type {kind}");
    }
}

#[test]
fn special_addresses_are_denied_whatever_the_rules() {
    let policy =
        rules(&["0.0.0.0/0:*", "[::/0]:*", "169.254.169.254:80", "[fd00:ec2::254]:80", "[fe80::/10]:*"]);
    for destination in [
        "169.254.169.254",
        "169.254.0.0",
        "169.254.255.255",
        "127.0.0.1",
        "0.0.0.0",
        "0.1.2.3",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
    ] {
        denied(Denied::Destination, &policy, &tcp(OURS, destination, 80));
        denied(Denied::Destination, &policy, &udp(OURS, destination, 68, 53));
        denied(Denied::Destination, &policy, &icmp(OURS, destination, 8, 64));
    }
    for destination in [
        "fd00:ec2::254",
        "fd20:ce::254",
        "fe80::1",
        "febf::1",
        "ff02::1",
        "ff0e::1",
        "::",
        "::1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "::169.254.169.254",
        "::ffff:0:169.254.169.254",
        "64:ff9b::169.254.169.254",
        "64:ff9b:1::169.254.169.254",
        "2002:a9fe:a9fe::1",
    ] {
        denied(Denied::Destination, &policy, &tcp(OURS6, destination, 80));
        denied(Denied::Destination, &policy, &udp(OURS6, destination, 546, 53));
        denied(Denied::Destination, &policy, &icmp(OURS6, destination, 128, 64));
    }
    for near in ["169.253.255.255", "169.255.0.0", "126.0.0.1", "128.0.0.1", "223.255.255.255"] {
        passes(&policy, &tcp(OURS, near, 80));
    }
    for near in ["fd00:ec2::253", "fec0::1", "64:ff9b::10.0.0.1", "2002:a00:1::1", "::1:0:0:0:0"] {
        passes(&policy, &tcp(OURS6, near, 80));
    }
}

#[test]
fn another_cards_address_is_denied() {
    let policy = rules(&["0.0.0.0/0:*", "[::/0]:*"]);
    for mut frame in all_kinds() {
        frame[6..12].copy_from_slice(&PEER);
        denied(Denied::Source, &policy, &frame);
    }
    // In the frame its own, in the question somebody else's.
    denied(Denied::Source, &policy, &arp(1, PEER, OURS, "10.0.0.1"));
    denied(Denied::Source, &policy, &arp(2, PEER, OURS, "10.0.0.1"));
}

#[test]
fn known_addresses_bind_the_guest_to_them() {
    let policy = known(&["0.0.0.0/0:*", "[::/0]:*"], &["10.0.0.2/24", "fd00::2/64"]);
    all_kinds().iter().for_each(|frame| passes(&policy, frame));
    denied(Denied::Source, &policy, &tcp("10.0.0.3", "10.0.0.1", 80));
    denied(Denied::Source, &policy, &udp("10.0.0.3", "10.0.0.1", 1, 53));
    denied(Denied::Source, &policy, &icmp("10.0.0.3", "10.0.0.1", 8, 64));
    denied(Denied::Source, &policy, &tcp("0.0.0.0", "10.0.0.1", 80));
    denied(Denied::Source, &policy, &arp(1, MAC, "10.0.0.1", "10.0.0.7"));
    denied(Denied::Source, &policy, &arp(2, MAC, "0.0.0.0", "10.0.0.7"));
    passes(&policy, &arp(1, MAC, "0.0.0.0", "10.0.0.2"));
    denied(Denied::Source, &policy, &tcp("fd00::3", "fd00::1", 80));
    denied(Denied::Source, &policy, &tcp("fe80::2", "fd00::1", 80));
    denied(Denied::Source, &policy, &icmp("fd00::3", "ff02::1", 136, 255));
    passes(&policy, &icmp("::", "ff02::1:ff00:2", 135, 255));
    denied(Denied::Source, &policy, &icmp("::", "ff02::1", 136, 255));
    denied(Denied::Source, &rules(&["0.0.0.0/0:*"]), &tcp("127.0.0.1", "10.0.0.1", 80));
}

#[test]
fn neighbours_are_on_the_link() {
    let policy = known(&["[fd01::/64]:443"], &["fd00::2/64"]);
    for near in ["fd00::1", "fd01::9", "fe80::1", "ff02::1:ff00:1"] {
        passes(&policy, &icmp(OURS6, near, 135, 255));
    }
    for far in ["fd02::1", "ff05::1", "ff0e::1", "fd00:ec2::254", "2001:db8::1"] {
        denied(Denied::Destination, &policy, &icmp(OURS6, far, 135, 255));
    }
    // What a router could have passed on is none.
    denied(Denied::Malformed, &policy, &icmp(OURS6, "fd00::1", 135, 254));
    // A rule for everywhere does not make everywhere the link.
    denied(Denied::Destination, &rules(&["[::/0]:*"]), &icmp(OURS6, "2001:db8::1", 136, 255));
}

#[test]
fn fragments_options_and_extensions_are_denied() {
    let policy = rules(&["0.0.0.0/0:*", "[::/0]:*"]);
    let mut frame = tcp(OURS, "10.0.0.1", 80);
    for bits in 0..=u16::MAX {
        frame[20..22].copy_from_slice(&bits.to_be_bytes());
        let whole = bits & !0x4000 == 0;
        assert_eq!(judge(&policy, &frame).is_ok(), whole, "{bits:#x}");
    }
    let mut frame = tcp(OURS, "10.0.0.1", 80);
    for version in 0..=255 {
        frame[14] = version;
        assert_eq!(judge(&policy, &frame).is_ok(), version == 0x45, "{version:#x}");
    }
    for protocol in 0..=255 {
        let four = ip(OURS, "10.0.0.1", protocol, 64, &[0; 40]);
        let six = ip(OURS6, "fd00::1", protocol, 64, &[0; 40]);
        // These have headers of their own to be sound, and are tested where they are.
        if !matches!(protocol, ICMP | TCP | UDP) {
            denied(Denied::Protocol, &policy, &four);
        }
        if !matches!(protocol, ICMP6 | TCP | UDP) {
            denied(Denied::Protocol, &policy, &six);
        }
    }
}

#[test]
fn other_ethernet_protocols_are_denied() {
    let policy = rules(&["0.0.0.0/0:*", "[::/0]:*"]);
    let packet = tcp(OURS, "10.0.0.1", 80)[14..].to_vec();
    let mut frame = ethernet(0, &packet);
    for kind in (0..=u16::MAX).filter(|kind| !matches!(*kind, IP4 | IP6 | ARP)) {
        frame[12..14].copy_from_slice(&kind.to_be_bytes());
        denied(Denied::Protocol, &policy, &frame);
    }
    denied(Denied::Malformed, &policy, &ethernet(IP6, &packet));
    let packet = tcp(OURS6, "fd00::1", 80)[14..].to_vec();
    denied(Denied::Malformed, &policy, &ethernet(IP4, &packet));
}

#[test]
fn arp_is_ethernets_for_ip_and_nothing_else() {
    let policy = rules(&["0.0.0.0/0:*"]);
    let right = arp(1, MAC, OURS, "10.0.0.1");
    for at in 14..22 {
        for value in 0..=255 {
            let mut frame = right.clone();
            frame[at] = value;
            let allowed = value == right[at] || (at == 21 && value == 2);
            assert_eq!(judge(&policy, &frame).is_ok(), allowed, "byte {at} is {value}");
        }
    }
}

#[test]
fn a_frame_that_is_cut_off_anywhere_is_denied() {
    let policy = rules(&["0.0.0.0/0:*", "[::/0]:*"]);
    for frame in all_kinds() {
        for length in 0..frame.len() {
            assert!(judge(&policy, &frame[..length]).is_err(), "{length} of {}", frame.len());
        }
        // Padding is fine.
        let mut padded = frame.clone();
        padded.resize(200, 0);
        passes(&policy, &padded);
    }
}

#[test]
fn lengths_that_contradict_each_other_are_denied() {
    let policy = rules(&["0.0.0.0/0:*", "[::/0]:*"]);
    let mut frame = tcp(OURS, "10.0.0.1", 80);
    for words in 0..=15 {
        frame[14 + 20 + 12] = words << 4;
        assert_eq!(judge(&policy, &frame).is_ok(), words == 5, "a TCP header of {words} words in 20 bytes");
    }
    let mut frame = udp(OURS, "10.0.0.1", 1, 53);
    for length in 0..=100 {
        frame[14 + 20 + 4..14 + 20 + 6].copy_from_slice(&u16::to_be_bytes(length));
        assert_eq!(judge(&policy, &frame).is_ok(), length == 8, "a datagram of {length} bytes in 8");
    }
    let mut frame = tcp(OURS, "10.0.0.1", 80);
    for total in 0..=100 {
        frame[16..18].copy_from_slice(&u16::to_be_bytes(total));
        assert_eq!(judge(&policy, &frame).is_ok(), total == 40, "a packet of {total} bytes in 40");
    }
}

#[test]
fn dhcp_is_a_clients_question_to_everybody() {
    let policy = known(&["10.0.0.1:80", "[fd00::1]:80"], &["10.0.0.2/24", "fd00::2/64"]);
    passes(&policy, &udp("0.0.0.0", "255.255.255.255", 68, 67));
    passes(&policy, &udp(OURS, "255.255.255.255", 68, 67));
    passes(&policy, &udp("fe80::2", "ff02::1:2", 546, 547));
    for frame in [
        udp("0.0.0.0", "255.255.255.255", 67, 68),
        udp("0.0.0.0", "255.255.255.255", 68, 53),
        udp("0.0.0.0", "10.0.0.1", 68, 67),
        udp("fe80::2", "ff02::1:2", 547, 546),
        udp("fe80::2", "ff05::1:3", 546, 547),
        udp("fe80::2", "fd00::1", 546, 547),
    ] {
        assert!(judge(&policy, &frame).is_err());
    }
    denied(Denied::Destination, &policy, &udp(OURS, "10.0.0.1", 68, 67));
}

#[test]
fn a_summary_says_where_the_checksum_is() {
    let policy = rules(&["0.0.0.0/0:*", "[::/0]:*"]);
    let summary = |frame: &[u8]| judge(&policy, frame).unwrap();
    assert_eq!(summary(&tcp(OURS, "10.0.0.1", 80)).checksum(), Some((34, 16)));
    assert_eq!(summary(&udp(OURS6, "fd00::1", 1, 53)).checksum(), Some((54, 6)));
    assert_eq!(summary(&icmp(OURS, "10.0.0.1", 8, 64)).checksum(), None);
    assert_eq!(summary(&arp(1, MAC, OURS, "10.0.0.1")).checksum(), None);
    assert_eq!(summary(&tcp(OURS6, "fd00::1", 80)).transport(), Some(Transport::Tcp { headers: 74 }));
}

/// Any bytes are answered; none makes it read beyond them or panic.
#[test]
fn noise_is_judged_like_everything_else() {
    let policy = rules(&["0.0.0.0/0:*", "[::/0]:*"]);
    let mut state = 0x9e37_79b9_u32;
    let kinds = all_kinds();
    for round in 0..100_000_usize {
        let mut frame = kinds[round % kinds.len()].clone();
        for _ in 0..4 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let at = (state >> 16) as usize % frame.len();
            frame[at] = state.to_be_bytes()[1];
        }
        frame.truncate(frame.len() - round % 5);
        if let Ok(summary) = judge(&policy, &frame)
            && let Some((start, place)) = summary.checksum()
        {
            assert!(start + place + 2 <= frame.len());
        }
    }
}
