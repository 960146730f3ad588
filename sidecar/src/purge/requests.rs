//! PURGE and BAN requests, as clients send them to Varnish and its like, and what each names to purge.
//!
//! # Guarantees
//! A request purges at least what its client asks for, or is refused with the reason: an expression that can't be translated, a header
//! that may name something and is not known. It purges more where a name is coarser than the request: every host and scheme, for
//! `X-Host` too, the folder itself with all that is below it, and GET, HEAD and POST.

use http::{HeaderMap, HeaderName, Method, Request};
use larder_api::admin::PurgeRequest;
use larder_policy::tags::tags_in;

use super::{
    document,
    pattern::{self, NamedPaths, NamedTags},
};
use crate::http1_guard::RawTarget;

/// Methods that ask for a purge: PURGE and BAN are Varnish's by convention, PURGEKEYS (xkey) and PURGETAGS (Symfony's `HttpCache`)
/// FOSHttpCache's.
const METHODS: [&str; 4] = ["PURGE", "BAN", "PURGEKEYS", "PURGETAGS"];

/// Fields by which a proxy says for whom it sends a request.
const OF_PROXIES: [&str; 4] = ["forwarded", "via", "x-forwarded-for", "x-real-ip"];

/// Form of the tags in a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// A list, separated as in a response.
    List,
    /// A list whose responses become stale.
    SoftList,
    /// A regular expression, or a list.
    Expression,
}

/// Headers that name tags.
const OF_TAGS: [(&str, Form); 13] = [
    ("apiplatform-ban-regex", Form::Expression),
    ("cache-tag", Form::List),
    ("cache-tags", Form::Expression),
    ("edge-cache-tag", Form::List),
    ("purge-cache-tags", Form::Expression),
    ("surrogate-key", Form::List),
    ("varnish-ban-typo3-pid", Form::List),
    ("varnish-ban-typo3-tag", Form::List),
    ("x-cache-tags", Form::Expression),
    ("x-magento-tags-pattern", Form::Expression),
    ("xkey", Form::List),
    ("xkey-purge", Form::List),
    ("xkey-softpurge", Form::SoftList),
];

/// Headers with a regular expression for the path and query of what is purged.
const OF_URLS: [&str; 3] = ["x-ban-regex", "x-ban-url", "x-url"];

/// Headers that tell hosts or sites apart, which no purge does.
const OF_HOSTS: [&str; 3] = ["x-ban-host", "x-host", "varnish-ban-typo3-sitename"];

/// Headers that make a purge soft by a `1`.
const OF_SOFTNESS: [&str; 2] = ["fastly-soft-purge", "x-magento-purge-soft"];

/// Headers that say otherwise how to purge, or nothing about it.
const OTHERS: [&str; 3] = ["varnish-ban-all", "x-datadog-tags", "x-purge-method"];

/// Words in the names of headers that may name what to purge.
const WORDS: [&str; 8] = ["ban", "pattern", "pool", "purge", "regex", "tag", "tags", "xkey"];

/// Returns true if a method asks for a purge.
pub fn is_purge(method: &Method) -> bool {
    METHODS.contains(&method.as_str())
}

/// Returns true if a request came through a proxy, so that the address of its connection says nothing about its client.
pub fn is_of_proxy(headers: &HeaderMap) -> bool {
    OF_PROXIES.iter().any(|name| headers.contains_key(*name))
}

/// Returns what a request asks to purge; `token_header` is the one that may have the token.
///
/// # Errors
/// The reason why nothing is purged, and what to send.
pub fn read<B>(request: &Request<B>, token_header: Option<&HeaderName>) -> Result<PurgeRequest, String> {
    let headers = request.headers();
    if let Some(name) = headers.keys().find(|name| is_unknown(name.as_str()) && Some(*name) != token_header) {
        return Err(format!(
            "{name} may name something to purge, and is not known: name tags in one of {}, or a path",
            OF_TAGS.map(|(name, _)| name).join(", ")
        ));
    }
    if values(headers, "x-content-type").any(|value| !matches_all(value)) {
        return Err(
            "responses are not told apart by their type: purge a path or a tag instead of X-Content-Type"
                .to_owned(),
        );
    }
    let mut named = Names::default();
    for (name, form) in OF_TAGS {
        for value in headers.get_all(name) {
            named.add(&HeaderName::from_static(name), form, value.as_bytes())?;
        }
    }
    named.everything |= values(headers, "varnish-ban-all").any(|value| value.trim() == "1");
    let urls: Vec<_> = OF_URLS.iter().flat_map(|name| values(headers, name)).collect();
    let purge = if named.is_empty() {
        if matches!(request.method().as_str(), "PURGEKEYS" | "PURGETAGS") {
            return Err("no tags: name them in xkey-purge, xkey-softpurge or X-Cache-Tags".to_owned());
        }
        of_paths(match urls[..] {
            [] => of_target(request)?,
            [url] => pattern::paths(url).ok_or_else(|| untranslated(url))?,
            _ => return Err("several expressions for paths: send one".to_owned()),
        })
    } else if urls.into_iter().all(matches_all) {
        named.purge()?
    } else {
        return Err("paths and tags in one request: send one for each".to_owned());
    };
    let is_soft = |name: &&str| values(headers, name).any(|value| value.trim() == "1");
    let soft = purge.soft || OF_SOFTNESS.iter().any(is_soft);
    let purge = PurgeRequest { soft, ..purge };
    document::names_nothing(&purge).map_or(Ok(purge), Err)
}

/// The tags that headers name.
#[derive(Debug, Default)]
struct Names {
    hard: Vec<String>,
    soft: Vec<String>,
    everything: bool,
}

impl Names {
    /// Adds what a line of a header names.
    fn add(&mut self, header: &HeaderName, form: Form, value: &[u8]) -> Result<(), String> {
        let tags = |text: &[u8]| tags_in(header, text).map(String::from).collect::<Vec<_>>();
        let (listed, kind) = match form {
            Form::List => (tags(value), &mut self.hard),
            Form::SoftList => (tags(value), &mut self.soft),
            Form::Expression => {
                let text = String::from_utf8_lossy(value);
                let NamedTags { tags: texts, everything } =
                    pattern::tags(&text).ok_or_else(|| untranslated(&text))?;
                self.everything |= everything;
                (texts.iter().flat_map(|text| tags(text.as_bytes())).collect(), &mut self.hard)
            }
        };
        if listed.is_empty() && !self.everything {
            return Err(format!("{header} names no tag"));
        }
        kind.extend(listed);
        Ok(())
    }

    fn is_empty(&self) -> bool {
        self.hard.is_empty() && self.soft.is_empty() && !self.everything
    }

    fn purge(self) -> Result<PurgeRequest, String> {
        let Self { hard, soft: softly, everything } = self;
        if !softly.is_empty() && (everything || !hard.is_empty()) {
            return Err("tags to purge and tags to make stale in one request: send one for each".to_owned());
        }
        let soft = !softly.is_empty();
        let tags = if everything { vec![] } else { [hard, softly].concat() };
        Ok(PurgeRequest { tags, everything, soft, ..PurgeRequest::default() })
    }
}

/// Returns the paths that the target of a request names, by the method of purging that its client asks for.
fn of_target<B>(request: &Request<B>) -> Result<NamedPaths, String> {
    let uri = request.uri();
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let is_raw = request.extensions().get::<RawTarget>().is_some() || target.contains('\\');
    let method = values(request.headers(), "x-purge-method").next().unwrap_or("default");
    let is_expression = match method {
        "regex" => true,
        "default" | "exact" => uri.path().ends_with(".*"),
        other => return Err(format!("X-Purge-Method {other:?} is not known: send regex, exact or default")),
    };
    if is_raw {
        return Err(
            "the path has characters that no URL has: encode them, or purge a prefix that ends with /.*"
                .to_owned(),
        );
    }
    if is_expression {
        return pattern::appended(target).ok_or_else(|| untranslated(target));
    }
    match target.strip_suffix("/*") {
        Some(path) if uri.query().is_none() => Ok(pattern::folder(path.to_owned())),
        _ => Ok(NamedPaths::Exact(target.to_owned())),
    }
}

/// Returns the purge of paths: a single one is that of the responses to all methods under this path and query, whatever their host,
/// scheme and variant.
fn of_paths(paths: NamedPaths) -> PurgeRequest {
    match paths {
        NamedPaths::Everything => PurgeRequest { everything: true, ..PurgeRequest::default() },
        NamedPaths::Folder(path) => PurgeRequest { prefixes: vec![path], ..PurgeRequest::default() },
        NamedPaths::Exact(target) => {
            let keys = ["GET", "HEAD", "POST"].map(|method| format!("{method}:{target}"));
            PurgeRequest { keys: keys.to_vec(), ..PurgeRequest::default() }
        }
    }
}

/// Returns true if a header may name something to purge in a way that is not known here.
fn is_unknown(name: &str) -> bool {
    let is_known = || {
        let named = OF_TAGS
            .iter()
            .map(|(name, _)| name)
            .chain(&OF_URLS)
            .chain(&OF_HOSTS)
            .chain(&OF_SOFTNESS)
            .chain(&OTHERS);
        named.into_iter().any(|known| *known == name)
    };
    // The first versions of eZ Platform named tags in a header of this name alone.
    let may_be_one = || name == "key" || name.split(['-', '_', '.']).any(|word| WORDS.contains(&word));
    may_be_one() && !is_known()
}

fn values<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    // What is no text is no expression either.
    headers.get_all(name).into_iter().map(|value| value.to_str().unwrap_or("\\"))
}

fn matches_all(expression: &str) -> bool {
    pattern::paths(expression) == Some(NamedPaths::Everything)
}

fn untranslated(expression: &str) -> String {
    format!(
        "{expression:?} can't be translated, because nothing stored is searched: list whole tags, as in (^|,)(a|b)(,|$), or name a path: \
         ^/news/.* for a folder, ^/news$ for one page, .* for everything"
    )
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn read(line: &str, lines: &[(&str, &str)]) -> Result<PurgeRequest, String> {
        let (method, target) = line.split_once(' ').unwrap();
        let mut request = Request::builder().method(method).uri(target).body(()).unwrap();
        for (name, value) in lines {
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            request.headers_mut().append(name.parse::<HeaderName>().unwrap(), value);
        }
        super::read(&request, Some(&HeaderName::from_static("x-purge-token")))
    }

    fn exactly(target: &str) -> PurgeRequest {
        of_paths(NamedPaths::Exact(target.to_owned()))
    }

    fn folder(path: &str) -> PurgeRequest {
        of_paths(NamedPaths::Folder(path.to_owned()))
    }

    fn everything() -> PurgeRequest {
        of_paths(NamedPaths::Everything)
    }

    fn tags(tags: &[&str]) -> PurgeRequest {
        PurgeRequest { tags: tags.iter().map(|tag| (*tag).to_owned()).collect(), ..PurgeRequest::default() }
    }

    fn softly(purge: PurgeRequest) -> PurgeRequest {
        PurgeRequest { soft: true, ..purge }
    }

    #[test]
    fn path_of_a_request_is_purged_as_its_client_means_it() {
        for (line, lines, expected) in [
            ("PURGE /a/b?page=2", &[][..], exactly("/a/b?page=2")),
            ("PURGE http://shop.example/a", &[("host", "shop.example")], exactly("/a")),
            ("BAN /a", &[], exactly("/a")),
            ("PURGE /a/", &[("x-purge-method", "default")], exactly("/a/")),
            ("PURGE /a", &[("x-purge-method", "exact"), ("x-purge-token", "t")], exactly("/a")),
            ("PURGE /.*", &[("x-purge-method", "regex")], everything()),
            ("PURGE /blog/.*", &[("x-purge-method", "regex")], folder("/blog")),
            ("PURGE /blog/.*", &[], folder("/blog")),
            ("PURGE /blog/*", &[], folder("/blog")),
            ("PURGE /*", &[], everything()),
            ("PURGE /blog/.*", &[("fastly-soft-purge", "1")], softly(folder("/blog"))),
            ("PURGE /a", &[("fastly-soft-purge", "0"), ("x-datadog-tags", "_dd.p.dm=-1")], exactly("/a")),
        ] {
            assert_eq!(read(line, lines), Ok(expected), "{line} {lines:?}");
        }
    }

    #[test]
    fn headers_name_tags_paths_or_everything() {
        let fos = |name, value| [("x-host", ".*"), ("x-url", ".*"), ("x-content-type", ".*"), (name, value)];
        for (line, lines, expected) in [
            ("BAN /", &fos("x-cache-tags", "(^|,)(a|b\\-1)(,|$)")[..], tags(&["a", "b-1"])),
            ("BAN /", &fos("x-cache-tags", ".*"), everything()),
            (
                "BAN /",
                &[("x-host", "^(a|b)$"), ("x-url", "^/news/.*"), ("x-content-type", ".*")],
                folder("/news"),
            ),
            ("BAN /", &[("x-url", ".*")], everything()),
            ("BAN /", &[("x-url", "^/a\\?b\\=1$")], exactly("/a?b=1")),
            ("PURGEKEYS /", &[("xkey-purge", "c52 l2, p2")], tags(&["c52", "l2", "p2"])),
            ("PURGEKEYS /", &[("xkey-softpurge", "c52 l2")], softly(tags(&["c52", "l2"]))),
            ("PURGE /", &[("xkey-purge", "a(b) c.*")], tags(&["a(b)", "c.*"])),
            ("PURGETAGS /", &[("x-cache-tags", "a,b")], tags(&["a", "b"])),
            (
                "PURGE /",
                &[("x-magento-tags-pattern", "((^|,)cat_p_1(,|$))|((^|,)cms_p_2(,|$))")],
                tags(&["cat_p_1", "cms_p_2"]),
            ),
            ("PURGE /", &[("x-magento-tags-pattern", ".*")], everything()),
            (
                "PURGE /",
                &[("x-magento-tags-pattern", "((^|,)a(,|$))"), ("x-magento-purge-soft", "1")],
                softly(tags(&["a"])),
            ),
            ("PURGE /", &[("surrogate-key", "/books/1, /books")], tags(&["/books/1", "/books"])),
            ("PURGE /a", &[("surrogate-key", "a b"), ("fastly-soft-purge", "1")], softly(tags(&["a", "b"]))),
            ("BAN /", &[("cache-tags", "node:1|node_list")], tags(&["node:1", "node_list"])),
            ("BAN /", &[("purge-cache-tags", "node:1 node:2")], tags(&["node:1", "node:2"])),
            (
                "BAN /",
                &[("apiplatform-ban-regex", "(/books/1|/books)($|\\,)")],
                tags(&["/books/1", "/books"]),
            ),
            ("BAN /", &[("varnish-ban-all", "1"), ("varnish-ban-typo3-sitename", "s")], everything()),
            ("BAN /", &[("varnish-ban-typo3-pid", "12"), ("varnish-ban-typo3-sitename", "s")], tags(&["12"])),
        ] {
            assert_eq!(read(line, lines), Ok(expected), "{line} {lines:?}");
        }
    }

    #[test]
    fn request_that_names_something_else_is_refused_with_the_remedy() {
        for (line, lines, says) in [
            ("PURGE /a.*", &[][..], "name a path"),
            ("PURGE /a*", &[], "write %2A"),
            ("PURGE /a", &[("x-purge-method", "regex")], "name a path"),
            ("PURGE /a", &[("x-purge-method", "fuzzy")], "send regex, exact or default"),
            ("BAN /", &[("x-url", "/news/.*")], "^/news/.* for a folder"),
            ("BAN /", &[("x-url", "^/a/.*"), ("x-url", "^/b/.*")], "send one"),
            ("BAN /", &[("x-url", "^/a/.*"), ("x-cache-tags", "a")], "send one for each"),
            ("BAN /", &[("x-url", ".*"), ("x-content-type", "image/png")], "X-Content-Type"),
            ("BAN /", &[("x-cache-tags", "node:[0-9]+")], "list whole tags"),
            ("BAN /", &[("x-cache-tags", "")], "list whole tags"),
            ("PURGE /", &[("x-magento-tags-pattern", "*")], "list whole tags"),
            ("PURGE /", &[("x-pool", "a")], "x-pool may name"),
            ("PURGE /", &[("key", "location-1")], "key may name"),
            ("PURGE /sitemap(_index)?\\.xml", &[], "no URL has"),
            ("BAN /", &[("x-varnish-ban-neos", "a")], "x-varnish-ban-neos may name"),
            ("PURGE /", &[("x-purge-url", ".*")], "x-purge-url may name"),
            ("PURGEKEYS /", &[], "no tags"),
            ("PURGEKEYS /", &[("xkey-purge", " ")], "names no tag"),
            ("PURGEKEYS /", &[("xkey-purge", "a"), ("xkey-softpurge", "b")], "send one for each"),
        ] {
            let reason = read(line, lines).unwrap_err();
            assert!(reason.contains(says), "{line} {lines:?}: {reason}");
        }
        let mut raw = Request::builder().method("PURGE").uri("/x").body(()).unwrap();
        raw.extensions_mut().insert(RawTarget(b"/sitemap(_index)?\\.xml".to_vec().into()));
        assert!(super::read(&raw, None).unwrap_err().contains("no URL has"));
    }

    #[test]
    fn only_the_methods_of_purges_ask_for_one() {
        let method = |name: &str| Method::from_bytes(name.as_bytes()).unwrap();
        assert!(METHODS.iter().all(|name| is_purge(&method(name))));
        for name in ["GET", "DELETE", "purge", "PURGED", "REFRESH", "BANANA"] {
            assert!(!is_purge(&method(name)), "{name}");
        }
    }
}
