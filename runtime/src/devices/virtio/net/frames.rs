//! Frames for tests, sound unless a test spoils them.

use husk_protocol::network::Mac;
use std::net::IpAddr;

pub(super) const MAC: Mac = [2, 0xfc, 0, 0, 0, 1];

pub(super) fn ethernet(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(MAC);
    frame.extend(kind.to_be_bytes());
    frame.extend(body);
    frame
}

pub(super) fn arp(operation: u8, mac: Mac, sender: &str, target: &str) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, operation];
    body.extend(mac);
    body.extend(octets(sender));
    body.extend([0; 6]);
    body.extend(octets(target));
    ethernet(0x0806, &body)
}

fn octets(address: &str) -> Vec<u8> {
    match address.parse().unwrap() {
        IpAddr::V4(it) => it.octets().to_vec(),
        IpAddr::V6(it) => it.octets().to_vec(),
    }
}

pub(super) fn ip(source: &str, destination: &str, protocol: u8, hops: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap();
    let six = destination.contains(':');
    let mut body = if six { vec![0x60, 0, 0, 0] } else { vec![0x45, 0] };
    if six {
        body.extend(length.to_be_bytes());
        body.extend([protocol, hops]);
    } else {
        body.extend((length + 20).to_be_bytes());
        body.extend([0, 0, 0x40, 0, hops, protocol, 0, 0]);
    }
    body.extend(octets(source));
    body.extend(octets(destination));
    body.extend(payload);
    ethernet(if six { 0x86dd } else { 0x0800 }, &body)
}

pub(super) fn tcp(source: &str, destination: &str, port: u16) -> Vec<u8> {
    tcp_with(source, destination, port, 0)
}

/// With so many bytes of data.
pub(super) fn tcp_with(source: &str, destination: &str, port: u16, data: usize) -> Vec<u8> {
    let mut payload = vec![0; 20 + data];
    payload[2..4].copy_from_slice(&port.to_be_bytes());
    payload[12] = 5 << 4;
    ip(source, destination, 6, 64, &payload)
}

pub(super) fn udp(source: &str, destination: &str, from: u16, to: u16) -> Vec<u8> {
    let words = [from, to, 8, 0];
    ip(source, destination, 17, 64, &words.map(u16::to_be_bytes).concat())
}

/// ICMP, or ICMPv6 long enough for a neighbour's question.
pub(super) fn icmp(source: &str, destination: &str, kind: u8, hops: u8) -> Vec<u8> {
    let six = destination.contains(':');
    let mut payload = vec![0; if matches!(kind, 135 | 136) { 24 } else { 8 }];
    payload[0] = kind;
    ip(source, destination, if six { 58 } else { 1 }, hops, &payload)
}
