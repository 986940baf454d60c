//! The keyboard controller, as far as a guest resets its machine through it.
//!
//! Owns five ports from 0x60; knows one command. Refuses the rest by doing nothing and reading as zero, so a driver
//! sees an idle controller that holds no key. Invariant: a reset request only wakes whoever waits for it.

use crate::devices::BusDevice;
use vmm_sys_util::eventfd::EventFd;

/// Ports from the base (0x60) that the device answers.
pub const PORTS: u64 = 5;
/// The command register, relative to the base.
const COMMAND: u64 = 4;
/// Pulse the processor's reset line.
const RESET: u8 = 0xfe;

/// See the module.
#[derive(Debug)]
pub struct I8042 {
    reset: EventFd,
}

impl I8042 {
    /// `reset` is written when the guest asks for a reset.
    #[must_use]
    pub fn new(reset: EventFd) -> Self {
        Self { reset }
    }
}

impl BusDevice for I8042 {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset == COMMAND && data == [RESET] {
            // The write fails only when 2^64 - 2 requests wait already: one of them is enough.
            let _ = self.reset.write(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reset_command_resets() {
        let reset = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let device = I8042::new(reset.try_clone().unwrap());
        for (offset, data) in
            [(0, &[RESET][..]), (COMMAND, &[0x60]), (COMMAND, &[RESET, 0]), (COMMAND, &[]), (9, &[RESET])]
        {
            device.write(offset, data);
            assert!(reset.read().is_err(), "{offset} {data:?}");
        }
        let mut data = [7; 8];
        device.read(COMMAND, &mut data);
        assert_eq!(data, [0; 8]);
        device.write(COMMAND, &[RESET]);
        assert_eq!(reset.read().unwrap(), 1);
    }
}
