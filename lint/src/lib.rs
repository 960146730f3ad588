//! Errors of a policy's file: their places, and the remedies.
//!
//! The rules are the cluster's. `schema` compares a file with the custom resource definition itself, `rules` evaluates the
//! definition's CEL rules, and `meaning` reports the errors of [`larder_policy::Policy::compile`], which most of the CEL
//! rules mirror, at their exact places.

#[cfg(any(test, feature = "fixtures"))]
pub mod fixtures;
mod forms;
mod listing;
mod locate;
mod meaning;
mod path;
mod rules;
mod schema;
mod suggestion;
#[cfg(test)]
mod tests;
mod tree;

use larder_api::{API_VERSION, KIND};
use larder_policy::document::{DESTINATIONS, DocumentError, FOLLOWS_COVERAGE};

pub use self::listing::{Finding, Listing, Outcome, Severity};
use self::{
    locate::locate,
    rules::Rules,
    schema::Schema,
    tree::{Document, Mark, Node, Value},
};

/// Maximum distance of a misspelt kind from [`KIND`].
const MAX_KIND_DISTANCE: usize = 3;

/// The environment in which a policy is to be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Environment {
    /// A sidecar alone (`--policy`): `selector` and `targets` may be left out, and secrets come from `env` or `file`.
    Alone,
    /// A cluster, whose API server reads the policy.
    Cluster,
}

/// An error in a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Diagnostic {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The field, such as `spec.routes[2].tags[0]`; empty for the file as a whole.
    pub path: String,
    /// The error and its remedy.
    pub message: String,
    #[serde(skip)]
    kind: Kind,
}

/// The effect of an error on the evaluation of the rest of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// The value can't be relied on.
    #[default]
    Bad,
    /// A required field is missing from the object.
    Missing,
    /// The field is unknown, and sidecars ignore it.
    Unknown,
    /// The value is a text of the wrong form; this one would be readable.
    Malformed(&'static str),
}

impl Diagnostic {
    fn new(mark: Mark, path: &str, message: impl Into<String>) -> Self {
        let Mark { line, column } = mark;
        Self { line, column, path: path.to_owned(), message: message.into(), kind: Kind::default() }
    }

    fn of_kind(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }
}

/// Contents of a file.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The policies, valid or not.
    pub policies: Vec<Found>,
    /// Documents of other kinds.
    pub skipped: Vec<Skipped>,
    /// Errors, in the order of the file.
    pub diagnostics: Vec<Diagnostic>,
    /// Parts of policies without errors that have no effect, in the order of the file.
    pub warnings: Vec<Diagnostic>,
}

/// A policy in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// `metadata.name`; empty without one.
    pub name: String,
    /// Number of routes.
    pub routes: usize,
    /// Number of sources.
    pub sources: usize,
    /// Number of rules for writes.
    pub writes: usize,
}

/// A document that is not a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// First line.
    pub line: usize,
    /// The document's `kind`.
    pub kind: String,
}

/// Checks policies for an environment.
#[derive(Debug)]
pub struct Checker {
    schema: Schema,
    rules: Rules,
    environment: Environment,
}

impl Checker {
    /// Reads the definition and compiles its rules, which takes longer than to check a file.
    pub fn new(environment: Environment) -> Self {
        let schema = Schema::of_policies(environment);
        Self { rules: Rules::of(schema.as_json()), schema, environment }
    }

    /// Checks all policies of a file.
    pub fn check(&self, text: &str) -> Report {
        let (documents, broken) = tree::read(text);
        let mut report = Report::default();
        for document in documents.iter().filter(|document| document.root.value != Value::Null) {
            match kind_of(&document.root) {
                Ok(()) => {
                    report.policies.push(found(&document.root));
                    let diagnostics = self.diagnostics(document);
                    if diagnostics.is_empty() {
                        report.warnings.extend(meaning::warnings(&document.root));
                    }
                    report.diagnostics.extend(diagnostics);
                }
                Err(Some(kind)) if is_other_kind(&kind) => {
                    report.skipped.push(Skipped { line: document.mark.line, kind });
                }
                Err(_) => report.diagnostics.push(wrong_kind(&document.root)),
            }
        }
        report.diagnostics.extend(broken);
        if report.policies.is_empty() && report.skipped.is_empty() && report.diagnostics.is_empty() {
            let message =
                format!("there is no policy here: write apiVersion: {API_VERSION} and kind: {KIND}");
            report.diagnostics.push(Diagnostic::new(Mark { line: 1, column: 1 }, "", message));
        }
        // A cluster's file is read by kubectl.
        let is_one = documents.len() == 1 && !report.policies.is_empty();
        if report.diagnostics.is_empty() && is_one && self.environment == Environment::Alone {
            report.diagnostics.extend(unread(text));
        }
        report.diagnostics.sort();
        report
    }

    fn diagnostics(&self, document: &Document) -> Vec<Diagnostic> {
        let mut diagnostics = document.diagnostics.clone();
        diagnostics.extend(self.schema.diagnostics(&document.root));
        let meant = meaning::diagnostics(&document.root, &diagnostics);
        diagnostics.extend(meant);
        let broken = self.rules.broken(&document.root, &meaning::json_of(&document.root), &diagnostics);
        diagnostics.extend(broken);
        diagnostics
    }
}

/// Returns the fields of a policy that this version does not know and ignores; none if the text is not a policy.
pub fn unknown_fields(text: &str) -> Vec<String> {
    let (documents, _) = tree::read(text);
    let policies = documents.iter().filter(|document| kind_of(&document.root).is_ok());
    let schema = Schema::of_policies(Environment::Alone);
    let diagnostics = policies.flat_map(|document| schema.diagnostics(&document.root));
    // The operator's own, which is in no definition.
    let is_of_operator = |path: &str| [FOLLOWS_COVERAGE, DESTINATIONS].contains(&path);
    let is_unknown = |one: &Diagnostic| one.kind == Kind::Unknown && !is_of_operator(&one.path);
    diagnostics.filter(is_unknown).map(|one| one.path).collect()
}

/// Returns `Ok` for a policy, and the kind of another document, if it has one.
fn kind_of(root: &Node) -> Result<(), Option<String>> {
    match root.get("kind").and_then(Node::as_text) {
        Some(KIND) => Ok(()),
        other => Err(other.map(ToOwned::to_owned)),
    }
}

/// Returns true unless the kind is a misspelt [`KIND`].
fn is_other_kind(kind: &str) -> bool {
    suggestion::distance(kind, KIND).is_none_or(|distance| distance > MAX_KIND_DISTANCE)
}

fn wrong_kind(root: &Node) -> Diagnostic {
    let (mark, found) = locate(root, "kind");
    let message = match found.and_then(Node::as_text) {
        Some(kind) => format!("{kind:?} is not {KIND:?}: did you mean that?"),
        None => format!("there is no kind: write apiVersion: {API_VERSION} and kind: {KIND}"),
    };
    Diagnostic::new(mark, "kind", message)
}

fn found(root: &Node) -> Found {
    let count = |path| locate(root, path).1.map_or(0, |list| list.items().len());
    let name = root.get("metadata").and_then(|metadata| metadata.get("name")).and_then(Node::as_text);
    Found {
        name: name.unwrap_or_default().to_owned(),
        routes: count("spec.routes"),
        sources: count("spec.sources"),
        writes: count("spec.invalidation.onWrite"),
    }
}

/// Returns the error of the sidecar's own reader, for a file without other errors.
fn unread(text: &str) -> Option<Diagnostic> {
    let error = larder_policy::Document::parse(text).err()?;
    let mark = match &error {
        DocumentError::Yaml(error) => {
            error.location().map(|at| Mark { line: at.line(), column: at.column() })
        }
        DocumentError::OtherKind { .. } => None,
    };
    Some(Diagnostic::new(mark.unwrap_or(Mark { line: 1, column: 1 }), "", error.to_string()))
}
