//! What the files are called that a machine was made from, for the words of those who know a drive by its id only.
//!
//! Pure. Refuses nothing. Invariant: an error that quotes a drive's id, or that a kernel of the operator's choice may have
//! caused, names the file; nothing else of an outcome changes. The guest is not told any name of a file of the host.

use super::{ROOT, drive_id, images, volume_tag};
use crate::options::Options;
use crate::outcome::Outcome;
use husk_protocol::control::Fault;
use husk_protocol::spec::{FileRef, RawSpec};
use std::path::{Path, PathBuf};

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct FileNames {
    /// The kernel, if one was named.
    kernel: Option<PathBuf>,
    /// By drive id, a volume's tag, or what the guest calls an image: "pmem", and its number.
    drives: Vec<(String, PathBuf)>,
}

impl FileNames {
    /// As `options` and the configuration under them name the files.
    pub(crate) fn of(options: &Options, base: &RawSpec) -> Self {
        let path = |file: &FileRef| match file {
            FileRef::Path(path) if !path.is_empty() => Some(PathBuf::from(path)),
            _ => None,
        };
        let configured = base.drives.iter().find(|drive| drive.is_root_device);
        let root = options.rootfs.clone().or_else(|| path(&configured?.path_on_host));
        let data = base.drives.iter().filter(|drive| !drive.is_root_device);
        let data = data.filter_map(|drive| Some((drive.drive_id.clone(), path(&drive.path_on_host)?)));
        let mounted =
            options.drives.iter().enumerate().map(|(index, drive)| (drive_id(index), drive.file.clone()));
        let pmem = images(options, base).map(|image| path(&image.path_on_host));
        let pmem = pmem.chain(options.pmem.iter().map(|image| Some(image.file.clone())));
        let pmem = pmem.enumerate().filter_map(|(number, path)| Some((format!("pmem {number}"), path?)));
        let volumes = options.volumes.iter().enumerate();
        let volumes = volumes.map(|(index, volume)| (volume_tag(index), volume.directory.clone()));
        let root = root.map(|root| (ROOT.to_owned(), root)).into_iter();
        Self {
            kernel: options.kernel.clone().or_else(|| path(&base.boot_source.kernel_image_path)),
            drives: root.chain(data).chain(mounted).chain(pmem).chain(volumes).collect(),
        }
    }

    /// Names in `outcome`'s error what it is about.
    pub(crate) fn explain(&self, outcome: &mut Outcome, was_ready: bool) {
        let Some(error) = &mut outcome.error else { return };
        let mut about: Vec<(&str, &Path)> = Vec::new();
        for (id, path) in &self.drives {
            if error.contains(&format!("\"{id}\"")) {
                about.push((id, path));
            }
        }
        if let Some(kernel) = &self.kernel
            && outcome.fault == Some(Fault::Guest)
            && !was_ready
        {
            about.push(("the kernel", kernel));
        }
        for (what, path) in about {
            *error = crate::text::message(&format!("{error}; {what} is {}", path.display()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::DriveOption;
    use husk_protocol::spec::{IoEngine, RawDrive};

    fn drive(file: &str) -> DriveOption {
        DriveOption { file: file.into(), target: "/x".into(), writable: false, engine: IoEngine::Sync }
    }

    fn explained(names: &FileNames, fault: Fault, line: &str, was_ready: bool) -> String {
        let mut outcome = Outcome::failure(fault, line);
        names.explain(&mut outcome, was_ready);
        outcome.error.unwrap()
    }

    #[test]
    fn a_quoted_drive_is_named_by_its_file() {
        let drives = vec![drive("/a.img"), drive("/b\n.img")];
        let pmem = vec![crate::options::PmemOption { file: "/p.img".into(), target: "/p".into() }];
        let volumes = vec!["/v:/x".parse().unwrap()];
        let rootfs = Some("/r.img".into());
        let options = Options { rootfs, drives, pmem, volumes, ..Options::default() };
        let mut base = RawSpec::default();
        let path_on_host = FileRef::Path("/data.img".into());
        base.drives.push(RawDrive { path_on_host, ..crate::plan::tests::drive("data", false) });
        let names = FileNames::of(&options, &base);
        let told = |line| explained(&names, Fault::Guest, line, true);
        assert_eq!(told(r#"disk "husk-root": no"#), r#"disk "husk-root": no; husk-root is /r.img"#);
        assert_eq!(told(r#"disk "husk-drive0": no"#), r#"disk "husk-drive0": no; husk-drive0 is /a.img"#);
        assert_eq!(told(r#"disk "husk-drive1": no"#), r#"disk "husk-drive1": no; husk-drive1 is /b?.img"#);
        assert_eq!(told(r#"disk "husk-volume0": no"#), r#"disk "husk-volume0": no; husk-volume0 is /v"#);
        assert_eq!(told(r#"drive "data": no"#), r#"drive "data": no; data is /data.img"#);
        assert_eq!(told(r#"image "pmem 0": no"#), r#"image "pmem 0": no; pmem 0 is /p.img"#);
        assert_eq!(told("data: no"), "data: no");
        let mut fine = Outcome::of_signal(15);
        names.explain(&mut fine, true);
        assert_eq!(fine, Outcome::of_signal(15));
    }

    #[test]
    fn a_kernel_that_was_named_is_named_when_its_guest_fails_to_come_up() {
        let names =
            FileNames::of(&Options { kernel: Some("/k".into()), ..Options::default() }, &RawSpec::default());
        assert_eq!(explained(&names, Fault::Guest, "it reset", false), "it reset; the kernel is /k");
        assert_eq!(explained(&names, Fault::Guest, "it reset", true), "it reset");
        assert_eq!(explained(&names, Fault::Host, "no memory", false), "no memory");
        let own = FileNames::of(&Options::default(), &RawSpec::default());
        assert_eq!(explained(&own, Fault::Guest, "it reset", false), "it reset");
    }
}
