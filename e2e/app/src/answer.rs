//! Instructions to the application, in the query of a request.

use std::{str::FromStr, time::Duration};

use http::{HeaderName, HeaderValue, StatusCode};
use percent_encoding::percent_decode_str;

/// The response that a query describes: `?status=404&delay=50&size=1000&header=Cache-Control:no-store`.
#[derive(Debug, PartialEq)]
pub(crate) struct Wanted {
    /// Status code; default 200.
    pub(crate) status: StatusCode,
    /// Delay of the response, from milliseconds.
    pub(crate) delay: Duration,
    /// Minimum size of the body, in bytes.
    pub(crate) size: usize,
    /// Response headers. A later one of the same name is added, not put in place of the earlier.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
}

impl Wanted {
    /// Parses a query; other parameters belong to the cache's key, and are ignored here.
    ///
    /// # Errors
    /// The parameter that is invalid.
    pub(crate) fn parse(query: &str) -> Result<Self, String> {
        let mut wanted = Self { status: StatusCode::OK, delay: Duration::ZERO, size: 0, headers: Vec::new() };
        for parameter in query.split('&') {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let unreadable = || format!("can't read {parameter}");
            match name {
                "status" => wanted.status = StatusCode::from_str(value).map_err(|_| unreadable())?,
                "delay" => wanted.delay = Duration::from_millis(value.parse().map_err(|_| unreadable())?),
                "size" => wanted.size = value.parse().map_err(|_| unreadable())?,
                "header" => {
                    let (name, value) = value.split_once(':').ok_or_else(unreadable)?;
                    let value = percent_decode_str(value).decode_utf8().map_err(|_| unreadable())?;
                    wanted.headers.push((
                        name.parse().map_err(|_| unreadable())?,
                        value.parse().map_err(|_| unreadable())?,
                    ));
                }
                _ => {}
            }
        }
        Ok(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_describes_the_response() {
        let wanted =
            Wanted::parse("q=1&status=404&delay=5&size=7&header=Vary:*&header=Set-Cookie:a=%22b%22;%20c")
                .unwrap();
        assert_eq!(wanted.status, StatusCode::NOT_FOUND);
        assert_eq!(wanted.delay, Duration::from_millis(5));
        assert_eq!(wanted.size, 7);
        assert_eq!(wanted.headers[0].0, "vary");
        assert_eq!(wanted.headers[1].1, "a=\"b\"; c");
    }

    #[test]
    fn unreadable_parameter_is_named() {
        assert_eq!(Wanted::parse("delay=soon"), Err("can't read delay=soon".to_owned()));
        assert_eq!(Wanted::parse("header=Vary"), Err("can't read header=Vary".to_owned()));
    }
}
