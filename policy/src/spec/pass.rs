//! The rule on `pass: true`: nothing is said of stored responses where none are stored.

use serde_json::{Value, json};

use super::RouteSpec;

/// Fields of a route that say something of stored responses.
const FIELDS: [(&str, Unsaid); 25] = [
    ("ttl", Unsaid::Absent),
    ("maxTTL", Unsaid::Absent),
    ("statuses", Unsaid::Empty),
    ("staleWhileRevalidate", Unsaid::Absent),
    ("staleIfError", Unsaid::Absent),
    ("grace", Unsaid::Absent),
    ("storeDespite", Unsaid::Empty),
    ("setCookie", Unsaid::Default("Refuse")),
    ("clientDirectives", Unsaid::Default("Ignore")),
    ("bypass", Unsaid::Absent),
    ("key", Unsaid::Absent),
    ("forwardHeaders", Unsaid::Default("All")),
    ("tags", Unsaid::Empty),
    ("tagsFrom", Unsaid::Absent),
    ("from", Unsaid::Empty),
    ("ttlFrom", Unsaid::Absent),
    ("ttlJitterPercent", Unsaid::Absent),
    ("l1TTL", Unsaid::Absent),
    ("l2TTL", Unsaid::Absent),
    ("notFoundTTL", Unsaid::Absent),
    ("earlyRefresh", Unsaid::Default("Never")),
    ("lastKnownGood", Unsaid::Absent),
    ("retryInterval", Unsaid::Absent),
    ("collapseTimeout", Unsaid::Absent),
    ("envelope", Unsaid::False),
];

/// Value of a field that says nothing. Earlier definitions had defaults that the API server filled in, so that policies which it stores may
/// have them.
#[derive(Clone, Copy)]
enum Unsaid {
    Absent,
    Empty,
    False,
    Default(&'static str),
}

impl Unsaid {
    fn is(self, value: &Value) -> bool {
        match self {
            Self::Absent => false,
            Self::Empty => *value == json!([]),
            Self::False => *value == json!(false),
            Self::Default(default) => value == default,
        }
    }
}

/// Returns true if a route says something of stored responses.
pub(crate) fn says_of_stored_responses(route: &RouteSpec) -> bool {
    let written = serde_json::to_value(route).unwrap_or_default();
    FIELDS.iter().any(|(name, unsaid)| written.get(name).is_some_and(|value| !unsaid.is(value)))
}

/// Returns the rule in CEL.
pub(super) fn rule() -> String {
    let says = FIELDS.map(|(name, unsaid)| match unsaid {
        Unsaid::Absent => format!("has(self.{name})"),
        Unsaid::Empty => format!("(has(self.{name}) && size(self.{name}) > 0)"),
        Unsaid::False => format!("(has(self.{name}) && self.{name})"),
        Unsaid::Default(value) => format!("(has(self.{name}) && self.{name} != '{value}')"),
    });
    format!("!has(self.pass) || !self.pass || !({})", says.join(" || "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_a_route_is_in_the_rule_with_its_default() {
        let schema = schemars::schema_for!(RouteSpec);
        let properties = schema.as_value()["properties"].as_object().unwrap();
        let is_about_requests = |name: &str| ["name", "match", "pass"].contains(&name);
        let mut expected: Vec<_> =
            properties.keys().map(String::as_str).filter(|name| !is_about_requests(name)).collect();
        let mut listed = FIELDS.map(|(name, _)| name);
        expected.sort_unstable();
        listed.sort_unstable();
        assert_eq!(listed.as_slice(), expected);
        for (name, unsaid) in FIELDS {
            let default = match unsaid {
                Unsaid::Absent => Value::Null,
                Unsaid::Empty => json!([]),
                Unsaid::False => json!(false),
                Unsaid::Default(value) => json!(value),
            };
            let mut route = json!({"name": "a", "match": {"path": "/a"}, "pass": true});
            if !default.is_null() {
                route[name] = default;
            }
            let read: RouteSpec = serde_json::from_value(route).unwrap();
            assert!(!says_of_stored_responses(&read), "{name} at its default says nothing");
        }
    }
}
