//! Network cards as they are asked for.
//!
//! Invariant: as for the other parts: private fields, one constructor, which is where the rules are.

use super::{LimiterSpec, SpecError, name};
use husk_protocol::network::{
    AllowRule, GuestAddress, MAX_ADDRESSES, MAX_QUEUES, MAX_RULES, MTUS, Mac, NetworkError, Prefix, parse_mac,
};
use husk_protocol::spec::{FileRef, RawNetwork};
use std::collections::HashSet;
use std::str::FromStr;

/// Largest packet if nothing is said, in bytes: Ethernet's.
const DEFAULT_MTU: u16 = 1500;

/// What a card's frames come from and go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WireSpec {
    /// The open tap, a file for each of its queues; one at least.
    Tap(Vec<FileRef>),
    /// The connected stream socket of a process that is the network.
    Stream(FileRef),
}

/// One network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSpec {
    id: String,
    mac: Mac,
    wire: WireSpec,
    mtu: u16,
    allow: Vec<AllowRule>,
    addresses: Vec<Prefix>,
    receive_limiter: Option<LimiterSpec>,
    transmit_limiter: Option<LimiterSpec>,
}

/// All of them, for a machine of so many vCPUs; each id and each address once.
pub(super) fn all(raw: Vec<RawNetwork>, vcpus: u8) -> Result<Vec<NetworkSpec>, SpecError> {
    let mut seen = HashSet::new();
    let mut cards = Vec::with_capacity(raw.len());
    for (index, raw) in raw.into_iter().enumerate() {
        let mac = raw.guest_mac.clone().unwrap_or_default();
        let card = NetworkSpec::new(raw, index, vcpus)?;
        let twice = |key: &str, value: &str| {
            Err(SpecError::Duplicate {
                key: format!("network-interfaces[{index}].{key}"),
                value: value.into(),
            })
        };
        if !seen.insert(card.id.clone().into_bytes()) {
            return twice("iface_id", &card.id);
        }
        // An id is longer or has no such bytes; they cannot be taken for each other.
        if !seen.insert([b"mac ".as_slice(), &card.mac].concat()) {
            return twice("guest_mac", &mac);
        }
        cards.push(card);
    }
    Ok(cards)
}

impl NetworkSpec {
    fn new(raw: RawNetwork, index: usize, vcpus: u8) -> Result<Self, SpecError> {
        let key = |name: &str| format!("network-interfaces[{index}].{name}");
        name::check(|| key("iface_id"), &raw.iface_id)?;
        let mac = raw.guest_mac.unwrap_or_default();
        let mac = parse_mac(&mac).map_err(|error| wrong(key("guest_mac"), &mac, &error))?;
        let mtu = match raw.mtu {
            None => DEFAULT_MTU,
            Some(mtu) => u16::try_from(mtu).ok().filter(|_| MTUS.contains(&mtu)).ok_or_else(|| {
                SpecError::OutOfRange {
                    key: key("mtu"),
                    value: mtu,
                    allowed: format!("{} to {}", MTUS.start(), MTUS.end()),
                }
            })?,
        };
        let allow = list(&key("allow"), &raw.allow, MAX_RULES)?;
        let addresses: Vec<GuestAddress> = list(&key("guest_ip"), &raw.guest_ip, MAX_ADDRESSES)?;
        let addresses = addresses.into_iter().map(|address| address.0).collect();
        let wire = match (raw.tap, raw.stream) {
            (None, Some(stream)) => WireSpec::Stream(stream),
            (Some(_), Some(_)) => {
                return Err(SpecError::malformed(key("stream"), "given beside tap", "one of the two"));
            }
            (tap, None) => {
                let first = tap.unwrap_or(FileRef::Path(raw.host_dev_name.unwrap_or_default()));
                WireSpec::Tap(std::iter::once(first).chain(raw.tap_queues).collect())
            }
        };
        let files = if let WireSpec::Tap(taps) = &wire { taps.len() as u64 } else { 1 };
        let queues = raw.queues.unwrap_or(1);
        let most = MAX_QUEUES.min(vcpus.into());
        if queues != files || !(1..=most).contains(&queues) {
            return Err(SpecError::OutOfRange {
                key: key("queues"),
                value: queues,
                allowed: format!("1 to {most} (at most vcpu_count), and as many as the tap's files, {files}"),
            });
        }
        let receive_limiter = LimiterSpec::new(raw.rx_rate_limiter, &key("rx_rate_limiter"))?;
        let transmit_limiter = LimiterSpec::new(raw.tx_rate_limiter, &key("tx_rate_limiter"))?;
        Ok(Self { id: raw.iface_id, mac, wire, mtu, allow, addresses, receive_limiter, transmit_limiter })
    }

    /// Its name on the host: 1 to 64 bytes of letters, digits, `_`, `-` and `.`.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its Ethernet address, one card's.
    #[must_use]
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// What its frames come from and go to.
    #[must_use]
    pub fn wire(&self) -> &WireSpec {
        &self.wire
    }

    /// Largest packet in bytes.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Where the guest may send to.
    #[must_use]
    pub fn allow(&self) -> &[AllowRule] {
        &self.allow
    }

    /// From where alone it may send; none: anywhere.
    #[must_use]
    pub fn addresses(&self) -> &[Prefix] {
        &self.addresses
    }

    /// How much the guest receives in a time; `None`: no limit.
    #[must_use]
    pub fn receive_limiter(&self) -> Option<LimiterSpec> {
        self.receive_limiter
    }

    /// How much the guest sends in a time; `None`: no limit.
    #[must_use]
    pub fn transmit_limiter(&self) -> Option<LimiterSpec> {
        self.transmit_limiter
    }
}

fn wrong(key: String, value: &str, error: &NetworkError) -> SpecError {
    let value = value.chars().take(64).collect();
    SpecError::Network { key, value, allowed: *error }
}

fn list<T>(key: &str, texts: &[String], most: usize) -> Result<Vec<T>, SpecError>
where
    T: FromStr<Err = NetworkError>,
{
    if texts.len() > most {
        return Err(SpecError::OutOfRange {
            key: format!("{key} (entries)"),
            value: texts.len() as u64,
            allowed: format!("0 to {most}"),
        });
    }
    let read = |(index, text): (usize, &String)| {
        text.parse().map_err(|error| wrong(format!("{key}[{index}]"), text, &error))
    };
    texts.iter().enumerate().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use husk_protocol::spec::{RawRateLimiter, RawTokenBucket};

    fn all(raw: Vec<RawNetwork>) -> Result<Vec<NetworkSpec>, SpecError> {
        super::all(raw, 4)
    }

    fn raw() -> RawNetwork {
        RawNetwork {
            iface_id: "net0".into(),
            guest_mac: Some("02:fc:00:00:00:01".into()),
            tap: Some(FileRef::Fd(3)),
            ..RawNetwork::default()
        }
    }

    fn refused(change: impl FnOnce(&mut RawNetwork)) -> String {
        let mut raw = raw();
        change(&mut raw);
        all(vec![raw]).unwrap_err().to_string()
    }

    #[test]
    fn a_card_is_taken_as_it_is_written() {
        let raw = RawNetwork {
            mtu: Some(9000),
            allow: vec!["10.0.0.0/8:443".into()],
            guest_ip: vec!["10.0.0.2/24".into()],
            ..raw()
        };
        let card = &all(vec![raw]).unwrap()[0];
        assert_eq!((card.id(), card.mac(), card.mtu()), ("net0", [2, 0xfc, 0, 0, 0, 1], 9000));
        assert_eq!(card.allow()[0].to_string(), "10.0.0.0/8:443");
        assert_eq!(card.addresses()[0].to_string(), "10.0.0.2/24");
        let card = &all(vec![self::raw()]).unwrap()[0];
        assert!(card.mtu() == 1500 && card.allow().is_empty() && card.addresses().is_empty());
    }

    #[test]
    fn key_value_and_what_is_allowed_are_named() {
        let text = refused(|raw| raw.iface_id = "a b".into());
        assert!(text.starts_with("network-interfaces[0].iface_id: \"a b\""), "{text}");
        let text = refused(|raw| raw.guest_mac = Some("01:00:00:00:00:00".into()));
        assert!(text.starts_with("network-interfaces[0].guest_mac: \"01:00"), "{text}");
        assert!(refused(|raw| raw.guest_mac = None).contains("guest_mac"));
        for mtu in [0, 1279, 65_536, u64::MAX] {
            let text = refused(|raw| raw.mtu = Some(mtu));
            assert!(text.contains(&format!("mtu: {mtu} is not allowed; allowed is 1280 to 65535")), "{text}");
        }
        let text = refused(|raw| raw.allow = vec!["10.0.0.1:1".into(), "x".into()]);
        assert!(text.starts_with("network-interfaces[0].allow[1]: \"x\"") && text.contains("CIDR"), "{text}");
        let text = refused(|raw| raw.allow = vec!["10.0.0.1:1".into(); 65]);
        assert!(text.contains("allow (entries): 65") && text.contains("0 to 64"), "{text}");
        let text = refused(|raw| raw.guest_ip = vec!["127.0.0.1/8".into()]);
        assert!(text.starts_with("network-interfaces[0].guest_ip[0]: \"127.0.0.1/8\""), "{text}");
    }

    #[test]
    fn a_stream_stands_in_for_a_tap() {
        let raw = RawNetwork { tap: None, stream: Some(FileRef::Fd(4)), ..raw() };
        assert_eq!(all(vec![raw]).unwrap()[0].wire(), &WireSpec::Stream(FileRef::Fd(4)));
        assert_eq!(all(vec![self::raw()]).unwrap()[0].wire(), &WireSpec::Tap(vec![FileRef::Fd(3)]));
        let text = refused(|raw| raw.stream = Some(FileRef::Fd(4)));
        assert!(
            text.starts_with("network-interfaces[0].stream: ") && text.contains("one of the two"),
            "{text}"
        );
    }

    #[test]
    fn there_are_as_many_queues_as_files_and_at_most_one_a_vcpu() {
        let with = |queues, others: u32, vcpus| {
            let tap_queues = (4..4 + others).map(FileRef::Fd).collect();
            super::all(vec![RawNetwork { queues, tap_queues, ..raw() }], vcpus)
        };
        let files = (3..11).map(FileRef::Fd).collect();
        assert_eq!(with(Some(8), 7, 32).unwrap()[0].wire(), &WireSpec::Tap(files));
        for (queues, others, vcpus) in
            [(0, 0, 4), (2, 0, 4), (1, 1, 4), (9, 8, 32), (3, 2, 2), (u64::MAX, 0, 4)]
        {
            let text = with(Some(queues), others, vcpus).unwrap_err().to_string();
            let start = format!("network-interfaces[0].queues: {queues} is not allowed; allowed is 1 to ");
            assert!(text.starts_with(&start), "{text}");
        }
        assert!(with(None, 1, 4).is_err());
    }

    #[test]
    fn each_direction_has_a_limiter_of_its_own() {
        let limiter = |refill_time| {
            let ops = Some(RawTokenBucket { size: 5, one_time_burst: None, refill_time });
            Some(RawRateLimiter { bandwidth: None, ops })
        };
        let size = |limiter: Option<LimiterSpec>| Some(limiter?.operations()?.refill_ms().get());
        let raw = RawNetwork { rx_rate_limiter: limiter(1), tx_rate_limiter: limiter(2), ..raw() };
        let card = &all(vec![raw]).unwrap()[0];
        assert_eq!((size(card.receive_limiter()), size(card.transmit_limiter())), (Some(1), Some(2)));
        let text = refused(|raw| raw.rx_rate_limiter = limiter(u64::MAX));
        assert!(text.starts_with("network-interfaces[0].rx_rate_limiter.ops.refill_time: 1844"), "{text}");
        let text = refused(|raw| raw.tx_rate_limiter = limiter(u64::MAX));
        assert!(text.starts_with("network-interfaces[0].tx_rate_limiter.ops.refill_time: 1844"), "{text}");
    }

    #[test]
    fn two_cards_differ() {
        let text = all(vec![raw(), raw()]).unwrap_err().to_string();
        assert!(text.starts_with("network-interfaces[1].iface_id: \"net0\" is there already"), "{text}");
        let other = RawNetwork { iface_id: "net1".into(), ..raw() };
        let text = all(vec![raw(), other]).unwrap_err().to_string();
        assert!(text.starts_with("network-interfaces[1].guest_mac: \"02:fc"), "{text}");
    }
}
