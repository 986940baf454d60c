//! See `husk_runtime::fuzz::vsock_packets`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    husk_runtime::fuzz::vsock_packets(bytes);
});
