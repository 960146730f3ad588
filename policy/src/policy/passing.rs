//! Requests of routes that pass.
//!
//! A request that such a route misses is stored by a later one, and served to others. Where a route that stores takes only what every
//! application reads as one of its requests, a route that passes therefore takes what any application may read as one.

use http::Method;

use super::{RequestLine, Route, hosts::any_may_fit, index::RouteIndex};
use crate::{
    Fields,
    names::{could_be_or_is_odd, could_have, name_of, value_could_loosely_be},
};

/// Indexes the routes that pass by readings of paths; `None` if there are none.
pub(super) fn index(routes: &[Route]) -> Option<RouteIndex> {
    let mut passing = routes.iter().filter(|route| route.passes).peekable();
    passing.peek()?;
    Some(RouteIndex::of_readings(passing))
}

impl Route {
    /// Returns true if the route passes every request with this method whose path it has.
    pub(super) fn passes_whatever_it_matches(&self, method: &Method) -> bool {
        self.passes && self.has_method(method) && self.host.is_none() && !self.tells_by_fields()
    }

    /// Returns true if some application may take a request for one of this route, provided that its path may be.
    pub(super) fn may_take(&self, line: &RequestLine<'_>, fields: &(impl Fields + ?Sized)) -> bool {
        let in_header = |(name, wanted): &(String, String)| {
            could_have(fields, &name.to_ascii_lowercase(), |value| value_could_loosely_be(value, wanted))
        };
        let in_query = |(name, wanted): &(String, String)| {
            line.query.into_iter().flat_map(|query| query.split(['&', ';'])).any(|pair| {
                let value = pair.split_once('=').map_or("", |(_, value)| value);
                could_be_or_is_odd(name_of(pair).as_bytes(), name)
                    && (wanted == "*" || value_could_loosely_be(value.as_bytes(), wanted))
            })
        };
        let is_host = |pattern| any_may_fit(pattern, line.uri_host, fields);
        self.has_method(line.method)
            && self.host.as_ref().is_none_or(is_host)
            && self.headers.iter().all(in_header)
            && self.query.iter().all(in_query)
    }

    /// Returns true if a method is listed. A response to GET serves HEAD as well, so that either stands for both.
    fn has_method(&self, method: &Method) -> bool {
        let is_read = |method: &Method| matches!(*method, Method::GET | Method::HEAD);
        self.methods.iter().any(|listed| listed == method || is_read(listed) && is_read(method))
    }
}
