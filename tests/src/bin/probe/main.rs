//! One attempt to get out of a cell, by code that wears the runtime's own confinement.
//!
//! `husk-probe [--control-fd N] [--layer none|cell|whole] --attempt NAME [--target TEXT]`
//!
//! `none` and `cell` add nothing: outside a jail, and in the jailer's cell alone. `whole` adds what the runtime puts on
//! itself, by the same code: landlock, then the filters of the phases, then the filter of a role (`--role`). The answer is one
//! line on the control descriptor (or on standard output): `reached`, or `denied` and the error. A call that a filter
//! traps ends the process by SIGSYS instead.

mod attempts;

use std::io::Write;
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::ExitCode;

#[derive(Default)]
struct Options {
    control: Option<i32>,
    whole: bool,
    role: Option<husk_seccomp::Role>,
    attempt: String,
    target: String,
}

fn options() -> Result<Options, String> {
    let mut options = Options::default();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or(format!("{word} needs a value"))?;
        match word.as_str() {
            "--control-fd" => {
                options.control = Some(value.parse().map_err(|_| "--control-fd: not a number")?)
            }
            "--layer" => options.whole = value == "whole",
            "--role" => options.role = Some(role(&value)?),
            "--attempt" => options.attempt = value,
            "--target" => options.target = value,
            _ => return Err(format!("{word}: no such option")),
        }
    }
    Ok(options)
}

fn role(name: &str) -> Result<husk_seccomp::Role, String> {
    use husk_seccomp::Role::{Build, Control, Device, Vcpu};
    [Build, Control, Vcpu, Device]
        .into_iter()
        .find(|role| role.name() == name)
        .ok_or(format!("--role {name}: no such role"))
}

fn main() -> ExitCode {
    match options().and_then(|options| answer(&options)) {
        // Not by the end of main, which makes a call that running threads are not allowed.
        Ok(()) => husk_runtime::sys::exit_now(0),
        Err(error) => {
            eprintln!("husk-probe: {error}");
            ExitCode::from(2)
        }
    }
}

fn answer(options: &Options) -> Result<(), String> {
    let attempt =
        attempts::named(&options.attempt).ok_or(format!("--attempt {}: none such", options.attempt))?;
    if options.whole {
        husk_runtime::confine::deny_files().map_err(|error| error.to_string())?;
        let role = options.role.unwrap_or(husk_seccomp::Role::Build);
        for role in role.stack() {
            husk_seccomp::install(*role).map_err(|error| error.to_string())?;
        }
    }
    let line = match attempt(&options.target) {
        Ok(()) => "reached".to_owned(),
        Err(error) => format!("denied {error}"),
    };
    say(options.control, &line)
}

fn say(control: Option<i32>, line: &str) -> Result<(), String> {
    let Some(number) = control else {
        println!("{line}");
        return Ok(());
    };
    #[expect(unsafe_code, reason = "the descriptor is named on the command line")]
    // SAFETY: whoever started this process says that this descriptor is open, and nothing else here owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    // `send` is what the filters allow on the control socket.
    let sent = rustix::net::send(&socket, line.as_bytes(), rustix::net::SendFlags::NOSIGNAL);
    sent.map_err(|error| format!("answering: {error}"))?;
    std::io::stdout().flush().map_err(|error| error.to_string())
}
