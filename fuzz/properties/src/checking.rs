//! What `larder-sidecar check` says. The input is a policy's file.

use larder_policy::{Document, Policy};
use larder_sidecar::check::{self, Place};

/// Whatever is in a file, something is said of it, of a place in it; and what is called good is served.
pub fn check(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    for place in [Place::Alone, Place::Cluster] {
        let report = check::check(text, place);
        assert!(report.faults.is_sorted());
        assert!(!report.policies.is_empty() || !report.faults.is_empty());
        // The parser counts a line end that nothing follows.
        let lines = text.lines().count() + 1;
        for fault in &report.faults {
            assert!((1..=lines).contains(&fault.line) && fault.column > 0, "{fault:?}");
            assert!(!fault.message.is_empty(), "{fault:?}");
        }
        let is_one = report.policies.len() == 1 && report.skipped.is_empty();
        if place == Place::Alone && is_one && report.faults.is_empty() && is_one_document(text) {
            let document = Document::parse(text).expect("what is good can be read");
            Policy::compile(&document.spec).expect("what is good can be served");
        }
    }
}

fn is_one_document(text: &str) -> bool {
    !text.lines().any(|line| line.starts_with("---") || line.starts_with("..."))
}
