//! Output of `larder-sidecar check`. The input is a policy's file.

use std::sync::LazyLock;

use larder_lint::{Checker, Environment};
use larder_policy::{Document, Policy};

static ALONE: LazyLock<Checker> = LazyLock::new(|| Checker::new(Environment::Alone));
static CLUSTER: LazyLock<Checker> = LazyLock::new(|| Checker::new(Environment::Cluster));

/// Every file yields a report that refers to places in it, and a valid file is served.
pub fn check(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    in_its_place(&CLUSTER, text);
    if in_its_place(&ALONE, text) && is_one_document(text) {
        let document = Document::parse(text).expect("what is good can be read");
        Policy::compile(&document.spec).expect("what is good can be served");
    }
}

/// Returns true if the file is valid.
fn in_its_place(checker: &Checker, text: &str) -> bool {
    let report = checker.check(text);
    assert!(report.diagnostics.is_sorted());
    assert!(!(report.policies.is_empty() && report.skipped.is_empty() && report.diagnostics.is_empty()));
    // A fault may be after the last line.
    let lines = text.bytes().filter(|byte| b"\r\n".contains(byte)).count() + 2;
    for one in &report.diagnostics {
        assert!((1..=lines).contains(&one.line) && one.column > 0, "{one:?}");
        assert!(!one.message.is_empty(), "{one:?}");
    }
    report.diagnostics.is_empty() && !report.policies.is_empty()
}

fn is_one_document(text: &str) -> bool {
    !text.lines().any(|line| line.starts_with("---") || line.starts_with("..."))
}
