//! See `husk_runtime::fuzz::pci`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    husk_runtime::fuzz::pci(bytes);
});
