//! A route's compiled key rules.

use super::text::push_escaping_hash;
use crate::{
    IdentityHeaders, forwarding,
    names::{compare, could_be, could_be_or_is_odd, is_odd, name_of, pairs},
    spec::{KeyHost, KeySpec, QueryOrder},
};

/// The text in place of any host. No client's host is written as this.
const ANY_HOST: &str = "*";

/// A route's compiled key rules.
#[derive(Clone, Debug, Default)]
pub struct KeyRules {
    /// Lower-case names of the headers in the key.
    pub headers: Vec<String>,
    /// Lower-case names of the headers that the route lists as ignored.
    pub ignore_headers: Vec<String>,
    /// Names of the cookies in the key.
    pub cookies: Vec<String>,
    /// Headers that the policy declares to identify a user, besides those that are known.
    pub identity: IdentityHeaders,
    /// The application does not see, or is not asked with, headers by which it may tailor a response.
    pub(crate) hides_tailoring: bool,
    /// Headers whose effect on responses the route's `bypass` declares.
    pub(crate) bypass_headers: Vec<String>,
    /// The text in place of the host, where requests for all hosts share a response.
    pub(crate) any_host: Option<String>,
    allow_query: Vec<String>,
    ignore_query: Vec<String>,
    /// Parameters that routes of the same paths are matched by.
    matched_query: Vec<String>,
    query_order: QueryOrder,
}

impl KeyRules {
    /// Compiles the rules of a route.
    pub fn new(spec: Option<&KeySpec>) -> Self {
        let Some(KeySpec { query, host, headers, ignore_headers, cookies, body: _ }) = spec else {
            return Self::default();
        };
        let lower = |names: &Option<Vec<String>>| {
            names.iter().flatten().map(|name| name.to_ascii_lowercase()).collect()
        };
        let query = query.clone().unwrap_or_default();
        Self {
            headers: lower(headers),
            ignore_headers: lower(ignore_headers),
            cookies: cookies.clone().unwrap_or_default(),
            identity: IdentityHeaders::default(),
            hides_tailoring: false,
            bypass_headers: vec![],
            any_host: (*host == Some(KeyHost::Ignore)).then(|| ANY_HOST.to_owned()),
            allow_query: query.allow.unwrap_or_default(),
            ignore_query: query.ignore.unwrap_or_default(),
            matched_query: vec![],
            query_order: query.order.unwrap_or_default(),
        }
    }

    /// Returns true if a header, in lower case, is in the key wherever a request has it.
    pub(crate) fn has_header(&self, name: &str) -> bool {
        let always = ["x-forwarded-host", "x-forwarded-proto", "content-encoding", "content-type"];
        always.contains(&name)
            || forwarding::of(name.as_bytes()).is_some_and(|forwarding| forwarding.is_keyed())
            || self.headers.iter().any(|known| known == name)
    }

    /// Returns true if a header by which an application may tailor a response is to be in the key, and is not one of
    /// [`Self::headers`].
    pub(crate) fn keys_tailoring(&self, name: &[u8]) -> bool {
        let listed = |list: &[String]| list.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()));
        ![&self.headers, &self.ignore_headers, &self.bypass_headers].into_iter().any(|list| listed(list))
    }

    /// Adds a header that the route matches by to the key.
    pub(crate) fn add_header(&mut self, name: &str) {
        let name = name.to_ascii_lowercase();
        if !self.headers.contains(&name) {
            self.headers.push(name);
        }
    }

    /// Adds a parameter that the route bypasses by to the key, where `allow` lists only some: a response to an almost
    /// matching bypass must not be stored as if the parameter were absent.
    pub(crate) fn add_query(&mut self, name: &str) {
        if !self.allow_query.is_empty() {
            self.allow_query.push(name.to_owned());
        }
    }

    /// Adds a parameter that a route of the same paths is matched by to the key, whatever else is in it: with another value, or twice,
    /// the request is one of another route.
    pub(crate) fn add_matched_query(&mut self, name: &str) {
        if !self.matched_query.iter().any(|known| known == name) {
            self.matched_query.push(name.to_owned());
        }
    }

    /// Returns true if a parameter of this name is left out of the key.
    pub(crate) fn ignores(&self, name: &str) -> bool {
        self.allow_query.is_empty() && !self.counts(name)
    }

    fn counts(&self, pair: &str) -> bool {
        // Some applications take ';' for a separator too: what comes after it may not be left out.
        if pair.contains(';') {
            return true;
        }
        let name = name_of(pair);
        let is_matched = |known: &String| could_be_or_is_odd(name.as_bytes(), known);
        if self.matched_query.iter().any(is_matched) {
            return true;
        }
        if self.allow_query.is_empty() {
            return !self.ignore_query.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => name == pattern,
            });
        }
        is_odd(name.as_bytes()) || self.allow_query.iter().any(|pattern| could_be(name.as_bytes(), pattern))
    }

    /// Adds the keyed part of a raw query.
    pub(crate) fn push_query(&self, into: &mut String, query: &str) {
        let counting = pairs(query).filter(|pair| self.counts(pair));
        if self.sorts(query) {
            push_pairs(into, sorted(counting).into_iter());
        } else {
            push_pairs(into, counting);
        }
    }

    /// Returns the query to send to the application if it differs from the client's: the keyed parameters in the order
    /// of the key, then the others.
    pub fn query_to_send(&self, query: &str) -> Option<String> {
        if !self.sorts(query) {
            return None;
        }
        let (counting, ignored): (Vec<_>, Vec<_>) = pairs(query).partition(|pair| self.counts(pair));
        let pairs: Vec<_> = sorted(counting.into_iter()).into_iter().chain(ignored).collect();
        Some(pairs.join("&")).filter(|sorted| sorted != query)
    }

    fn sorts(&self, query: &str) -> bool {
        // Where ';' is a separator too, a pair is several, and sorting could swap two of one name.
        self.query_order == QueryOrder::Sorted && !query.contains(';')
    }
}

fn sorted<'a>(pairs: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut sorted: Vec<_> = pairs.collect();
    sorted.sort_by(|one, other| compare(name_of(one).as_bytes(), name_of(other).as_bytes()));
    sorted
}

fn push_pairs<'a>(into: &mut String, pairs: impl Iterator<Item = &'a str>) {
    let mut separator = '?';
    for pair in pairs {
        into.push(separator);
        // A client that sends a '#' in a request target, where none can be, must not forge a header's part of the key.
        push_escaping_hash(into, pair);
        separator = '&';
    }
}
