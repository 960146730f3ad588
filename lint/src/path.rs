//! Paths of fields, such as `spec.routes[2].tags[0]`.

/// Returns the path of a member of the object at `path`.
pub(super) fn member(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// Returns the path of an item of the list at `path`.
pub(super) fn item(path: &str, index: usize) -> String {
    format!("{path}[{index}]")
}

/// Returns the path of the object or list that contains the field at `path`.
pub(super) fn parent(path: &str) -> &str {
    path.rfind(['.', '[']).map_or("", |end| &path[..end])
}

/// Returns true if the field at `path` is the one at `other` or a part of it.
pub(super) fn is_within(path: &str, other: &str) -> bool {
    path.strip_prefix(other)
        .is_some_and(|rest| rest.is_empty() || other.is_empty() || rest.starts_with(['.', '[']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_contain_their_parts_only() {
        assert!(is_within("spec.l1.maxSize", "spec.l1") && is_within("spec.l1", "spec.l1"));
        assert!(is_within("spec.routes[0].ttl", "spec.routes") && is_within("spec", ""));
        assert!(!is_within("spec.l1TTL", "spec.l1") && !is_within("spec", "spec.l1"));
        assert_eq!(
            (parent("spec.routes[0]"), parent("spec.routes[0].ttl"), parent("spec")),
            ("spec.routes", "spec.routes[0]", "")
        );
    }
}
