//! See `husk_protocol::fuzz::exec_frames`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    husk_protocol::fuzz::exec_frames(bytes);
});
