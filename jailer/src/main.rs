//! `husk-jailer`: builds a cell and executes a program in it. All of it is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    husk_jailer::run(std::env::args_os())
}
