//! The command: what may be asked for, and what the guest is told to execute.
//!
//! Refuses, by the option's name, what no kernel executes (a NUL byte, no program, a variable without a name). Invariant: the guest gets
//! the bytes that were given, and a `TERM` only with a terminal.

use super::{PlanError, check_directory};
use crate::options::Options;
use husk_protocol::exec::{Exec, User, WindowSize};
use std::os::unix::ffi::OsStrExt;

pub(super) fn check(options: &Options) -> Result<(), PlanError> {
    if options.command.is_empty() {
        return Err(PlanError::NoCommand);
    }
    if let Some(argument) = options.command.iter().find(|argument| argument.as_bytes().contains(&0)) {
        return Err(PlanError::Nul(argument.to_string_lossy().into_owned()));
    }
    for variable in &options.env {
        let bytes = variable.as_bytes();
        let name = bytes.iter().position(|&byte| byte == b'=').unwrap_or(0);
        if name == 0 || bytes.contains(&0) {
            return Err(PlanError::Env(crate::text::line(&variable.to_string_lossy())));
        }
    }
    if let Some(directory) = &options.workdir {
        check_directory("--workdir", directory)?;
    }
    if let Some(user) = &options.user {
        let right =
            !user.is_empty() && user.len() <= 256 && !user.contains('\0') && user.matches(':').count() <= 1;
        if !right || user.starts_with(':') || user.ends_with(':') {
            return Err(PlanError::User(crate::text::line(user)));
        }
    }
    Ok(())
}

/// What the guest executes; `terminal` is the size of ours if the command gets one, `term` its kind.
pub(crate) fn exec(options: &Options, terminal: Option<WindowSize>, term: Option<&str>) -> Exec {
    let bytes = |text: &std::ffi::OsString| text.as_bytes().to_vec();
    let mut env: Vec<Vec<u8>> = options.env.iter().map(bytes).collect();
    if let Some(term) = term.filter(|_| terminal.is_some())
        && !env.iter().any(|variable| variable.starts_with(b"TERM="))
    {
        env.push(format!("TERM={term}").into_bytes());
    }
    Exec {
        argv: options.command.iter().map(bytes).collect(),
        env,
        cwd: options.workdir.clone().unwrap_or_default().into_bytes(),
        user: options.user.clone().map_or(User::Root, User::Spec),
        terminal,
        stdin: options.stdin,
        last: true,
    }
}
