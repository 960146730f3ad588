//! Those CEL rules of the definition that [`larder_policy::Policy::compile`] does not mirror: what is about the form of one
//! text, which it never sees, and what is about a cluster, which a sidecar does not read.

use std::borrow::Cow;

use larder_policy::{ByteSize, Duration, PathTemplate, duration};
use serde_json::{Value as Json, json};

use super::{
    quantity::nanos,
    tree::{Node, Value},
};

/// A value that rules stand at.
#[derive(Clone, Copy)]
pub(super) struct Scope<'a> {
    pub(super) node: &'a Node,
    pub(super) schema: &'a Json,
}

/// A rule that does not hold.
pub(super) struct Broken {
    pub(super) message: String,
    /// A value of the form that was expected.
    pub(super) readable_as: Option<&'static str>,
}

/// How a rule is evaluated here.
struct Rule {
    /// As the definition has it.
    cel: &'static str,
    holds: Holds,
}

enum Holds {
    /// It is about the form of one text; what is wrong with it is said better than by the rule.
    Form(fn(&str) -> Result<(), String>, Option<&'static str>),
    /// It is about a value and its parts.
    Whole(fn(Scope<'_>) -> bool),
}

use Holds::{Form, Whole};

/// The API server's own rule about names, which no definition has.
const NAME: &str = "is the name of an object";

const RULES: &[Rule] = &[
    Rule {
        cel: duration::CEL_RULE,
        holds: Form(|text| text.parse::<Duration>().map(drop).map_err(|error| error.to_string()), Some("1s")),
    },
    Rule {
        cel: "type(self) == int ? self >= 0 : self.matches('^[0-9]+([KMGTPE]i|[kMGTP])?$')",
        holds: Form(
            |text| text.parse::<ByteSize>().map(drop).map_err(|error| error.to_string()),
            Some("1Ki"),
        ),
    },
    Rule {
        cel: "self.matches('^(/([A-Za-z0-9._~!$&()+,;=:@%-]*|[{][A-Za-z][A-Za-z0-9_]*[}]))+$')",
        holds: Form(
            |text| PathTemplate::try_from(text.to_owned()).map(drop).map_err(|error| error.to_string()),
            None,
        ),
    },
    Rule {
        cel: "isQuantity(string(self)) && !quantity(string(self)).isLessThan(quantity('0'))",
        holds: Whole(|scope| nanos(&written(&scope.node.value)).is_some_and(|nanos| nanos >= 0)),
    },
    Rule {
        cel: "type(self) == int ? self > 0 && self < 65536 : size(self) <= 15 && self.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?$') && self.matches('[a-z]')",
        holds: Whole(|scope| match &scope.node.value {
            Value::Number(number) => number.as_u64().is_some_and(|port| (1..65536).contains(&port)),
            value => is_port_name(&written(value)),
        }),
    },
    Rule {
        cel: "(has(self.matchLabels) && size(self.matchLabels) > 0) || (has(self.matchExpressions) && size(self.matchExpressions) > 0)",
        holds: Whole(|scope| scope.has_some("matchLabels") || scope.has_some("matchExpressions")),
    },
    Rule {
        cel: "self.operator in ['In', 'NotIn'] ? has(self.values) && size(self.values) > 0 : !has(self.values) || size(self.values) == 0",
        holds: Whole(|scope| {
            matches!(scope.text("operator").as_deref(), Some("In" | "NotIn")) == scope.has_some("values")
        }),
    },
    Rule { cel: "size(self) > 0", holds: Whole(|scope| !scope.node.items().is_empty()) },
    Rule {
        cel: "!isQuantity(string(self.requests.memory)) || !isQuantity(string(self.limits.memory)) || quantity(string(self.requests.memory)).compareTo(quantity(string(self.limits.memory))) <= 0",
        holds: Whole(|scope| scope.is_at_most("requests.memory", 0, "limits.memory")),
    },
    Rule {
        cel: "!has(self.limits.cpu) || !isQuantity(string(self.requests.cpu)) || !isQuantity(string(self.limits.cpu)) || quantity(string(self.requests.cpu)).compareTo(quantity(string(self.limits.cpu))) <= 0",
        holds: Whole(|scope| scope.is_at_most("requests.cpu", 0, "limits.cpu")),
    },
    Rule {
        cel: "!isQuantity(string(self.l1.maxSize)) || !isQuantity(string(self.sidecar.resources.limits.memory)) || quantity(string(self.l1.maxSize)).add(quantity('32Mi')).compareTo(quantity(string(self.sidecar.resources.limits.memory))) <= 0",
        holds: Whole(|scope| {
            scope.is_at_most("l1.maxSize", (32 << 20) * 1_000_000_000, "sidecar.resources.limits.memory")
        }),
    },
    Rule {
        cel: "size(self.metadata.name) <= 50",
        holds: Whole(|scope| scope.text("metadata.name").is_none_or(|name| name.chars().count() <= 50)),
    },
    Rule {
        cel: NAME,
        holds: Form(
            |text| match is_object_name(text) {
                true => Ok(()),
                false => {
                    Err(format!("{text:?} is not a name: write lower-case letters, digits, '-' and '.'"))
                }
            },
            None,
        ),
    },
];

/// The rules at a value that do not hold, of those that are evaluated here.
pub(super) fn broken(scope: Scope<'_>) -> Vec<Broken> {
    let listed = scope.schema["x-kubernetes-validations"].as_array().into_iter().flatten();
    let broken = listed.filter_map(|rule| {
        let cel = rule["rule"].as_str()?;
        match &RULES.iter().find(|known| known.cel == cel)?.holds {
            Form(holds, readable_as) => {
                let message = holds(&written(&scope.node.value)).err()?;
                Some(Broken { message, readable_as: *readable_as })
            }
            Whole(holds) if holds(scope) => None,
            Whole(_) => Some(Broken { message: rule["message"].as_str()?.to_owned(), readable_as: None }),
        }
    });
    broken.collect()
}

/// The API server's rule of that name, as a schema has rules.
pub(super) fn name() -> Json {
    json!({"rule": NAME})
}

impl<'a> Scope<'a> {
    /// The value at a path from here; where there is none, its default.
    fn text(self, path: &str) -> Option<Cow<'a, str>> {
        let (mut node, mut schema) = (Some(self.node), self.schema);
        for name in path.split('.') {
            node = node.and_then(|node| node.get(name));
            schema = &schema["properties"][name];
        }
        match (node, &schema["default"]) {
            (Some(node), _) => Some(written(&node.value)),
            (None, Json::String(default)) => Some(default.into()),
            (None, _) => None,
        }
    }

    fn has_some(self, name: &str) -> bool {
        match self.node.get(name).map(|node| &node.value) {
            Some(Value::List(items)) => !items.is_empty(),
            Some(Value::Object(members)) => !members.is_empty(),
            _ => false,
        }
    }

    /// Whether one amount, and so many nanos more, is not above another; so it is if one of them is none.
    fn is_at_most(self, one: &str, more: i128, other: &str) -> bool {
        let amount = |path| self.text(path).and_then(|text| nanos(&text));
        match (amount(one), amount(other)) {
            (Some(one), Some(other)) => one.saturating_add(more) <= other,
            _ => true,
        }
    }
}

/// A value as CEL's `string()` has it.
fn written(value: &Value) -> Cow<'_, str> {
    match value {
        Value::Text(text) => text.into(),
        Value::Number(number) => number.to_string().into(),
        Value::Bool(word) => word.to_string().into(),
        Value::Null | Value::List(_) | Value::Object(_) => "".into(),
    }
}

fn is_port_name(name: &str) -> bool {
    name.len() <= 15 && is_label(name) && name.contains(|c: char| c.is_ascii_lowercase())
}

/// [RFC 1123](https://kubernetes.io/docs/concepts/overview/working-with-objects/names/#dns-subdomain-names).
fn is_object_name(name: &str) -> bool {
    name.split('.').all(is_label)
}

fn is_label(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !name.is_empty() && name.chars().all(allowed) && !name.starts_with('-') && !name.ends_with('-')
}
