//! The cookies in a key.

use super::text::Fragment;
use crate::{
    Fields,
    names::{could_be, is_odd, value_could_be},
};

/// Adds a part for every cookie that an application might read as one of `names`, in the order of `names`.
pub(super) fn push(fragment: &mut Fragment<'_>, names: &[String], fields: &(impl Fields + ?Sized)) {
    for name in names {
        for pair in pairs(fields).filter(|pair| might_be(pair, name)) {
            match value_of(pair, name) {
                Some(value) => {
                    fragment.name("cookie:", name);
                    fragment.value(value);
                }
                // Spelled in another way: an application may take it for the cookie or not.
                None => fragment.part("cookie:", pair),
            }
        }
    }
}

/// Returns the cookies that [`push`] adds to the key, as one line in the order in which they arrived; `None` if there
/// are none.
pub(crate) fn keyed(names: &[String], fields: &(impl Fields + ?Sized)) -> Option<Vec<u8>> {
    let counts = |pair: &&[u8]| names.iter().any(|name| might_be(pair, name));
    let keyed: Vec<_> = pairs(fields).filter(counts).collect();
    (!keyed.is_empty()).then(|| keyed.join(&b"; "[..]))
}

/// Returns the `Cookie` lines of a request as one, equal for all requests that [`push`] treats as equal: the cookies in the
/// key in the order of the key, then the others in their own order; `None` if there are none.
pub(crate) fn in_order(names: &[String], fields: &(impl Fields + ?Sized)) -> Option<Vec<u8>> {
    let place = |pair: &[u8]| names.iter().position(|name| might_be(pair, name)).unwrap_or(names.len());
    let mut pairs: Vec<_> = pairs(fields).collect();
    pairs.sort_by_key(|pair| place(pair));
    (!pairs.is_empty()).then(|| pairs.join(&b"; "[..]))
}

/// Returns true if a request has a cookie that an application might read as `name` with the value `wanted`.
pub(crate) fn has(fields: &(impl Fields + ?Sized), name: &str, wanted: &str) -> bool {
    pairs(fields).flat_map(names_in).any(|(found, value)| {
        could_be(found, name) && (wanted == "*" || value.is_some_and(|value| value_could_be(value, wanted)))
    })
}

/// Returns the pairs of all `Cookie` lines (RFC 6265, section 4.2.1): HTTP/2 may send each on a line of its own.
fn pairs(fields: &(impl Fields + ?Sized)) -> impl Iterator<Item = &[u8]> {
    let pairs = fields.values("cookie").flat_map(|line| line.split(|&byte| byte == b';'));
    pairs.map(<[u8]>::trim_ascii).filter(|pair| !pair.is_empty())
}

fn might_be(pair: &[u8], name: &str) -> bool {
    names_in(pair).any(|(found, _)| could_be(found, name) || is_odd(found))
}

/// Returns the names in a pair: its own, and those that a parser finds if it also splits at commas, white space or
/// quotes.
fn names_in(pair: &[u8]) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
    let own = split(pair);
    let inner = pair.split(|byte| b", \t\"".contains(byte)).skip(1).map(split);
    std::iter::once(own).chain(inner.filter(|(_, value)| value.is_some()))
}

fn split(pair: &[u8]) -> (&[u8], Option<&[u8]>) {
    match pair.iter().position(|&byte| byte == b'=') {
        Some(at) => (pair[..at].trim_ascii(), Some(pair[at + 1..].trim_ascii())),
        None => (pair, None),
    }
}

fn value_of<'a>(pair: &'a [u8], name: &str) -> Option<&'a [u8]> {
    pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(names: &[&str], cookie: &str) -> String {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let mut text = String::new();
        push(&mut Fragment::new(&mut text), &names, &[(&b"Cookie"[..], cookie.as_bytes())][..]);
        text
    }

    #[test]
    fn only_named_cookies_are_keyed_in_route_order() {
        assert_eq!(
            text(&["lang", "theme"], "theme=dark; session=1; lang=en"),
            "#cookie:lang=en&cookie:theme=dark"
        );
        assert_eq!(text(&["lang"], "session=1; language=en"), "");
        assert_eq!(text(&["lang"], "lang=a&b=c"), "#cookie:lang=a%26b%3Dc");
        assert_eq!(text(&["lang"], "lang=en; lang=de"), "#cookie:lang=en&cookie:lang=de");
        assert_ne!(text(&["lang"], "lang="), text(&["lang"], "lang"));
    }

    #[test]
    fn ambiguous_cookie_names_are_keyed() {
        for cookie in [
            "%6Cang=de",
            "LANG=de",
            "x=1,lang=de",
            "x=1 lang=de",
            "x=\"1\"lang=de",
            "%u006cang=de",
            "lang =de",
        ] {
            assert!(text(&["lang"], cookie).starts_with("#cookie:="), "{cookie}");
        }
    }

    #[test]
    fn cookies_are_sent_in_the_order_of_the_key() {
        let names = ["lang", "theme"].map(str::to_owned);
        let sent = |cookie: &str| {
            let line = in_order(&names, &[(&b"cookie"[..], cookie.as_bytes())][..]);
            line.map(|line| String::from_utf8(line).unwrap())
        };
        for cookie in ["lang=de; theme=x", "theme=x;lang=de", ";theme=x; lang=de ;", "theme=x;;lang=de"] {
            assert_eq!(sent(cookie).as_deref(), Some("lang=de; theme=x"), "{cookie}");
        }
        assert_eq!(sent("b=1; lang=de;a=2; lang=en").as_deref(), Some("lang=de; lang=en; b=1; a=2"));
        assert_eq!(sent(" ; "), None);
    }

    #[test]
    fn a_cookie_is_found_by_name_and_value() {
        let has = |cookie: &str, wanted| has(&[(&b"cookie"[..], cookie.as_bytes())][..], "session", wanted);
        assert!(has("a=b; session=1", "*") && has("session", "*") && has("session=\"x y\"", "x y"));
        assert!(!has("a=session", "*") && !has("session=1", "2") && !has("", "*"));
    }
}
