//! The entry point. Owns the first instructions; everything else is the library's.
//!
//! Not Rust's own `main`: its runtime opens /dev/null before anything else, and aborts where there is none yet, as in an
//! initramfs. Only a test harness has that `main`: it is no PID 1, and `cargo test --bins` makes one of every binary.
#![cfg_attr(not(test), no_main)]

#[cfg(not(test))]
use std::ffi::{c_char, c_int};

/// What the C library calls.
#[cfg(not(test))]
#[expect(unsafe_code, reason = "the C library finds `main` by its name")]
#[unsafe(no_mangle)]
extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    let ticks = husk_init::ticks();
    // SAFETY: the C library calls `main` once, with `argc` strings that live as long as the process.
    let arguments = unsafe { husk_init::arguments(argc, argv) };
    husk_init::init::live(ticks, &arguments)
}
