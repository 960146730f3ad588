//! Documents that name the tests by which they are kept true.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

/// The folders that have tests.
const FOLDERS: [&str; 9] = [
    "api/src",
    "policy/src",
    "flight",
    "fuzz/properties/src",
    "sidecar/src",
    "sidecar/tests",
    "lint/src",
    "operator/src",
    "e2e/tests",
];

#[test]
fn failure_modes_names_tests_that_exist() {
    assert!(named_tests("failure-modes.md") > 40);
}

#[test]
fn security_names_tests_that_exist() {
    assert!(named_tests("security.md") > 60);
}

/// Returns a document of `docs`.
pub(super) fn document_text(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name)).unwrap()
}

/// Returns how many tests a document names, as `module::test` in backticks, and fails on one that does not exist.
fn named_tests(document: &str) -> usize {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = document_text(document);
    let mut sources = HashMap::new();
    for folder in FOLDERS {
        read_sources(&root, &root.join(folder), &mut sources);
    }
    let is_there = |module: &str, test: &str| {
        let function = format!("fn {test}(");
        // `foo::tests` is a module in the file of `foo`, or a file of its own.
        let files = [module, module.strip_suffix("::tests").unwrap_or(module)];
        sources.iter().any(|(path, source): (&String, &String)| {
            files.iter().any(|file| *path == *file || path.ends_with(&format!("::{file}")))
                && source.contains(&function)
        })
    };
    let mut named = 0;
    for name in text.split('`').skip(1).step_by(2).filter(|name| is_test(name)) {
        let (module, test) = name.rsplit_once("::").unwrap();
        assert!(is_there(module, test), "{document} names {name}, which does not exist");
        named += 1;
    }
    named
}

/// Returns true if the text is a path of modules to a function with a name that is a sentence.
fn is_test(text: &str) -> bool {
    let is_path =
        text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_:".contains(&byte));
    is_path && text.rsplit_once("::").is_some_and(|(_, test)| test.matches('_').count() >= 2)
}

/// Reads all Rust files of a folder, by their paths as modules.
fn read_sources(root: &Path, folder: &Path, into: &mut HashMap<String, String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        if path.is_dir() {
            read_sources(root, &path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let module = path.strip_prefix(root).unwrap().with_extension("");
            into.insert(module.to_str().unwrap().replace('/', "::"), fs::read_to_string(&path).unwrap());
        }
    }
}
