//! Removes what dead sandboxes left: cgroups, user ids, state.
//!
//! Owns the order in which things go (the state last, so that a collection that is killed is taken up by the next; a user id
//! only when no process has it any more). Refuses to touch anything of a sandbox whose lock is held. Invariant: only names that
//! Husk itself gives are removed.

use crate::cgroup::Hierarchies;
use crate::state::{State, check_id, discard, is_locked, random};
use rustix::fs::FlockOperation;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

/// Sandboxes that a collection beside a run looks at.
const A_FEW: usize = 16;

/// What a collection did.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    /// What is gone.
    pub(crate) removed: Vec<PathBuf>,
    /// What could not be removed, and why.
    pub(crate) failed: Vec<String>,
}

impl Collected {
    /// For programs: what is gone, and why what is not is not.
    pub(crate) fn json(&self) -> serde_json::Value {
        let removed: Vec<_> = self.removed.iter().map(|path| path.to_string_lossy()).collect();
        serde_json::json!({"removed": removed, "failed": self.failed})
    }
}

/// Removes everything of sandboxes that are dead. With `thorough`, cgroups and user ids without any state are looked for
/// too, not only sandboxes with a directory.
pub(crate) fn collect(state: &State, hierarchies: &Hierarchies, thorough: bool) -> Collected {
    let mut collected = Collected::default();
    let mut dead = BTreeSet::new();
    drafts(state, &mut collected);
    for name in probed(state, thorough) {
        let directory = state.sandboxes().join(&name);
        if name.starts_with(".gone-") {
            note(&mut collected, &directory, std::fs::remove_dir_all(&directory));
        } else if check_id(&name).is_ok() && !is_locked(&directory) {
            dead.insert(name);
        }
    }
    if thorough {
        let found = hierarchies.parents();
        let found = found.iter().flat_map(|place| names(place));
        dead.extend(found.filter(|name| check_id(name).is_ok() && !state.lives(name)));
    }
    // There is a link for each sandbox that lives.
    let slots = if thorough || !dead.is_empty() { slots(state) } else { Vec::new() };
    if thorough {
        let own = slots.iter().filter_map(|(_, owner)| id_of(state, owner));
        dead.extend(own.filter(|id| check_id(id).is_ok() && !state.lives(id)));
    }
    for id in dead {
        let directory = state.sandboxes().join(&id);
        let had_state = directory.exists();
        // Held until its directory is gone: nobody can become this sandbox meanwhile.
        let Some(lock) = state.seize(&id) else { continue };
        let record = state.record(&id);
        let elsewhere =
            record.as_ref().and_then(|record| Some(hierarchies.with_parent(record.cgroup.as_ref()?)));
        if !cgroups(elsewhere.as_ref().unwrap_or(hierarchies), &id, &mut collected) {
            continue;
        }
        if let Some(elsewhere) = elsewhere {
            elsewhere.remove_parent();
        }
        if let Some((socket, started_ms)) = record.and_then(|record| Some((record.vsock?, record.started_ms)))
        {
            note(&mut collected, socket.path(), socket.remove(started_ms));
        }
        for (path, owner) in slots.iter().filter(|(_, owner)| *owner == directory) {
            // A slot that was freed since it was listed may be another's by now.
            if std::fs::read_link(path).is_ok_and(|now| now == *owner) {
                note(&mut collected, path, std::fs::remove_file(path));
            }
        }
        let result = discard(&directory);
        if had_state || result.is_err() {
            note(&mut collected, &directory, result);
        }
        drop(lock);
    }
    if thorough {
        forgotten(&slots, &mut collected);
    }
    remove_parent(state, hierarchies);
    collected
}

/// Registrations that were begun and never became sandboxes. While anybody makes one, none is touched: the next collection will.
fn drafts(state: &State, collected: &mut Collected) {
    let Ok(_alone) = state.drafting(FlockOperation::NonBlockingLockExclusive) else { return };
    for name in names(&state.sandboxes()).iter().filter(|name| name.starts_with(".new-")) {
        let directory = state.sandboxes().join(name);
        note(collected, &directory, std::fs::remove_dir_all(&directory));
    }
}

/// The sandboxes that are looked at. Each run looks at a few, wherever they stand, so that its cost does not grow with those
/// that live; what is dead is found by one of the next.
fn probed(state: &State, thorough: bool) -> Vec<String> {
    let mut found = names(&state.sandboxes());
    let mut start = [0_u8; 4];
    if !thorough && found.len() > A_FEW && random(&mut start).is_ok() {
        let start = usize::try_from(u32::from_le_bytes(start)).unwrap_or(0) % found.len();
        found.rotate_left(start);
        found.truncate(A_FEW);
    }
    found
}

/// Each user id in use: the link, and the directory of the sandbox that it leads to.
fn slots(state: &State) -> Vec<(PathBuf, PathBuf)> {
    let paths = names(state.slots()).into_iter().map(|name| state.slots().join(name));
    paths.filter_map(|path| Some((path.clone(), std::fs::read_link(&path).ok()?))).collect()
}

/// The id of a sandbox of this state directory.
fn id_of(state: &State, directory: &Path) -> Option<String> {
    let own = directory.parent() == Some(state.sandboxes().as_path());
    own.then(|| directory.file_name()?.to_str().map(str::to_owned)).flatten()
}

/// User ids of sandboxes whose whole state directory was removed. Those of others are theirs to collect, who know when the last
/// process is gone.
fn forgotten(slots: &[(PathBuf, PathBuf)], collected: &mut Collected) {
    let gone = |owner: &Path| owner.parent().is_none_or(|sandboxes| !sandboxes.exists());
    for (path, _) in slots.iter().filter(|(_, owner)| gone(owner)) {
        note(collected, path, std::fs::remove_file(path));
    }
}

/// Removes the cgroups of the sandbox `id`, which is dead or the caller's own, and ends what is in them; whether nothing of it
/// is left there.
pub(crate) fn cgroups(hierarchies: &Hierarchies, id: &str, collected: &mut Collected) -> bool {
    match hierarchies.remove(id) {
        Ok(removed) => collected.removed.extend(removed),
        Err(error) => {
            collected.failed.push(format!("cgroup {error}"));
            return false;
        }
    }
    true
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::tests::record;
    use crate::vsock::Listener;

    #[test]
    fn a_run_looks_at_a_few_and_the_next_at_others() {
        let base = std::env::temp_dir().join(format!("husk-gc-few-{}", std::process::id()));
        let state = State::at(&base);
        let hierarchies = Hierarchies::default();
        let living: Vec<_> =
            (0..3 * A_FEW).map(|number| state.register(&format!("living-{number}")).unwrap()).collect();
        for number in 0..2 * A_FEW {
            drop(state.register(&format!("dead-{number}")).unwrap());
        }
        let mut removed = 0;
        let mut runs = 0;
        while removed < 2 * A_FEW {
            let collected = collect(&state, &hierarchies, false);
            let directories = collected.removed.iter().filter(|path| path.starts_with(state.sandboxes()));
            let now = directories.count();
            assert!(now <= A_FEW, "{now}");
            (removed, runs) = (removed + now, runs + 1);
            assert!(runs < 1000, "{removed} of {} were found", 2 * A_FEW);
        }
        assert!((0..living.len()).all(|number| state.lives(&format!("living-{number}"))));
        drop(state.register("dead").unwrap());
        drop(living);
        assert_eq!(std::fs::read_dir(state.sandboxes()).unwrap().count(), 3 * A_FEW + 1);
        collect(&state, &hierarchies, true);
        assert_eq!(std::fs::read_dir(state.sandboxes()).unwrap().count(), 0, "husk gc looks at all");
        std::fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn the_dead_go_and_the_living_stay() {
        let base = std::env::temp_dir().join(format!("husk-gc-{}", std::process::id()));
        let state = State::at(&base);
        let hierarchies = Hierarchies::default();
        let living = state.register("living").unwrap();
        // A husk that was killed: its lock is free, everything else is there.
        let socket = base.join("socket");
        let mut listener = Listener::new(&socket).unwrap();
        listener.listen().unwrap();
        let dead = state.register("dead").unwrap();
        let mut record = record("dead", 1);
        record.vsock = Some(listener.name().clone());
        dead.publish(&record).unwrap();
        drop(dead);
        std::mem::forget(listener);
        let draft = state.sandboxes().join(".new-fresh-1");
        std::fs::create_dir_all(&draft).unwrap();
        let maker = state.drafting(FlockOperation::LockShared).unwrap();
        let collected = collect(&state, &hierarchies, false);
        assert!(collected.failed.is_empty(), "{:?}", collected.failed);
        assert_eq!(collected.removed.len(), 3, "{:?}", collected.removed);
        assert!(!socket.exists());
        assert!(draft.exists(), "somebody may be making it");
        drop(maker);
        assert_eq!(collect(&state, &hierarchies, false).removed, [draft]);
        // User ids of a sandbox of ours without a directory, of another state directory's, and of one that is gone.
        let elsewhere = base.join("elsewhere/sandboxes/x");
        std::fs::create_dir_all(elsewhere.parent().unwrap()).unwrap();
        let owners = [state.sandboxes().join("stateless"), elsewhere, base.join("gone/sandboxes/x")];
        for (uid, owner) in owners.iter().enumerate() {
            std::os::unix::fs::symlink(owner, state.slots().join(uid.to_string())).unwrap();
        }
        let collected = collect(&state, &hierarchies, true);
        assert_eq!(collected.removed, [state.slots().join("0"), state.slots().join("2")]);
        assert!(state.lives("living"));
        assert_eq!(std::fs::read_dir(state.slots()).unwrap().count(), 2);
        drop(living);
        std::fs::remove_dir_all(base).unwrap();
    }
}
