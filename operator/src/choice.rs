//! A pod's own choice for or against the sidecar: `larder.dev/inject`, as a label or an annotation.
//!
//! Injectors differ in the values that they accept (`"false"`, `disabled`, `off`, `"0"`), and in reading labels or annotations. All of
//! these are read here; of a label and an annotation that differ, the one against the sidecar counts.

use std::collections::BTreeMap;

use kube::ResourceExt;
use larder_api::labels;

/// Values against the sidecar, in lower case.
pub const OUT: [&str; 9] = ["false", "no", "off", "disabled", "disable", "never", "n", "f", "0"];
/// Values for the sidecar, in lower case.
const IN: [&str; 9] = ["true", "yes", "on", "enabled", "enable", "always", "y", "t", "1"];

/// A pod's own choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// None: the policies decide.
    Open,
    /// The pod asks for a sidecar, which it gets only from a policy that selects it.
    In,
    /// The pod has opted out.
    Out,
    /// The value is unknown and has no effect.
    Unknown(String),
}

impl Choice {
    /// Reads the choice from labels and annotations.
    pub fn of(labels: &BTreeMap<String, String>, annotations: &BTreeMap<String, String>) -> Self {
        let values = [labels, annotations].into_iter().filter_map(|map| map.get(labels::INJECT));
        let choices: Vec<_> = values.map(|value| Self::read(value)).collect();
        let unknown = choices.iter().find(|choice| matches!(choice, Self::Unknown(_)));
        let first = [Self::Out].into_iter().find(|choice| choices.contains(choice));
        first.or_else(|| unknown.or(choices.first()).cloned()).unwrap_or(Self::Open)
    }

    fn read(value: &str) -> Self {
        let lower = value.trim().to_lowercase();
        match lower.as_str() {
            word if OUT.contains(&word) => Self::Out,
            word if IN.contains(&word) => Self::In,
            _ => Self::Unknown(value.to_owned()),
        }
    }

    /// Returns a clause for a choice that has no effect. `selected` is true if a policy selects the pod.
    pub fn remark(&self, selected: bool) -> Option<String> {
        match self {
            Self::Unknown(value) => Some(format!(
                "{}: {value:?} has no effect: write \"false\" to opt out, or remove it",
                labels::INJECT
            )),
            Self::In if !selected => Some(format!(
                "{} has no effect, because no policy of the namespace selects the pod: give it the labels of a policy's \
                 spec.selector",
                labels::INJECT
            )),
            Self::Open | Self::In | Self::Out => None,
        }
    }
}

/// Returns true if an object that has the labels and annotations of a pod has opted out.
pub fn opted_out(object: &impl ResourceExt) -> bool {
    Choice::of(object.labels(), object.annotations()) == Choice::Out
}

/// Returns a CEL expression that is true for pods that have not opted out.
pub fn has_not_opted_out() -> String {
    let words = OUT.map(|word| format!("'{word}'")).join(", ");
    let is_out = |of: &str| {
        format!(
            "has(object.metadata.{of}) && '{key}' in object.metadata.{of} && \
             object.metadata.{of}['{key}'].trim().lowerAscii() in [{words}]",
            key = labels::INJECT
        )
    };
    format!("!({}) && !({})", is_out("labels"), is_out("annotations"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(label: Option<&str>, annotation: Option<&str>) -> Choice {
        let map = |value: Option<&str>| {
            value.map(|value| (labels::INJECT.to_owned(), value.to_owned())).into_iter().collect()
        };
        Choice::of(&map(label), &map(annotation))
    }

    #[test]
    fn any_spelling_is_read_from_label_and_annotation() {
        for value in ["false", "False", "FALSE", "no", "off", "disabled", "Disabled", "0", "n", " false "] {
            assert_eq!(of(Some(value), None), Choice::Out, "{value}");
            assert_eq!(of(None, Some(value)), Choice::Out, "{value}");
            assert_eq!(of(Some("true"), Some(value)), Choice::Out, "{value}");
            assert_eq!(of(Some(value), Some("maybe")), Choice::Out, "{value}");
        }
        for value in ["true", "True", "yes", "on", "enabled", "1", "Y"] {
            assert_eq!(of(Some(value), None), Choice::In, "{value}");
            assert_eq!(of(None, Some(value)), Choice::In, "{value}");
        }
        for value in ["", "maybe", "flase", "ingress"] {
            assert_eq!(of(Some(value), None), Choice::Unknown(value.into()), "{value}");
            assert_eq!(of(Some("true"), Some(value)), Choice::Unknown(value.into()), "{value}");
        }
        assert_eq!(of(None, None), Choice::Open);
    }

    #[test]
    fn choice_without_effect_has_a_remark() {
        assert!(of(Some("maybe"), None).remark(true).unwrap().contains("\"maybe\" has no effect"));
        assert!(of(Some("true"), None).remark(false).unwrap().contains("no policy of the namespace"));
        for (choice, selected) in [(Choice::In, true), (Choice::Out, false), (Choice::Open, false)] {
            assert_eq!(choice.remark(selected), None);
        }
    }
}
