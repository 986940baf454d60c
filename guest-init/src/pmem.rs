//! Images that the machine shows as memory (virtio-pmem). Owns the way from an image's number to its block device; refuses
//! an image that is not there. Invariant: a device that leaves here is read-only for the kernel too, so that a write to it
//! is an error and is not lost in silence (the host keeps the image as it is whatever the guest does).

use crate::disk::{Disk, DiskError, names, read_small};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// What virtio calls the kind of device (virtio 1.2, section 5: 27), as sysfs writes it.
const KIND: &[u8] = b"0x001b";
const VIRTIO: &str = "/sys/bus/virtio/devices";

/// Finds image `number`, counted from 0 in the order of the machine's devices.
///
/// # Errors
/// There is none, or it cannot be made read-only.
pub(crate) fn find(number: u32) -> Result<Disk, DiskError> {
    let label = format!("pmem {number}");
    let missing = || DiskError::NoImage { label: label.clone() };
    let wanted = usize::try_from(number).unwrap_or(usize::MAX);
    let is_image = |name: &String| read_small::<8>(&format!("{VIRTIO}/{name}/device")).starts_with(KIND);
    let device = names(VIRTIO, "virtio").into_iter().filter(is_image).nth(wanted).ok_or_else(missing)?;
    let first = |directory: &str, prefix| names(directory, prefix).into_iter().next();
    let bus = first(&format!("{VIRTIO}/{device}"), "ndbus").ok_or_else(missing)?;
    let bus = format!("{VIRTIO}/{device}/{bus}");
    // The kernel looks at such memory beside the boot; a read of this file returns when it has.
    read_small::<8>(&format!("{bus}/wait_probe"));
    let region = first(&bus, "region").ok_or_else(missing)?;
    let name = region.replace("region", "pmem");
    let namespace = region.replace("region", "namespace");
    if names(&format!("{bus}/{region}/{namespace}.0/block"), &name).is_empty() {
        return Err(missing());
    }
    write_small(&format!("{bus}/{region}/read_only"), b"1").map_err(|errno| DiskError::Writable {
        label: label.clone(),
        name: name.clone(),
        errno,
    })?;
    Ok(Disk { serial: label, name, dax: true })
}

fn write_small(path: &str, bytes: &[u8]) -> Result<(), Errno> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(file, bytes).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_image_is_named() {
        let error = find(7_000_000).unwrap_err().to_string();
        assert!(error.starts_with("image \"pmem 7000000\": the kernel shows no such image"), "{error}");
    }
}
