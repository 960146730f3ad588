//! Instructions that the sidecar executes for a request, beside those that are on record.
//!
//! Counts do not depend on what else the machine does, so that a rise of a few hundredths shows at once, where times need
//! many rounds on a quiet machine.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

pub mod callgrind;
pub mod measure;

/// Share by which a path may rise.
pub const TOLERANCE: f64 = 0.05;

/// Functions below this share of their path are not on record.
const MIN_SHARE: f64 = 0.004;

/// Number of functions that a finding names.
const NAMED: usize = 6;

/// Instructions of each path by its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Record(pub BTreeMap<String, Counts>);

/// Instructions for each request of a path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// All of them.
    pub total: u64,
    /// Those of the functions themselves, without what they call.
    pub functions: BTreeMap<String, u64>,
}

impl Record {
    /// Reads a record.
    ///
    /// # Errors
    /// If the file can't be read, or is something else.
    pub fn read(file: &Path) -> Result<Self> {
        let name = || file.display().to_string();
        serde_yaml::from_str(&fs::read_to_string(file).with_context(name)?).with_context(name)
    }

    /// Returns a line for each path, with the change since another record.
    pub fn summary(&self, before: Option<&Self>) -> String {
        let lines = self.0.iter().map(|(path, counts)| {
            let old = before.and_then(|before| before.0.get(path));
            let change = |old: &Counts| format!(" ({:+.2} %)", 100.0 * counts.rise_since(old));
            format!("{path}: {} instructions{}", counts.total, old.map_or(String::new(), change))
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    /// Writes a record, with the functions that matter.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn write(&self, file: &Path) -> Result<()> {
        let mut short = self.clone();
        for counts in short.0.values_mut() {
            let least = counts.least();
            counts.functions.retain(|_, count| *count >= least);
        }
        let text = "# Instructions for each request of a path, and of the functions in it: written by `./dev bench instructions --update`.\n";
        let text = text.to_owned() + &serde_yaml::to_string(&short)?;
        fs::write(file, text).with_context(|| file.display().to_string())
    }
}

impl Counts {
    /// Returns the count below which a function is not on record.
    fn least(&self) -> u64 {
        (self.total as f64 * MIN_SHARE).round() as u64
    }

    fn rise_since(&self, old: &Self) -> f64 {
        (self.total as f64 - old.total as f64) / old.total as f64
    }
}

/// A difference between measured counts and those on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// A path costs more, or is not measured, or not on record.
    Worse(String),
    /// A path costs so much less that the record should say so.
    Better(String),
}

/// Compares what was measured with what is on record.
pub fn compare(record: &Record, measured: &Record) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, old) in &record.0 {
        let Some(new) = measured.0.get(path) else {
            findings.push(Finding::Worse(format!("{path} is on record, and was not measured")));
            continue;
        };
        let rise = new.rise_since(old);
        let percent = 100.0 * rise.abs();
        if rise > TOLERANCE {
            let text = format!("{path}: {} instructions, {percent:.1} % more than {}", new.total, old.total);
            findings.push(Finding::Worse(text + &risen(old, new)));
        } else if rise < -TOLERANCE {
            let text = format!("{path}: {} instructions, {percent:.1} % less than {}", new.total, old.total);
            findings.push(Finding::Better(text));
        }
    }
    let unknown = measured.0.keys().filter(|path| !record.0.contains_key(*path));
    findings.extend(unknown.map(|path| Finding::Worse(format!("{path} is not on record"))));
    findings
}

/// Returns the functions that rose most, a line for each. One that is not on record was below [`MIN_SHARE`].
fn risen(old: &Counts, new: &Counts) -> String {
    let unknown = old.least();
    let rise = |(name, count): (&String, &u64)| {
        let before = old.functions.get(name).copied();
        (count.saturating_sub(before.unwrap_or(unknown)), before, *count, name.clone())
    };
    let mut risen: Vec<_> = new.functions.iter().map(rise).filter(|(rise, ..)| *rise > 0).collect();
    risen.sort_by(|one, other| other.0.cmp(&one.0).then_with(|| one.3.cmp(&other.3)));
    let mut text = String::new();
    for (rise, before, count, name) in risen.into_iter().take(NAMED) {
        let before = before.map_or(format!("at most {unknown}"), |before| before.to_string());
        let _ = write!(text, "\n  +{rise} ({before} to {count}) {name}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a record of paths with their counts.
    fn record<const PATHS: usize>(paths: [(&str, Counts); PATHS]) -> Record {
        Record(paths.into_iter().map(|(path, counts)| (path.to_owned(), counts)).collect())
    }

    fn counts(total: u64, functions: &[(&str, u64)]) -> Counts {
        let functions = functions.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        Counts { total, functions }
    }

    #[test]
    fn rise_beyond_the_tolerance_is_worse_and_names_the_functions() {
        let old = record([("hit", counts(1000, &[("parse", 600), ("write", 400)]))]);
        let new = record([("hit", counts(1060, &[("parse", 630), ("write", 390), ("count", 40)]))]);
        let [Finding::Worse(text)] = &compare(&old, &new)[..] else { panic!("one finding") };
        let expected = "hit: 1060 instructions, 6.0 % more than 1000\n  +36 (at most 4 to 40) count\n  +30 (600 to 630) parse";
        assert_eq!(text, expected);
    }

    #[test]
    fn change_within_the_tolerance_is_no_finding() {
        let old = record([("hit", counts(1000, &[]))]);
        assert_eq!(compare(&old, &record([("hit", counts(1050, &[]))])), []);
        assert_eq!(compare(&old, &record([("hit", counts(950, &[]))])), []);
    }

    #[test]
    fn path_that_is_missing_on_either_side_is_worse() {
        let (one, both) =
            (record([("hit", counts(1, &[]))]), record([("hit", counts(1, &[])), ("pass", counts(1, &[]))]));
        assert_eq!(compare(&both, &one), [Finding::Worse("pass is on record, and was not measured".into())]);
        assert_eq!(compare(&one, &both), [Finding::Worse("pass is not on record".into())]);
    }

    #[test]
    fn fall_beyond_the_tolerance_asks_for_an_update() {
        let found = compare(&record([("hit", counts(1000, &[]))]), &record([("hit", counts(940, &[]))]));
        assert_eq!(found, [Finding::Better("hit: 940 instructions, 6.0 % less than 1000".into())]);
    }

    #[test]
    fn record_keeps_the_functions_that_matter() {
        let file = std::env::temp_dir().join(format!("larder-record-{}", std::process::id()));
        let measured = record([("hit", counts(1000, &[("<A as B>::parse::{{closure}}", 4), ("small", 3)]))]);
        measured.write(&file).unwrap();
        let read = Record::read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        assert_eq!(read, record([("hit", counts(1000, &[("<A as B>::parse::{{closure}}", 4)]))]));
    }
}
