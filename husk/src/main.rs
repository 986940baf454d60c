//! `husk`: hands the command line to the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    let start_ns = husk::now_ns();
    husk::cli::install_panic_hook();
    ExitCode::from(husk::cli::main(std::env::args_os().skip(1).collect(), start_ns))
}
