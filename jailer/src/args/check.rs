//! Flags, made arguments: which values are allowed, and which flags go together.
//!
//! Refuses a value that could leave its directory, user 0, and flags that exclude each other, each by its name. Invariant: nothing is made
//! or opened; at most a program's path is resolved, where Firecracker's jailer does that.

use super::{Args, ArgsError, Flags, MAX_ID, VolumeArgs, chosen};
use crate::caller::{Caller, Isolation};
use crate::layout::Layout;
use crate::limits;
use std::ffi::OsString;
use std::path::PathBuf;

pub(super) fn check(flags: Flags, rest: &[OsString], caller: Caller) -> Result<Args, ArgsError> {
    let volume = volume(&flags)?;
    let network = network(&flags)?;
    let layout = chosen::layout(&flags, caller)?;
    let pool = pool(&flags, caller)?;
    let user = who(&flags, caller, volume.is_some())?;
    let id = flags.id.ok_or(ArgsError::Missing("id"))?;
    if id.is_empty()
        || id.len() > MAX_ID
        || !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    {
        return Err(ArgsError::Id(id));
    }
    let exec_file = layout.program(flags.exec_file.ok_or(ArgsError::Missing("exec-file"))?);
    let program =
        exec_file.file_name().and_then(|name| name.to_str()).map(str::to_owned).ok_or_else(|| {
            ArgsError::Path {
                flag: "exec-file",
                value: exec_file.clone(),
                allowed: "the path of a file is expected",
            }
        })?;
    let chroot_base_dir = flags.chroot_base_dir.or_else(|| layout.base());
    if let Some(base) = chroot_base_dir.as_ref().filter(|base| !base.is_absolute() || has_dots(base)) {
        let allowed = "an absolute path without .. is expected";
        return Err(ArgsError::Path { flag: "chroot-base-dir", value: base.clone(), allowed });
    }
    let control_fd = flags.control_fd.map(|text| descriptor("control-fd", text)).transpose()?;
    let mut argv = vec![OsString::from(&program)];
    if control_fd.is_some() && network.is_none() && rest.iter().all(|word| word != "--control-fd") {
        argv.extend(["--control-fd".into(), "3".into()]);
    }
    if layout != Layout::Empty {
        argv.extend(["--id".into(), OsString::from(&id)]);
    }
    argv.extend_from_slice(rest);
    Ok(Args {
        caller,
        isolation: isolation(flags.isolation)?,
        uid: user.uid,
        gid: user.gid,
        netns: flags.netns,
        pool,
        cgroup_version: version(flags.cgroup_version)?,
        settings: crate::cgroup::settings(&flags.cgroup, flags.cpus)?,
        parent_cgroup: parent(flags.parent_cgroup.as_deref().unwrap_or_else(|| layout.parent(&program)))?,
        limits: limits::parse(&flags.resource_limit, layout.files())?,
        daemonize: flags.daemonize,
        layout,
        chroot_base_dir,
        id,
        exec_file,
        program,
        control_fd,
        volume,
        network,
        argv,
    })
}

fn volume(flags: &Flags) -> Result<Option<VolumeArgs>, ArgsError> {
    let Some(directory) = flags.volume_fd.clone() else {
        let misplaced = flags.volume_socket_fd.is_some() || flags.volume_writable;
        return if misplaced { Err(ArgsError::Missing("volume-fd")) } else { Ok(None) };
    };
    let excluded = [
        ("uid", flags.uid.is_some()),
        ("gid", flags.gid.is_some()),
        ("netns", flags.netns.is_some()),
        ("daemonize", flags.daemonize),
    ];
    exclude("volume-fd", &excluded)?;
    let socket = flags.volume_socket_fd.clone().ok_or(ArgsError::Missing("volume-socket-fd"))?;
    Ok(Some(VolumeArgs {
        directory: descriptor("volume-fd", directory)?,
        socket: descriptor("volume-socket-fd", socket)?,
        writable: flags.volume_writable,
    }))
}

fn network(flags: &Flags) -> Result<Option<i32>, ArgsError> {
    let Some(socket) = flags.network_socket_fd.clone() else { return Ok(None) };
    let excluded = [
        ("volume-fd", flags.volume_fd.is_some()),
        ("netns", flags.netns.is_some()),
        ("daemonize", flags.daemonize),
    ];
    exclude("network-socket-fd", &excluded)?;
    descriptor("network-socket-fd", socket).map(Some)
}

fn pool(flags: &Flags, caller: Caller) -> Result<Option<PathBuf>, ArgsError> {
    let Some(pool) = &flags.pool else { return Ok(None) };
    let beside = flags.volume_fd.as_ref().map(|_| "volume-fd");
    let beside = beside.or_else(|| flags.network_socket_fd.as_ref().map(|_| "network-socket-fd"));
    if let Some(with) = beside.filter(|_| !caller.is_root()) {
        let (value, allowed) = (pool.display().to_string(), format!("none is possible with --{with}"));
        return Err(ArgsError::NotRoot { flag: "pool", value, allowed });
    }
    if !pool.is_absolute() || has_dots(pool) || pool.file_name().is_none() {
        let allowed = "an absolute path without .. is expected";
        return Err(ArgsError::Path { flag: "pool", value: pool.clone(), allowed });
    }
    Ok(Some(pool.clone()))
}

pub(super) fn exclude(with: &'static str, flags: &[(&'static str, bool)]) -> Result<(), ArgsError> {
    match flags.iter().find(|(_, given)| *given) {
        Some((flag, _)) => Err(ArgsError::Excluded(flag, with)),
        None => Ok(()),
    }
}

fn descriptor(flag: &'static str, text: String) -> Result<i32, ArgsError> {
    // 65535 fits.
    Ok(number(flag, text, 3, "a descriptor from 3 to 65535", 65_535)?.cast_signed())
}

fn has_dots(path: &std::path::Path) -> bool {
    path.components().any(|part| matches!(part, std::path::Component::ParentDir))
}

fn number(
    flag: &'static str,
    value: String,
    least: u32,
    allowed: &'static str,
    most: u32,
) -> Result<u32, ArgsError> {
    let number = value.parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or(ArgsError::Number { flag, value, allowed })
}

/// Who the program runs as.
fn who(flags: &Flags, caller: Caller, serves: bool) -> Result<Caller, ArgsError> {
    if !caller.is_root() {
        if let Some(netns) = &flags.netns {
            let (flag, value) = ("netns", netns.display().to_string());
            return Err(ArgsError::NotRoot { flag, value, allowed: "none can be joined".to_owned() });
        }
        for (flag, given, own) in [("uid", &flags.uid, caller.uid), ("gid", &flags.gid, caller.gid)] {
            if let Some(value) = given.clone().filter(|value| value.parse() != Ok(own)) {
                return Err(ArgsError::NotRoot { flag, value, allowed: format!("only {own} is possible") });
            }
        }
        return Ok(caller);
    }
    // Who serves files of many owners is root; what it may is another step's to say.
    if serves {
        return Ok(caller);
    }
    Ok(Caller { uid: user("uid", flags.uid.clone())?, gid: user("gid", flags.gid.clone())? })
}

fn isolation(value: Option<String>) -> Result<Isolation, ArgsError> {
    match value.as_deref() {
        None | Some("strict") => Ok(Isolation::Strict),
        Some("best-effort") => Ok(Isolation::BestEffort),
        Some(other) => Err(ArgsError::Number {
            flag: "isolation",
            value: other.to_owned(),
            allowed: "strict or best-effort is allowed",
        }),
    }
}

/// Neither 0, nor the id that stands for "leave it as it is".
fn user(flag: &'static str, value: Option<String>) -> Result<u32, ArgsError> {
    let value = value.ok_or(ArgsError::Missing(flag))?;
    number(flag, value, 1, "an id from 1 to 4294967294 is allowed, never 0", u32::MAX - 1)
}

fn version(value: Option<String>) -> Result<Option<u8>, ArgsError> {
    match value.as_deref() {
        None => Ok(None),
        Some("1") => Ok(Some(1)),
        Some("2") => Ok(Some(2)),
        Some(other) => Err(ArgsError::Number {
            flag: "cgroup-version",
            value: other.to_owned(),
            allowed: "1 or 2 is allowed",
        }),
    }
}

fn parent(path: &str) -> Result<Vec<String>, ArgsError> {
    let fits = |part: &str| {
        !part.is_empty() && part.len() <= 255 && part != "." && part != ".." && !part.contains(['\0', '\n'])
    };
    let parts: Vec<_> = path.split('/').map(str::to_owned).collect();
    if parts.len() > 16 || !parts.iter().all(|part| fits(part)) {
        let allowed = "a relative path of at most 16 names without . and .. is expected";
        return Err(ArgsError::Path { flag: "parent-cgroup", value: path.into(), allowed });
    }
    Ok(parts)
}
