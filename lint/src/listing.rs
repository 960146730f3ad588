//! Findings of several files: one line each, or as data.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use larder_api::KIND;
use serde::Serialize;

use crate::{Checker, Diagnostic, Environment, Found, Report};

/// The name of standard input.
const STANDARD_INPUT: &str = "-";

/// The worst outcome of the files, whose number is the exit code of commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// All policies are valid.
    Good = 0,
    /// A policy is not valid, or there is none.
    Faulty = 1,
    /// A file can't be read.
    Unreadable = 2,
}

/// A finding and its file.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Finding<'a> {
    /// The file, or `standard input`.
    pub file: &'a str,
    /// The effect of the finding.
    pub severity: Severity,
    /// The finding.
    #[serde(flatten)]
    pub diagnostic: &'a Diagnostic,
}

/// The effect of a finding on the outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The policy can't be served by.
    Error,
    /// A part of the policy has no effect.
    Warning,
}

/// Reports on files.
#[derive(Clone, Debug)]
pub struct Listing {
    environment: Environment,
    reports: Vec<(String, Report)>,
    unreadable: Vec<String>,
}

impl Listing {
    /// Reads and checks files; `-` is standard input.
    pub fn read(files: &[PathBuf], environment: Environment) -> Self {
        let checker = Checker::new(environment);
        let mut listing = Self { environment, reports: Vec::new(), unreadable: Vec::new() };
        for file in files {
            match read(file) {
                Ok(text) => listing.reports.push((name(file), checker.check(&text))),
                Err(error) => listing.unreadable.push(format!("{}: can't read it: {error}", name(file))),
            }
        }
        listing
    }

    /// Returns the worst outcome of the files.
    pub fn outcome(&self) -> Outcome {
        let is_faulty = |(_, report): &(String, Report)| !report.diagnostics.is_empty();
        match (self.unreadable.is_empty(), self.has_no_policy() || self.reports.iter().any(is_faulty)) {
            (false, _) => Outcome::Unreadable,
            (true, true) => Outcome::Faulty,
            (true, false) => Outcome::Good,
        }
    }

    /// Returns the errors that are none of a file's contents: files that can't be read, and the lack of a policy.
    pub fn errors(&self) -> Vec<String> {
        let mut errors = self.unreadable.clone();
        let is_good = |(_, report): &(String, Report)| report.diagnostics.is_empty();
        if errors.is_empty() && self.has_no_policy() && self.reports.iter().all(is_good) {
            errors.push(format!("found no {KIND}"));
        }
        errors
    }

    /// Returns all findings, those of a file together, its errors first.
    pub fn findings(&self) -> Vec<Finding<'_>> {
        let of_file = self.reports.iter().flat_map(|(file, report)| {
            let finding = |severity| move |diagnostic| Finding { file, severity, diagnostic };
            let errors = report.diagnostics.iter().map(finding(Severity::Error));
            errors.chain(report.warnings.iter().map(finding(Severity::Warning)))
        });
        of_file.collect()
    }

    /// Returns a line for each finding, like a compiler's, and for each valid policy.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for (file, Report { policies, skipped, diagnostics, warnings }) in &self.reports {
            for one in skipped {
                text.push_str(&format!("{file}:{}: skipped {}, which is not a {KIND}\n", one.line, one.kind));
            }
            if self.environment == Environment::Alone && policies.len() + skipped.len() > 1 {
                text.push_str(&format!("{file}: --policy needs a file with nothing but the policy\n"));
            }
            for Diagnostic { line, column, path, message, .. } in diagnostics {
                let separator = if path.is_empty() { "" } else { ": " };
                text.push_str(&format!("{file}:{line}:{column}: {path}{separator}{message}\n"));
            }
            for Diagnostic { line, column, path, message, .. } in warnings {
                text.push_str(&format!("{file}:{line}:{column}: warning: {path}: {message}\n"));
            }
            if diagnostics.is_empty() {
                policies.iter().for_each(|found| text.push_str(&format!("{file}: {}\n", summary(found))));
            }
        }
        text
    }

    fn has_no_policy(&self) -> bool {
        self.reports.iter().all(|(_, report)| report.policies.is_empty())
    }
}

fn read(file: &Path) -> io::Result<String> {
    if file.as_os_str() == STANDARD_INPUT {
        let mut text = String::new();
        return io::stdin().read_to_string(&mut text).map(|_| text);
    }
    fs::read_to_string(file)
}

fn name(file: &Path) -> String {
    if file.as_os_str() == STANDARD_INPUT { "standard input".to_owned() } else { file.display().to_string() }
}

fn summary(found: &Found) -> String {
    let Found { name, routes, sources, writes } = found;
    let named = if name.is_empty() { KIND.to_owned() } else { format!("{KIND} {name}") };
    let counted = |count: &usize, one: &str, more: &str| match count {
        1 => format!("1 {one}"),
        count => format!("{count} {more}"),
    };
    format!(
        "{named} is valid: {}, {}, {}",
        counted(routes, "route", "routes"),
        counted(sources, "source", "sources"),
        counted(writes, "rule for writes", "rules for writes")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "apiVersion: larder.dev/v1alpha1
kind: CachePolicy
metadata: {name: shop}
spec:
  selector: {matchLabels: {app: shop}}
  targets: [{port: http}]
";

    fn listing(texts: &[&str]) -> Listing {
        let checker = Checker::new(Environment::Cluster);
        let reports = texts.iter().map(|text| ("a.yaml".to_owned(), checker.check(text))).collect();
        Listing { environment: Environment::Cluster, reports, unreadable: Vec::new() }
    }

    #[test]
    fn worst_file_decides_the_outcome() {
        let bad = GOOD.replace("targets", "tragets");
        assert_eq!(listing(&[GOOD]).outcome(), Outcome::Good);
        assert_eq!(listing(&[GOOD, &bad]).outcome(), Outcome::Faulty);
        let unreadable = Listing { unreadable: vec!["b.yaml: gone".into()], ..listing(&[GOOD, &bad]) };
        assert_eq!((unreadable.outcome(), unreadable.errors().len()), (Outcome::Unreadable, 1));
    }

    #[test]
    fn files_without_a_policy_are_an_error() {
        let none = listing(&["apiVersion: v1\nkind: Secret\n"]);
        assert_eq!(
            (none.outcome(), none.errors()),
            (Outcome::Faulty, vec!["found no CachePolicy".to_owned()])
        );
        assert_eq!(none.to_text(), "a.yaml:1: skipped Secret, which is not a CachePolicy\n");
    }

    #[test]
    fn findings_have_their_file_and_place() {
        let bad = GOOD.replace("targets", "tragets");
        let listing = listing(&[&bad]);
        let finding = serde_json::to_value(listing.findings()).unwrap();
        assert_eq!((&finding[0]["file"], &finding[0]["severity"]), (&"a.yaml".into(), &"error".into()));
        assert!(
            listing.to_text().contains("a.yaml:6:3: spec.tragets: unknown field"),
            "{}",
            listing.to_text()
        );
    }
}
