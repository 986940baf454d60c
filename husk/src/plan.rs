//! From what is asked for to what the cell and the guest are told. Pure: what the machine has was looked at before.
//!
//! Owns the rules by which options stand over a configuration file, and the bounds of both. Refuses, by the name under
//! which it was given, every value that cannot be. Invariant: a [`Plan`] names only descriptors that its caller has put
//! into the list, in the order of the list.

mod command;
mod error;
mod files;
mod limits;
mod memory;
mod names;
mod network;
mod pci;
mod pmem;

pub(crate) use command::exec;
pub(crate) use error::PlanError;
pub(crate) use files::{Places, with_files};
pub(crate) use memory::{BLOCK_MIB, check_memory, most_memory_mib, wanted_memory_mib};
pub(crate) use names::FileNames;
pub(crate) use network::network;
pub(crate) use pmem::{kept as images, mounts, root as root_image};

use crate::options::Options;
use husk_protocol::spec::{FileRef, HugePages, MAX_VOLUMES, RawSpec};
use std::collections::BTreeSet;

/// Most vCPUs.
pub(crate) const MOST_VCPUS: u64 = 32;
/// Least guest memory in MiB; no kernel boots in less.
pub(crate) const LEAST_MEMORY_MIB: u64 = 16;
/// Most guest memory in MiB: 512 GiB, which is what the runtime takes.
pub(crate) const MOST_MEMORY_MIB: u64 = 512 << 10;
/// Most virtio devices.
const MOST_DEVICES: usize = 19;
/// Bytes of a drive's id that the guest sees as the disk's serial.
const LONGEST_DRIVE_ID: usize = 20;
/// Longest kernel command line of a configuration; with the devices' declarations it must fit Linux's 2048 bytes.
const LONGEST_BOOT_ARGS: usize = 1024;
/// The root's drive id.
const ROOT: &str = "husk-root";

/// Checks options and configuration and makes them one: the machine without its files.
pub(crate) fn machine(options: &Options, base: &RawSpec) -> Result<RawSpec, PlanError> {
    command::check(options)?;
    check_base(base)?;
    limits::check(base)?;
    let mut spec = base.clone();
    spec.machine_config = memory::machine_config(options, &base.machine_config)?;
    pci::check(&spec)?;
    if !options.pin.is_empty() || options.prefault || options.hugepages {
        let mut placement = spec.placement.unwrap_or_default();
        placement.prefault |= options.prefault || options.hugepages;
        if !options.pin.is_empty() {
            placement.pin.clone_from(&options.pin);
        }
        spec.placement = Some(placement);
    }
    if options.entropy {
        spec.entropy.get_or_insert_default();
    }
    let vcpus = spec.machine_config.vcpu_count;
    let cpus = spec.placement.as_ref().map_or(0, |placement| placement.pin.len());
    if cpus != 0 && u64::try_from(cpus).unwrap_or(u64::MAX) != vcpus {
        return Err(PlanError::Pin { cpus, vcpus });
    }
    let prefault = spec.placement.as_ref().is_some_and(|placement| placement.prefault);
    if spec.machine_config.huge_pages != HugePages::None && !prefault {
        spec.placement.get_or_insert_default().prefault = true;
    }
    if let Some(option) = &options.network {
        network::check(option)?;
        spec.network_interfaces.push(network::card(option));
    }
    network::check_queues(&spec.network_interfaces, vcpus)?;
    memory::check_balloon(&spec)?;
    let machine = spec.machine_config.clone();
    memory::hotplug(options, &machine, &mut spec)?;
    check_volumes(options)?;
    check_drives(options, &spec)?;
    Ok(spec)
}

fn check_directory(name: &'static str, directory: &str) -> Result<(), PlanError> {
    let right = directory.starts_with('/') && !directory.contains('\0') && directory.len() < 4096;
    if right { Ok(()) } else { Err(PlanError::Directory { name, value: crate::text::line(directory) }) }
}

fn check_base(base: &RawSpec) -> Result<(), PlanError> {
    let key = |given: bool, key, instead| if given { Err(PlanError::Key { key, instead }) } else { Ok(()) };
    key(base.exec.is_some(), "exec", "husk makes the exec channel itself")?;
    key(base.console.is_some(), "console", "use --console")?;
    key(!base.volumes.is_empty(), "volumes", "use --volume")?;
    let root = base.drives.iter().find(|drive| drive.is_root_device);
    key(root.is_some_and(|root| root.part.is_some()), "part of a root device", "a root is all of its file")?;
    if let Some(words) = &base.boot_source.boot_args {
        let right =
            words.len() <= LONGEST_BOOT_ARGS && words.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if !right {
            return Err(PlanError::BootArgs(crate::text::line(words)));
        }
    }
    let files = [Some(&base.boot_source.kernel_image_path), base.boot_source.initrd_path.as_ref()];
    let drives = base.drives.iter().map(|drive| &drive.path_on_host);
    let socket = base.vsock.as_ref().and_then(|vsock| vsock.uds_path.as_ref());
    let cards = base.network_interfaces.iter();
    if let Some(index) = cards.clone().position(|card| card.tap.is_none() && card.host_dev_name.is_none()) {
        return Err(PlanError::NoTap(index));
    }
    key(cards.clone().any(|card| card.stream.is_some()), "stream", "use --net user")?;
    key(cards.clone().any(|card| !card.tap_queues.is_empty()), "tap_queues", "say how many in queues")?;
    let taps = cards.filter_map(|card| card.tap.as_ref());
    key(taps.clone().any(|tap| matches!(tap, FileRef::Path(_))), "tap", "name the tap in host_dev_name")?;
    let images = base.pmem.iter().map(|image| &image.path_on_host);
    let mut all = files.into_iter().flatten().chain(drives).chain(socket).chain(taps).chain(images);
    key(all.any(|file| matches!(file, FileRef::Fd(_))), "{\"fd\": N}", "give the file's path")
}

fn check_drives(options: &Options, spec: &RawSpec) -> Result<(), PlanError> {
    let mut seen = BTreeSet::from([ROOT.to_owned()]);
    let mounted = (0..options.drives.len()).map(drive_id);
    for id in spec.drives.iter().map(|drive| drive.drive_id.clone()).chain(mounted) {
        let allowed = id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        let right = allowed && (1..=LONGEST_DRIVE_ID).contains(&id.len());
        if !right || !seen.insert(id.clone()) {
            return Err(PlanError::DriveId(crate::text::line(&id)));
        }
    }
    for drive in &options.drives {
        check_mount_point("--drive", &drive.target)?;
    }
    // The root replaces the configuration's root device, if it has one; the vsock device carries the exec channel.
    let data = spec.drives.iter().filter(|drive| !drive.is_root_device).count();
    let others =
        [spec.entropy.is_some(), spec.balloon.is_some(), spec.memory_hotplug.is_some(), options.console];
    let others = others.into_iter().filter(|&there| there).count() + pmem::check(options, spec)?;
    let root = usize::from(root_image(options, spec).is_none());
    let mounted = options.drives.len() + options.volumes.len();
    let devices = root + data + mounted + spec.network_interfaces.len() + 1 + others;
    if devices > MOST_DEVICES { Err(PlanError::Devices(devices)) } else { Ok(()) }
}

fn check_volumes(options: &Options) -> Result<(), PlanError> {
    let count = options.volumes.len();
    if count > MAX_VOLUMES {
        let (value, allowed) = (format!("{count} times"), format!("up to {MAX_VOLUMES} times"));
        return Err(PlanError::Range { name: "--volume", value, allowed });
    }
    options.volumes.iter().try_for_each(|volume| check_mount_point("--volume", &volume.target))
}

/// A place where the guest can mount something: not the root, nor what the guest mounts there itself.
fn check_mount_point(name: &'static str, target: &str) -> Result<(), PlanError> {
    const TAKEN: [&str; 4] = ["", "/dev", "/proc", "/sys"];
    check_directory(name, target)?;
    let plain: Vec<&str> = target.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    let path = plain.iter().fold(String::new(), |path, part| path + "/" + part);
    if TAKEN.contains(&path.as_str()) || plain.contains(&"..") {
        return Err(PlanError::MountPoint { name, value: crate::text::line(target) });
    }
    Ok(())
}

/// Id of the `index`-th drive of the options.
fn drive_id(index: usize) -> String {
    format!("husk-drive{index}")
}

/// Tag of the `index`-th volume.
fn volume_tag(index: usize) -> String {
    format!("husk-volume{index}")
}

/// Ids of the drives and tags of the volumes that the guest mounts for writing.
pub(crate) fn writable_drives(options: &Options) -> Vec<String> {
    let drives = options.drives.iter().enumerate();
    let drives = drives.filter(|(_, drive)| drive.writable).map(|(index, _)| drive_id(index));
    let volumes = options.volumes.iter().enumerate();
    drives.chain(volumes.filter(|(_, volume)| volume.writable).map(|(index, _)| volume_tag(index))).collect()
}

#[cfg(test)]
mod tests;
