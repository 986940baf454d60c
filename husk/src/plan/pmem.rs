//! Images that the guest sees as memory: which of them the machine gets, and where the guest finds them.
//!
//! Owns their order: the configuration's, without a root that `--rootfs` replaces, then those of the options. Refuses an image
//! that is to be written. Invariant: whoever counts images (the machine, the files, the guest's mounts) asks [`kept`].

use super::{ROOT, check_mount_point};
use crate::options::Options;
use husk_protocol::exec::{Disk, DriveMount, Mounts, RootMount};
use husk_protocol::spec::{FileRef, RawPmem, RawSpec};
use std::collections::BTreeSet;

/// Longest id of an image in bytes.
const LONGEST_ID: usize = 64;

/// What is asked for cannot be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PmemError {
    /// An image's id.
    #[error(
        "config: pmem id {0:?} is not allowed or not unique; letters, digits, -, _ and ., 1 to {LONGEST_ID}, each once"
    )]
    Id(String),
    /// An image that is to be written.
    #[error(
        "config: pmem {0:?}: read_only false is not allowed; a pmem image is never written, only true is (or make it a \
         drive)"
    )]
    Writable(String),
    /// Two roots.
    #[error("config: pmem {0:?}: root_device true is the second root of drives and pmem; one is allowed")]
    Roots(String),
}

/// The configuration's images that the machine gets.
pub(crate) fn kept<'a>(options: &'a Options, spec: &'a RawSpec) -> impl Iterator<Item = &'a RawPmem> {
    spec.pmem.iter().filter(|image| options.rootfs.is_none() || !image.root_device)
}

/// The image that the root is on, by its place among the machine's.
pub(crate) fn root(options: &Options, spec: &RawSpec) -> Option<usize> {
    kept(options, spec).position(|image| image.root_device)
}

/// Checks the images and returns how many the machine gets.
pub(super) fn check(options: &Options, spec: &RawSpec) -> Result<usize, super::PlanError> {
    let mut ids = BTreeSet::new();
    let mut rooted = spec.drives.iter().any(|drive| drive.is_root_device);
    for image in &spec.pmem {
        let shown = || crate::text::line(&image.id);
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
        let right = (1..=LONGEST_ID).contains(&image.id.len()) && image.id.bytes().all(plain);
        if !right || !ids.insert(image.id.clone()) {
            return Err(PmemError::Id(shown()).into());
        }
        if image.read_only == Some(false) {
            return Err(PmemError::Writable(shown()).into());
        }
        if image.root_device && std::mem::replace(&mut rooted, true) {
            return Err(PmemError::Roots(shown()).into());
        }
    }
    for index in 0..options.pmem.len() {
        if !ids.insert(id(index)) {
            return Err(PmemError::Id(id(index)).into());
        }
    }
    options.pmem.iter().try_for_each(|image| check_mount_point("--pmem", &image.target))?;
    Ok(kept(options, spec).count() + options.pmem.len())
}

/// Id of the `index`-th image of the options.
fn id(index: usize) -> String {
    format!("husk-pmem{index}")
}

/// The machine's images with their files, which are at `places`. Which is the root is the guest's business, see [`mounts`].
pub(super) fn with_files(options: &Options, spec: &RawSpec, places: &[u32]) -> Vec<RawPmem> {
    let ids = kept(options, spec).map(|image| image.id.clone()).chain((0..options.pmem.len()).map(id));
    let image = |(id, &place)| RawPmem {
        id,
        path_on_host: FileRef::Fd(place),
        root_device: false,
        read_only: Some(true),
    };
    ids.zip(places).map(image).collect()
}

/// What the guest mounts: the root, drives, images, volumes; `spec` is the machine before it has its files.
pub(crate) fn mounts(options: &Options, spec: &RawSpec) -> Mounts {
    let number = |place: usize| Disk::Pmem(u32::try_from(place).unwrap_or(u32::MAX));
    let root = root(options, spec).map_or_else(|| Disk::Drive(ROOT.to_owned()), number);
    let drives = options.drives.iter().enumerate().map(|(index, drive)| DriveMount {
        disk: Disk::Drive(super::drive_id(index)),
        fs_type: String::new(),
        target: drive.target.clone(),
        read_only: !drive.writable,
    });
    let images = (kept(options, spec).count()..).zip(&options.pmem).map(|(place, image)| DriveMount {
        disk: number(place),
        fs_type: String::new(),
        target: image.target.clone(),
        read_only: true,
    });
    let volumes = options.volumes.iter().enumerate().map(|(index, volume)| DriveMount {
        disk: Disk::Volume(super::volume_tag(index)),
        fs_type: String::new(),
        target: volume.target.clone(),
        read_only: !volume.writable,
    });
    let root = RootMount { disk: root, fs_type: String::new() };
    Mounts { root, drives: drives.chain(images).chain(volumes).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::PmemOption;
    use crate::plan::{Places, PlanError, machine};

    fn image(id: &str, root_device: bool) -> RawPmem {
        RawPmem { id: id.into(), path_on_host: FileRef::Path("x".into()), root_device, read_only: None }
    }

    fn options(images: usize) -> Options {
        let pmem = (0..images).map(|n| PmemOption { file: "f".into(), target: format!("/i{n}") }).collect();
        Options { pmem, command: vec!["true".into()], ..Options::default() }
    }

    fn config(pmem: Vec<RawPmem>) -> RawSpec {
        RawSpec { pmem, ..RawSpec::default() }
    }

    fn refused(options: &Options, spec: &RawSpec) -> String {
        machine(options, spec).unwrap_err().to_string()
    }

    #[test]
    fn what_an_image_cannot_be_is_named() {
        let writable = RawPmem { read_only: Some(false), ..image("a", false) };
        let text = refused(&options(0), &config(vec![writable]));
        assert!(text.contains("pmem \"a\": read_only false") && text.contains("never written"), "{text}");
        for wrong in ["", "a b", "ä", &"x".repeat(65)] {
            assert!(refused(&options(0), &config(vec![image(wrong, false)])).contains("pmem id"), "{wrong}");
        }
        let twice = config(vec![image("a", false), image("a", false)]);
        assert!(refused(&options(0), &twice).contains("pmem id \"a\""));
        assert!(refused(&options(1), &config(vec![image("husk-pmem0", false)])).contains("husk-pmem0"));
        let roots = config(vec![image("a", true), image("b", true)]);
        assert!(refused(&options(0), &roots).contains("pmem \"b\": root_device true is the second root"));
        let fd = RawPmem { path_on_host: FileRef::Fd(1), ..image("a", false) };
        assert!(refused(&options(0), &config(vec![fd])).contains("{\"fd\": N}"));
        let mut odd = options(1);
        odd.pmem[0].target = "/proc".into();
        assert!(refused(&odd, &RawSpec::default()).starts_with("--pmem cannot be mounted at \"/proc\""));
    }

    #[test]
    fn an_image_is_a_device_and_a_root_on_one_needs_no_drive() {
        machine(&options(17), &RawSpec::default()).unwrap();
        assert_eq!(machine(&options(18), &RawSpec::default()), Err(PlanError::Devices(20)));
        machine(&options(17), &config(vec![image("a", true)])).unwrap();
        let replaced = Options { rootfs: Some("r".into()), ..options(17) };
        machine(&replaced, &config(vec![image("a", true)])).unwrap();
        assert_eq!(machine(&replaced, &config(vec![image("a", false)])), Err(PlanError::Devices(20)));
    }

    #[test]
    fn the_guest_finds_each_image_by_its_number() {
        let spec = config(vec![image("data", false), image("root", true)]);
        let places = Places { root: None, pmem: vec![4, 5, 6], ..Places::default() };
        let told = mounts(&options(1), &spec);
        assert_eq!(told.root.disk, Disk::Pmem(1));
        assert_eq!((&told.drives[0].disk, told.drives[0].read_only), (&Disk::Pmem(2), true));
        let machine = crate::plan::with_files(spec.clone(), &options(1), &places);
        let seen: Vec<_> = machine.pmem.iter().map(|it| (it.id.as_str(), it.path_on_host.clone())).collect();
        let expected = [("data", FileRef::Fd(4)), ("root", FileRef::Fd(5)), ("husk-pmem0", FileRef::Fd(6))];
        assert_eq!(seen, expected);
        assert!(machine.drives.is_empty(), "no other root");

        let replaced = Options { rootfs: Some("r".into()), ..options(1) };
        let told = mounts(&replaced, &spec);
        assert_eq!(told.root.disk, Disk::Drive("husk-root".into()));
        assert_eq!(told.drives[0].disk, Disk::Pmem(1));
        let places = Places { root: Some(3), pmem: vec![4, 5], ..Places::default() };
        let machine = crate::plan::with_files(spec, &replaced, &places);
        assert_eq!((machine.drives.len(), machine.pmem.len()), (1, 2));
        assert_eq!(machine.pmem[1].id, "husk-pmem0");
    }
}
