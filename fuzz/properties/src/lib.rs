//! Properties of all input from outside.
//!
//! Each module has one `check`, which panics where a property does not hold. libFuzzer drives it from `fuzz/`, and the
//! unit test here feeds it the corpus.

pub mod cache_control;
pub mod checking;
pub mod entry;
pub mod freshness;
pub mod http2;
mod input;
pub mod key;
pub mod path;
pub mod policy;
pub mod range;
pub mod request;
pub mod vary;

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    type Check = fn(&[u8]);

    const TARGETS: [(&str, Check); 11] = [
        ("cache_control", crate::cache_control::check),
        ("checking", crate::checking::check),
        ("entry", crate::entry::check),
        ("freshness", crate::freshness::check),
        ("http2", crate::http2::check),
        ("key", crate::key::check),
        ("path", crate::path::check),
        ("policy", crate::policy::check),
        ("range", crate::range::check),
        ("request", crate::request::check),
        ("vary", crate::vary::check),
    ];

    #[test]
    fn properties_hold_for_the_corpus() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus");
        let mut folders: Vec<_> =
            fs::read_dir(&corpus).unwrap().map(|folder| folder.unwrap().file_name()).collect();
        folders.sort();
        assert_eq!(folders, TARGETS.map(|(name, _)| name));
        for (name, check) in TARGETS {
            for seed in fs::read_dir(corpus.join(name)).unwrap() {
                let seed = seed.unwrap().path();
                eprintln!("{}", seed.display()); // shown where one fails
                check(&fs::read(seed).unwrap());
            }
        }
    }
}
