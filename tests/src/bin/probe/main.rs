//! One attempt to get out of a cell, by code that wears the runtime's own confinement.
//!
//! `husk-probe --control-fd N --attempt NAME [--role ROLE|landlock]`
//!
//! On the control descriptor it is handed what a runtime is (`husk_tests::handed`). With a role it puts on itself what the
//! runtime does, by the same code: landlock, then the filters of the phases, then that role's; with `landlock`, that alone. If a filter is handed over, it puts
//! that on instead. The answer is one line on the control descriptor: `reached`, or `denied` and the error. A call that a filter
//! traps ends the process by SIGSYS. The attempt `nothing` always succeeds: whoever hears of it knows that the rest was tried at all.
//! `husk-probe -c …` ends well: it is the program that attempts to execute one execute.

use husk_seccomp::{Role, sock_filter};
use husk_tests::attempts::{World, named};
use husk_tests::cell::LANDLOCK;
use husk_tests::handed;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::ExitCode;

/// The kernel's most of a filter: 4096 instructions.
const FILTER_BYTES: usize = 4096 * 8;

#[derive(Default)]
struct Options {
    control: i32,
    landlock: bool,
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
            "--role" if value == LANDLOCK => options.landlock = true,
            "--role" => (options.landlock, options.role) = (true, Some(role(&value)?)),
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
        // Not by the end of main, which makes a call that running threads are not allowed.
        Ok(()) => husk_runtime::sys::exit_now(0),
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
    let attempt = named(&options.attempt).ok_or(format!("--attempt {}: none such", options.attempt))?;
    let prepared = attempt.prepare(&world);
    let foreign = filter.is_some();
    confine(options, filter)?;
    let outcome = attempt.make(&world, prepared);
    say(&world, foreign, &outcome.map_or_else(|error| format!("denied {error}"), |()| "reached".to_owned()))
}

/// Puts on what there is to put on.
fn confine(options: &Options, foreign: Option<OwnedFd>) -> Result<(), String> {
    if options.landlock {
        husk_runtime::confine::deny_files().map_err(|error| error.to_string())?;
    }
    if let Some(role) = options.role {
        for role in role.stack() {
            husk_seccomp::install(*role).map_err(|error| error.to_string())?;
        }
    }
    let Some(foreign) = foreign else { return Ok(()) };
    // The file's place is shared with whoever handed it over.
    let mut bytes = vec![0; FILTER_BYTES];
    let count = std::fs::File::from(foreign)
        .read_at(&mut bytes, 0)
        .map_err(|error| format!("the filter: {error}"))?;
    let program: Vec<sock_filter> = bytes[..count].as_chunks().0.iter().map(instruction).collect();
    seccompiler::apply_filter(&program).map_err(|error| format!("the filter: {error}"))
}

fn instruction(bytes: &[u8; 8]) -> sock_filter {
    let [a, b, jt, jf, k @ ..] = *bytes;
    sock_filter { code: u16::from_le_bytes([a, b]), jt, jf, k: u32::from_le_bytes(k) }
}

/// `send` is what Husk's filters allow on the control socket, `write` what all others do.
fn say(world: &World, foreign: bool, line: &str) -> Result<(), String> {
    #[expect(unsafe_code, reason = "the descriptor is named on the command line")]
    // SAFETY: as above.
    let control = unsafe { BorrowedFd::borrow_raw(world.control) };
    let said = match foreign {
        true => rustix::io::write(control, line.as_bytes()),
        false => rustix::net::send(control, line.as_bytes(), rustix::net::SendFlags::NOSIGNAL),
    };
    said.map(drop).map_err(|error| format!("answering: {error}"))
}
