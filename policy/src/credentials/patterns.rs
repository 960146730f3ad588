//! Headers that the policy, or the operator's configuration, declares to identify a user.

/// Names of headers, in which a `*` at the start or the end stands for the rest of a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentityHeaders(Vec<Pattern>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    /// The name in lower case, without stars.
    text: String,
    has_start: bool,
    has_end: bool,
}

impl IdentityHeaders {
    /// Parses names and patterns such as `x-shop-customer`, `x-shop-*` and `*-customer`.
    pub fn new(patterns: &[String]) -> Self {
        Self(patterns.iter().map(|pattern| Pattern::new(pattern)).collect())
    }

    /// Returns true if there are no patterns.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns true if one of the patterns matches the name of a header, in any case.
    pub fn covers(&self, name: &[u8]) -> bool {
        self.0.iter().any(|pattern| pattern.is(name))
    }
}

impl Pattern {
    fn new(pattern: &str) -> Self {
        let (has_start, text) = pattern.strip_prefix('*').map_or((true, pattern), |rest| (false, rest));
        let (has_end, text) = text.strip_suffix('*').map_or((true, text), |rest| (false, rest));
        Self { text: text.to_ascii_lowercase(), has_start, has_end }
    }

    fn is(&self, name: &[u8]) -> bool {
        let Self { text, has_start, has_end } = self;
        let is = |part: &[u8]| part.eq_ignore_ascii_case(text.as_bytes());
        match (has_start, has_end) {
            (true, true) => is(name),
            (true, false) => name.get(..text.len()).is_some_and(is),
            (false, true) => name.len().checked_sub(text.len()).is_some_and(|from| is(&name[from..])),
            (false, false) => name.windows(text.len()).any(is),
        }
    }
}

/// Returns true if a text is the name of a header, or such a pattern: with at least one letter or digit besides the
/// stars.
pub fn is_pattern(text: &str) -> bool {
    let text = text.strip_prefix('*').unwrap_or(text);
    let text = text.strip_suffix('*').unwrap_or(text);
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'+-.^_`|~".contains(&byte);
    text.bytes().all(token) && text.bytes().any(|byte| byte.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_the_rest_of_a_name() {
        let patterns = ["X-Shop-Customer", "x-foo-*", "*-badge", "*crew*"].map(str::to_owned);
        let listed = IdentityHeaders::new(&patterns);
        for name in ["x-shop-customer", "X-SHOP-CUSTOMER", "x-foo-a", "X-Foo-", "x-badge", "x-crew-1", "crew"]
        {
            assert!(listed.covers(name.as_bytes()), "{name}");
        }
        for name in ["", "x-shop-customers", "x-foo", "badge", "x-badge-1", "cre"] {
            assert!(!listed.covers(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn patterns_are_names_with_stars_at_their_ends() {
        for good in ["x", "x-foo", "x-foo-*", "*-foo", "*foo*"] {
            assert!(is_pattern(good), "{good}");
        }
        for bad in ["", "*", "**", "-*", "x y", "x-*-y", "x:y", "é"] {
            assert!(!is_pattern(bad), "{bad}");
        }
    }
}
