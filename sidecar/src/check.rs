//! What is wrong with a policy's file: where, and what to write instead.
//!
//! The rules are the cluster's. `schema` holds a file to the custom resource definition itself, `rules` to those of its CEL
//! rules that are about what a sidecar does not read, and `meaning` to what [`larder_policy::Policy::compile`] refuses,
//! which the rest of the CEL rules mirror.

mod edits;
mod meaning;
mod path;
mod quantity;
mod report;
mod rules;
mod schema;
#[cfg(test)]
mod tests;
mod tree;

use larder_api::{API_VERSION, KIND};
use larder_policy::document::{DocumentError, FOLLOWS_COVERAGE};

pub use self::report::run;
use self::{
    schema::Schema,
    tree::{Document, Mark, Node, Value},
};

/// A kind that differs from ours by more letters was meant.
const FAR: usize = 3;

/// Where a policy is to be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// By a sidecar alone (`--policy`): `selector` and `targets` may be left out, and secrets come from `env` or `file`.
    Alone,
    /// In a cluster: the API server reads it.
    Cluster,
}

/// One thing wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Fault {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// The field, such as `spec.routes[2].tags[0]`; empty where it is the file as a whole.
    pub path: String,
    /// What is wrong, and what to write instead.
    pub message: String,
    #[serde(skip)]
    kind: Kind,
}

/// What a fault means to who reads the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// The value can't be relied on.
    #[default]
    Bad,
    /// A sidecar leaves the field alone.
    Unknown,
    /// The value is a text of the wrong form; of this one it would be readable.
    Malformed(&'static str),
}

impl Fault {
    fn new(mark: Mark, path: &str, message: impl Into<String>) -> Self {
        let Mark { line, column } = mark;
        Self { line, column, path: path.to_owned(), message: message.into(), kind: Kind::default() }
    }

    fn of_kind(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }
}

/// What was found in a file.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The policies, good or not.
    pub policies: Vec<Found>,
    /// What is in the file besides.
    pub skipped: Vec<Skipped>,
    /// What is wrong, in the order of the file.
    pub faults: Vec<Fault>,
}

/// A policy in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// `metadata.name`; empty without one.
    pub name: String,
    /// How many routes it has.
    pub routes: usize,
    /// How many sources.
    pub sources: usize,
    /// How many rules about writes.
    pub writes: usize,
}

/// A document that is no policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Where it starts.
    pub line: usize,
    /// Its `kind`.
    pub kind: String,
}

/// Checks policies that are to be served at some place.
#[derive(Debug)]
pub struct Checker {
    schema: Schema,
    place: Place,
}

impl Checker {
    /// Reads the definition, which takes longer than to check a file.
    pub fn new(place: Place) -> Self {
        Self { schema: Schema::of_policies(place), place }
    }

    /// Checks all policies of a file.
    pub fn check(&self, text: &str) -> Report {
        let (documents, broken) = tree::read(text);
        let mut report = Report::default();
        for document in documents.iter().filter(|document| document.root.value != Value::Null) {
            match kind_of(&document.root) {
                Ok(()) => {
                    report.policies.push(found(&document.root));
                    report.faults.extend(faults_of(document, &self.schema));
                }
                Err(Some(kind)) if edits::between(&kind, KIND) > FAR => {
                    report.skipped.push(Skipped { line: document.mark.line, kind });
                }
                Err(_) => report.faults.push(other_kind(&document.root)),
            }
        }
        report.faults.extend(broken);
        if report.policies.is_empty() && report.skipped.is_empty() && report.faults.is_empty() {
            let message =
                format!("there is no policy here: write apiVersion: {API_VERSION} and kind: {KIND}");
            report.faults.push(Fault::new(Mark { line: 1, column: 1 }, "", message));
        }
        // A cluster's file is read by kubectl.
        let is_one = documents.len() == 1 && !report.policies.is_empty();
        if report.faults.is_empty() && is_one && self.place == Place::Alone {
            report.faults.extend(unread(text));
        }
        report.faults.sort();
        report
    }
}

/// The fields of a policy that this version does not know, and leaves alone; none if the text is no policy.
pub fn unknown_fields(text: &str) -> Vec<String> {
    let (documents, _) = tree::read(text);
    let policies = documents.iter().filter(|document| kind_of(&document.root).is_ok());
    let schema = Schema::of_policies(Place::Alone);
    let faults = policies.flat_map(|document| schema.faults(&document.root));
    // The operator's own, which is in no definition.
    let is_unknown = |fault: &Fault| fault.kind == Kind::Unknown && fault.path != FOLLOWS_COVERAGE;
    faults.filter(is_unknown).map(|fault| fault.path).collect()
}

/// Whether it is a policy; its kind if it has another.
fn kind_of(root: &Node) -> Result<(), Option<String>> {
    match root.get("kind").and_then(Node::as_text) {
        Some(KIND) => Ok(()),
        other => Err(other.map(ToOwned::to_owned)),
    }
}

fn other_kind(root: &Node) -> Fault {
    let (mark, found) = path::locate(root, "kind");
    let message = match found.and_then(Node::as_text) {
        Some(kind) => format!("{kind:?} is not {KIND:?}: did you mean that?"),
        None => format!("there is no kind: write apiVersion: {API_VERSION} and kind: {KIND}"),
    };
    Fault::new(mark, "kind", message)
}

fn found(root: &Node) -> Found {
    let count = |path| path::locate(root, path).1.map_or(0, |list| list.items().len());
    let name = root.get("metadata").and_then(|metadata| metadata.get("name")).and_then(Node::as_text);
    Found {
        name: name.unwrap_or_default().to_owned(),
        routes: count("spec.routes"),
        sources: count("spec.sources"),
        writes: count("spec.invalidation.onWrite"),
    }
}

fn faults_of(document: &Document, schema: &Schema) -> Vec<Fault> {
    let mut faults = document.faults.clone();
    faults.extend(schema.faults(&document.root));
    let meant = meaning::faults(&document.root, &faults);
    faults.extend(meant);
    faults
}

/// What only the reader of the sidecar itself minds.
fn unread(text: &str) -> Option<Fault> {
    let error = larder_policy::Document::parse(text).err()?;
    let mark = match &error {
        DocumentError::Yaml(error) => {
            error.location().map(|at| Mark { line: at.line(), column: at.column() })
        }
        DocumentError::OtherKind { .. } => None,
    };
    Some(Fault::new(mark.unwrap_or(Mark { line: 1, column: 1 }), "", error.to_string()))
}
