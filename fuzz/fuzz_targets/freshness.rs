#![no_main]

use larder_properties::freshness::check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check(data));
