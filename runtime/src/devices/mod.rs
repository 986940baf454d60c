//! What the guest finds on its buses.
//!
//! Owns the devices' side of every port and MMIO access; knows neither KVM nor a thread policy: notifications and
//! interrupts are eventfds that the machine connects. Refuses nothing loudly: an access that makes no sense is
//! defined and harmless. Invariant: no device allocates, blocks or logs in proportion to a number the guest chose.

pub mod bus;
pub mod i8042;
pub mod pci;
pub mod serial;
pub mod state;
pub mod virtio;

pub use bus::{Bus, BusDevice, BusError};
