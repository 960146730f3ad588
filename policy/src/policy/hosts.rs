//! The hosts of a request, and the routes that they belong to.

use http::header::HOST;

use crate::{Fields, key::all_forwarded_hosts, names::is_alike};

/// A host name in lower case, without a port: exact, or with `*.` for one or more labels before it, as in Gateway API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPattern(String);

impl HostPattern {
    /// Parses a pattern; `None` if it is none.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let is_label = |label: &str| {
            let is_inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            !label.is_empty()
                && label.bytes().all(is_inside)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let name = text.strip_prefix("*.").unwrap_or(text);
        (text.len() <= 253 && name.split('.').all(is_label)).then(|| Self(text.to_owned()))
    }

    /// Returns the pattern as it was written.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns true if every host that another pattern stands for is one of this.
    pub(super) fn covers(&self, other: &Self) -> bool {
        self.fits(other.0.as_bytes())
    }

    /// Returns true for a host, without its port.
    fn fits(&self, name: &[u8]) -> bool {
        let Some(end) = self.0.strip_prefix('*') else { return name.eq_ignore_ascii_case(self.0.as_bytes()) };
        let Some((labels, rest)) = name.len().checked_sub(end.len()).map(|at| name.split_at(at)) else {
            return false;
        };
        // The star is that of another pattern.
        let is_inside = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.*".contains(byte);
        rest.eq_ignore_ascii_case(end.as_bytes()) && !labels.is_empty() && labels.iter().all(is_inside)
    }
}

/// The hosts that a request names.
#[derive(Clone, Copy, Debug)]
pub(super) struct NamedHosts<'a> {
    /// Name of the host in the absolute target or in `Host`.
    own: &'a [u8],
    /// True if a header names another, or the same again.
    has_others: bool,
    has_uri_host: bool,
}

impl<'a> NamedHosts<'a> {
    /// Finds the hosts of a request. The host of an absolute target replaces that of `Host` (RFC 9112, section 3.2.2).
    pub(super) fn of(uri_host: Option<&'a str>, fields: &'a (impl Fields + ?Sized)) -> Self {
        let mut lines = fields.values(HOST.as_str());
        let (own, is_repeated) = match uri_host {
            Some(host) => (host.as_bytes(), false),
            None => (lines.next().unwrap_or_default(), lines.next().is_some()),
        };
        let has_others = is_repeated || fields.has(FORWARDED_HOST) || fields.has("forwarded");
        Self { own: without_port(own), has_others, has_uri_host: uri_host.is_some() }
    }

    /// Returns true if a pattern stands for every host that an application may take for the request's: another in
    /// `X-Forwarded-Host` or `Forwarded` is none of a route's, because the response could be that of another route.
    pub(super) fn all_fit(&self, pattern: &HostPattern, fields: &(impl Fields + ?Sized)) -> bool {
        let fits = |host: &[u8]| pattern.fits(without_port(host.trim_ascii()));
        let own_lines = || fields.values(HOST.as_str()).filter(|_| !self.has_uri_host);
        let forwarded = || fields.values(FORWARDED_HOST).flat_map(|line| line.split(|byte| *byte == b','));
        pattern.fits(self.own)
            && (!self.has_others
                || own_lines().chain(forwarded()).all(fits) && all_forwarded_hosts(fields, fits))
    }
}

/// Returns true if a pattern may stand for the host of a request to some application: for any that the request names, in a
/// field that CGI reads as one of a host as well. A request that names no host, or one that is not understood, may be for any.
pub(super) fn any_may_fit(
    pattern: &HostPattern,
    uri_host: Option<&str>,
    fields: &(impl Fields + ?Sized),
) -> bool {
    let may_fit = |host: &[u8]| {
        let name = host.trim_ascii().split(|byte| *byte == b':').next().unwrap_or_default();
        let name = name.strip_suffix(b".").unwrap_or(name);
        name.is_empty() || pattern.fits(name)
    };
    let mut names_one = uri_host.is_some();
    let mut in_field = |(name, value): (&[u8], &[u8])| {
        let names = name.eq_ignore_ascii_case(HOST.as_str().as_bytes()) || is_alike(name, FORWARDED_HOST);
        names_one |= names;
        names && value.split(|byte| *byte == b',').any(may_fit)
    };
    uri_host.is_some_and(|host| may_fit(host.as_bytes()))
        || fields.lines().any(&mut in_field)
        || !all_forwarded_hosts(fields, |host| !may_fit(host))
        || !names_one
}

const FORWARDED_HOST: &str = "x-forwarded-host";

/// Returns the name in a host, without its port and the root's dot; empty if it has more than that.
fn without_port(host: &[u8]) -> &[u8] {
    let end = host.iter().position(|byte| *byte == b':').unwrap_or(host.len());
    let (name, port) = host.split_at(end);
    if port.iter().skip(1).all(u8::is_ascii_digit) { name.strip_suffix(b".").unwrap_or(name) } else { b"" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> HostPattern {
        HostPattern::parse(text).unwrap()
    }

    #[test]
    fn patterns_are_names_in_lower_case() {
        for text in ["a", "shop.example", "*.shop.example", "10.0.0.7", "a-b.c"] {
            assert_eq!(HostPattern::parse(text).map(|pattern| pattern.0).as_deref(), Some(text));
        }
        let long = "a".repeat(254);
        for text in ["", "*", "*.", "A", "a.", ".a", "a..b", "a:80", "a.*", "**.a", "-a", "a-", "a_b", &long]
        {
            assert_eq!(HostPattern::parse(text), None, "{text}");
        }
    }

    #[test]
    fn star_stands_for_one_label_or_more() {
        let (exact, wild) = (pattern("shop.example"), pattern("*.shop.example"));
        for (host, fits) in [
            ("shop.example", [true, false]),
            ("SHOP.Example:8080", [true, false]),
            ("shop.example.", [true, false]),
            ("a.shop.example", [false, true]),
            ("a.b.Shop.example.:80", [false, true]),
            ("ashop.example", [false, false]),
            (".shop.example", [false, false]),
            ("evil/.shop.example", [false, false]),
            ("shop.example:evil", [false, false]),
            ("shop.example, a", [false, false]),
            ("", [false, false]),
        ] {
            let none: &[(&[u8], &[u8])] = &[];
            let named = NamedHosts::of(Some(host), none);
            assert_eq!([&exact, &wild].map(|pattern| named.all_fit(pattern, none)), fits, "{host}");
        }
        assert!(wild.covers(&pattern("a.shop.example")) && wild.covers(&pattern("*.a.shop.example")));
        assert!(wild.covers(&wild) && exact.covers(&exact));
        assert!(!wild.covers(&exact) && !exact.covers(&wild) && !pattern("*.a.shop.example").covers(&wild));
    }

    #[test]
    fn every_host_of_a_request_has_to_fit() {
        let shop = pattern("shop.example");
        for (lines, fits) in [
            (&[("host", "shop.example"), ("x-forwarded-host", "Shop.example:443")][..], true),
            (&[("host", "shop.example"), ("x-forwarded-host", "shop.example, shop.example")], true),
            (
                &[
                    ("host", "shop.example"),
                    ("forwarded", "for=a;host=\"shop.example:80\";proto=https, for=b"),
                ],
                true,
            ),
            (&[("host", "shop.example"), ("x-forwarded-host", "evil")], false),
            (&[("host", "evil"), ("x-forwarded-host", "shop.example")], false),
            (&[("host", "shop.example"), ("x-forwarded-host", "shop.example, evil")], false),
            (
                &[
                    ("host", "shop.example"),
                    ("x-forwarded-host", "shop.example"),
                    ("x-forwarded-host", "evil"),
                ],
                false,
            ),
            (&[("host", "shop.example"), ("x-forwarded-host", "")], false),
            (&[("host", "shop.example"), ("host", "evil")], false),
            (&[("host", "shop.example"), ("forwarded", "host=evil")], false),
            (&[("host", "shop.example"), ("forwarded", "for=\";host=evil\"")], false),
            (&[("host", "shop.example"), ("forwarded", "host=shop.example, host=evil")], false),
            (&[("x-forwarded-host", "shop.example")], false),
            (&[], false),
        ] {
            let fields: Vec<_> =
                lines.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
            let fields = fields.as_slice();
            assert_eq!(NamedHosts::of(None, fields).all_fit(&shop, fields), fits, "{lines:?}");
        }
        let fields: &[(&[u8], &[u8])] = &[(b"host", b"evil")];
        assert!(NamedHosts::of(Some("shop.example"), fields).all_fit(&shop, fields), "Host does not count");
    }
}
