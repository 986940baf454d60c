//! See `husk_runtime::fuzz::state`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    husk_runtime::fuzz::state(bytes);
});
