//! See `husk::fuzz::session`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    husk::fuzz::session(bytes);
});
