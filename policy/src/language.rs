//! The voice of doc comments, descriptions and test names, in the whole workspace: comments begin with a noun phrase or a
//! verb, and the names of tests are sentences with a subject.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Words that a comment must not begin with: it would be a headless clause, or refer to a neighbouring item.
const FORBIDDEN: [&str; 11] =
    ["What", "Whether", "Who", "Which", "Whose", "How", "It", "Its", "They", "So", "That"];

/// Words of a headless clause, which the name of a test has nowhere, such as in "what_differs_never_meets".
const HEADLESS: [&str; 6] = ["what", "whatever", "who", "whoever", "whether", "however"];

/// Generated files and folders of others.
const SKIPPED: [&str; 3] = ["target", "node_modules", "corpus"];

#[test]
fn comments_begin_with_a_noun_phrase_or_a_verb() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    collect(&root, &mut files);
    assert!(files.len() > 100, "only {} files found below {}", files.len(), root.display());
    let mut found = Vec::new();
    for file in files {
        let name = file.strip_prefix(&root).unwrap().display().to_string();
        let text = fs::read_to_string(&file).unwrap();
        let violations: Vec<_> =
            if name.ends_with(".rs") { comments(&text).collect() } else { descriptions(&text).collect() };
        found.extend(violations.into_iter().map(|(line, start)| format!("{name}:{line}: {start}")));
    }
    assert!(
        found.is_empty(),
        "begin each of these with a noun phrase or a verb, such as \"Returns…\" or \"Maximum…\":\n{}",
        found.join("\n")
    );
}

#[test]
fn forbidden_openings_are_found_with_their_lines() {
    let source = [
        "//! Names.",
        "//!",
        "//! What follows is not a first line.",
        "/// The name.",
        "/// It has no spaces.",
        "fn a() {}",
        "    /// Whether it is.",
        "    fn b() {}",
        "/// Itself a noun.",
        "#[test]",
        "/// How, after an attribute.",
    ]
    .join("\n");
    let found: Vec<_> = comments(&source).collect();
    assert_eq!(found, [(7, "Whether it is."), (11, "How, after an attribute.")]);
    let yaml = "description: What it is.\n  description: |-\n    How it is.\n  description: 'Who.'\n  description: A thing.\n";
    let found: Vec<_> = descriptions(yaml).map(|(line, _)| line).collect();
    assert_eq!(found, [1, 3, 4]);
}

#[test]
fn test_names_have_a_subject() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    collect(&root, &mut files);
    let (mut count, mut found) = (0, Vec::new());
    for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "rs")) {
        let name = file.strip_prefix(&root).unwrap().display().to_string();
        let text = fs::read_to_string(file).unwrap();
        let module = file.file_stem().unwrap().to_string_lossy();
        count += test_names(&text).count();
        found.extend(
            test_names(&text)
                .chain([(1, &*module)])
                .filter(|(_, test)| is_headless(test))
                .map(|(line, test)| format!("{name}:{line}: {test}")),
        );
    }
    assert!(count > 1000, "only {count} tests found below {}", root.display());
    assert!(
        found.is_empty(),
        "name the subject of each of these, such as in \"hung_upstream_blocks_only_its_own_request\":\n{}",
        found.join("\n")
    );
}

#[test]
fn headless_test_names_are_found_with_their_lines() {
    let source = [
        "#[test]",
        "fn keys_are_equal_iff_requests_are() {",
        "    fn it_is_no_test() {}",
        "}",
        "#[tokio::test(flavor = \"multi_thread\")]",
        "#[ignore]",
        "async fn it_is_not_stored() {}",
        "    #[test]",
        "    fn request_of_whom_it_may_concern(",
        "    #[test]",
        "    fn response_is_for_who_waits(what in any()) {",
    ]
    .join("\n");
    let found: Vec<_> = test_names(&source).filter(|(_, name)| is_headless(name)).collect();
    assert_eq!(found, [(7, "it_is_not_stored"), (11, "response_is_for_who_waits")]);
}

/// Collects Rust sources and custom resource definitions.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !(name.starts_with('.') || SKIPPED.contains(&&*name)) {
                collect(&path, files);
            }
        } else if name.ends_with(".rs") || name.starts_with("larder.dev_") {
            files.push(path);
        }
    }
}

/// Returns the first lines of doc comments that begin with a forbidden word, with their numbers.
fn comments(source: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut above = "";
    source.lines().enumerate().filter_map(move |(index, line)| {
        let (marker, text) = line.trim_start().split_at_checked(3).unwrap_or_default();
        let marker = if ["///", "//!"].contains(&marker) { marker } else { "" };
        let is_first = !marker.is_empty() && marker != above;
        above = marker;
        (is_first && is_forbidden(text.trim())).then_some((index + 1, text.trim()))
    })
}

/// Returns the first lines of YAML descriptions that begin with a forbidden word, with their numbers.
fn descriptions(yaml: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut block = false;
    yaml.lines().enumerate().filter_map(move |(index, line)| {
        let text = match line.trim_start().strip_prefix("description:") {
            Some(text) => text.trim().trim_start_matches(['\'', '"']),
            None if block => line.trim(),
            None => return None,
        };
        block = text.starts_with(['|', '>']);
        is_forbidden(text).then_some((index + 1, text))
    })
}

/// Returns true if the first word of a text is in [`FORBIDDEN`], its apostrophe and punctuation aside.
fn is_forbidden(text: &str) -> bool {
    let word = text.split(|character: char| !character.is_ascii_alphabetic()).next().unwrap_or_default();
    FORBIDDEN.contains(&word)
}

/// Returns the names of tests with their numbers of lines.
fn test_names(source: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut attribute = false;
    source.lines().enumerate().filter_map(move |(index, line)| {
        let line = line.trim_start();
        attribute |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        let (_, name) = line.split_once("fn ").filter(|_| attribute)?;
        attribute = false;
        let end = name.find(|character: char| !(character.is_ascii_alphanumeric() || character == '_'))?;
        Some((index + 1, &name[..end]))
    })
}

/// Returns true if a name begins with a word in [`FORBIDDEN`], or has one in [`HEADLESS`].
fn is_headless(name: &str) -> bool {
    let is_forbidden = |word: &str| FORBIDDEN.iter().any(|forbidden| forbidden.eq_ignore_ascii_case(word));
    name.split('_').next().is_some_and(is_forbidden) || name.split('_').any(|word| HEADLESS.contains(&word))
}
