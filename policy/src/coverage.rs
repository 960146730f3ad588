//! Coverage: the operator's confirmation that every pod that takes requests has a sidecar, so that every write is seen.
//!
//! The operator stores it in a file beside the [`Document`](crate::Document), outside the document's hash: a change of
//! coverage neither rolls a pod nor makes one outdated.
//!
//! # Guarantees
//! - A response that was stored during one [`State::Serving`] is never served in another: [`Coverage::round`]
//!   identifies the period and is part of the key of stored responses.
//! - A document that follows its coverage is not in force without one: while the file is missing, malformed or foreign,
//!   the sidecar waits.

use serde::{Deserialize, Serialize};

/// The coverage of a policy: the state of its pods' sidecars as the operator sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Coverage {
    /// The uid of the policy. An earlier policy of the same name has another.
    pub policy: String,
    /// The permission to serve from the cache.
    pub state: State,
    /// Time at which the state began, to the microsecond (RFC 3339).
    pub since: String,
}

/// Permission to serve from the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Not permitted yet: pods without the sidecar, or sidecars of an earlier policy, take writes.
    Waiting,
    /// Permitted.
    Serving,
    /// Suspended until the pods without a sidecar are repaired.
    Interrupted,
}

impl Coverage {
    /// Parses the coverage of a policy. Returns `None` if the text is invalid or belongs to another policy.
    pub fn parse(text: &str, uid: &str) -> Option<Self> {
        serde_json::from_str(text).ok().filter(|coverage: &Self| coverage.policy == uid)
    }

    /// Serializes the coverage; equal coverage gives equal text.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self)
            .expect("a struct of texts has only string keys, which JSON can always write")
    }

    /// Returns the identifier of the current serving period; `None` while sidecars may not serve.
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
