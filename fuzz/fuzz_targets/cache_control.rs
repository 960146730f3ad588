#![no_main]

use larder_properties::cache_control::check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check(data));
