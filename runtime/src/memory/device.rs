//! Guest memory as devices see it: RAM, to read and write, and images, to read.
//!
//! Owns the one place that says which access is allowed where. Refuses an access that would write to an image, before a
//! byte is moved and whatever its other parts are, and one to a block that is not plugged. Invariant: every way to guest memory that a device has goes through
//! [`vm_memory::GuestMemory::get_slices`] with the access that it wants, and a region that is not RAM is never among those
//! that an access with writing is looked up in.

use super::slices::Slices;
use super::{GuestMemory, Hotplug, Image, MemoryError};
use std::sync::Arc;
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::mmap::FromRangesError;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryError, Permissions};

/// See the module; a clone shares the mappings.
#[derive(Debug, Clone)]
pub struct DeviceMemory {
    ram: Arc<GuestMemory>,
    /// RAM and images.
    readable: Arc<GuestMemory>,
    /// The part of RAM that comes and goes.
    hotplug: Option<Hotplug>,
}

impl DeviceMemory {
    /// `ram`, and beside it `images`.
    ///
    /// # Errors
    /// [`MemoryError::Regions`] if they overlap.
    pub fn new(ram: &GuestMemory, images: &[Image]) -> Result<Self, MemoryError> {
        let together = |memory: GuestMemory, image: &Image| memory.insert_region(image.region());
        let readable = images.iter().try_fold(ram.clone(), together);
        let readable = readable.map_err(|error| MemoryError::Regions(FromRangesError::from(error)))?;
        Ok(Self { ram: Arc::new(ram.clone()), readable: Arc::new(readable), hotplug: None })
    }

    /// The same, with the blocks of `hotplug` that are plugged whenever somebody looks.
    ///
    /// # Errors
    /// [`MemoryError::Regions`] if it overlaps something.
    pub fn with_hotplug(self, hotplug: &Hotplug) -> Result<Self, MemoryError> {
        let with = |memory: &GuestMemory| {
            let memory = memory.insert_region(hotplug.region());
            memory.map_err(|error| MemoryError::Regions(FromRangesError::from(error)))
        };
        let (ram, readable) = (Arc::new(with(&self.ram)?), Arc::new(with(&self.readable)?));
        Ok(Self { ram, readable, hotplug: Some(hotplug.clone()) })
    }

    /// What is written to and given back; nothing of an image. To be read and written as [`vm_memory::GuestMemory`] of this
    /// type only, which knows what is plugged.
    #[must_use]
    pub fn ram(&self) -> &GuestMemory {
        &self.ram
    }

    /// How often memory that comes and goes was unplugged: what was looked up before the last time may not be there.
    #[must_use]
    pub fn unplugs(&self) -> u64 {
        self.hotplug.as_ref().map_or(0, Hotplug::unplugs)
    }

    fn allowing(&self, access: Permissions) -> &GuestMemory {
        if access.has_write() { &self.ram } else { &self.readable }
    }

    /// Whether the guest has all of it, as far as it comes and goes.
    fn is_plugged(&self, address: GuestAddress, count: usize) -> bool {
        self.hotplug.as_ref().is_none_or(|hotplug| hotplug.allows(address.raw_value(), count as u64))
    }
}

impl vm_memory::GuestMemory for DeviceMemory {
    // `physical_memory` stays `None`: it would be a way around the permissions.
    type PhysicalMemory = GuestMemory;
    type Bitmap = ();

    fn check_range(&self, address: GuestAddress, count: usize, access: Permissions) -> bool {
        self.is_plugged(address, count)
            && GuestMemoryBackend::check_range(self.allowing(access), address, count)
    }

    #[inline]
    fn get_slices<'a>(
        &'a self,
        address: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, ()>, GuestMemoryError> {
        if !self.is_plugged(address, count) {
            return Err(GuestMemoryError::InvalidGuestAddress(address));
        }
        Ok(Slices::of(self.allowing(access), address, count))
    }
}

#[cfg(test)]
mod tests;
