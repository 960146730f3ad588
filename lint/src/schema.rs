//! Comparison of a file with the schema of the custom resource definition.

use std::collections::BTreeSet;

use larder_api::{API_VERSION, KIND};
use larder_policy::{Duration, duration::CEL_RULE};
use serde_json::{Map, Value as Json, json};

use super::{
    Diagnostic, Environment, Kind, forms,
    path::{item, member},
    suggestion,
    tree::{Mark, Member, Node, Value},
};

/// Maximum number of fields that are listed as the known ones.
const MAX_LISTED: usize = 8;

/// The schema of a policy in an environment.
#[derive(Debug)]
pub(super) struct Schema {
    root: Json,
    environment: Environment,
}

impl Schema {
    /// Returns the schema of the definition, adapted to an environment.
    pub(super) fn of_policies(environment: Environment) -> Self {
        let mut root = definition();
        root["properties"]["status"] = json!({});
        root["properties"]["apiVersion"] = json!({"type": "string", "enum": [API_VERSION]});
        root["properties"]["kind"] = json!({"type": "string", "enum": [KIND]});
        root["properties"]["metadata"] = metadata(environment);
        let required = root["required"].as_array_mut();
        required.into_iter().for_each(|required| required.extend(["apiVersion".into(), "metadata".into()]));
        if environment == Environment::Alone {
            let of_cluster =
                |name: &Json| ["selector", "targets", "metadata"].iter().any(|other| name == other);
            for schema in ["", "/properties/spec"] {
                let Some(schema) = root.pointer_mut(schema).and_then(Json::as_object_mut) else { continue };
                schema.get_mut("required").and_then(Json::as_array_mut).into_iter().for_each(|required| {
                    required.retain(|name| !of_cluster(name));
                });
                // Rules about the pod's memory and the length of names, and those that `meaning` covers.
                schema.remove("x-kubernetes-validations");
            }
            take_secrets_from_outside(&mut root);
        }
        Self { root, environment }
    }

    /// Returns the schema itself.
    pub(super) fn as_json(&self) -> &Json {
        &self.root
    }

    /// Returns the differences of a document from the schema.
    pub(super) fn diagnostics(&self, root: &Node) -> Vec<Diagnostic> {
        let mut walk = Walk { environment: self.environment, diagnostics: Vec::new() };
        walk.value(&self.root, root, "", root.mark);
        walk.diagnostics
    }
}

/// Returns the schema of the definition.
pub(super) fn definition() -> Json {
    let definition: Json =
        serde_yaml::from_str(larder_crds::CACHE_POLICIES).expect("it was written by the type");
    let schema = definition.pointer("/spec/versions/0/schema/openAPIV3Schema");
    schema.cloned().expect("a definition has a schema")
}

/// Returns the schema of `metadata`
/// ([ObjectMeta](https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/object-meta/)).
fn metadata(environment: Environment) -> Json {
    let text = || json!({"type": "string"});
    let texts = || json!({"type": "object", "additionalProperties": {"type": "string"}});
    let mut properties =
        json!({"labels": texts(), "annotations": texts(), "namespace": text(), "uid": text()});
    properties["name"] = json!({"type": "string", "maxLength": 253, "format": forms::OBJECT_NAME});
    let others = [
        "generateName",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "finalizers",
        "managedFields",
        "ownerReferences",
        "selfLink",
    ];
    others.iter().for_each(|name| properties[name] = json!({}));
    let required = if environment == Environment::Cluster { vec!["name"] } else { vec![] };
    json!({"type": "object", "properties": properties, "required": required})
}

/// Replaces references to Secrets, which only a cluster has, by `env` and `file`.
fn take_secrets_from_outside(schema: &mut Json) {
    match schema {
        Json::Object(members) => {
            if let Some(properties) = members.get_mut("properties").and_then(Json::as_object_mut)
                && properties.remove("secretKeyRef").is_some()
            {
                for name in ["env", "file"] {
                    properties.insert(name.to_owned(), json!({"type": "string", "minLength": 1}));
                }
                // `meaning` checks that one of them is set.
                members.remove("x-kubernetes-validations");
            }
            members.values_mut().for_each(take_secrets_from_outside);
        }
        Json::Array(items) => items.iter_mut().for_each(take_secrets_from_outside),
        _ => {}
    }
}

struct Walk {
    environment: Environment,
    diagnostics: Vec<Diagnostic>,
}

impl Walk {
    fn refuse(&mut self, mark: Mark, path: &str, message: impl Into<String>) {
        self.diagnostics.push(Diagnostic::new(mark, path, message));
    }

    fn value(&mut self, schema: &Json, node: &Node, path: &str, mark: Mark) {
        if let Some(expected) = mismatch(schema, node) {
            let message = format!("{} is not {expected}", said(&node.value));
            self.refuse(mark, path, message);
            return;
        }
        if let Some(listed) = schema["enum"].as_array()
            && !listed.iter().any(|one| one.as_str() == node.as_text())
        {
            let names = || listed.iter().filter_map(Json::as_str);
            let meant = suggestion::nearest(node.as_text().unwrap_or_default(), names());
            let hint = match meant {
                Some(meant) => format!("did you mean {meant}?"),
                None => format!("write {}", one_of(names())),
            };
            self.refuse(mark, path, format!("{} is not known here: {hint}", said(&node.value)));
            return;
        }
        match &node.value {
            Value::Text(text) => self.text(schema, text, path, mark),
            Value::Number(number) => self.number(schema, number.as_f64(), path, mark),
            Value::List(items) => self.list(schema, node, items, path, mark),
            Value::Object(members) => self.object(schema, members, path, mark),
            Value::Null | Value::Bool(_) => {}
        }
        if let Some(malformed) = forms::malformed(schema, &node.value) {
            let kind = malformed.readable_as.map_or(Kind::Bad, Kind::Malformed);
            self.diagnostics.push(Diagnostic::new(mark, path, malformed.message).of_kind(kind));
        }
    }

    fn text(&mut self, schema: &Json, text: &str, path: &str, mark: Mark) {
        self.bounds(schema, ("minLength", "maxLength"), text.chars().count(), "characters", path, mark);
    }

    fn number(&mut self, schema: &Json, number: Option<f64>, path: &str, mark: Mark) {
        let least = schema["minimum"].as_f64().filter(|least| number.is_none_or(|number| number < *least));
        let most = schema["maximum"].as_f64().filter(|most| number.is_none_or(|number| number > *most));
        if least.is_some() || most.is_some() {
            let message = match (schema["minimum"].as_f64(), schema["maximum"].as_f64()) {
                (Some(least), Some(most)) => format!("must be between {least} and {most}"),
                (Some(least), None) => format!("must be at least {least}"),
                (None, most) => format!("must be at most {}", most.unwrap_or_default()),
            };
            self.refuse(mark, path, message);
        }
    }

    fn bounds(
        &mut self,
        schema: &Json,
        (least, most): (&str, &str),
        count: usize,
        what: &str,
        path: &str,
        mark: Mark,
    ) {
        let bound =
            |name: &str| schema[name].as_u64().map(|bound| usize::try_from(bound).unwrap_or(usize::MAX));
        if let Some(least) = bound(least).filter(|least| count < *least) {
            let message = if least == 1 {
                "must not be empty".to_owned()
            } else {
                format!("must have at least {least} {what}")
            };
            self.refuse(mark, path, message);
        }
        if let Some(most) = bound(most).filter(|most| count > *most) {
            self.refuse(mark, path, format!("must have at most {most} {what}, and has {count}"));
        }
    }

    fn list(&mut self, schema: &Json, node: &Node, items: &[Node], path: &str, mark: Mark) {
        self.bounds(schema, ("minItems", "maxItems"), items.len(), "items", path, mark);
        for (index, one) in items.iter().enumerate() {
            self.value(&schema["items"], one, &item(path, index), one.mark);
        }
        match schema["x-kubernetes-list-type"].as_str() {
            Some("set") => self.set(items, path),
            Some("map") => self.keyed(schema, node, path),
            _ => {}
        }
    }

    fn set(&mut self, items: &[Node], path: &str) {
        for (index, one) in items.iter().enumerate() {
            if items[..index].contains(one) {
                let message = format!("{} is listed already: list each once", said(&one.value));
                self.refuse(one.mark, &item(path, index), message);
            }
        }
    }

    /// Checks that the items of a list differ by their keys.
    fn keyed(&mut self, schema: &Json, node: &Node, path: &str) {
        let keys: Vec<_> = schema["x-kubernetes-list-map-keys"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Json::as_str)
            .collect();
        let mut seen = BTreeSet::new();
        for (index, one) in node.items().iter().enumerate() {
            let members: Option<Vec<&Member>> = keys.iter().map(|key| one.member(key)).collect();
            let Some(members) = members else { continue };
            let key: Vec<_> = members.iter().map(|member| said(&member.node.value)).collect();
            let Some(first) = members.first() else { continue };
            let message = format!("{} is taken: give each a {} of its own", key.join(", "), first.name);
            if !seen.insert(key) {
                self.refuse(first.place(), &member(&item(path, index), &first.name), message);
            }
        }
    }

    fn object(&mut self, schema: &Json, members: &[Member], path: &str, mark: Mark) {
        self.bounds(schema, ("minProperties", "maxProperties"), members.len(), "members", path, mark);
        // The API server drops what is null and may not be; nothing that a policy has may be.
        let is_set =
            |name: &str| members.iter().any(|member| member.name == name && member.node.value != Value::Null);
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str) {
            if !is_set(name) {
                let message = match schema["properties"][name]["description"].as_str() {
                    Some(description) => format!("{name} is missing: {}", first_sentence(description)),
                    None => format!("{name} is missing"),
                };
                self.diagnostics.push(Diagnostic::new(mark, path, message).of_kind(Kind::Missing));
            }
        }
        let properties = schema["properties"].as_object();
        for field in members {
            let path = member(path, &field.name);
            if let Some(schema) = properties.and_then(|properties| properties.get(&field.name)) {
                if field.node.value != Value::Null {
                    self.value(schema, &field.node, &path, field.place());
                }
            } else if schema["additionalProperties"].is_object() {
                self.value(&schema["additionalProperties"], &field.node, &path, field.place());
            } else if let Some(properties) = properties {
                self.unknown(properties, field, &path);
            }
        }
    }

    fn unknown(&mut self, properties: &Map<String, Json>, field: &Member, path: &str) {
        let known = || properties.keys().map(String::as_str);
        let (message, kind) = match (self.environment, field.name.as_str()) {
            (Environment::Alone, "secretKeyRef") if properties.contains_key("env") => (
                "only a cluster has Secrets: write env: NAME or file: PATH for a sidecar that runs alone, or check with --cluster"
                    .to_owned(),
                Kind::Bad,
            ),
            (Environment::Cluster, "env" | "file") if properties.contains_key("secretKeyRef") => {
                ("is for a sidecar that runs alone: write secretKeyRef: {name: ..., key: ...}".to_owned(), Kind::Unknown)
            }
            (_, name) => {
                let hint = match suggestion::nearest(name, known()) {
                    Some(meant) => format!("did you mean {meant}?"),
                    None if properties.len() <= MAX_LISTED => format!("write {}, or take it out", one_of(known())),
                    None => "take it out".to_owned(),
                };
                (format!("unknown field: {hint}"), Kind::Unknown)
            }
        };
        self.diagnostics.push(Diagnostic::new(field.mark, path, message).of_kind(kind));
    }
}

/// Returns the expected type of a value, if it has another.
fn mismatch(schema: &Json, node: &Node) -> Option<String> {
    let is_whole = matches!(&node.value, Value::Number(number) if !number.is_f64());
    if schema["x-kubernetes-int-or-string"] == true {
        let fits = is_whole || matches!(node.value, Value::Text(_));
        return (!fits).then(|| "a text or a whole number".to_owned());
    }
    let (fits, expected) = match (schema["type"].as_str()?, &node.value) {
        ("string", Value::Text(_))
        | ("boolean", Value::Bool(_))
        | ("number", Value::Number(_))
        | ("object", Value::Object(_))
        | ("array", Value::List(_)) => (true, String::new()),
        ("integer", _) => (is_whole, "a whole number".to_owned()),
        ("string", Value::Number(number)) if is_duration(schema) => {
            // No number is in the form of one; the error names the duration that it would be.
            let error = number.to_string().parse::<Duration>().err()?;
            (false, format!("a duration: {}", error.remedy()))
        }
        ("string", value @ (Value::Bool(_) | Value::Number(_))) => {
            (false, format!("a text: quote it, as in \"{}\"", said(value)))
        }
        ("string", _) => (false, "a text".to_owned()),
        ("boolean", _) => (false, "true or false".to_owned()),
        ("number", _) => (false, "a number".to_owned()),
        ("array", _) => {
            (false, "a list: write each item in a line of its own after a dash, or [ONE, OTHER]".to_owned())
        }
        ("object", _) => (false, object(schema)),
        _ => (true, String::new()),
    };
    (!fits).then_some(expected)
}

/// Returns true if the schema is that of a duration.
fn is_duration(schema: &Json) -> bool {
    let rules = schema["x-kubernetes-validations"].as_array();
    rules.into_iter().flatten().any(|one| one["rule"] == CEL_RULE)
}

fn object(schema: &Json) -> String {
    let required = schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str);
    let known =
        schema["properties"].as_object().into_iter().flat_map(|known| known.keys().map(String::as_str));
    match required.chain(known).next() {
        Some(name) => format!("an object: write its fields, such as {name}: ..."),
        None => "an object: write NAME: VALUE pairs".to_owned(),
    }
}

fn one_of<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => names.concat(),
    }
}

/// Returns the value as a message names it.
pub(super) fn said(value: &Value) -> String {
    const LONGEST: usize = 60;
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(word) => word.to_string(),
        Value::Number(number) => number.to_string(),
        Value::Text(text) if text.chars().count() > LONGEST => {
            format!("{:?}", text.chars().take(LONGEST).chain(['…']).collect::<String>())
        }
        Value::Text(text) => format!("{text:?}"),
        Value::List(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

fn first_sentence(description: &str) -> String {
    let line = description.split_whitespace().collect::<Vec<_>>().join(" ");
    let end = line.find(". ").unwrap_or(line.len());
    line[..end].trim_end_matches('.').to_owned()
}
