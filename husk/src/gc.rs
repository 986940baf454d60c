//! Removes what dead sandboxes left: cgroups, jail directories, user ids, state.
//!
//! Owns the order in which things go (the state last, so that a collection that is killed is taken up by the next).
//! Refuses to touch anything of a sandbox whose lock is held. Invariant: only names that Husk itself gives are removed,
//! and jail directories only when they are empty, so that a mount that was left in one is never descended into.

use crate::cgroup::Hierarchies;
use crate::state::{State, check_id, discard, is_locked};
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Name of the directory that the jailer makes below its base: that of the program it executes.
const JAILED_PROGRAM: &str = "husk-runtime";
/// A registration under way becomes a sandbox within microseconds; one this old never will.
const DRAFT_LIFETIME: Duration = Duration::from_secs(60);

/// What a collection did.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    /// What is gone.
    pub(crate) removed: Vec<PathBuf>,
    /// What could not be removed, and why.
    pub(crate) failed: Vec<String>,
}

/// Where the jailer puts the jail of the sandbox `id`.
pub(crate) fn jail_directory(state: &State, id: &str) -> PathBuf {
    state.jail_base().join(JAILED_PROGRAM).join(id)
}

/// Removes everything of sandboxes that are dead. With `thorough`, cgroups and jails without any state are looked for
/// too, not only sandboxes with a directory.
pub(crate) fn collect(state: &State, hierarchies: &Hierarchies, thorough: bool) -> Collected {
    let mut collected = Collected::default();
    let mut dead = BTreeSet::new();
    for name in names(&state.sandboxes()) {
        let directory = state.sandboxes().join(&name);
        if name.starts_with(".new-") {
            // The age first: a young one is not to be probed while its maker locks it.
            if is_older(&directory, DRAFT_LIFETIME) && !is_locked(&directory) {
                note(&mut collected, &directory, std::fs::remove_dir_all(&directory));
            }
        } else if name.starts_with(".gone-") {
            note(&mut collected, &directory, std::fs::remove_dir_all(&directory));
        } else if check_id(&name).is_ok() && !is_locked(&directory) {
            dead.insert(name);
        }
    }
    if thorough {
        let mut places = hierarchies.parents();
        places.push(state.jail_base().join(JAILED_PROGRAM));
        let found = places.iter().flat_map(|place| names(place));
        dead.extend(found.filter(|name| check_id(name).is_ok() && !state.lives(name)));
    }
    let slots: Vec<(PathBuf, String)> = names(&state.slots())
        .into_iter()
        .map(|name| state.slots().join(name))
        .filter_map(|path| {
            Some((path.clone(), std::fs::read_link(&path).ok()?.into_os_string().into_string().ok()?))
        })
        .collect();
    if thorough {
        dead.extend(
            slots.iter().map(|(_, id)| id.clone()).filter(|id| check_id(id).is_ok() && !state.lives(id)),
        );
    }
    for id in dead {
        let directory = state.sandboxes().join(&id);
        let had_state = directory.exists();
        // Held until its directory is gone: nobody can become this sandbox meanwhile.
        let Some(lock) = state.seize(&id) else { continue };
        one(state, hierarchies, &id, &mut collected);
        if let Some(socket) = state.record(&id).and_then(|record| record.vsock) {
            note(&mut collected, socket.path(), socket.remove());
        }
        for (path, _) in slots.iter().filter(|(_, owner)| *owner == id) {
            // A slot that was freed since it was listed may be another's by now.
            if std::fs::read_link(path).is_ok_and(|owner| owner.as_os_str() == id.as_str()) {
                note(&mut collected, path, std::fs::remove_file(path));
            }
        }
        let result = discard(&directory);
        if had_state || result.is_err() {
            note(&mut collected, &directory, result);
        }
        drop(lock);
    }
    remove_parent(state, hierarchies);
    collected
}

/// Removes cgroups and jail of the sandbox `id`, which is dead or the caller's own.
pub(crate) fn one(state: &State, hierarchies: &Hierarchies, id: &str, collected: &mut Collected) {
    match hierarchies.remove(id) {
        Ok(removed) => collected.removed.extend(removed),
        Err(error) => collected.failed.push(format!("cgroup {error}")),
    }
    let jail = jail_directory(state, id);
    for directory in [jail.join("root"), jail] {
        note(collected, &directory, std::fs::remove_dir(&directory));
    }
}

/// Removes the parent cgroup of an unusual state directory, unless a sandbox is registered whose jailer may be about to
/// make its own below it.
pub(crate) fn remove_parent(state: &State, hierarchies: &Hierarchies) {
    if std::fs::read_dir(state.sandboxes()).is_ok_and(|mut entries| entries.next().is_none()) {
        hierarchies.remove_parent();
    }
}

fn note(collected: &mut Collected, path: &Path, result: io::Result<()>) {
    match result {
        Ok(()) => collected.removed.push(path.to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => collected.failed.push(format!("{}: {error}", path.display())),
    }
}

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| !entry.file_type().is_ok_and(|kind| kind.is_file()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

fn is_older(path: &Path, age: Duration) -> bool {
    let modified = std::fs::symlink_metadata(path).and_then(|metadata| metadata.modified());
    modified.is_ok_and(|modified| SystemTime::now().duration_since(modified).is_ok_and(|passed| passed > age))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::tests::record;
    use crate::vsock::Listener;

    #[test]
    fn the_dead_go_and_the_living_stay() {
        let base = std::env::temp_dir().join(format!("husk-gc-{}", std::process::id()));
        let state = State::at(&base);
        let hierarchies = Hierarchies::default();
        let living = state.register("living").unwrap();
        // A husk that was killed: its lock is free, everything else is there.
        let socket = base.join("socket");
        let listener = Listener::new(&socket).unwrap();
        let dead = state.register("dead").unwrap();
        let mut record = record("dead", 1);
        record.vsock = Some(listener.name().clone());
        dead.publish(&record).unwrap();
        drop(dead);
        std::mem::forget(listener);
        for id in ["living", "dead", "stateless"] {
            std::fs::create_dir_all(jail_directory(&state, id).join("root")).unwrap();
        }
        std::fs::create_dir_all(state.sandboxes().join(".new-fresh-1")).unwrap();
        let collected = collect(&state, &hierarchies, false);
        assert!(collected.failed.is_empty(), "{:?}", collected.failed);
        assert_eq!(collected.removed.len(), 5, "{:?}", collected.removed);
        assert!(!socket.exists());
        assert!(!jail_directory(&state, "dead").exists() && jail_directory(&state, "stateless").exists());
        assert!(state.sandboxes().join(".new-fresh-1").exists());
        let collected = collect(&state, &hierarchies, true);
        assert_eq!(collected.removed.len(), 2, "{:?}", collected.removed);
        assert!(state.lives("living") && jail_directory(&state, "living").join("root").exists());
        assert_eq!(std::fs::read_dir(state.slots()).unwrap().count(), 1);
        // Something in a jail is never descended into.
        std::fs::write(jail_directory(&state, "living").join("root/file"), "x").unwrap();
        drop(living);
        let collected = collect(&state, &hierarchies, true);
        assert_eq!(collected.failed.len(), 2, "{:?}", collected.failed);
        assert!(jail_directory(&state, "living").join("root/file").exists());
        std::fs::remove_dir_all(base).unwrap();
    }
}
