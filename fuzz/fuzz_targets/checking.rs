#![no_main]

use larder_properties::checking::check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check(data));
