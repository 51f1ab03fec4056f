#![no_main]

#[path = "../harness.rs"]
#[allow(dead_code, reason = "each target calls some of it")]
mod harness;

libfuzzer_sys::fuzz_target!(init: harness::write_seeds("domain"), |bytes: &[u8]| harness::domain(bytes));
