//! Paths and templates. The input is a path, then templates, a line each.

use larder_policy::{NormalPath, PathTemplate, PurgeName};

/// A path in its normal form stays as it is, and means what the raw one did.
pub fn check(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    let raw = lines.next().unwrap_or_default();
    let path = NormalPath::new(raw);
    let normal = path.as_str();
    if !raw.starts_with('/') {
        return; // "*", or an authority: neither is ever stored
    }
    let again = NormalPath::new(normal);
    assert_eq!(again.as_str(), normal, "{raw:?}: once is enough");
    assert!(path.is_ambiguous() || !again.is_ambiguous(), "{raw:?}");
    let names: Vec<_> = PurgeName::paths(raw).collect();
    assert!(names.contains(&PurgeName::path(raw)) && names.contains(&PurgeName::path(normal)), "{raw:?}");
    assert!(path.is_ambiguous() || names.len() == 1, "{raw:?}: whatever server reads it");
    assert!(normal.is_ascii() && !normal.contains(['?', '#']), "{raw:?}: nothing that ends a path");
    assert!(!normal.split('/').skip(1).any(|segment| segment == "." || segment == ".."), "{raw:?}");
    assert!(normal.starts_with('/'), "{raw:?}");
    assert_eq!(path.clone().into_owned(), path);
    if !path.is_ambiguous() {
        assert_eq!(decoded(raw), decoded(normal), "{raw:?}: it means the same");
        let escapes = |text: &str| text.to_ascii_lowercase().matches("%2f").count();
        assert_eq!(raw.matches('/').count(), normal.matches('/').count(), "{raw:?}: the same segments");
        assert_eq!(escapes(raw), escapes(normal), "{raw:?}: what is escaped is no separator");
    }
    if !raw.contains('%') {
        let escaped = escaped(raw);
        let escaped = NormalPath::new(&escaped);
        assert_eq!(escaped.as_str(), normal, "{raw:?}: two spellings are one path");
        assert_eq!(escaped.is_ambiguous(), path.is_ambiguous(), "{raw:?}");
    }
    for template in lines.filter_map(|line| PathTemplate::try_from(line.to_owned()).ok()) {
        let found = template.matches(normal);
        assert_eq!(found.is_some(), template.covers(normal), "{template} {normal}");
        let Some(parameters) = found.filter(|_| !path.is_ambiguous()) else { continue };
        assert_eq!(template.matches(raw).as_ref(), Some(&parameters), "{template} {raw}: in any spelling");
        assert_eq!(parameters.len(), template.parameters().count());
        let expanded = template.expand(&parameters);
        let expanded = NormalPath::new(&expanded);
        assert!(!expanded.is_ambiguous() || path.is_ambiguous(), "{template} {normal}");
        let unique = template
            .parameters()
            .enumerate()
            .all(|(at, name)| template.parameters().take(at).all(|earlier| earlier != name));
        if unique {
            assert_eq!(template.matches(expanded.as_str()), Some(parameters), "{template} {normal}");
        }
    }
}

/// A path with every unreserved character escaped (RFC 3986, section 2.3).
fn escaped(text: &str) -> String {
    let escape = |c: char| match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '.' | '_' | '~' => format!("%{:02x}", u32::from(c)),
        _ => c.to_string(),
    };
    text.chars().map(escape).collect()
}

/// Returns the bytes that a path stands for; invalid escapes stand for themselves.
fn decoded(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let digit = |at: usize| after.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push(u8::try_from(high * 16 + low).expect("two digits are a byte"));
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}
