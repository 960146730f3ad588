//! Paths of fields, such as `spec.routes[2].tags[0]`.

use super::tree::{Mark, Node, Value};

/// The path of a member of the object at `path`.
pub(super) fn member(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// The path of an item of the list at `path`.
pub(super) fn item(path: &str, index: usize) -> String {
    format!("{path}[{index}]")
}

/// The path of what the field at `path` is a member or an item of.
pub(super) fn parent(path: &str) -> &str {
    path.rfind(['.', '[']).map_or("", |end| &path[..end])
}

/// Whether the field at `path` is the one at `other` or a part of it.
pub(super) fn is_within(path: &str, other: &str) -> bool {
    path.strip_prefix(other).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// Where the field at `path` stands, or the nearest one around it that is there; and its value, if it is there itself.
pub(super) fn locate<'a>(root: &'a Node, path: &str) -> (Mark, Option<&'a Node>) {
    let (mut mark, mut node) = (root.mark, root);
    for step in path.split('.').flat_map(|steps| steps.split('[')) {
        let next = match (step.strip_suffix(']'), &node.value) {
            (Some(index), Value::List(items)) => {
                index.parse().ok().and_then(|index: usize| items.get(index)).map(|item| (item.mark, item))
            }
            (None, _) => node.member(step).map(|member| (member.place(), &member.node)),
            _ => None,
        };
        match next {
            Some(next) => (mark, node) = next,
            None => return (mark, None),
        }
    }
    (mark, Some(node))
}
