//! The options' network card: what the cell and the guest are told of it.
//!
//! Owns no state. Refuses more of anything than a card takes, and a gateway that the guest could not speak to. Invariant:
//! the card that the runtime judges by and the one that the guest configures come from the same options.

use super::PlanError;
use crate::options::NetworkOption;
use husk_protocol::exec::Network;
use husk_protocol::network::{MAX_ADDRESSES, MAX_QUEUES, MAX_RULES, Mac, format_mac};
use husk_protocol::spec::{FileRef, RawNetwork};
use std::net::IpAddr;

/// The card's id.
const CARD: &str = "husk-net";
/// Most name servers; the C library heeds no more.
const MOST_DNS: usize = 3;

/// The card of the options.
pub(super) fn card(option: &NetworkOption) -> RawNetwork {
    RawNetwork {
        iface_id: CARD.to_owned(),
        host_dev_name: option.tap.clone(),
        queues: option.queues,
        allow: option.allow.iter().map(ToString::to_string).collect(),
        guest_ip: option.addresses.iter().map(|address| address.0.to_string()).collect(),
        ..RawNetwork::default()
    }
}

/// Whether the options fit each other.
pub(super) fn check(option: &NetworkOption) -> Result<(), PlanError> {
    let wrong = |text: String| Err(PlanError::Network(text));
    let most = [
        ("--allow", option.allow.len(), MAX_RULES),
        ("--guest-ip", option.addresses.len(), MAX_ADDRESSES),
        ("--dns", option.dns.len(), MOST_DNS),
    ];
    if let Some((name, count, most)) = most.into_iter().find(|(_, count, most)| count > most) {
        return wrong(format!("{name} is given {count} times; at most {most} are possible"));
    }
    if option.tap.is_none() {
        check_user_mode(option)?;
    }
    for (index, gateway) in option.gateways.iter().enumerate() {
        let near = option.addresses.iter().any(|address| address.0.contains(*gateway));
        let link = matches!(gateway, IpAddr::V6(it) if it.is_unicast_link_local())
            && option.addresses.iter().any(|address| address.0.address.is_ipv6());
        if !(near || link) {
            return wrong(format!("--gateway {gateway} is in no network of --guest-ip"));
        }
        if option.gateways[..index].iter().any(|other| other.is_ipv6() == gateway.is_ipv6()) {
            return wrong(format!("--gateway {gateway} is the second of its family; one is possible"));
        }
    }
    Ok(())
}

/// Whether each card has as many queues as are any use.
pub(super) fn check_queues(cards: &[RawNetwork], vcpus: u64) -> Result<(), PlanError> {
    let most = MAX_QUEUES.min(vcpus);
    match cards.iter().filter_map(|card| card.queues).find(|queues| !(1..=most).contains(queues)) {
        Some(queues) => {
            let allowed = format!("1 to {most} (at most {MAX_QUEUES}, and one a vCPU)");
            Err(PlanError::Range { name: "queues of a network card", value: queues.to_string(), allowed })
        }
        None => Ok(()),
    }
}

/// Puts each card's wire into it, which has a tap's name if it is a tap, with what the card does not say itself.
pub(super) fn attach(cards: &mut [RawNetwork], wires: &[(Vec<u32>, u64, Mac)]) {
    for (card, &(ref places, mtu, mac)) in cards.iter_mut().zip(wires) {
        let mut files = places.iter().copied().map(FileRef::Fd);
        let wire = files.next();
        card.tap_queues = files.collect();
        match card.host_dev_name.take() {
            Some(_) => card.tap = wire,
            None => card.stream = wire,
        }
        card.mtu.get_or_insert(mtu);
        card.guest_mac.get_or_insert_with(|| format_mac(mac));
    }
}

/// What passt takes.
fn check_user_mode(option: &NetworkOption) -> Result<(), PlanError> {
    let wrong = |text: String| Err(PlanError::Network(text));
    if option.queues.is_some_and(|queues| queues != 1) {
        return wrong("--net user has one pair of queues; several take --net tap=NAME,queues=N".into());
    }
    for (index, address) in option.addresses.iter().enumerate() {
        let (address, six) = (address.0.address, address.0.address.is_ipv6());
        if option.addresses[..index].iter().any(|other| other.0.address.is_ipv6() == six) {
            return wrong(format!("--guest-ip {address} is the second of its family; --net user takes one"));
        }
        if !option.gateways.iter().any(|gateway| gateway.is_ipv6() == six) {
            return wrong(format!(
                "--guest-ip {address} has no --gateway of its family, which --net user needs"
            ));
        }
    }
    Ok(())
}

/// What the guest does with the options' card, which got `mac` and `mtu`.
pub(crate) fn network(option: &NetworkOption, mac: Mac, mtu: u64) -> Network {
    Network {
        mac,
        mtu: u32::try_from(mtu).unwrap_or(u32::MAX),
        addresses: option.addresses.iter().map(|it| (it.0.address, it.0.bits)).collect(),
        gateways: option.gateways.clone(),
        dns: option.dns.clone(),
    }
}
