//! The subcommand `check`: files in, one line per error out.

use std::{
    fs,
    io::{self, Read, Write},
    path::Path,
    process::ExitCode,
};

use larder_api::KIND;
use larder_lint::{Checker, Diagnostic, Environment, Found, Report};
use serde::Serialize;

use crate::cli::{self, Output};

/// The name of standard input.
const STANDARD_INPUT: &str = "-";

/// The worst outcome of the files, which is the exit code.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum CheckOutcome {
    Good = 0,
    Faulty = 1,
    Unreadable = 2,
}

/// A finding and its file.
#[derive(Serialize)]
struct Line<'a> {
    file: &'a str,
    severity: Severity,
    #[serde(flatten)]
    diagnostic: &'a Diagnostic,
}

/// The effect of a finding on the exit code.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    /// The policy can't be served by.
    Error,
    /// A part of the policy has no effect.
    Warning,
}

/// Checks files and writes what it finds to standard output: 0 if all is good, 1 if not, 2 if a file can't be read.
pub fn run(args: &cli::Check) -> ExitCode {
    let environment = if args.cluster { Environment::Cluster } else { Environment::Alone };
    let checker = Checker::new(environment);
    let mut outcome = CheckOutcome::Good;
    let mut reports = Vec::new();
    for file in &args.files {
        match read(file) {
            Ok(text) => {
                let report = checker.check(&text);
                if !report.diagnostics.is_empty() {
                    outcome = outcome.max(CheckOutcome::Faulty);
                }
                reports.push((name(file), report));
            }
            Err(error) => {
                eprintln!("{}: can't read it: {error}", name(file));
                outcome = CheckOutcome::Unreadable;
            }
        }
    }
    if outcome == CheckOutcome::Good && reports.iter().all(|(_, report)| report.policies.is_empty()) {
        eprintln!("found no {KIND}");
        outcome = CheckOutcome::Faulty;
    }
    let written = match args.output {
        Output::Text => as_text(&reports, environment),
        Output::Json => as_json(&reports),
    };
    // The reader may close the pipe when it has read enough.
    let _ = io::stdout().write_all(written.as_bytes());
    ExitCode::from(outcome as u8)
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

fn as_text(reports: &[(String, Report)], environment: Environment) -> String {
    let mut text = String::new();
    for (file, Report { policies, skipped, diagnostics, warnings }) in reports {
        for one in skipped {
            text.push_str(&format!("{file}:{}: skipped {}, which is not a {KIND}\n", one.line, one.kind));
        }
        if environment == Environment::Alone && policies.len() + skipped.len() > 1 {
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

fn as_json(reports: &[(String, Report)]) -> String {
    let lines = reports.iter().flat_map(|(file, report)| {
        let line = |severity| move |diagnostic| Line { file: file.as_str(), severity, diagnostic };
        let errors = report.diagnostics.iter().map(line(Severity::Error));
        errors.chain(report.warnings.iter().map(line(Severity::Warning)))
    });
    let lines: Vec<_> = lines.collect();
    let mut text = serde_json::to_string_pretty(&lines).expect("a diagnostic has only strings and numbers");
    text.push('\n');
    text
}
