//! A cgroup of version 2.
//!
//! The fast way first: make the directory and write the limits. Only if a limit's file is not there are the
//! controllers enabled along the path, and the limits written again: once per host, not once per sandbox.

use super::{CgroupError, Made, Order, Setting, directory, put, share};
use rustix::io::Errno;
use std::fmt::Write;
use std::path::{Path, PathBuf};

pub(super) fn make(
    mount: &Path,
    order: &Order,
    settings: &[&Setting],
    made: &mut Made,
) -> Result<(), CgroupError> {
    let parent = order.parent.iter().fold(mount.to_owned(), |path, name| path.join(name));
    let path = parent.join(&order.id);
    let leaf = match made.claim(path.clone()) {
        Err(CgroupError::Directory { errno: Errno::NOENT, .. }) => {
            shared(mount, order).iter().try_for_each(|path| share(path))?;
            made.claim(path.clone())?
        }
        other => other?,
    };
    let mut enabled = false;
    for setting in settings {
        let mut result = put(&leaf, setting.file(), setting.value());
        if result == Err(Errno::NOENT) && !enabled {
            enable(mount, order, settings)?;
            enabled = true;
            result = put(&leaf, setting.file(), setting.value());
        }
        match result {
            Err(Errno::NOENT) if setting.is_optional() => {}
            other => other.map_err(|errno| refused(&path, setting, errno))?,
        }
    }
    made.unified = Some(leaf);
    Ok(())
}

fn refused(leaf: &Path, setting: &Setting, errno: Errno) -> CgroupError {
    let path = leaf.join(setting.file());
    if errno == Errno::NOENT {
        CgroupError::NoFile(path)
    } else {
        CgroupError::Set { path, value: setting.value().to_owned(), errno }
    }
}

/// The directories between mount and sandbox, from the top.
fn shared(mount: &Path, order: &Order) -> Vec<PathBuf> {
    let mut path = mount.to_owned();
    let below = order.parent.iter().map(|name| {
        path.push(name);
        path.clone()
    });
    below.collect()
}

/// Hands the controllers of `settings` down from the mount to the sandbox's parent.
fn enable(mount: &Path, order: &Order, settings: &[&Setting]) -> Result<(), CgroupError> {
    let offered = read(mount, "cgroup.controllers");
    let is_offered =
        |setting: &&&Setting| offered.split_whitespace().any(|name| name == setting.controller());
    if let Some(missing) = settings.iter().find(|setting| !is_offered(setting) && !setting.is_optional()) {
        let (controller, file) = (missing.controller().to_owned(), missing.file().to_owned());
        return Err(CgroupError::Missing { controller, file, version: Some(2) });
    }
    let mut wanted: Vec<&str> =
        settings.iter().filter(is_offered).map(|setting| setting.controller()).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let levels: Vec<_> = std::iter::once(mount.to_owned()).chain(shared(mount, order)).collect();
    for (at, level) in levels.iter().enumerate() {
        // What another jailer is enabling at this moment is listed before the files are there. The last one is written to in any
        // case: the kernel does one change at a time, so the files are there after it.
        let is_last = at + 1 == levels.len();
        let there = if is_last { String::new() } else { read(level, "cgroup.subtree_control") };
        let mut change = String::new();
        for controller in
            wanted.iter().filter(|wanted| !there.split_whitespace().any(|name| name == **wanted))
        {
            let _ = write!(change, "+{controller} ");
        }
        let change = change.trim_end();
        if !change.is_empty() {
            put(&directory(level)?, "cgroup.subtree_control", change).map_err(|errno| {
                let path = level.join("cgroup.subtree_control");
                CgroupError::Enable { controllers: change.to_owned(), path, errno }
            })?;
        }
    }
    Ok(())
}

fn read(directory: &Path, file: &str) -> String {
    std::fs::read_to_string(directory.join(file)).unwrap_or_default()
}
