//! Devices that do what no device may: each must be caught, or the targets prove nothing.

use crate::devices::virtio::queue::{Chain, Popped, Virtqueue};
use crate::devices::virtio::{
    ActivateError, Activation, Busy, DeviceError, DeviceKind, Token, VirtioDevice, Worker,
};
use crate::fuzz::input::Input;
use crate::fuzz::script::{Subject, run};
use crate::fuzz::seeds;
use crate::state::{Format, LoadError, Section};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Instant;
use virtio_queue::Queue;
use vm_memory::Bytes;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Lie {
    /// Fills the buffer, as it should.
    None,
    /// Writes one byte after the buffer.
    Beyond,
    /// Says that it wrote one byte more than there is room for.
    Length,
    /// Gives back a chain that it was not given.
    Head,
    /// Kicks itself for ever.
    Unrest,
    /// Gives back every chain a hundred times.
    Many,
    /// Keeps its queue.
    Queue,
    /// Never gives anything back.
    Busy,
}

struct Liar(Lie);

const LIAR: Format = Format { id: "liar", version: 1 };

struct LiarWorker(Lie, [(Token, RawFd); 1], Virtqueue);

impl VirtioDevice for Liar {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Entropy
    }
    fn features(&self) -> u64 {
        0
    }
    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }
    fn read_config(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn activate(&mut self, mut activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        let queue = activation.take_queue(0)?;
        Ok(Box::new(LiarWorker(self.0, [(Token(0), queue.kick().as_raw_fd())], queue)))
    }
    fn save(&self) -> Section {
        LIAR.section(&())
    }
    fn load(&mut self, section: &Section) -> Result<(), LoadError> {
        LIAR.parse_empty(section)
    }
}

impl Worker for LiarWorker {
    fn events(&self) -> &[(Token, RawFd)] {
        &self.1
    }
    fn ready(&mut self, _: Token) -> Result<(), DeviceError> {
        let Self(lie, _, queue) = self;
        queue.acknowledge_kick();
        let mut chain = Chain::default();
        if queue.pop(&mut chain).unwrap() == Popped::Empty {
            if *lie == Lie::Unrest {
                queue.kick_again();
            }
            return Ok(());
        }
        let buffer = chain.writable[0];
        let len = u64::from(buffer.len) + u64::from(*lie == Lie::Beyond);
        queue.memory().write_slice(&vec![9; usize::try_from(len).unwrap()], buffer.addr).unwrap();
        let (head, len) = (chain.head + u16::from(*lie == Lie::Head), chain.writable_bytes());
        let len = u32::try_from(len).unwrap() + u32::from(*lie == Lie::Length);
        for _ in 0..if *lie == Lie::Many { 100 } else { 1 } {
            queue.add_used(head, len).unwrap();
        }
        Ok(())
    }
    fn drain(&mut self, _: Instant) -> Result<Vec<(u16, Queue)>, Busy> {
        match self.0 {
            Lie::Queue => Ok(Vec::new()),
            Lie::Busy => Err(Busy),
            _ => Ok(vec![self.2.take()]),
        }
    }
}

/// What the first panic of a run with this device says.
fn caught(lie: Lie) -> Option<String> {
    let (_, bytes) = seeds::of("entropy").into_iter().find(|(name, _)| name == "sound").unwrap();
    let ended = std::panic::catch_unwind(|| {
        let device = &mut Liar(lie);
        run(
            Subject { device, features: 0, host: &mut (), most: 64, discards: false, flies: false },
            Input(&bytes),
        )
    });
    let message = |panic: Box<dyn std::any::Any + Send>| match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(other) => (*other.downcast::<&str>().unwrap()).to_owned(),
    };
    ended.err().map(message)
}

#[test]
fn every_lie_is_caught_by_name() {
    assert_eq!(caught(Lie::None), None);
    for (lie, says) in [
        (Lie::Beyond, "not offered for writing"),
        (Lie::Length, "165 bytes were written to chain 0 of 164"),
        (Lie::Head, "chain 1 was used and never offered"),
        (Lie::Unrest, "does not come to rest"),
        (Lie::Many, "100 chains were used for one round"),
        (Lie::Queue, "every queue back"),
        (Lie::Busy, "nothing is in flight"),
    ] {
        let message = caught(lie).unwrap_or_default();
        assert!(message.contains(says), "{says}: {message}");
    }
}
