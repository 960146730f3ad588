//! The CEL rules of the custom resource definition, evaluated by the library behind kube's feature `cel`.
//!
//! # Assumptions
//! - The library evaluates each rule as the API server does. Every rule has a fixture that breaks it, and the end-to-end
//!   test `refusing::the_api_server_and_the_check_agree_on_every_rule` sends all of them to an API server; `tests::cel` has
//!   the known divergences.

use std::fmt;

use kube_cel::{CompiledSchema, ErrorKind, Validator, compile_schema};
use serde_json::Value as Json;

use super::{
    Diagnostic, Kind,
    locate::locate,
    path::{is_within, member, parent},
    tree::Node,
};

/// The compiled rules of a schema.
pub(super) struct Rules {
    validator: Validator,
    compiled: CompiledSchema,
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules").finish_non_exhaustive()
    }
}

impl Rules {
    /// Compiles the rules of a schema.
    pub(super) fn of(schema: &Json) -> Self {
        Self { validator: Validator::new(), compiled: compile_schema(schema) }
    }

    /// Returns the rules that a document breaks, without those that other diagnostics explain already, which say it more
    /// exactly.
    pub(super) fn broken(&self, root: &Node, document: &Json, others: &[Diagnostic]) -> Vec<Diagnostic> {
        let Err(errors) = self.validator.validate_compiled(&self.compiled, document, None) else {
            return vec![];
        };
        let broken = errors.into_iter().filter(|error| match error.kind {
            ErrorKind::ValidationFailure => {
                !others.iter().any(|other| explains(other, root, &error.field_path, &error.rule))
            }
            // A value of the wrong type, which is reported by itself.
            ErrorKind::EvaluationError => others.is_empty(),
            // `every_rule_has_a_fixture_and_refuses_it` fails for rules that are not supported.
            _ => false,
        });
        let mut broken: Vec<_> = broken
            .map(|error| Diagnostic::new(locate(root, &error.field_path).0, &error.field_path, error.message))
            .collect();
        broken.dedup();
        broken
    }
}

/// Returns true if a diagnostic is about the value of the rule at `path`, about a field that the rule refers to, or about
/// an unknown field that may be meant to be one that the rule misses.
fn explains(other: &Diagnostic, root: &Node, path: &str, rule: &str) -> bool {
    let mut fields = references(rule).map(|field| field_path(path, field));
    match other.kind {
        Kind::Missing => false,
        Kind::Unknown if parent(&other.path) == path => fields.any(|field| locate(root, &field).1.is_none()),
        _ => {
            let is_about_value = other.path == path || (!path.is_empty() && parent(path) == other.path);
            is_about_value || fields.any(|field| is_within(&other.path, &field))
        }
    }
}

fn field_path(path: &str, field: &str) -> String {
    if field.is_empty() { path.to_owned() } else { member(path, field) }
}

/// Returns the fields of `self` that a rule refers to, such as `l1.maxSize`; empty for `self` as a whole. A function
/// that is called on a field counts as a part of it, which `trim_end` of its name undoes.
fn references(rule: &str) -> impl Iterator<Item = &str> {
    rule.match_indices("self").filter_map(|(start, _)| {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if rule[..start].ends_with(|c| is_name(c) || c == '.') {
            return None;
        }
        let rest = &rule[start + "self".len()..];
        let end = rest.find(|c| !is_name(c) && c != '.').unwrap_or(rest.len());
        let mut field = &rest[..end];
        if rest[end..].starts_with('(') {
            field = field.rfind('.').map_or("", |dot| &field[..dot]);
        }
        Some(field.trim_start_matches('.'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_found_without_functions() {
        let found: Vec<_> = references(
            "!has(self.routes) || self.routes.all(r, r.self.x) && size(self) > 0 && self.a.b.matches('[1-9]') && myself.c",
        )
        .collect();
        assert_eq!(found, ["routes", "routes", "", "a.b"]);
    }
}
