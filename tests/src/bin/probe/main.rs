//! One attempt to get out of a cell, by code that wears the runtime's own confinement.
//!
//! `husk-probe --control-fd N --attempt NAME [--role ROLE]`
//!
//! On the control descriptor it is handed what a runtime is (`husk_tests::handed`). With a role it puts on itself what the
//! runtime does, by the same code: landlock, then the `Build` filter, then that role's. If a filter is handed over, it puts that on
//! instead. The answer is one line on the control descriptor: `reached`, or `denied` and the error. A call that a filter traps
//! ends the process by SIGSYS. The attempt `nothing` always succeeds: whoever hears of it knows that the rest was tried at all.
//! `husk-probe -c …` ends well: it is the program that attempts to execute one execute.

use husk_seccomp::{Role, sock_filter};
use husk_tests::attempts::{World, named};
use husk_tests::handed;
use std::io::{Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::process::ExitCode;

#[derive(Default)]
struct Options {
    control: i32,
    role: Option<Role>,
    attempt: String,
}

fn options() -> Result<Option<Options>, String> {
    let mut options = Options::default();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or(format!("{word} needs a value"))?;
        match word.as_str() {
            "-c" => return Ok(None),
            "--control-fd" => options.control = value.parse().map_err(|_| "--control-fd: not a number")?,
            "--role" => options.role = Some(role(&value)?),
            "--attempt" => options.attempt = value,
            // What Firecracker's jailer tells its program.
            "--id" | "--start-time-us" | "--start-time-cpu-us" | "--parent-cpu-time-us" => {}
            _ => return Err(format!("{word}: no such option")),
        }
    }
    Ok(Some(options))
}

fn role(name: &str) -> Result<Role, String> {
    Role::RUNTIME.into_iter().find(|role| role.name() == name).ok_or(format!("--role {name}: no such role"))
}

fn main() -> ExitCode {
    let outcome = options().and_then(|options| options.map_or(Ok(()), |options| answer(&options)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("husk-probe: {error}");
            ExitCode::from(2)
        }
    }
}

fn answer(options: &Options) -> Result<(), String> {
    #[expect(unsafe_code, reason = "the descriptor is named on the command line")]
    // SAFETY: whoever started this process says that this descriptor is open; nothing here closes it.
    let control = unsafe { BorrowedFd::borrow_raw(options.control) };
    let (world, filter) = handed::receive(control, options.control)?;
    let attempt = named(&options.attempt);
    if attempt.is_none() && options.attempt != "nothing" {
        return Err(format!("--attempt {}: none such", options.attempt));
    }
    let prepared = attempt.map_or(0, |attempt| attempt.prepare(&world));
    confine(options.role, filter)?;
    let outcome = attempt.map_or(Ok(()), |attempt| attempt.make(&world, prepared));
    say(&world, &outcome.map_or_else(|error| format!("denied {error}"), |()| "reached".to_owned()))
}

/// Puts on what there is to put on.
fn confine(role: Option<Role>, foreign: Option<OwnedFd>) -> Result<(), String> {
    if let Some(role) = role {
        husk_runtime::confine::deny_files().map_err(|error| error.to_string())?;
        let roles = [Some(Role::Build), Some(role).filter(|role| *role != Role::Build)];
        for role in roles.into_iter().flatten() {
            husk_seccomp::install(role).map_err(|error| error.to_string())?;
        }
    }
    let Some(foreign) = foreign else { return Ok(()) };
    let mut bytes = Vec::new();
    std::fs::File::from(foreign).read_to_end(&mut bytes).map_err(|error| format!("the filter: {error}"))?;
    let program: Vec<sock_filter> = bytes.as_chunks().0.iter().map(instruction).collect();
    seccompiler::apply_filter(&program).map_err(|error| format!("the filter: {error}"))
}

fn instruction(bytes: &[u8; 8]) -> sock_filter {
    let [a, b, jt, jf, k @ ..] = *bytes;
    sock_filter { code: u16::from_le_bytes([a, b]), jt, jf, k: u32::from_le_bytes(k) }
}

/// `send` is what Husk's filters allow on the control socket, `write` what all others do.
fn say(world: &World, line: &str) -> Result<(), String> {
    #[expect(unsafe_code, reason = "the descriptor is named on the command line")]
    // SAFETY: as above.
    let control = unsafe { BorrowedFd::borrow_raw(world.control) };
    let sent = rustix::net::send(control, line.as_bytes(), rustix::net::SendFlags::NOSIGNAL);
    sent.map_err(|error| format!("answering: {error}"))?;
    std::io::stdout().flush().map_err(|error| error.to_string())
}
