//! Labels of pods, as options and answers have them.

use std::collections::BTreeMap;

/// Maximum length of a value, and of a key behind its prefix.
const MAX_NAME: usize = 63;
/// Maximum length of a key's prefix.
const MAX_PREFIX: usize = 253;

/// Reads labels, such as `app=shop,tier=web`.
pub(crate) fn read(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut labels = BTreeMap::new();
    for pair in text.split(',') {
        let (key, value) =
            pair.split_once('=').map(|(key, value)| (key.trim(), value.trim())).ok_or_else(|| {
                "write labels as key=value, with commas between them, such as app=shop".to_owned()
            })?;
        if !is_key(key) {
            return Err(format!("{key:?} is no label: write labels as key=value, such as app=shop"));
        }
        if !value.is_empty() && !is_name(value) {
            return Err(format!(
                "{value:?} is no value of a label: write labels as key=value, such as app=shop"
            ));
        }
        if labels.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(format!("label {key} has two values: write it once"));
        }
    }
    Ok(labels)
}

/// Returns true if a text may be a label's key (<https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/>).
fn is_key(text: &str) -> bool {
    let is_prefix = |prefix: &str| {
        let is_lowercase = !prefix.bytes().any(|byte| byte.is_ascii_uppercase() || byte == b'_');
        prefix.len() <= MAX_PREFIX && is_lowercase && prefix.split('.').all(is_name)
    };
    match text.split_once('/') {
        Some((prefix, name)) => is_prefix(prefix) && is_name(name),
        None => is_name(text),
    }
}

fn is_name(text: &str) -> bool {
    let is_end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= MAX_NAME
        && is_end(bytes.first())
        && is_end(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_as_kubernetes_has_them() {
        let labels = read("app=shop, app.kubernetes.io/part-of = Web_1.2,empty=").unwrap();
        let expected = [("app", "shop"), ("app.kubernetes.io/part-of", "Web_1.2"), ("empty", "")];
        assert_eq!(labels, expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    }

    #[test]
    fn expressions_duplicates_and_invalid_labels_are_refused() {
        let long = "a".repeat(64);
        for text in [
            "",
            "app",
            "=shop",
            "app==shop",
            "app!=shop",
            "app=shop,app=web",
            "app=shop,",
            "-app=shop",
            "app=shop-",
            "a b=c",
            "app=a b",
            "/app=shop",
            "Example.com/app=shop",
            "a/b/c=d",
            &format!("app={long}"),
            &format!("{long}=a"),
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
