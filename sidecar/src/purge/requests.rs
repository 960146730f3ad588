//! PURGE and BAN requests, as clients send them to Varnish and its like, and what each names to purge.
//!
//! # Guarantees
//! A request purges at least what its client asks for, or is refused with the reason: an expression that can't be translated, a header
//! that is not known to name nothing. It purges more where a name is coarser than the request: every host and scheme, for
//! `X-Host` too, the folder itself with all that is below it, and GET, HEAD and POST.

use http::{HeaderMap, HeaderName, Method, Request};
use larder_api::admin::PurgeRequest;
use larder_policy::{
    policy::PURGE_METHODS,
    tags::{tags_in, text_of},
};

use super::{
    document,
    fields::{Form, NARROWING, OF_SOFTNESS, OF_TAGS, OF_URLS, is_unknown},
    pattern::{self, NamedPaths, NamedTags},
};
use crate::http1_guard::RawTarget;

/// Returns true if a method asks for a purge.
pub fn is_purge(method: &Method) -> bool {
    PURGE_METHODS.contains(&method.as_str())
}

/// Returns what a request asks to purge; `token_header` is the one that may have the token.
///
/// # Errors
/// The reason why nothing is purged, and what to send.
pub fn read<B>(request: &Request<B>, token_header: Option<&HeaderName>) -> Result<PurgeRequest, String> {
    let headers = request.headers();
    if let Some(name) = headers.keys().find(|name| is_unknown(name.as_str()) && Some(*name) != token_header) {
        return Err(format!(
            "{name} may name something to purge, and is not known: take it out, and name tags in one of {}, or a path",
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
        let form =
            if request.method() == "PURGETAGS" && form == Form::Expression { Form::List } else { form };
        for value in headers.get_all(name) {
            named.add(&HeaderName::from_static(name), form, value.as_bytes())?;
        }
    }
    for value in values(headers, "varnish-ban-all") {
        match value.trim() {
            "1" => named.everything = true,
            "0" => {}
            _ => return Err(format!("Varnish-Ban-All {value:?} is not known: send 1 for everything, or 0")),
        }
    }
    let urls: Vec<_> = OF_URLS.iter().flat_map(|name| values(headers, name)).collect();
    let purge = if named.is_empty() {
        if matches!(request.method().as_str(), "PURGEKEYS" | "PURGETAGS") {
            return Err("no tags: name them in xkey-purge, xkey-softpurge or X-Cache-Tags".to_owned());
        }
        let narrowing = || NARROWING.iter().find(|name| headers.contains_key(**name));
        if let Some(name) = narrowing().filter(|_| urls.is_empty()) {
            return Err(format!(
                "{name} names nothing to purge by itself: send X-Url, with .* for everything, or tags"
            ));
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
                // Each tag is decoded by itself, as those of responses are.
                let bytes: String = value.iter().copied().map(char::from).collect();
                let NamedTags { tags: texts, everything } =
                    pattern::tags(&bytes).ok_or_else(|| untranslated(&text_of(value)))?;
                self.everything |= everything;
                let mut listed = vec![];
                for text in texts {
                    let text: Vec<u8> = text.chars().filter_map(|byte| u8::try_from(byte).ok()).collect();
                    // The header of responses may have other separators than this one.
                    let whole = text_of(text.trim_ascii()).into_owned();
                    let parts = tags(&text);
                    if !parts.is_empty() && !parts.contains(&whole) {
                        listed.push(whole);
                    }
                    listed.extend(parts);
                }
                (listed, &mut self.hard)
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
    if request.method() == "BAN" {
        // What is stored is compared with the target as an expression, by Shopware's configuration and others.
        let folder = target.strip_suffix("/*").map(|folder| format!("{folder}/.*"));
        let target = folder.as_deref().unwrap_or(target);
        let is_whole = target == "/" || target.ends_with("/.*");
        return is_whole.then(|| pattern::appended(target)).flatten().ok_or_else(|| {
            "BAN takes / for everything, or a folder as in /news/.*: send PURGE for one page".to_owned()
        });
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
            ("BAN /", &[], everything()),
            ("BAN /*", &[], everything()),
            ("BAN /.*", &[("x-purge-method", "regex")], everything()),
            ("BAN /blog/.*", &[], folder("/blog")),
            ("BAN /blog/*", &[], folder("/blog")),
            ("PURGE /a/", &[("x-purge-method", "default")], exactly("/a/")),
            ("PURGE /a", &[("x-purge-method", "exact"), ("x-purge-token", "t")], exactly("/a")),
            ("PURGE /.*", &[("x-purge-method", "regex")], everything()),
            ("PURGE /blog/.*", &[("x-purge-method", "regex")], folder("/blog")),
            ("PURGE /blog/.*", &[], folder("/blog")),
            ("PURGE /blog/*", &[], folder("/blog")),
            ("PURGE /*", &[], everything()),
            ("PURGE /blog/.*", &[("fastly-soft-purge", "1")], softly(folder("/blog"))),
            ("PURGE /a", &[("fastly-soft-purge", "0"), ("x-datadog-tags", "_dd.p.dm=-1")], exactly("/a")),
            (
                "PURGE /a",
                &[
                    ("x-forwarded-uri", "/b"),
                    ("x-requested-with", "XMLHttpRequest"),
                    ("x-b3-traceid", "1"),
                    ("x-varnish", "1"),
                    ("x-invalidate-token", "t"),
                    ("if-match", "*"),
                    ("traceparent", "00-1-2-01"),
                    ("upgrade-insecure-requests", "1"),
                ],
                exactly("/a"),
            ),
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
            ("PURGETAGS /", &[("x-cache-tags", "a|b,c(1),.*")], tags(&["a|b", "c(1)", ".*"])),
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
            ("BAN /", &[("purge-cache-tags", "node:1 node:2")], tags(&["node:1 node:2", "node:1", "node:2"])),
            (
                "BAN /",
                &[("x-cache-tags", "(^|,)(a b|c\\,d)(,|$)")],
                tags(&["a b", "a", "b", "c,d", "c", "d"]),
            ),
            (
                "BAN /",
                &[("apiplatform-ban-regex", "(/books/1|/books)($|\\,)")],
                tags(&["/books/1", "/books"]),
            ),
            ("BAN /", &[("varnish-ban-all", "1"), ("varnish-ban-typo3-sitename", "s")], everything()),
            ("BAN /", &[("varnish-ban-all", "0"), ("varnish-ban-typo3-tag", "a")], tags(&["a"])),
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
            ("BAN /a", &[], "PURGE for one page"),
            ("BAN /blog/", &[], "PURGE for one page"),
            ("BAN /blog.*", &[], "PURGE for one page"),
            ("BAN /(a|b)/.*", &[], "PURGE for one page"),
            ("BAN /(a|b)/*", &[], "PURGE for one page"),
            ("BAN /?a=/*", &[], "PURGE for one page"),
            ("BAN /", &[("x-host", ".*")], "x-host names nothing"),
            ("BAN /", &[("x-ban-host", "^shop$")], "x-ban-host names nothing"),
            ("PURGE /a", &[("x-content-type", ".*")], "x-content-type names nothing"),
            ("BAN /", &[("varnish-ban-typo3-sitename", "s")], "varnish-ban-typo3-sitename names nothing"),
            ("BAN /", &[("varnish-ban-all", "0")], "varnish-ban-all names nothing"),
            ("BAN /", &[("varnish-ban-all", "true")], "send 1"),
            ("BAN /", &[("x-cache-tags", "^user:")], "list whole tags"),
            ("BAN /", &[("x-url", "/news/.*")], "^/news/.* for a folder"),
            ("BAN /", &[("x-url", "^/a/.*"), ("x-url", "^/b/.*")], "send one"),
            ("BAN /", &[("x-url", "^/a/.*"), ("x-cache-tags", "a")], "send one for each"),
            ("BAN /", &[("x-url", ".*"), ("x-content-type", "image/png")], "X-Content-Type"),
            ("BAN /", &[("x-cache-tags", "node:[0-9]+")], "list whole tags"),
            ("BAN /", &[("x-cache-tags", "")], "list whole tags"),
            ("PURGE /", &[("x-magento-tags-pattern", "*")], "list whole tags"),
            ("PURGE /", &[("x-pool", "a")], "x-pool may name"),
            ("PURGE /", &[("key", "location-1")], "key may name"),
            ("BAN /", &[("x-location-id", "(12|13)")], "x-location-id may name"),
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
    fn tags_in_an_expression_are_decoded_as_those_of_a_response() {
        let mut request = Request::builder().method("BAN").uri("/").body(()).unwrap();
        let value = HeaderValue::from_bytes(b"(^|,)(caf\xe9|voil\xc3\xa0)(,|$)").unwrap();
        request.headers_mut().insert("x-cache-tags", value);
        assert_eq!(super::read(&request, None), Ok(tags(&["caf\u{e9}", "voil\u{e0}"])));
        let value = HeaderValue::from_bytes(b"voil\xc3\xa0 ").unwrap();
        request.headers_mut().insert("x-cache-tags", value);
        assert_eq!(super::read(&request, None), Ok(tags(&["voil\u{e0}"])));
    }

    #[test]
    fn only_the_methods_of_purges_ask_for_one() {
        let method = |name: &str| Method::from_bytes(name.as_bytes()).unwrap();
        assert!(PURGE_METHODS.iter().all(|name| is_purge(&method(name))));
        for name in ["GET", "DELETE", "purge", "PURGED", "REFRESH", "BANANA"] {
            assert!(!is_purge(&method(name)), "{name}");
        }
    }
}
