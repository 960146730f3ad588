//! Errors of [`Policy::compile`] in the readable part of a policy.
//!
//! A value that can't be read would hide the errors of all others. Therefore each part of the `spec` (an item of a list, or a
//! field that is not a list) that can't be read is left out, and texts that only have the wrong form are replaced.

use std::collections::{BTreeMap, HashMap};

use larder_policy::{Policy, spec::CacheSpec};
use serde_json::{Map, Value as Json, json};

use super::{
    Diagnostic, Kind,
    locate::locate,
    path::{is_within, item, member, parent},
    tree::{Node, Value},
};

/// Returns the errors in the meaning of a policy, besides those in its form.
pub(super) fn diagnostics(root: &Node, found: &[Diagnostic]) -> Vec<Diagnostic> {
    let Some(spec) = root.get("spec") else { return vec![] };
    let stand_ins = found.iter().filter_map(|one| match one.kind {
        Kind::Malformed(readable) => Some((one.path.as_str(), readable)),
        Kind::Bad | Kind::Missing | Kind::Unknown => None,
    });
    let stand_ins: HashMap<_, _> = stand_ins.collect();
    let Json::Object(members) = replaced(spec, "spec", &stand_ins) else { return vec![] };
    let mut parts = Parts::default();
    let readable: Map<_, _> = members
        .into_iter()
        .filter_map(|(name, value)| {
            let wrap = |value: Json| json!({ &name: value });
            let kept = parts.keep(value, &member("spec", &name), &wrap)?;
            Some((name, kept))
        })
        .collect();
    let Parts { lists, unreadable } = parts;
    let unreadable = unreadable
        .into_iter()
        .filter(|(path, _)| !found.iter().any(|one| is_within(&one.path, path)))
        .map(|(path, message)| diagnostic(root, &path, message));
    let mut diagnostics: Vec<_> = unreadable.collect();
    let Ok(spec) = serde_json::from_value::<CacheSpec>(Json::Object(readable)) else { return diagnostics };
    let problems = Policy::compile(&spec).err().unwrap_or_default();
    diagnostics.extend(problems.into_iter().filter_map(|problem| {
        let path = as_written(&problem.path, &lists);
        let is_known = found.iter().any(|one| one.path == path);
        (!is_known && !compares_a_stand_in(root, &path, &stand_ins))
            .then(|| diagnostic(root, &path, problem.message))
    }));
    diagnostics
}

/// Returns what has no effect in a policy without errors: routes behind one that takes all of their requests, and defaults that no route
/// takes.
pub(super) fn warnings(root: &Node) -> Vec<Diagnostic> {
    let Some(spec) = root.get("spec") else { return vec![] };
    let spec = replaced(spec, "spec", &HashMap::new());
    let Ok(spec) = serde_json::from_value::<CacheSpec>(spec) else { return vec![] };
    let Ok(policy) = Policy::compile(&spec) else { return vec![] };
    let hidden = policy.unreachable_routes().into_iter();
    let hidden = hidden.map(|(route, earlier)| {
        let (path, first) = (item("spec.routes", route.index), item("spec.routes", earlier.index));
        let message = format!(
            "no request reaches route {:?}, because {:?} ({first}) is tried first and takes all of them: put it above \
             that one, or take it out",
            route.name, earlier.name
        );
        diagnostic(root, &path, message)
    });
    let untaken = spec.defaults_without_effect().into_iter().map(|field| {
        let message =
            "no route takes it: each has its own, passes, or has nothing that it applies to; take it out";
        diagnostic(root, &member("spec.defaults", &field), message)
    });
    hidden.chain(untaken).collect()
}

fn diagnostic(root: &Node, path: &str, message: impl Into<String>) -> Diagnostic {
    Diagnostic::new(locate(root, path).0, path, message)
}

/// Returns true if an error is about a plain value, or none, beside one that was replaced: it may be about the
/// replacement only.
fn compares_a_stand_in(root: &Node, path: &str, stand_ins: &HashMap<&str, &str>) -> bool {
    let has_parts = |node: &Node| matches!(node.value, Value::List(_) | Value::Object(_));
    !locate(root, path).1.is_some_and(has_parts)
        && stand_ins.keys().any(|replaced| parent(replaced) == parent(path))
}

/// Returns a document as JSON. As in the API server, a null equals an absent field.
pub(super) fn json_of(root: &Node) -> Json {
    replaced(root, "", &HashMap::new())
}

/// Returns the value at `path` as JSON, with replacements.
fn replaced(node: &Node, path: &str, stand_ins: &HashMap<&str, &str>) -> Json {
    if let Some(readable) = stand_ins.get(path) {
        return Json::from(*readable);
    }
    match &node.value {
        Value::Null => Json::Null,
        Value::Bool(word) => Json::from(*word),
        Value::Number(number) => Json::Number(number.clone()),
        Value::Text(text) => Json::from(text.as_str()),
        Value::List(items) => {
            let items = items.iter().enumerate();
            items.map(|(index, one)| replaced(one, &item(path, index), stand_ins)).collect()
        }
        Value::Object(members) => {
            let set = members.iter().filter(|member| member.node.value != Value::Null);
            let json =
                set.map(|one| (one.name.clone(), replaced(&one.node, &member(path, &one.name), stand_ins)));
            Json::Object(json.collect())
        }
    }
}

/// Bookkeeping about the parts of a `spec`.
#[derive(Default)]
struct Parts {
    /// The former indices of the items that are left, for each list that lost items.
    lists: BTreeMap<String, Vec<usize>>,
    /// Paths of parts that can't be read, and the errors.
    unreadable: Vec<(String, String)>,
}

impl Parts {
    /// Returns the readable part of the value at `path`; `wrap` makes a `spec` of it.
    fn keep(&mut self, value: Json, path: &str, wrap: &dyn Fn(Json) -> Json) -> Option<Json> {
        let Err(error) = serde_json::from_value::<CacheSpec>(wrap(value.clone())) else { return Some(value) };
        match value {
            Json::Array(items) => {
                let mut places = Vec::new();
                let mut kept = Vec::new();
                for (index, one) in items.into_iter().enumerate() {
                    let wrap = |one: Json| wrap(json!([one]));
                    if let Some(one) = self.keep_item(one, &item(path, index), &wrap) {
                        places.push(index);
                        kept.push(one);
                    }
                }
                self.lists.insert(path.to_owned(), places);
                Some(Json::Array(kept))
            }
            Json::Object(members) if members.values().any(Json::is_array) => {
                let mut kept = Map::new();
                for (name, one) in members {
                    let wrap = |one: Json| wrap(json!({ &name: one }));
                    if let Some(one) = self.keep(one, &member(path, &name), &wrap) {
                        kept.insert(name, one);
                    }
                }
                let kept = Json::Object(kept);
                serde_json::from_value::<CacheSpec>(wrap(kept.clone())).is_ok().then_some(kept)
            }
            _ => {
                self.unreadable.push((path.to_owned(), error.to_string()));
                None
            }
        }
    }

    fn keep_item(&mut self, one: Json, path: &str, wrap: &dyn Fn(Json) -> Json) -> Option<Json> {
        match serde_json::from_value::<CacheSpec>(wrap(one.clone())) {
            Ok(_) => Some(one),
            Err(error) => {
                self.unreadable.push((path.to_owned(), error.to_string()));
                let stand_in = source_like(&one);
                serde_json::from_value::<CacheSpec>(wrap(stand_in.clone())).is_ok().then_some(stand_in)
            }
        }
    }
}

/// Returns a source of the same name and kind, so that routes may refer to one that can't be read.
fn source_like(one: &Json) -> Json {
    let name = &one["name"];
    if one["http"].is_null() {
        json!({"name": name, "postgres": {"urlFrom": {"env": "URL"}}})
    } else {
        json!({"name": name, "http": {"url": "http://source"}})
    }
}

/// Returns the path in the file of a path in the compiled part.
fn as_written(path: &str, lists: &BTreeMap<String, Vec<usize>>) -> String {
    for (list, places) in lists {
        let Some(rest) = path.strip_prefix(list.as_str()).and_then(|rest| rest.strip_prefix('[')) else {
            continue;
        };
        let Some((index, rest)) = rest.split_once(']') else { continue };
        let place = index.parse().ok().and_then(|index: usize| places.get(index));
        return place.map_or_else(|| path.to_owned(), |place| format!("{}{rest}", item(list, *place)));
    }
    path.to_owned()
}
