//! What the guest boots, and its disks: the files that the operator named, or Husk's own.
//!
//! Owns the choice between option, configuration and Husk's own. Refuses a file that is not what it is named for, and one that somebody
//! writes to. Invariant: a disk, or an image in memory, that the operator named is locked before it goes to the cell.

use super::{Files, Manner, PrepareError, path_of};
use crate::assets::Assets;
use crate::image::{Access, Image};
use crate::memfile;
use crate::options::Options;
use crate::pack::{Packer, usual_cache};
use crate::plan;
use husk_protocol::spec::{RawPart, RawSpec};
use std::fs::File;
use std::path::Path;

/// The kernel, and whether it is Husk's own.
pub(super) fn open_kernel(
    options: &Options,
    base: &RawSpec,
    assets: &Assets,
) -> Result<(Image, bool), PrepareError> {
    let named = options.kernel.as_deref().or_else(|| path_of(&base.boot_source.kernel_image_path));
    Ok(match named {
        Some(path) => (Image::open("kernel", path, Access::File)?, false),
        None => (Image::open("kernel", &assets.kernel()?, Access::File)?, true),
    })
}

pub(super) fn open_initrd(
    options: &Options,
    base: &RawSpec,
    assets: &Assets,
) -> Result<(File, u64), PrepareError> {
    let configured = base.boot_source.initrd_path.as_ref().and_then(path_of);
    if let Some(path) = options.initrd.as_deref().or(configured) {
        let image = Image::open("initrd", path, Access::File)?;
        image.check_initrd()?;
        return Ok((image.file, image.size));
    }
    Ok(memfile::initramfs(&assets.init()?)?)
}

/// The root's file, and which part of it the root is, if not all.
pub(super) fn open_root(
    options: &Options,
    base: &RawSpec,
    manner: Manner<'_>,
) -> Result<(File, Option<RawPart>), PrepareError> {
    let configured = base.drives.iter().find(|drive| drive.is_root_device);
    let named =
        options.rootfs.as_deref().or_else(|| configured.and_then(|drive| path_of(&drive.path_on_host)));
    let Some(path) = named else { return Ok(memfile::default_root()?) };
    let image = if path.is_dir() {
        let packer = Packer { cache: usual_cache(), signals: manner.signals, talkative: manner.talkative };
        packer.image_of(path)?
    } else {
        Image::open("rootfs", path, Access::Disk)?
    };
    image.check_file_system()?;
    image.lock(false)?;
    Ok((image.file, None))
}

/// The configuration's drives, whatever is on them, then those that the guest is told to mount.
pub(super) fn open_drives(
    options: &Options,
    base: &RawSpec,
    files: &mut Files,
) -> Result<Vec<u32>, PrepareError> {
    let mut places = Vec::new();
    for drive in base.drives.iter().filter(|drive| !drive.is_root_device) {
        let path = path_of(&drive.path_on_host).unwrap_or(Path::new(""));
        places.push(open_drive(path, !drive.is_read_only, files)?.0);
    }
    for drive in &options.drives {
        let (place, image) = open_drive(&drive.file, drive.writable, files)?;
        image.check_file_system()?;
        places.push(place);
    }
    Ok(places)
}

/// The images in memory, and their bytes together: the configuration's, of which the guest mounts the root alone, then
/// those that it is told to mount.
pub(super) fn open_images(
    options: &Options,
    base: &RawSpec,
    files: &mut Files,
) -> Result<(Vec<u32>, u64), PrepareError> {
    let configured = plan::images(options, base)
        .map(|image| (path_of(&image.path_on_host).unwrap_or(Path::new("")), image.root_device));
    let asked = options.pmem.iter().map(|image| (image.file.as_path(), true));
    let (mut places, mut bytes) = (Vec::new(), 0_u64);
    for (path, mounted) in configured.chain(asked) {
        let image = Image::open("pmem", path, Access::File)?;
        if mounted {
            image.check_file_system()?;
        }
        // Who writes to the file would write to the guest's memory.
        image.lock(false)?;
        bytes = bytes.saturating_add(image.size);
        places.push(files.add(image.file));
    }
    Ok((places, bytes))
}

fn open_drive(path: &Path, writable: bool, files: &mut Files) -> Result<(u32, Image), PrepareError> {
    let access = if writable { Access::WritableDisk } else { Access::Disk };
    let image = Image::open("drive", path, access)?;
    image.lock(writable)?;
    let copy = image.file.try_clone().map_err(PrepareError::Descriptors)?;
    Ok((files.add(copy), image))
}
