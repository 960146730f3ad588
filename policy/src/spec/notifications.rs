//! Notifications of Postgres, as written in a policy.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rule;

/// A channel of Postgres whose notifications purge. The payload is a document as for `POST /purge`, such as
/// `{"tags": ["user:1"]}`. Whoever may connect to the database may notify. After a gap, in which notifications are lost,
/// everything of the policy is purged; a payload that is no such document purges everything, too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Notifications {
    /// Name of a member of `sources`, a Postgres server: the primary, reached without a pooler that shares sessions. One more
    /// connection of each pod listens there.
    #[schemars(length(min = 1, max = 63))]
    pub source: String,

    /// Name of the channel, case included.
    #[serde(default = "default_channel")]
    #[schemars(length(max = 63), extend("x-kubernetes-validations" = rule(
        "self.matches('^[A-Za-z_][A-Za-z0-9_.-]*$')",
        "write the name of a channel in letters, digits and _, . or -, such as larder",
    )))]
    pub channel: String,
}

fn default_channel() -> String {
    "larder".to_owned()
}
