//! Canonical request fields for the application where a response may be stored: the one spelling of all that
//! [`super::write_variant`] treats as equal, so that requests for one stored response are one request to the
//! application.

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{ACCEPT_ENCODING, ACCEPT_LANGUAGE, COOKIE},
};

use super::{LISTS, split_at_commas, weights};
use crate::{
    Fields,
    key::{KeyRules, cookies_in_order},
};

/// Returns true if fields are canonical as far as a look at each shows: those of most clients that are programs.
pub fn are_canonical(fields: &(impl Fields + ?Sized), rules: &KeyRules) -> bool {
    let mut lists = [false; LISTS.len()];
    fields.lines().all(|(name, value)| {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        if let Some(list) = LISTS.iter().position(|known| is(known)) {
            let is_only_line = !std::mem::replace(&mut lists[list], true);
            let is_weighted = || is(ACCEPT_LANGUAGE.as_str()) || is(ACCEPT_ENCODING.as_str());
            let is_one_member = !value.contains(&b',');
            return is_only_line
                && is_one_member
                && (value.iter().all(u8::is_ascii_lowercase) || !is_weighted());
        }
        let is_only_line = |known: &String| fields.values(known).nth(1).is_none();
        !is(COOKIE.as_str()) && rules.headers.iter().filter(|known| is(known)).all(is_only_line)
    })
}

/// Joins the lines of fields that are lists or in the key (RFC 9110, section 5.3), puts keyed cookies first, removes white
/// space around the commas of lists, and sorts the members of `Accept-Language` and `Accept-Encoding`. Other fields stay as
/// they are, because not every application reads several lines as one. Returns false if all fields are as they were.
pub fn canonicalise(headers: &mut HeaderMap, rules: &KeyRules) -> bool {
    let has_several_lines = headers.len() > headers.keys_len();
    let is_joined = |name: &HeaderName| *name == COOKIE || rules.has_header(name.as_str());
    let changed: Vec<_> = headers
        .keys()
        .filter(|name| LISTS.contains(&name.as_str()) || has_several_lines && is_joined(name))
        .filter_map(|name| canonical(name, headers).map(|value| (name.clone(), value)))
        .collect();
    let mut is_changed = !changed.is_empty();
    for (name, value) in changed {
        headers.insert(name, value);
    }
    if !rules.cookies.is_empty() && !rules.has_header(COOKIE.as_str()) && headers.contains_key(COOKIE) {
        is_changed = true;
        let cookies = cookies_in_order(&rules.cookies, headers);
        match cookies.and_then(|cookies| HeaderValue::from_bytes(&cookies).ok()) {
            Some(cookies) => headers.insert(COOKIE, cookies),
            None => headers.remove(COOKIE),
        };
    }
    is_changed
}

/// Returns the canonical value of a field, if it differs from the value sent.
fn canonical(name: &HeaderName, headers: &HeaderMap) -> Option<HeaderValue> {
    let mut lines = headers.get_all(name).iter().map(HeaderValue::as_bytes);
    let is_list = LISTS.contains(&name.as_str());
    let first = lines.next()?;
    let is_weighted = [ACCEPT_LANGUAGE, ACCEPT_ENCODING].contains(name);
    let is_one_member = || !is_weighted && !first.contains(&b',');
    if (!is_list || is_one_member()) && lines.next().is_none() {
        return None;
    }
    let value = weighted(name, headers).unwrap_or_else(|| {
        let lines = headers.get_all(name).iter().map(HeaderValue::as_bytes);
        if is_list {
            let members: Vec<_> = lines.flat_map(split_at_commas).map(<[u8]>::trim_ascii).collect();
            members.join(&b","[..])
        } else {
            let between: &[u8] = if *name == COOKIE { b"; " } else { b", " };
            lines.collect::<Vec<_>>().join(between).trim_ascii().to_vec()
        }
    });
    let is_as_sent = value == first && headers.get_all(name).iter().nth(1).is_none();
    HeaderValue::from_bytes(&value).ok().filter(|_| !is_as_sent)
}

/// Returns the members of a weighted list in their order, in the usual notation of clients.
fn weighted(name: &HeaderName, headers: &HeaderMap) -> Option<Vec<u8>> {
    let (between, is_language) = match *name {
        ACCEPT_LANGUAGE => (",", true),
        ACCEPT_ENCODING => (", ", false),
        _ => return None,
    };
    let mut text = String::new();
    if !weights::write(&mut text, name.as_str(), headers) {
        return None;
    }
    let members = text[1..].split(',').map(|member| {
        let (name, weight) = member.split_once(';').expect("each member has a weight");
        let name = if is_language { language_tag(name) } else { name.to_owned() };
        match weight {
            "1000" => name,
            "0" => format!("{name};q=0"),
            weight => format!("{name};q=0.{}", format!("{weight:0>3}").trim_end_matches('0')),
        }
    });
    Some(members.collect::<Vec<_>>().join(between).into_bytes())
}

/// Returns a language tag in the case that RFC 5646, section 2.1.1, recommends: `zh-Hant-TW`.
fn language_tag(lower: &str) -> String {
    let mut tag = String::with_capacity(lower.len());
    let mut after_singleton = false;
    for (at, part) in lower.split('-').enumerate() {
        if at > 0 {
            tag.push('-');
        }
        match part.len() {
            2 if at > 0 && !after_singleton => tag.push_str(&part.to_ascii_uppercase()),
            4 if at > 0 && !after_singleton => {
                tag.push_str(&part[..1].to_ascii_uppercase());
                tag.push_str(&part[1..]);
            }
            _ => tag.push_str(part),
        }
        after_singleton |= part.len() == 1;
    }
    tag
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{spec::KeySpec, testing::headers, vary::write_variant};

    fn canonicalised(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = headers(lines);
        let rules = KeySpec { headers: Some(vec!["x-a".into()]), ..KeySpec::default() };
        canonicalise(&mut headers, &KeyRules::new(Some(&rules)));
        headers
    }

    #[test]
    fn browser_headers_retain_their_meaning() {
        for (name, sent, expected) in [
            ("accept-language", "en-US,en;q=0.9,de;q=0.8", "en-US,en;q=0.9,de;q=0.8"),
            ("accept-language", "de;q=0.80, EN-us , zh-hant-tw;q=0", "en-US,de;q=0.8,zh-Hant-TW;q=0"),
            ("accept-language", "x-aa-bbbb, *;q=0.001", "x-aa-bbbb,*;q=0.001"),
            ("accept-language", "en;level=1, de", "en;level=1,de"),
            ("accept-encoding", "gzip, deflate, br", "br, deflate, gzip"),
            ("accept", "text/html, */*;q=0.8", "text/html,*/*;q=0.8"),
            ("user-agent", "a,  b", "a,  b"),
        ] {
            assert_eq!(canonicalised(&[(name, sent)]), headers(&[(name, expected)]), "{sent}");
        }
        let others = [("x-b", "1"), ("x-b", "2")];
        assert_eq!(canonicalised(&others), headers(&others));
        let lines = [("x-a", "1"), ("cookie", "a=b"), ("x-a", "2"), ("cookie", "c=d"), ("host", "h")];
        assert_eq!(canonicalised(&lines), headers(&[("x-a", "1, 2"), ("cookie", "a=b; c=d"), ("host", "h")]));
    }

    /// Lines of a field, none of them empty: trailing white space from joining does not arrive.
    fn lines() -> impl Strategy<Value = Vec<String>> {
        let line = "(([a-cA-C]{1,2}|\"[a, ]\")(;q=[01](\\.[0-9]{0,2})?)?[ ]?,? ?){1,3}";
        prop::collection::vec(line, 0..3)
    }

    proptest! {
        #[test]
        fn canonical_fields_are_not_changed(
            lines in prop::collection::vec(
                (
                    prop::sample::select(vec!["accept", "Accept-Encoding", "accept-language", "cookie", "x-a", "x-b"]),
                    "[a-bA]{0,2}(-[a-b]{2})?(, ?b)?(;q=0)?",
                ),
                0..4,
            ),
        ) {
            let lines: Vec<_> = lines.iter().map(|(name, value)| (*name, &**value)).collect();
            let mut headers = headers(&lines);
            let rules = KeySpec { headers: Some(vec!["x-a".into()]), ..KeySpec::default() };
            let rules = KeyRules::new(Some(&rules));
            if are_canonical(&headers, &rules) {
                prop_assert!(!canonicalise(&mut headers, &rules));
            }
        }

        #[test]
        fn requests_for_one_variant_are_one_request(
            one in lines(),
            other in lines(),
            name in prop::sample::select(vec!["accept-language", "accept-encoding", "accept", "cookie"]),
        ) {
            let [one, other] = [one, other].map(|lines| {
                headers(&lines.iter().map(|line| (name, line.trim())).collect::<Vec<_>>())
            });
            let names = [HeaderName::from_static(name)];
            let variant = |headers: &HeaderMap| {
                let mut text = String::new();
                write_variant(&mut text, &names, headers);
                text
            };
            let sent = |headers: &HeaderMap| {
                let mut headers = headers.clone();
                canonicalise(&mut headers, &KeyRules::default());
                headers
            };
            prop_assert_eq!(variant(&one), variant(&sent(&one)), "the same to the cache");
            prop_assert_eq!(sent(&one), sent(&sent(&one)), "once is enough");
            if variant(&one) == variant(&other) {
                prop_assert_eq!(sent(&one), sent(&other));
            }
        }
    }
}
