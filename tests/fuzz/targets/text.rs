#![no_main]
//! See `decoders.rs`.
#[path = "../decoders.rs"]
#[allow(dead_code, reason = "each target uses one decoder")]
mod decoders;

libfuzzer_sys::fuzz_target!(|data: &[u8]| decoders::text(data));
