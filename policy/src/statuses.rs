//! Statuses of responses, one by one and by class.

use std::{borrow::Cow, fmt, str::FromStr};

use http::StatusCode;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Statuses of responses that are about one request or one client, so that no cache stores them: to preconditions, a range or an
/// expectation (RFC 9110, sections 15.5.13, 15.5.17 and 15.5.18), none of which is in a key, and those that RFC 6585
/// forbids to store.
const ABOUT_ONE_REQUEST: [u16; 7] = [412, 416, 417, 428, 429, 431, 511];

/// Statuses that the class `4xx` is made of: those about the resource. The others, and those that nobody has defined, which count as 400
/// (RFC 9110, section 15), are about the credentials, the content, the connection or other properties of one request. Anybody could make
/// an application respond with one of them, and everybody would receive it.
const CLIENT_ERRORS_OF_CLASS: [u16; 5] = [404, 405, 410, 414, 451];

/// Statuses that other classes leave out for the same reason, besides those that are never stored.
const NOT_OF_A_CLASS: [u16; 3] = [226, 505, 510];

/// The CEL rule by which the API server enforces the format.
pub const CEL_RULE: &str = "self != string(self) ? self >= 200 && self <= 599 : self.matches('^[2-5]xx$')";

/// A status, written as a number such as `404`, or a class of them, such as `4xx`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum StatusPattern {
    /// One status.
    Code(u16),
    /// Every status that begins with this digit and is about the resource: not, for example, 401, 403 or 429.
    Class(u8),
}

impl StatusPattern {
    /// Returns the class of a status, if a class has it.
    pub fn class_of(status: StatusCode) -> Option<Self> {
        let code = status.as_u16();
        let is_of_class = if status.is_client_error() {
            CLIENT_ERRORS_OF_CLASS.contains(&code)
        } else {
            !is_about_one_request(status) && !NOT_OF_A_CLASS.contains(&code)
        };
        is_of_class.then_some(Self::Class((code / 100) as u8))
    }
}

impl From<StatusCode> for StatusPattern {
    fn from(status: StatusCode) -> Self {
        Self::Code(status.as_u16())
    }
}

/// Returns true for statuses of responses that are about one request or one client.
pub(crate) fn is_about_one_request(status: StatusCode) -> bool {
    ABOUT_ONE_REQUEST.contains(&status.as_u16())
}

/// A text that is not a class of statuses.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a status: write one such as 404, or a class such as 4xx")]
pub struct StatusError(String);

impl FromStr for StatusPattern {
    type Err = StatusError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.as_bytes() {
            [digit @ b'2'..=b'5', b'x', b'x'] => Ok(Self::Class(digit - b'0')),
            _ => Err(StatusError(text.to_owned())),
        }
    }
}

impl fmt::Display for StatusPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "{code}"),
            Self::Class(digit) => write!(f, "{digit}xx"),
        }
    }
}

/// The YAML forms of a pattern: `404` is a number, `4xx` a text.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u16),
    Text(String),
}

impl TryFrom<Written> for StatusPattern {
    type Error = StatusError;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        match written {
            Written::Number(code) => Ok(Self::Code(code)),
            Written::Text(text) => text.parse(),
        }
    }
}

impl From<StatusPattern> for Written {
    fn from(pattern: StatusPattern) -> Self {
        match pattern {
            StatusPattern::Code(code) => Self::Number(code),
            StatusPattern::Class(_) => Self::Text(pattern.to_string()),
        }
    }
}

impl JsonSchema for StatusPattern {
    fn schema_name() -> Cow<'static, str> {
        "StatusPattern".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "maxLength": 3,
            "x-kubernetes-validations": [
                {
                    "rule": CEL_RULE,
                    "message": "write a status such as 404, or a class such as 4xx",
                },
                {
                    "rule": "self == string(self) || self != 304",
                    "message": "a 304 refers to a response that is already stored: list the status of that response, such as 200",
                },
                {
                    "rule": format!("self == string(self) || !(self in {ABOUT_ONE_REQUEST:?})"),
                    "message": "a response with this status is about one request or one client, and is never stored: take it out of statuses",
                },
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_read_and_written() {
        for (text, pattern) in [
            ("404", StatusPattern::Code(404)),
            ("\"2xx\"", StatusPattern::Class(2)),
            ("\"5xx\"", StatusPattern::Class(5)),
        ] {
            assert_eq!(serde_json::from_str::<StatusPattern>(text).unwrap(), pattern);
            assert_eq!(serde_json::to_string(&pattern).unwrap(), text);
        }
        for text in ["\"404\"", "\"1xx\"", "\"6xx\"", "\"4XX\"", "\"4x\"", "\"4xxx\"", "\"\"", "4.5", "true"]
        {
            assert!(serde_json::from_str::<StatusPattern>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn class_has_the_statuses_that_are_about_the_resource() {
        let class = |code| StatusPattern::class_of(StatusCode::from_u16(code).unwrap());
        for code in 400..500 {
            let is_about_resource = [404, 405, 410, 414, 451].contains(&code);
            assert_eq!(class(code), is_about_resource.then_some(StatusPattern::Class(4)), "{code}");
        }
        for code in [226, 505, 510, 511] {
            assert_eq!(class(code), None, "{code}");
        }
        assert_eq!(
            [200, 301, 503, 599].map(class),
            [2, 3, 5, 5].map(|digit| Some(StatusPattern::Class(digit)))
        );
    }
}
