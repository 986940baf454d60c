//! Compiles each role's table for the target and writes tables and programs as Rust source into `OUT_DIR`.
//!
//! Refuses a table that names an unknown call, an argument beyond the sixth, or no reason. What is written depends on
//! the table and the target alone.

#[path = "../src/rule.rs"]
#[allow(dead_code, unreachable_pub, reason = "the crate uses what the build script does not")]
mod rule;
#[path = "../src/syscalls.rs"]
mod syscalls;
#[path = "../src/tables/mod.rs"]
mod tables;
#[path = "../src/values.rs"]
#[allow(dead_code, unreachable_pub, reason = "the crate has it public, and uses the names")]
mod values;

mod compile;
mod tree;

use rule::{Arch, Role};
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=src");
    println!("cargo::rerun-if-changed=build");
    match generate() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cargo::error={error}");
            ExitCode::FAILURE
        }
    }
}

fn generate() -> Result<(), compile::Error> {
    let name = std::env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let target = match name.as_str() {
        "x86_64" => Arch::X86_64,
        "aarch64" => Arch::Aarch64,
        _ => return Err(compile::Error::Target(name)),
    };
    let mut source = String::new();
    for role in Role::ALL {
        let rules = compile::merge(tables::groups(role), target);
        source.push_str(&compile::table_source(role, &rules));
        source.push_str(&compile::program_source(role, &compile::program(&rules, target)?));
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default()).join("filters.rs");
    std::fs::write(&out, source).map_err(|source| compile::Error::Write { path: out, source })
}
