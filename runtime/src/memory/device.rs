//! Guest memory as devices see it: RAM, to read and write, and images, to read.
//!
//! Owns the one place that says which access is allowed where. Refuses an access that would write to an image, before a
//! byte is moved and whatever its other parts are. Invariant: every way to guest memory that a device has goes through
//! [`vm_memory::GuestMemory::get_slices`] with the access that it wants, and a region that is not RAM is never among those
//! that an access with writing is looked up in.

use super::{GuestMemory, Image, MemoryError};
use std::sync::Arc;
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::mmap::FromRangesError;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryError, Permissions};

/// See the module; a clone shares the mappings.
#[derive(Debug, Clone)]
pub struct DeviceMemory {
    ram: Arc<GuestMemory>,
    /// RAM and images.
    readable: Arc<GuestMemory>,
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
        Ok(Self { ram: Arc::new(ram.clone()), readable: Arc::new(readable) })
    }

    /// What is written to and given back; nothing of an image.
    #[must_use]
    pub fn ram(&self) -> &GuestMemory {
        &self.ram
    }

    fn allowing(&self, access: Permissions) -> &GuestMemory {
        if access.has_write() { &self.ram } else { &self.readable }
    }
}

impl vm_memory::GuestMemory for DeviceMemory {
    // `physical_memory` stays `None`: it would be a way around the permissions.
    type PhysicalMemory = GuestMemory;
    type Bitmap = ();

    fn check_range(&self, address: GuestAddress, count: usize, access: Permissions) -> bool {
        GuestMemoryBackend::check_range(self.allowing(access), address, count)
    }

    fn get_slices<'a>(
        &'a self,
        address: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, ()>, GuestMemoryError> {
        Ok(GuestMemoryBackend::get_slices(self.allowing(access), address, count))
    }
}

#[cfg(test)]
mod tests;
