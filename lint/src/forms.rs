//! Texts of a certain form, whose errors the parsers of the sidecar explain better than a CEL rule does.

use larder_policy::{
    ByteSize, Duration, PathTemplate, StatusPattern, duration, size, statuses,
    template::{self, PurgePath, purge_path},
};
use serde_json::Value as Json;

use super::tree::Value;

/// The `format` of a name in [`super::schema`], which is the API server's own and in no definition.
pub(super) const OBJECT_NAME: &str = "object-name";

/// An error of a text's form.
pub(super) struct Malformed {
    /// The error and its remedy.
    pub(super) message: String,
    /// A text of the form, if any one will do for the evaluation of the rest.
    pub(super) readable_as: Option<&'static str>,
}

/// Returns the error of a value whose schema asks for one of the forms.
pub(super) fn malformed(schema: &Json, value: &Value) -> Option<Malformed> {
    let text = match value {
        Value::Text(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Null | Value::Bool(_) | Value::List(_) | Value::Object(_) => return None,
    };
    if schema["format"] == OBJECT_NAME {
        let message = format!("{text:?} is not a name: write lower-case letters, digits, '-' and '.'");
        return (!is_object_name(&text)).then_some(Malformed { message, readable_as: None });
    }
    let rules = schema["x-kubernetes-validations"].as_array().into_iter().flatten();
    let (error, readable_as) =
        rules.filter_map(|rule| rule["rule"].as_str()).find_map(|rule| match rule {
            duration::CEL_RULE => Some((text.parse::<Duration>().err()?.to_string(), Some("1s"))),
            size::CEL_RULE => Some((text.parse::<ByteSize>().err()?.to_string(), Some("1Ki"))),
            statuses::CEL_RULE if matches!(value, Value::Text(_)) => {
                Some((text.parse::<StatusPattern>().err()?.to_string(), Some("2xx")))
            }
            template::CEL_RULE => Some((PathTemplate::try_from(text.clone()).err()?.to_string(), None)),
            purge_path::CEL_RULE => Some((PurgePath::try_from(text.clone()).err()?.to_string(), None)),
            _ => None,
        })?;
    Some(Malformed { message: error, readable_as })
}

/// Returns true for a
/// [DNS subdomain](https://kubernetes.io/docs/concepts/overview/working-with-objects/names/#dns-subdomain-names).
fn is_object_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let is_label = |label: &str| {
        !label.is_empty() && label.chars().all(allowed) && !label.starts_with('-') && !label.ends_with('-')
    };
    name.split('.').all(is_label)
}
