//! The directives of `Cache-Control` (RFC 9111, section 5.2).

use std::time::Duration;

use crate::fields::{Fields, is_named};

/// The response directives that Larder acts on (RFC 9111, section 5.2.2; RFC 5861).
///
/// Names are read in any case, values quoted or not, and all field lines count (section 5.2). A directive that is repeated
/// counts with its most restrictive value (section 4.2.1 allows either; the shorter life is the safer).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResponseDirectives {
    /// `no-store`: no part of the response may be stored (section 5.2.2.5).
    pub no_store: bool,
    /// `private`, with or without field names: a shared cache must not store the response. With names only those fields
    /// are private, but a cache may treat it as the unqualified form (section 5.2.2.7).
    pub private: bool,
    /// `no-cache`, with or without field names: must not be served without validation (section 5.2.2.4).
    pub no_cache: bool,
    /// `must-revalidate`: must never be served stale (section 5.2.2.2).
    pub must_revalidate: bool,
    /// `proxy-revalidate`: a shared cache must never serve it stale (section 5.2.2.8).
    pub proxy_revalidate: bool,
    /// `must-understand`: may be stored only by a cache that understands the status (section 5.2.2.3).
    pub must_understand: bool,
    /// `public`: may be stored where it could not be otherwise (section 5.2.2.9).
    pub public: bool,
    /// `max-age` (section 5.2.2.1).
    pub max_age: Option<Duration>,
    /// `s-maxage`, which takes precedence over `max-age` in a shared cache (section 5.2.2.10).
    pub s_maxage: Option<Duration>,
    /// `stale-while-revalidate` (RFC 5861, section 3).
    pub stale_while_revalidate: Option<Duration>,
    /// `stale-if-error` (RFC 5861, section 4).
    pub stale_if_error: Option<Duration>,
}

impl ResponseDirectives {
    /// Reads all `Cache-Control` field lines.
    pub fn parse(fields: &(impl Fields + ?Sized)) -> Self {
        let mut parsed = Self::default();
        fields.values("cache-control").for_each(|line| parsed.add(line));
        parsed
    }

    /// Adds a `Cache-Control` field line.
    pub(crate) fn add(&mut self, line: &[u8]) {
        for member in members(line) {
            let Directive { name, value } = Directive::of(member);
            if let Some(flag) = self.flag(name) {
                *flag = true;
            } else if let Some(time) = self.time(name) {
                shorten(time, value.seconds().unwrap_or_default());
            }
            for word in stray_words(member) {
                if let Some(flag) = self.restriction(word) {
                    *flag = true;
                }
            }
        }
    }

    /// Returns the directive of this name, if it is a restriction without an argument.
    fn restriction(&mut self, name: &[u8]) -> Option<&mut bool> {
        self.flag(name).filter(|_| !is_named(name, b"public") && !is_named(name, b"must-understand"))
    }

    /// Returns the directive of this name, if it is one without an argument.
    pub(crate) fn flag(&mut self, name: &[u8]) -> Option<&mut bool> {
        Some(match name {
            _ if is_named(name, b"no-store") => &mut self.no_store,
            _ if is_named(name, b"private") => &mut self.private,
            _ if is_named(name, b"no-cache") => &mut self.no_cache,
            _ if is_named(name, b"must-revalidate") => &mut self.must_revalidate,
            _ if is_named(name, b"proxy-revalidate") => &mut self.proxy_revalidate,
            _ if is_named(name, b"must-understand") => &mut self.must_understand,
            _ if is_named(name, b"public") => &mut self.public,
            _ => return None,
        })
    }

    /// Returns the directive of this name, if it is one with a number of seconds.
    pub(crate) fn time(&mut self, name: &[u8]) -> Option<&mut Option<Duration>> {
        Some(match name {
            _ if is_named(name, b"max-age") => &mut self.max_age,
            _ if is_named(name, b"s-maxage") => &mut self.s_maxage,
            _ if is_named(name, b"stale-while-revalidate") => &mut self.stale_while_revalidate,
            _ if is_named(name, b"stale-if-error") => &mut self.stale_if_error,
            _ => return None,
        })
    }
}

/// The request directives that Larder acts on (RFC 9111, section 5.2.1; RFC 5861, section 4). The default requests
/// nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestDirectives {
    /// `no-cache`: nothing stored may be served without validation (section 5.2.1.4).
    pub no_cache: bool,
    /// `no-store`: the response must not be stored (section 5.2.1.5).
    pub no_store: bool,
    /// `only-if-cached`: the request must not be forwarded to the origin (section 5.2.1.7).
    pub only_if_cached: bool,
    /// `max-age`: maximum age of the response (section 5.2.1.1).
    pub max_age: Option<Duration>,
    /// `min-fresh`: minimum time that the response must remain fresh (section 5.2.1.3).
    pub min_fresh: Option<Duration>,
    /// `max-stale`: maximum staleness of the response (section 5.2.1.2).
    pub max_stale: Option<MaxStale>,
    /// `stale-if-error`: maximum staleness of the response if the origin fails (RFC 5861, section 4).
    pub stale_if_error: Option<Duration>,
}

/// The staleness that a client accepts (RFC 9111, section 5.2.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxStale {
    /// Any staleness.
    Any,
    /// At most this long past the freshness lifetime.
    For(Duration),
}

impl MaxStale {
    /// Returns true if a response that has been stale for this long is acceptable.
    pub fn allows(self, stale_for: Duration) -> bool {
        match self {
            Self::Any => true,
            Self::For(most) => stale_for <= most,
        }
    }
}

impl RequestDirectives {
    /// Reads all `Cache-Control` field lines; where there is none, `Pragma: no-cache` means `no-cache` (section 5.4).
    ///
    /// A `max-age` that is no number asks for the newest; a number that would relax something and can't be read relaxes
    /// nothing.
    pub fn parse(fields: &(impl Fields + ?Sized)) -> Self {
        let mut parsed = Self::default();
        if !fields.has("cache-control") {
            let mut pragmas = fields.values("pragma").flat_map(members).map(Directive::of);
            parsed.no_cache = pragmas.any(|pragma| is_named(pragma.name, b"no-cache"));
            return parsed;
        }
        for directive in fields.values("cache-control").flat_map(members).map(Directive::of) {
            parsed.add(directive);
        }
        parsed
    }

    fn add(&mut self, Directive { name, value }: Directive<'_>) {
        let seconds = value.seconds();
        match name {
            _ if is_named(name, b"no-cache") => self.no_cache = true,
            _ if is_named(name, b"no-store") => self.no_store = true,
            _ if is_named(name, b"only-if-cached") => self.only_if_cached = true,
            _ if is_named(name, b"max-age") => shorten(&mut self.max_age, seconds.unwrap_or_default()),
            _ if is_named(name, b"min-fresh") => self.min_fresh = self.min_fresh.max(seconds),
            _ if is_named(name, b"stale-if-error") => {
                shorten(&mut self.stale_if_error, seconds.unwrap_or_default());
            }
            _ if is_named(name, b"max-stale") => {
                let new = match (value, seconds) {
                    (Value::None, _) => MaxStale::Any,
                    (_, seconds) => MaxStale::For(seconds.unwrap_or_default()),
                };
                self.max_stale = Some(match (self.max_stale, new) {
                    (None | Some(MaxStale::Any), new) => new,
                    (Some(old), MaxStale::Any) => old,
                    (Some(MaxStale::For(old)), MaxStale::For(new)) => MaxStale::For(old.min(new)),
                });
            }
            _ => {}
        }
    }

    /// Returns true if there are no directives.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

fn shorten(current: &mut Option<Duration>, new: Duration) {
    *current = Some(current.map_or(new, |old| old.min(new)));
}

/// Stands for any number of seconds that is too large to represent (RFC 9111, section 1.2.2).
const MAX_SECONDS: u64 = 1 << 31;

/// Parses delta seconds (RFC 9111, section 1.2.2); a value above 2^31 counts as 2^31.
pub(crate) fn delta_seconds(text: &[u8]) -> Option<Duration> {
    if text.is_empty() {
        return None;
    }
    let seconds = text.iter().try_fold(0_u64, |seconds, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        Some((seconds * 10 + digit).min(MAX_SECONDS))
    })?;
    Some(Duration::from_secs(seconds))
}

/// The words of a member that is no directive: `max-age=60; private`, `no-store private`, or one with a quote that never ends.
/// Whoever wrote it meant something, and not to be heard on `private` or `no-store` costs more than a miss.
fn stray_words(member: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut escaped, mut is_stray) = (false, false, false);
    for byte in member {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b';' | b' ' | b'\t' => is_stray |= !quoted,
            _ => {}
        }
    }
    let words = (is_stray || quoted).then(|| member.split(|byte| b";, \t\"=".contains(byte)));
    words.into_iter().flatten().filter(|word| !word.is_empty())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Directive<'a> {
    name: &'a [u8],
    value: Value<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value<'a> {
    None,
    /// The argument, without its quotes.
    Of(&'a [u8]),
    /// An argument with white space around the `=`, where the grammar allows none.
    Odd,
}

impl Value<'_> {
    fn seconds(self) -> Option<Duration> {
        match self {
            Self::Of(text) => delta_seconds(text),
            Self::None | Self::Odd => None,
        }
    }
}

impl<'a> Directive<'a> {
    /// Reads a member of a field line.
    fn of(member: &'a [u8]) -> Self {
        let Some(equals) = member.iter().position(|byte| *byte == b'=') else {
            return Self { name: member, value: Value::None };
        };
        let (name, value) = (&member[..equals], &member[equals + 1..]);
        let value = match value {
            _ if name.trim_ascii() != name || value.trim_ascii() != value => Value::Odd,
            [b'"', quoted @ .., b'"'] => Value::Of(quoted),
            _ => Value::Of(value),
        };
        Self { name: name.trim_ascii(), value }
    }
}

/// The members of a list (RFC 9110, section 5.6.1), without the empty ones.
pub(crate) fn members(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    split_at_commas(line).map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
}

/// Splits a value at the commas that are not inside quotes.
pub(crate) fn split_at_commas(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    line.split(move |byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' => return !quoted,
            _ => {}
        }
        false
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::headers;

    const fn seconds(seconds: u64) -> Option<Duration> {
        Some(Duration::from_secs(seconds))
    }

    fn parse(lines: &[&str]) -> ResponseDirectives {
        ResponseDirectives::parse(&headers(
            &lines.iter().map(|line| ("cache-control", *line)).collect::<Vec<_>>(),
        ))
    }

    fn asked(line: &str) -> RequestDirectives {
        RequestDirectives::parse(&headers(&[("cache-control", line)]))
    }

    #[test]
    fn directives_parse_in_any_case_quotes_and_line() {
        let parsed = parse(&["No-Store, MAX-AGE=\"60\",, ", "S-MaxAge=10,must-understand,PUBLIC"]);
        assert!(parsed.no_store && parsed.must_understand && parsed.public && !parsed.private);
        assert_eq!((parsed.max_age, parsed.s_maxage), (seconds(60), seconds(10)));
        let parsed =
            parse(&["must-revalidate, proxy-revalidate, stale-while-revalidate=1, stale-if-error=2"]);
        assert!(parsed.must_revalidate && parsed.proxy_revalidate);
        assert_eq!((parsed.stale_while_revalidate, parsed.stale_if_error), (seconds(1), seconds(2)));
    }

    #[test]
    fn a_name_inside_quotes_is_no_directive() {
        for line in [r#"ext="no-store, private", max-age=5"#, r#"max-age=5, ext="\", no-store, private""#] {
            let parsed = parse(&[line]);
            assert!(!parsed.no_store && !parsed.private, "{line}");
            assert_eq!(parsed.max_age, seconds(5), "{line}");
        }
        assert!(parse(&["private=\"set-cookie, x\""]).private);
        assert!(parse(&["no-cache = \"x\", no-store =1"]).no_store);
    }

    #[test]
    fn malformed_list_keeps_its_restrictions() {
        for line in [
            "max-age=60; private",
            "max-age=60;private",
            "public private",
            "max-age=60\tPRIVATE",
            "max-age=60; private=\"x\"",
            "ext=\"never ends, private",
        ] {
            assert!(parse(&[line]).private, "{line}");
        }
        assert!(parse(&["no-cache; no-store"]).no_store && parse(&["no-store no-cache"]).no_cache);
        for line in ["max-age=60; public", "max-age=60 must-understand"] {
            let parsed = parse(&[line]);
            assert!(!parsed.public && !parsed.must_understand, "{line}");
        }
    }

    #[test]
    fn odd_ages_are_stale_and_huge_ones_are_capped() {
        for value in [
            "max-age=-1",
            "max-age=1.5",
            "max-age='60'",
            "max-age=",
            "max-age",
            "max-age=60a",
            "max-age=a60",
            "max-age= 60",
            "max-age =60",
            "max-age=\"60",
            "max-age=60, max-age=x",
        ] {
            assert_eq!(parse(&[value]).max_age, seconds(0), "{value}");
        }
        for value in ["max-age=99999999999999999999", "max-age=2147483649", "max-age=2147483648"] {
            assert_eq!(parse(&[value]).max_age, seconds(1 << 31), "{value}");
        }
        assert_eq!(parse(&["max-age=003600"]).max_age, seconds(3600));
        assert_eq!(parse(&["max-age=60, max-age=10"]).max_age, seconds(10));
        assert_eq!(parse(&["max-age=10", "max-age=60"]).max_age, seconds(10));
    }

    #[test]
    fn request_directives_are_parsed() {
        let parsed = asked("No-Cache, no-store, only-if-cached, max-age=5, min-fresh=6, stale-if-error=7");
        assert!(parsed.no_cache && parsed.no_store && parsed.only_if_cached && !parsed.is_empty());
        assert_eq!((parsed.max_age, parsed.min_fresh), (seconds(5), seconds(6)));
        assert_eq!(parsed.stale_if_error, seconds(7));
        assert_eq!(asked("max-age=x").max_age, seconds(0));
        assert_eq!(asked("min-fresh=1, min-fresh=3, min-fresh=x").min_fresh, seconds(3));
        assert!(asked("no-transform, x=\"no-cache\"").is_empty());
    }

    #[test]
    fn max_stale_has_a_number_or_none() {
        let most = |seconds| Some(MaxStale::For(Duration::from_secs(seconds)));
        for (line, expected) in [
            ("max-stale", Some(MaxStale::Any)),
            ("max-stale=10", most(10)),
            ("max-stale=10, max-stale", most(10)),
            ("max-stale, max-stale=10, max-stale=3", most(3)),
            ("max-stale=x", most(0)),
            ("max-age=1", None),
        ] {
            assert_eq!(asked(line).max_stale, expected, "{line}");
        }
    }

    #[test]
    fn pragma_counts_where_there_is_no_cache_control() {
        let parse = |lines: &[(&str, &str)]| RequestDirectives::parse(&headers(lines)).no_cache;
        assert!(parse(&[("pragma", "x, No-Cache")]));
        assert!(!parse(&[("pragma", "x")]));
        assert!(!parse(&[("pragma", "no-cache"), ("cache-control", "max-age=1")]));
    }
}
