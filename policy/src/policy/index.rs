//! Routes by their paths, found in a time that does not grow with their number.
//!
//! A tree of segments: a node has a child for each literal that routes continue with, one for a parameter, and the routes
//! that end there or take the rest. A search follows every child that the path fits and returns the first route of the
//! policy's order, whichever of its segments are literal; subtrees whose first route is behind one that was found are
//! left out.
//!
//! A route that ignores the slash at the end is there twice, and literals of one that ignores case are children of their own, in lower
//! case.
//!
//! # Guarantees
//! - The result is that of a search through the list, as `tests::index_and_list_find_the_same_route` shows.
//! - A search visits at most the nodes whose literals and parameters fit the path: for a path that fits one route's
//!   template, as many as it has segments.

use std::{borrow::Cow, collections::HashMap};

use percent_encoding::percent_decode_str;

use super::Route;
use crate::{
    PathTemplate,
    path::{Readings, fold, only_reading},
    template::{Segment, lowered},
};

#[cfg(test)]
mod tests;

/// Number of literals up to which comparing is faster than hashing.
const FEW: usize = 12;

/// Routes by the segments of their paths.
#[derive(Clone, Debug)]
pub(super) struct RouteIndex {
    nodes: Vec<Node>,
    /// Routes without a path, which take every request.
    anywhere: Vec<u32>,
    /// True if a rest may lack its slash, too.
    is_of_readings: bool,
}

#[derive(Clone, Debug, Default)]
struct Node {
    /// First route at this node or below.
    first: u32,
    /// Routes whose path ends here, in order.
    exact: Vec<u32>,
    /// Routes that take the rest of the path, in order.
    rest: Vec<u32>,
    parameter: Option<u32>,
    literals: Literals,
    /// Literals of routes that ignore case, in lower case.
    lowered: Literals,
}

/// Children of a node by their literals.
#[derive(Clone, Debug)]
enum Literals {
    Few(Vec<(Box<str>, u32)>),
    Many(HashMap<Box<str>, u32>),
}

/// One segment to look for.
#[derive(Clone, Copy)]
enum Step<'a> {
    /// A segment of a path, with its escapes.
    Sent(&'a str),
    /// A segment as text.
    Text(&'a str),
    /// Any text that is not empty.
    Any,
    /// Any segments.
    Rest,
}

/// The segments of a path that are left.
#[derive(Clone, Copy)]
struct Sent<'a> {
    rest: Option<&'a str>,
    has_escapes: bool,
}

impl<'a> Iterator for Sent<'a> {
    type Item = Step<'a>;

    #[inline]
    fn next(&mut self) -> Option<Step<'a>> {
        let rest = self.rest?;
        // Segments are short: a loop finds their end sooner than a search that prepares for long texts.
        let segment = match rest.bytes().position(|byte| byte == b'/') {
            Some(end) => {
                self.rest = Some(&rest[end + 1..]);
                &rest[..end]
            }
            None => {
                self.rest = None;
                rest
            }
        };
        Some(if self.has_escapes { Step::Sent(segment) } else { Step::Text(segment) })
    }
}

/// A search for the first route that fits.
struct Search<F> {
    fits: F,
    /// The best route so far, or a bound on its number.
    found: u32,
}

impl RouteIndex {
    /// Indexes routes by the paths of requests.
    pub(super) fn of_paths<'a>(routes: impl Iterator<Item = &'a Route>) -> Self {
        let mut index = Self::new(false);
        for (number, route) in routes.map(numbered) {
            for path in route.paths() {
                index.insert(number, path, route.ignores_case);
            }
            index.anywhere.extend(route.path.is_none().then_some(number));
        }
        index
    }

    /// Indexes routes by the readings of paths ([`Readings`]).
    pub(super) fn of_readings<'a>(routes: impl Iterator<Item = &'a Route>) -> Self {
        let mut index = Self::new(true);
        for (number, route) in routes.map(numbered) {
            match &route.path {
                Some(path) => index.insert(number, path, false),
                None => index.anywhere.push(number),
            }
        }
        index
    }

    fn new(is_of_readings: bool) -> Self {
        Self { nodes: vec![Node::new(0)], anywhere: vec![], is_of_readings }
    }

    fn insert(&mut self, number: u32, path: &PathTemplate, ignores_case: bool) {
        let mut at = 0;
        for segment in path.segments() {
            let next = u32::try_from(self.nodes.len()).expect("a policy has fewer segments");
            let node = &mut self.nodes[at as usize];
            let child = match segment {
                Segment::Rest(_) => {
                    node.rest.push(number);
                    return;
                }
                Segment::Literal(text) if self.is_of_readings && text.is_empty() => continue,
                Segment::Literal(text) if self.is_of_readings => node.literals.child(&fold(text), next),
                Segment::Literal(text) if ignores_case => node.lowered.child(&lowered(text), next),
                Segment::Literal(text) => node.literals.child(text, next),
                Segment::Parameter(_) => *node.parameter.get_or_insert(next),
            };
            if child == next {
                self.nodes.push(Node::new(number));
            }
            at = child;
        }
        self.nodes[at as usize].exact.push(number);
    }

    /// Returns the first route whose path has the segments of `path`, in the normal form of a request's, and that fits
    /// otherwise. The values of parameters are not looked at.
    pub(super) fn first(&self, path: &str, has_escapes: bool, fits: impl FnMut(u32) -> bool) -> Option<u32> {
        let mut search = Search { fits, found: u32::MAX };
        search.consider(&self.anywhere);
        if let Some(path) = path.strip_prefix('/') {
            search.visit(self, 0, Sent { rest: Some(path), has_escapes });
        }
        search.result(u32::MAX)
    }

    /// Returns true if the path of a route covers a reading of a path, as it was sent.
    pub(super) fn covers(&self, path: &str) -> bool {
        !self.anywhere.is_empty() || self.first_of_readings(path, u32::MAX, |_| true).is_some()
    }

    /// Returns the first route before `bound` whose path covers a reading of a path, as it was sent, and that fits otherwise.
    pub(super) fn first_of_readings(
        &self,
        path: &str,
        bound: u32,
        fits: impl FnMut(u32) -> bool,
    ) -> Option<u32> {
        let mut search = Search { fits, found: bound };
        if let Some(path) = only_reading(path) {
            let segments = path.split('/').filter(|segment| !segment.is_empty());
            search.visit(self, 0, segments.map(Step::Text));
            return search.result(bound);
        }
        for reading in Readings::of(path).iter() {
            let folded: Vec<_> = reading.iter().map(|segment| fold(segment)).collect();
            search.visit(self, 0, folded.iter().map(|segment| Step::Text(segment)));
        }
        search.result(bound)
    }

    /// Returns the first route before `bound` whose path covers every path of a template, and that fits otherwise.
    pub(super) fn first_wider(
        &self,
        template: &PathTemplate,
        bound: u32,
        fits: impl FnMut(u32) -> bool,
    ) -> Option<u32> {
        let steps = template.segments().iter().map(|segment| match segment {
            Segment::Literal(text) => Step::Text(text),
            Segment::Parameter(_) => Step::Any,
            Segment::Rest(_) => Step::Rest,
        });
        let mut search = Search { fits, found: bound };
        search.visit(self, 0, steps);
        search.result(bound)
    }
}

/// Returns a route and its number.
fn numbered(route: &Route) -> (u32, &Route) {
    (u32::try_from(route.index).expect("a policy has fewer routes"), route)
}

impl<F: FnMut(u32) -> bool> Search<F> {
    /// Looks at a node, where `steps` are the segments of the path behind it.
    fn visit<'a>(
        &mut self,
        index: &RouteIndex,
        mut at: u32,
        mut steps: impl Iterator<Item = Step<'a>> + Clone,
    ) {
        loop {
            let node = &index.nodes[at as usize];
            if node.first >= self.found {
                return;
            }
            let Some(step) = steps.next() else {
                self.consider(&node.exact);
                if index.is_of_readings {
                    self.consider(&node.rest);
                }
                return;
            };
            let (text, parameter) = match step {
                Step::Sent(text) | Step::Text(text) => {
                    (Some(text), node.parameter.filter(|_| !text.is_empty()))
                }
                Step::Any => (None, node.parameter),
                Step::Rest => (None, None),
            };
            let literal = text.and_then(|text| node.literals.get(text));
            let decoded = match step {
                Step::Sent(text) if text.contains('%') => node.literals.get_decoded(text),
                _ => None,
            };
            let in_any_case = match text {
                Some(text) if !node.lowered.is_empty() => node.lowered.get_lowered(text, step),
                _ => None,
            };
            // Most nodes have one child for a segment: it is followed without a return.
            at = match (literal, decoded, parameter) {
                (Some(child), None, None) | (None, None, Some(child))
                    if node.rest.is_empty() && in_any_case.is_none() =>
                {
                    child
                }
                (None, None, None) if in_any_case.is_none() => return self.consider(&node.rest),
                children => {
                    for child in [children.0, children.1, children.2, in_any_case].into_iter().flatten() {
                        self.visit(index, child, steps.clone());
                    }
                    return self.consider(&node.rest);
                }
            };
        }
    }

    /// Takes the first of `routes` that fits, if it is before the one that was found.
    fn consider(&mut self, routes: &[u32]) {
        let found = self.found;
        let mut before = routes.iter().take_while(|route| **route < found);
        if let Some(route) = before.find(|route| (self.fits)(**route)) {
            self.found = *route;
        }
    }

    fn result(self, bound: u32) -> Option<u32> {
        (self.found < bound).then_some(self.found)
    }
}

impl Node {
    fn new(first: u32) -> Self {
        Self { first, ..Self::default() }
    }
}

impl Default for Literals {
    fn default() -> Self {
        Self::Few(vec![])
    }
}

impl Literals {
    fn get(&self, text: &str) -> Option<u32> {
        match self {
            Self::Few(children) => {
                children.iter().find(|(literal, _)| **literal == *text).map(|(_, child)| *child)
            }
            Self::Many(children) => children.get(text).copied(),
        }
    }

    /// Returns the child of a segment with escapes.
    fn get_decoded(&self, text: &str) -> Option<u32> {
        match percent_decode_str(text).decode_utf8() {
            Ok(Cow::Owned(decoded)) => self.get(&decoded),
            _ => None,
        }
    }

    /// Returns the child of a segment in any case, where the literals are in lower case.
    fn get_lowered(&self, text: &str, step: Step<'_>) -> Option<u32> {
        match step {
            Step::Sent(_) => self.get(&lowered(&percent_decode_str(text).decode_utf8().ok()?)),
            _ => self.get(&lowered(text)),
        }
    }

    fn is_empty(&self) -> bool {
        matches!(self, Self::Few(children) if children.is_empty())
    }

    /// Returns the child of a literal, which becomes `next` if there is none.
    fn child(&mut self, text: &str, next: u32) -> u32 {
        if let Some(child) = self.get(text) {
            return child;
        }
        match self {
            Self::Few(children) if children.len() < FEW => children.push((text.into(), next)),
            Self::Few(children) => {
                let mut many: HashMap<_, _> = std::mem::take(children).into_iter().collect();
                many.insert(text.into(), next);
                *self = Self::Many(many);
            }
            Self::Many(children) => {
                children.insert(text.into(), next);
            }
        }
        next
    }
}
