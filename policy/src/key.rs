//! Cache keys.

mod cookies;
mod host;
mod rules;
#[cfg(test)]
mod tests;
mod text;

use http::{
    Method,
    header::{CONTENT_ENCODING, CONTENT_TYPE, FORWARDED, HOST},
};

pub(crate) use self::cookies::{has as has_cookie, in_order as cookies_in_order, keyed as keyed_cookies};
pub(crate) use self::text::all_forwarded_hosts;
use self::text::{Fragment, first, push_in_url};
pub use self::{host::host_to_send, rules::KeyRules};
use crate::{
    Fields, HeaderKinds, NormalPath, PurgeName,
    forwarding::{self, Forwarding},
};

/// The key under which a response is stored, in readable form:
/// `GET:http://shop.example/api/posts/?page=2#accept-language=en`.
///
/// Each part is as the application receives it, byte for byte: two spellings are two keys, because an application may
/// distinguish them. Purges find both ([`PurgeName`]). Scheme and host are the client's; the host is in lower case and without the
/// default port of the scheme, as it is sent ([`host_to_send`]). If `Host` and `X-Forwarded-Host` differ, both are included as they
/// came, because an application may use either. Where a route ignores the host, a `*` or the pattern that the route matches takes
/// its place.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    text: String,
    spans: Spans,
}

/// Positions of the parts within a key's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Spans {
    method: usize,
    path: usize,
    query: usize,
    fragment: usize,
}

/// The parts of a request that enter its key, besides its header fields.
#[derive(Clone, Copy, Debug)]
pub struct KeyParts<'a> {
    /// The method whose response is looked up.
    pub method: &'a Method,
    /// Distinguishes the ports of a pod, where several are cached.
    pub target: Option<u16>,
    /// The host of an absolute request target, which takes precedence over `Host` (RFC 9112, section 3.2.2).
    pub uri_host: Option<&'a str>,
    /// The path.
    pub path: &'a NormalPath<'a>,
    /// The raw query.
    pub query: Option<&'a str>,
    /// A hash of the body, where the route keys it.
    pub body: Option<&'a blake3::Hash>,
}

impl Key {
    /// Builds the key of a request.
    pub fn new(
        parts: &KeyParts<'_>,
        fields: &(impl Fields + ?Sized),
        kinds: &HeaderKinds,
        rules: &KeyRules,
    ) -> Self {
        let mut text = String::with_capacity(128);
        let spans = Self::write(&mut text, parts, fields, kinds, rules);
        Self { text, spans }
    }

    /// Wraps a key whose text was [written](Self::write) into a buffer.
    pub fn of(text: &str, spans: Spans) -> Self {
        Self { text: text.to_owned(), spans }
    }

    /// Writes the text of the key over the contents of `into`. Allocates nothing if the buffer is large enough, except
    /// for a query that is to be sorted.
    pub fn write(
        into: &mut String,
        parts: &KeyParts<'_>,
        fields: &(impl Fields + ?Sized),
        kinds: &HeaderKinds,
        rules: &KeyRules,
    ) -> Spans {
        let KeyParts { method, target, uri_host, path, query, body } = *parts;
        let own_host = |nth: usize| match uri_host {
            Some(host) => (nth == 0).then_some(host.as_bytes()),
            None => fields.values(HOST.as_str()).nth(nth),
        };
        let forwarded =
            |name| kinds.has_forwarding().then(|| fields.values(name).next()).flatten().map(first);
        let own = own_host(0).unwrap_or_default();
        let forwarded_host = forwarded(FORWARDED_HOST).filter(|_| rules.any_host.is_none());
        let host = forwarded_host.unwrap_or_else(|| first(own));
        let scheme = forwarded(FORWARDED_PROTO).unwrap_or(PLAIN);
        let has_several_hosts = own_host(1).is_some() || host != own;

        into.clear();
        into.push_str(method.as_str());
        into.push(':');
        push_in_url(into, scheme);
        into.push_str("://");
        match &rules.any_host {
            Some(any) => into.push_str(any),
            None if has_several_hosts || forwarded_host.is_some() => push_in_url(into, host),
            None => host::push_normal(into, host, scheme),
        }
        let path_from = into.len();
        // What is ambiguous is never stored; normalised it has no '?' or '#' that would end it in this text.
        into.push_str(if path.is_ambiguous() { path.as_str() } else { path.as_sent() });
        let query_from = into.len();
        if let Some(query) = query {
            rules.push_query(into, query);
        }
        let spans =
            Spans { method: method.as_str().len(), path: path_from, query: query_from, fragment: into.len() };

        let mut fragment = Fragment::new(into);
        if let Some(port) = target {
            fragment.number("target", port);
        }
        if has_several_hosts {
            // An absent `Host` is sent as an empty one.
            fragment.lines("host", (0..).map_while(|nth| own_host(nth).or((nth == 0).then_some(own))));
        }
        if kinds.has_forwarding() {
            push_forwarding(&mut fragment, fields, own, kinds, rules.any_host.is_none());
        }
        if kinds.has_tailoring() && !rules.hides_tailoring {
            let is_keyed = |name: &[u8]| HeaderKinds::is_tailoring(name) && rules.keys_tailoring(name);
            push_named(&mut fragment, fields, is_keyed);
        }
        for name in &rules.headers {
            fragment.header(name, fields);
        }
        if kinds.has_cookie() {
            cookies::push(&mut fragment, &rules.cookies, fields);
        }
        if let Some(hash) = body {
            fragment.part("body:blake3", hash.to_hex().as_bytes());
            // They say how the body is read: the same bytes under another type are another question.
            for name in [CONTENT_ENCODING, CONTENT_TYPE] {
                fragment.header(name.as_str(), fields);
            }
        }
        spans
    }

    /// Returns the key in readable form.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the names under which a purge finds the response stored under this key, tags aside.
    pub fn purge_names(&self) -> [PurgeName; 3] {
        self.spans.purge_names(&self.text)
    }
}

/// Returns the path in the text of a key, whatever follows the key there; an empty text if it is none.
pub fn path_of(text: &str) -> &str {
    // A method has no slash, and neither has a scheme.
    let (before, rest) = text.split_once('/').unwrap_or((text, ""));
    let origin = rest.strip_prefix('/').filter(|_| before.ends_with(':')).unwrap_or("");
    let target = origin.find('/').map_or("", |path| &origin[path..]);
    &target[..target.find(['?', '#', '\n']).unwrap_or(target.len())]
}

impl Spans {
    /// Returns the names under which a purge finds the response stored under the key of this text.
    pub fn purge_names(self, text: &str) -> [PurgeName; 3] {
        let (method, origin) = (&text[..self.method], &text[self.method + 1..self.path]);
        let [key, short] = PurgeName::keys(text, method, origin, &text[self.path..self.fragment]);
        [key, short, PurgeName::path(self.path(text))]
    }

    /// Returns the path in the key of this text.
    pub fn path(self, text: &str) -> &str {
        &text[self.path..self.query]
    }
}

const FORWARDED_HOST: &str = "x-forwarded-host";
const FORWARDED_PROTO: &str = "x-forwarded-proto";

/// The default scheme, where none is known.
const PLAIN: &[u8] = b"http";

/// Adds the forwarding headers that are not covered by scheme and host, those of hosts only if hosts are in the key.
fn push_forwarding(
    fragment: &mut Fragment<'_>,
    fields: &(impl Fields + ?Sized),
    own_host: &[u8],
    kinds: &HeaderKinds,
    has_hosts: bool,
) {
    // To say what is so without it may make a difference, as "http" does where a redirect asks for it.
    let hosts = has_hosts.then_some((FORWARDED_HOST, own_host));
    for (name, without) in hosts.into_iter().chain([(FORWARDED_PROTO, PLAIN)]) {
        let mut lines = fields.values(name);
        let only = lines.next().filter(|_| lines.next().is_none());
        if only.is_none_or(|line| first(line).len() != line.len() || line == without) {
            fragment.header(name, fields);
        }
    }
    fragment.forwarded(FORWARDED.as_str(), fields, has_hosts);
    for name in kinds.listed_forwarding() {
        fragment.header(name, fields);
    }
    if kinds.has_unlisted_forwarding() {
        push_named(fragment, fields, |name| forwarding::of(name) == Some(Forwarding::Unlisted));
    }
}

/// Adds the headers whose names are such, in the order of their names.
fn push_named(fragment: &mut Fragment<'_>, fields: &(impl Fields + ?Sized), is_one: impl Fn(&[u8]) -> bool) {
    let names = fields.lines().map(|(name, _)| name).filter(|name| is_one(name));
    let mut names: Vec<_> = names.map(|name| String::from_utf8_lossy(name).to_ascii_lowercase()).collect();
    names.sort();
    names.dedup();
    for name in names {
        fragment.header(&name, fields);
    }
}
