//! Refusals.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Problem details (RFC 9457), the body of every response with a status from 400 on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// The status in words.
    pub title: String,
    /// The status.
    #[schemars(range(min = 400, max = 599))]
    pub status: u16,
    /// The error, with a remedy.
    pub detail: String,
}

impl Problem {
    /// The media type (RFC 9457, section 3).
    pub const MEDIA_TYPE: &'static str = "application/problem+json";
}
