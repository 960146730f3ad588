//! YAML with the place of each value.
//!
//! Plain scalars have the meaning that they have to a sidecar (YAML 1.2). Aliases are replaced by their values, within
//! bounds; merge keys, tags of other schemas and keys that are not texts are refused.

use std::collections::{BTreeMap, HashMap};

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};
use serde_json::Number;

use super::{Diagnostic, path};

/// Maximum number of values of a document. Each use of an alias counts as all of its values.
const MAX_VALUES: usize = 100_000;

/// Maximum depth of values; a policy needs 12.
const MAX_DEPTH: usize = 64;

/// A place in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mark {
    /// Line, from 1.
    pub(super) line: usize,
    /// Column in characters, from 1.
    pub(super) column: usize,
}

impl From<Span> for Mark {
    fn from(span: Span) -> Self {
        // The parser counts columns from 0, whatever its documentation says.
        Self { line: span.start.line(), column: span.start.col() + 1 }
    }
}

/// A value and its place.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) mark: Mark,
    pub(super) value: Value,
    /// Number of values in it, itself included.
    size: usize,
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    Object(Vec<Member>),
}

/// A member of an object.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) mark: Mark,
    pub(super) node: Node,
}

impl PartialEq for Node {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl Member {
    /// Returns the place for errors of the value: the value itself, or its key if the value starts on a later line.
    pub(super) fn place(&self) -> Mark {
        if self.node.mark.line == self.mark.line { self.node.mark } else { self.mark }
    }
}

impl Node {
    /// Returns the member of this name, if this is an object that has one that is not null.
    pub(super) fn member(&self, name: &str) -> Option<&Member> {
        let Value::Object(members) = &self.value else { return None };
        members.iter().find(|member| member.name == name && member.node.value != Value::Null)
    }

    /// Returns the value of [`Self::member`].
    pub(super) fn get(&self, name: &str) -> Option<&Self> {
        self.member(name).map(|member| &member.node)
    }

    /// Returns the text, if the value is one.
    pub(super) fn as_text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the items; none if the value is not a list.
    pub(super) fn items(&self) -> &[Self] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }
}

/// One document of a file.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) mark: Mark,
    pub(super) root: Node,
    /// Errors in the YAML.
    pub(super) diagnostics: Vec<Diagnostic>,
}

/// Reads all documents of a file, up to the first error of syntax.
pub(super) fn read(text: &str) -> (Vec<Document>, Option<Diagnostic>) {
    let mut parser = Parser::new_from_str(text);
    let mut documents = Vec::new();
    let mut builder = Builder::default();
    loop {
        let (event, span) = match parser.next_event() {
            None => return (documents, None),
            Some(Ok(next)) => next,
            Some(Err(error)) => {
                let mark = Mark { line: error.marker().line(), column: error.marker().col() + 1 };
                let diagnostic = Diagnostic::new(mark, "", format!("invalid YAML: {}", error.info()));
                return (documents, Some(diagnostic));
            }
        };
        match event {
            Event::DocumentStart(_) => builder = Builder::at(span.into()),
            Event::DocumentEnd => documents.extend(std::mem::take(&mut builder).done()),
            event => {
                if let Err(diagnostic) = builder.take(event, span.into()) {
                    return (documents, Some(diagnostic));
                }
            }
        }
    }
}

/// Builder of a tree from events.
#[derive(Default)]
struct Builder {
    mark: Mark,
    root: Option<Node>,
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    values: usize,
    diagnostics: Vec<Diagnostic>,
}

/// A list or an object before its end.
struct Open {
    mark: Mark,
    anchor: usize,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    Object {
        members: Vec<Member>,
        /// The first line of each name.
        names: BTreeMap<String, usize>,
        key: Option<(String, Mark)>,
    },
    /// A key that is a list or an object, which JSON does not have.
    Key,
}

impl Builder {
    fn at(mark: Mark) -> Self {
        Self { mark, ..Self::default() }
    }

    fn done(self) -> Option<Document> {
        let Self { mark, root, diagnostics, .. } = self;
        root.map(|root| Document { mark, root, diagnostics })
    }

    fn take(&mut self, event: Event<'_>, mark: Mark) -> Result<(), Diagnostic> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let value = self.scalar(&text, style, tag.as_deref(), mark);
                self.count(1, mark)?;
                self.put(Node { mark, value, size: 1 }, anchor);
            }
            Event::Alias(anchor) => {
                // An alias inside what it names: the anchor is not whole yet.
                let size = self.anchors.get(&anchor).map_or(1, |node| node.size);
                self.count(size, mark)?;
                let node = self.anchors.get(&anchor).cloned().ok_or_else(|| {
                    let message =
                        "this alias refers to a value that is not complete yet: write the value out";
                    Diagnostic::new(mark, &self.path(), message)
                })?;
                self.put(Node { mark, ..node }, 0);
            }
            Event::SequenceStart(anchor, tag) => {
                self.open(anchor, tag.as_deref(), mark, Content::List(vec![]))?;
            }
            Event::MappingStart(anchor, tag) => {
                let content = Content::Object { members: vec![], names: BTreeMap::new(), key: None };
                self.open(anchor, tag.as_deref(), mark, content)?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(Open { mark, anchor, content }) = self.open.pop() else { return Ok(()) };
                let (value, size) = match content {
                    Content::List(items) => {
                        let size = items.iter().map(|item| item.size).sum();
                        (Value::List(items), size)
                    }
                    Content::Object { members, .. } => {
                        let size = members.iter().map(|member| member.node.size).sum();
                        (Value::Object(members), size)
                    }
                    Content::Key => (Value::Null, 0),
                };
                self.put(Node { mark, value, size: 1 + size }, anchor);
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => {}
        }
        Ok(())
    }

    fn count(&mut self, values: usize, mark: Mark) -> Result<(), Diagnostic> {
        self.values = self.values.saturating_add(values);
        if self.values <= MAX_VALUES {
            return Ok(());
        }
        let message = format!("a document may have at most {MAX_VALUES} values, including expanded aliases");
        Err(Diagnostic::new(mark, "", message))
    }

    fn open(
        &mut self,
        anchor: usize,
        tag: Option<&Tag>,
        mark: Mark,
        content: Content,
    ) -> Result<(), Diagnostic> {
        self.known(tag, &["seq", "map"], mark);
        if self.open.len() >= MAX_DEPTH {
            return Err(Diagnostic::new(
                mark,
                "",
                format!("values are nested more than {MAX_DEPTH} levels deep"),
            ));
        }
        self.count(1, mark)?;
        let content = if self.wants_key() {
            self.refuse_key(mark);
            Content::Key
        } else {
            content
        };
        self.open.push(Open { mark, anchor, content });
        Ok(())
    }

    fn wants_key(&self) -> bool {
        matches!(
            self.open.last(),
            Some(Open { content: Content::Object { key: None, .. } | Content::Key, .. })
        )
    }

    fn refuse_key(&mut self, mark: Mark) {
        self.diagnostics.push(Diagnostic::new(mark, &self.path(), "a key must be a string"));
    }

    fn put(&mut self, node: Node, anchor: usize) {
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        if self.wants_key() && matches!(node.value, Value::List(_) | Value::Object(_)) {
            self.refuse_key(node.mark);
        }
        let path = self.path();
        match self.open.last_mut().map(|open| &mut open.content) {
            None => self.root = Some(node),
            Some(Content::Key) => {}
            Some(Content::List(items)) => items.push(node),
            Some(Content::Object { key: slot @ None, .. }) => {
                let Node { mark, value, .. } = node;
                let name = match value {
                    Value::Text(text) => text,
                    Value::Number(number) => number.to_string(),
                    Value::Bool(word) => word.to_string(),
                    Value::Null => "null".to_owned(),
                    Value::List(_) | Value::Object(_) => String::new(),
                };
                *slot = Some((name, mark));
            }
            Some(Content::Object { members, names, key }) => {
                let Some((name, mark)) = key.take() else { return };
                if let Some(line) = names.get(&name) {
                    let message = format!("is already set in line {line}: remove one of them");
                    self.diagnostics.push(Diagnostic::new(mark, &path, message));
                } else {
                    names.insert(name.clone(), mark.line);
                    members.push(Member { name, mark, node });
                }
            }
        }
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, tag: Option<&Tag>, mark: Mark) -> Value {
        self.known(tag, &["str", "int", "float", "bool", "null"], mark);
        let is_text = tag.is_some_and(|tag| tag.suffix == "str" || tag.suffix.is_empty());
        let value =
            if style == ScalarStyle::Plain && !is_text { plain(text) } else { Value::Text(text.to_owned()) };
        if style == ScalarStyle::Plain && text == "<<" && self.wants_key() {
            let message =
                "merge keys are not supported: write the fields out, or use an alias for a whole value";
            self.diagnostics.push(Diagnostic::new(mark, &path::member(&self.path(), text), message));
        }
        value
    }

    /// Refuses a tag that is not one of YAML's own.
    fn known(&mut self, tag: Option<&Tag>, names: &[&str], mark: Mark) {
        let Some(tag) = tag else { return };
        let is_plain = tag.handle.is_empty() || tag.handle == "!";
        let is_own = tag.is_yaml_core_schema() && names.contains(&tag.suffix.as_str());
        let is_none = is_plain && tag.suffix.is_empty();
        if !is_own && !is_none {
            let message = format!("the tag {tag} is not supported: remove it");
            self.diagnostics.push(Diagnostic::new(mark, &self.path(), message));
        }
    }

    /// Returns the path of the next value.
    fn path(&self) -> String {
        let mut path = String::new();
        for Open { content, .. } in &self.open {
            match content {
                Content::List(items) => path = path::item(&path, items.len()),
                Content::Object { key: Some((name, _)), .. } => path = path::member(&path, name),
                Content::Object { key: None, .. } | Content::Key => {}
            }
        }
        path
    }
}

/// Returns the value of a plain scalar in the core schema of
/// [YAML 1.2](https://yaml.org/spec/1.2.2/#103-core-schema), as far as JSON can express it.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let number = whole(text).or_else(|| {
        let is_number = text.starts_with(|first: char| first.is_ascii_digit() || "+-.".contains(first));
        let digits = text.contains(|c: char| c.is_ascii_digit()) && !has_leading_zero(text);
        (is_number && digits).then(|| text.parse().ok().and_then(Number::from_f64)).flatten()
    });
    number.map_or_else(|| Value::Text(text.to_owned()), Value::Number)
}

fn whole(text: &str) -> Option<Number> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (digits, radix) = [("0x", 16), ("0o", 8), ("0b", 2)]
        .into_iter()
        .find_map(|(prefix, radix)| Some((digits.strip_prefix(prefix)?, radix)))
        .unwrap_or((digits, 10));
    if digits.is_empty()
        || !digits.chars().all(|digit| digit.is_digit(radix))
        || (radix == 10 && has_leading_zero(digits))
    {
        return None;
    }
    let number = i128::from_str_radix(digits, radix).ok()?;
    Number::from_i128(if negative { -number } else { number })
}

/// Returns true for numbers such as `012`, which are texts here because YAML 1.1 reads them as octal.
fn has_leading_zero(text: &str) -> bool {
    let digits = text.trim_start_matches(['+', '-']).as_bytes();
    digits.len() > 1 && digits[0] == b'0' && digits[1].is_ascii_digit()
}
