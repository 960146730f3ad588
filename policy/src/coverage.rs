//! Coverage: the operator's word that every pod that takes requests has a sidecar, so that every write is seen.
//!
//! The operator keeps it in a file beside the [`Document`](crate::Document), outside of what the document's hash covers: a
//! change of coverage neither rolls a pod nor makes one outdated.
//!
//! # Guarantees
//! - What was stored during one [`State::Serving`] is never served in another: [`Coverage::round`] names it, and is part of
//!   what stored responses are found by.
//! - A document that follows its coverage is not served by without one: a missing, malformed or foreign file means waiting.

use serde::{Deserialize, Serialize};

/// The name of the file, beside the policy's own.
pub const FILE_NAME: &str = "coverage.json";

/// Whether every pod that takes requests has the sidecar.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Coverage {
    /// The uid of the policy that it is about. An earlier policy of the same name has another.
    pub policy: String,
    /// Whether its sidecars may serve from the cache.
    pub state: State,
    /// When the state began, to the microsecond (RFC 3339).
    pub since: String,
}

/// Whether sidecars may serve from the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Not yet: pods without the sidecar, or sidecars of an earlier policy, take writes.
    Waiting,
    /// They may.
    Serving,
    /// Not any more, until the pods that have no sidecar are repaired.
    Interrupted,
}

impl Coverage {
    /// Reads the coverage of a policy. `None` if the text is none, or is about another policy.
    pub fn parse(text: &str, uid: &str) -> Option<Self> {
        serde_json::from_str(text).ok().filter(|coverage: &Self| coverage.policy == uid)
    }

    /// Writes it; the same coverage gives the same text.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self)
            .expect("a struct of texts has only string keys, which JSON can always write")
    }

    /// The name of the time of serving that it stands for; `None` while sidecars may not serve.
    pub fn round(&self) -> Option<&str> {
        (self.state == State::Serving).then_some(self.since.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serving() -> Coverage {
        Coverage { policy: "u-1".into(), state: State::Serving, since: "2026-01-01T00:00:00.000001Z".into() }
    }

    #[test]
    fn only_its_own_policy_may_serve_by_it() {
        let text = serving().to_json();
        assert_eq!(Coverage::parse(&text, "u-1"), Some(serving()));
        assert_eq!(Coverage::parse(&text, "u-2"), None);
        assert_eq!(serving().round(), Some("2026-01-01T00:00:00.000001Z"));
    }

    #[test]
    fn waiting_and_malformed_texts_allow_nothing() {
        for state in [State::Waiting, State::Interrupted] {
            assert_eq!(Coverage { state, ..serving() }.round(), None);
        }
        for text in ["", "{}", "yes", r#"{"policy":"u-1","state":"Sure","since":"x"}"#] {
            assert_eq!(Coverage::parse(text, "u-1"), None, "{text:?}");
        }
    }
}
