//! virtio-net (virtio 1.2, 5.1) over a tap or a stream socket: a queue to receive, one to transmit, and where a tap has
//! several queues, as many such pairs and a control queue.
//!
//! Owns configuration and features; the worker has the queues, `header` and `policy` the judgement of what the guest
//! sends. Refuses frames with another source address than the device's, frames longer than the device says, headers
//! that would make the host write outside or elsewhere than into a checksum, and all that no rule allows. Invariant:
//! what was judged is what is sent: the judged bytes are a copy that the guest cannot reach.

mod control;
#[cfg(test)]
mod frames;
mod header;
pub mod policy;
mod receive;
mod stream;
mod tap;
mod transmit;
mod wire;
mod worker;

use super::gate::Limit;
use super::{
    ActivateError, Activation, DeviceKind, FEATURE_EVENT_IDX, FEATURE_INDIRECT, VirtioDevice, Worker,
    read_from,
};
use crate::state::{Format, LoadError, Section};
use husk_protocol::network::{MAX_QUEUES, Mac};
use policy::Policy;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use stream::Stream;
use tap::Tap;
use virtio_bindings::virtio_net as net;
use wire::Wire;

/// Descriptors in each queue: as many mergeable buffers of a page's size as a few of the largest frames take.
const QUEUE_SIZE: u16 = 256;
/// Bytes of `virtio_net_hdr_v1`, which the tap is set to.
const HEADER_BYTES: usize = 12;
/// Bytes of an Ethernet header.
const ETHERNET_BYTES: usize = 14;
/// Longest frame without its virtio header: the largest IP packet behind an Ethernet header.
const LONGEST_FRAME: usize = 65_535 + ETHERNET_BYTES;
/// The status' bit that says so; the fields' first byte.
const LINK_UP: u8 = 1;
/// Up to and with `mtu` of `virtio_net_config`.
const CONFIG_BYTES: usize = 12;

/// What is saved of it is [`Talk`]. Address and MTU are the spec's (a fork has its own), the tap hears of the driver's
/// features from each worker, and the limiters are full again after a load. What a stream has of frames, the rest of one that
/// is half sent or some that are not delivered yet, belongs to the connection with that peer: it outlives a pause, and a load
/// elsewhere begins with a new peer and without it, as if the wire had lost those frames.
const FORMAT: Format = Format { id: "virtio-net", version: 2 };

const fn bit(feature: u32) -> u64 {
    1 << feature
}

/// What a driver that takes everything knows of any card.
const COMMON: u64 = FEATURE_EVENT_IDX
    | FEATURE_INDIRECT
    | bit(net::VIRTIO_NET_F_MAC)
    | bit(net::VIRTIO_NET_F_MTU)
    | bit(net::VIRTIO_NET_F_MRG_RXBUF);
/// And of one on a tap, which finishes checksums and cuts long frames.
const TAP_FEATURES: u64 = COMMON
    | bit(net::VIRTIO_NET_F_CSUM)
    | bit(net::VIRTIO_NET_F_GUEST_CSUM)
    | bit(net::VIRTIO_NET_F_HOST_TSO4)
    | bit(net::VIRTIO_NET_F_HOST_TSO6)
    | bit(net::VIRTIO_NET_F_GUEST_TSO4)
    | bit(net::VIRTIO_NET_F_GUEST_TSO6);
/// And of one on a tap with several queues.
const SEVERAL_QUEUES: u64 = bit(net::VIRTIO_NET_F_CTRL_VQ) | bit(net::VIRTIO_NET_F_MQ);
/// And of one on a stream, over which whole frames go, and whose peer may end.
const STREAM_FEATURES: u64 = COMMON | bit(net::VIRTIO_NET_F_STATUS);

/// What both directions need to know.
#[derive(Debug)]
struct Card {
    wire: Wire,
    mac: Mac,
    mtu: u16,
    policy: Policy,
    talk: Talk,
}

/// What driver and device have told each other beside features and frames; it outlives a worker. No order is kept with
/// anything else: a worker is gone when the device looks, and the other way round.
#[derive(Debug)]
struct Talk {
    /// Pairs of queues that the driver uses, 1 to the wire's.
    pairs: AtomicU16,
    /// What the driver knows of the link.
    link: AtomicBool,
}

impl Default for Talk {
    fn default() -> Self {
        Self { pairs: AtomicU16::new(1), link: AtomicBool::new(true) }
    }
}

/// The limiter of each direction, of frames and of their bytes without the virtio header.
#[derive(Debug, Clone, Default)]
struct Limits {
    receive: Option<Arc<Limit>>,
    transmit: Option<Arc<Limit>>,
}

/// See the module.
#[derive(Debug)]
pub struct Net {
    card: Arc<Card>,
    limits: Limits,
    queue_sizes: Vec<u16>,
    config: [u8; CONFIG_BYTES],
}

impl Net {
    /// The card with address `mac` on `tap`: open without waiting, in the mode `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, with a
    /// virtio header of 12 bytes, checksum and TCP segmentation offload on. `others` are the tap's queues behind the first, open
    /// alike; with them all have `IFF_MULTI_QUEUE` besides, and the card has as many pairs of queues, at most [`MAX_QUEUES`].
    /// `mtu` in bytes, without Ethernet's header.
    #[must_use]
    pub fn new(tap: OwnedFd, mut others: Vec<OwnedFd>, mac: Mac, mtu: u16, policy: Policy) -> Self {
        others.truncate(usize::try_from(MAX_QUEUES).unwrap_or(1) - 1);
        Self::on(Wire::Tap(Tap::new(tap, others)), mac, mtu, policy)
    }

    /// The card with address `mac` whose frames go over `socket`, a connected stream, each behind its length. `mtu` as above.
    ///
    /// # Errors
    /// No descriptor can be made.
    pub fn over_stream(socket: OwnedFd, mac: Mac, mtu: u16, policy: Policy) -> io::Result<Self> {
        Ok(Self::on(Wire::Stream(Mutex::new(Stream::new(socket)?)), mac, mtu, policy))
    }

    fn on(wire: Wire, mac: Mac, mtu: u16, policy: Policy) -> Self {
        let mut config = [0; CONFIG_BYTES];
        config[..6].copy_from_slice(&mac);
        // 6..8: the status, read from the wire.
        let pairs = u16::try_from(wire.queues()).unwrap_or(1);
        if pairs > 1 {
            config[8..10].copy_from_slice(&pairs.to_le_bytes());
        }
        config[10..12].copy_from_slice(&mtu.to_le_bytes());
        let card = Arc::new(Card { wire, mac, mtu, policy, talk: Talk::default() });
        // With several pairs a control queue, behind them.
        let queues = 2 * pairs + u16::from(pairs > 1);
        let queue_sizes = vec![QUEUE_SIZE; queues.into()];
        Self { card, limits: Limits::default(), queue_sizes, config }
    }

    /// The same card behind a limiter for each direction. What the guest sends too fast waits in its queue; what comes too
    /// fast waits in the tap, and is lost there once the tap's own queue is full.
    #[must_use]
    pub fn with_limits(mut self, receive: Option<Limit>, transmit: Option<Limit>) -> Self {
        self.limits = Limits { receive: receive.map(Arc::new), transmit: transmit.map(Arc::new) };
        self
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn features(&self) -> u64 {
        match self.card.wire {
            Wire::Tap(ref tap) if tap.queues() > 1 => TAP_FEATURES | SEVERAL_QUEUES,
            Wire::Tap(_) => TAP_FEATURES,
            Wire::Stream(_) => STREAM_FEATURES,
        }
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = self.config;
        if matches!(self.card.wire, Wire::Stream(_)) && !self.card.wire.is_dead() {
            config[6] = LINK_UP;
        }
        read_from(&config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        Ok(Box::new(worker::NetWorker::new(activation, self.card.clone(), self.limits.clone())?))
    }

    /// The next driver reads itself how the link is.
    fn reset(&mut self) {
        self.card.talk.pairs.store(1, Ordering::Relaxed);
        self.card.talk.link.store(!self.card.wire.is_dead(), Ordering::Relaxed);
    }

    fn save(&self) -> Section {
        let talk = &self.card.talk;
        FORMAT.section(&(talk.pairs.load(Ordering::Relaxed), talk.link.load(Ordering::Relaxed)))
    }

    fn load(&mut self, section: &Section) -> Result<(), LoadError> {
        let (pairs, link): (u16, bool) = FORMAT.parse(section)?;
        let most = u16::try_from(self.card.wire.queues()).unwrap_or(1);
        FORMAT.check(
            (1..=most).contains(&pairs),
            "pairs of queues in use",
            pairs,
            format_args!("1 to {most}"),
        )?;
        let can_be_down = matches!(self.card.wire, Wire::Stream(_));
        FORMAT.check(link || can_be_down, "link", link, "true, for a tap")?;
        self.card.talk.pairs.store(pairs, Ordering::Relaxed);
        self.card.talk.link.store(link, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
