#![no_main]

use larder_properties::http2::check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check(data));
