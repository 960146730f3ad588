//! Fields of a document by their paths.

use super::tree::{Mark, Node, Value};

/// Returns the place of the field at `path`, or of the nearest one around it that exists, and the value of the field
/// itself if it exists.
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
