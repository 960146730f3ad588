//! The text of a policy.

use std::{
    collections::{BTreeMap, HashSet},
    str::FromStr,
};

use super::{Template, USUAL_PORT};
use crate::args::program;

/// Key of a Secret where none is given.
const USUAL_KEY: &str = "url";
/// Maximum length of a route's name.
const MAX_NAME: usize = 40;

/// Example of a `ttl`, and the comment on it.
const TTL: (&str, &str) = ("60s", "a response is fresh for this time; without one its Cache-Control decides");
/// Example of a `grace`, and the comment on it.
const GRACE: (&str, &str) =
    ("10m", "a stale one is served for this time while it is refreshed, and while the application is down");
/// Comment below the routes.
const ON_WRITE: &str = r#"  # A write (POST, PUT, PATCH, DELETE) makes the stored response of its own path stale. Rules name what else it changes:
  # invalidation:
  #   onWrite:
  #   - match: {path: "/api/users/{id}"}
  #     purge: {paths: [/api/users]}
"#;

/// A policy to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Draft {
    pub(super) name: String,
    /// Namespace; none for that of whoever applies the policy.
    pub(super) namespace: Option<String>,
    pub(super) labels: BTreeMap<String, String>,
    /// Port of the container, by name or number.
    pub(super) port: String,
    pub(super) routes: Routes,
    pub(super) redis: Option<SecretKey>,
}

/// Routes of the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Routes {
    /// Routes for a kind of application.
    Template(Template),
    /// A route for each path.
    Paths { paths: Vec<String>, ttl: Option<String>, grace: Option<String> },
}

/// A key of a Secret, written `NAME/KEY`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SecretKey {
    name: String,
    key: String,
}

impl FromStr for SecretKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, key) = text.split_once('/').unwrap_or((text, USUAL_KEY));
        match name.is_empty() || key.is_empty() {
            true => Err("write a Secret's name and key, such as redis/url".to_owned()),
            false => Ok(Self { name: name.to_owned(), key: key.to_owned() }),
        }
    }
}

impl Draft {
    /// Returns a draft that the linter finds nothing in, to try answers with.
    pub(super) fn example() -> Self {
        Self {
            name: "app".to_owned(),
            namespace: None,
            labels: BTreeMap::from([("app".to_owned(), "app".to_owned())]),
            port: USUAL_PORT.to_owned(),
            routes: Routes::Paths { paths: vec!["/{*path}".to_owned()], ttl: None, grace: None },
            redis: None,
        }
    }

    /// Returns the policy in YAML, with comments.
    pub(super) fn text(&self) -> String {
        match &self.routes {
            Routes::Template(template) => self.of_template(template.text()),
            Routes::Paths { paths, ttl, grace } => self.of_paths(paths, ttl.as_deref(), grace.as_deref()),
        }
    }

    /// Returns a template with the draft's pods and Redis in place of its own.
    fn of_template(&self, template: &str) -> String {
        let has_place_for_redis = template.lines().any(|line| line.starts_with("  # l2: "));
        let mut text = String::new();
        for line in template.lines() {
            let line = match line.split_once(':').map_or("", |(start, _)| start) {
                "metadata" => format!("metadata: {}", self.metadata()),
                "  selector" => format!("  selector: {{matchLabels: {}}}", self.flow_labels()),
                "  targets" => format!("  targets: [{{port: {}}}]", self.flow_port()),
                "  # l2" => self.l2().unwrap_or_else(|| line.to_owned()),
                "  l1" if !has_place_for_redis => {
                    let l2 = self.l2().map(|l2| format!("\n{l2}")).unwrap_or_default();
                    format!("{line}{l2}")
                }
                _ => line.to_owned(),
            };
            text.push_str(&line);
            text.push('\n');
        }
        text
    }

    fn of_paths(&self, paths: &[String], ttl: Option<&str>, grace: Option<&str>) -> String {
        let l2 = self.l2().unwrap_or_else(|| {
            "  # l2: {redis: {urlFrom: {secretKeyRef: {name: redis, key: url}}}}".to_owned()
        });
        let mut text = format!(
            "\
# `{} lint FILE` checks this file, `kubectl apply -f FILE` puts it in force, and
# `kubectl explain cachepolicy.spec` describes every field.
apiVersion: larder.dev/v1alpha1
kind: CachePolicy
metadata: {}
spec:
  # Labels of the pods that get a sidecar.
  selector: {{matchLabels: {}}}
  # Port of the application, as its container names or numbers it.
  targets: [{{port: {}}}]
  # Memory of the cache in each pod.
  l1: {{maxSize: 64Mi}}
  # Redis, by which the pods share what one of them fetched.
{l2}
  # The first route that matches decides, and requests of no route pass through. So do those that name a person by a cookie or by
  # Authorization, unless the key of the route says how people are told apart.
  routes:
",
            program(),
            self.metadata(),
            self.flow_labels(),
            self.flow_port(),
        );
        let mut names = HashSet::new();
        for (index, path) in paths.iter().enumerate() {
            let name = route_name(path);
            let mut unique = name.clone();
            for number in 2.. {
                if names.insert(unique.clone()) {
                    break;
                }
                unique = format!("{name}-{number}");
            }
            text.push_str(&format!("  - name: {unique}\n    match: {{path: {}}}\n", quoted(path)));
            // One route is explained, the others are alike.
            text.push_str(&timed("ttl", ttl, TTL, index == 0));
            text.push_str(&timed("grace", grace, GRACE, index == 0));
        }
        text + ON_WRITE
    }

    fn metadata(&self) -> String {
        let namespace = self.namespace.as_ref().map(|name| format!(", namespace: {}", scalar(name)));
        format!("{{name: {}{}}}", scalar(&self.name), namespace.unwrap_or_default())
    }

    fn flow_labels(&self) -> String {
        let labels = self.labels.iter().map(|(key, value)| format!("{}: {}", scalar(key), scalar(value)));
        format!("{{{}}}", labels.collect::<Vec<_>>().join(", "))
    }

    fn flow_port(&self) -> String {
        if self.port.parse::<u16>().is_ok() { self.port.clone() } else { scalar(&self.port) }
    }

    fn l2(&self) -> Option<String> {
        let SecretKey { name, key } = self.redis.as_ref()?;
        Some(format!(
            "  l2: {{redis: {{urlFrom: {{secretKeyRef: {{name: {}, key: {}}}}}}}}}",
            scalar(name),
            scalar(key)
        ))
    }
}

/// Returns the line of a time, or a comment with an example of it.
fn timed(field: &str, time: Option<&str>, (example, comment): (&str, &str), is_explained: bool) -> String {
    match (time, is_explained) {
        (Some(time), true) => format!("    {field}: {}    # {comment}\n", scalar(time)),
        (Some(time), false) => format!("    {field}: {}\n", scalar(time)),
        (None, true) => format!("    # {field}: {example}    # {comment}\n"),
        (None, false) => String::new(),
    }
}

/// Returns the name of a route by the words of its path.
fn route_name(path: &str) -> String {
    let words = path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let name = words.collect::<Vec<_>>().join("-").to_lowercase();
    let name: String = name.chars().take(MAX_NAME).collect();
    match (path, name.trim_end_matches('-')) {
        ("/{*path}", _) | (_, "") => "all".to_owned(),
        (_, name) => name.to_owned(),
    }
}

/// Returns a text as a scalar of YAML that is read as a text.
fn scalar(text: &str) -> String {
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._/".contains(&byte));
    let is_word =
        ["true", "false", "yes", "no", "on", "off", "null", "y", "n"].contains(&text.to_lowercase().as_str());
    // Times such as 60s are plain as well, numbers are not.
    let is_time = text.ends_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_digit() || b"hms".contains(&byte));
    if (is_plain && !is_word) || is_time { text.to_owned() } else { quoted(text) }
}

/// Returns a text in quotes, with JSON's escapes, which are YAML's too.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
