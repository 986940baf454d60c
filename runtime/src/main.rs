//! `husk-runtime`: takes the control socket that it was started with, and lives one sandbox on it.

use husk_runtime::{sys, vmm};
use std::process::ExitCode;

/// Be one microVM, as told on a control socket. Started by husk-jailer.
#[derive(argh::FromArgs)]
struct Args {
    /// the inherited control socket's number
    #[argh(option)]
    control_fd: i32,
    /// the sandbox's name, as it appears in the process list
    #[argh(option)]
    #[expect(dead_code, reason = "for the reader of the process list")]
    id: Option<String>,
}

fn main() -> ExitCode {
    let args: Args = argh::from_env();
    match sys::adopt(args.control_fd) {
        Ok(control) => vmm::run(control),
        Err(error) => {
            eprintln!(
                "husk-runtime: --control-fd {}: {error}; an inherited socket is needed",
                args.control_fd
            );
            ExitCode::from(husk_protocol::exit::RuntimeExit::Operator as u8)
        }
    }
}
