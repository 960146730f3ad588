#![no_main]

use larder_properties::request::check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check(data));
