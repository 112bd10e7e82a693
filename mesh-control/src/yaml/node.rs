//! Builds the tree of one document from the parser's events.
//!
//! In: one document's text and how many lines stand before it. Out: a [`Node`], nothing for an empty document, or a
//! fault. Depth and node count are bounded, aliases included, so that a small file cannot become a large tree.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};

use super::{Fault, FieldPath, Segment};

/// Deepest nesting of a document.
pub const MAX_DEPTH: usize = 64;
/// Most nodes of one document, those an alias repeats included.
pub const MAX_NODES: usize = 2_000_000;

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// 1-based line in the file.
    pub line: u32,
    /// The value.
    pub kind: Kind,
}

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A scalar; only a plain (unquoted) one can be null, a number or a boolean.
    Scalar {
        /// Its text, unescaped.
        text: String,
        /// Written without quotes and without an explicit string tag.
        plain: bool,
    },
    /// A sequence.
    List(Vec<Node>),
    /// A mapping in the order of the file.
    Map(Vec<Entry>),
}

/// One key of a mapping with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// 1-based line of the key.
    pub line: u32,
    /// The value.
    pub value: Node,
}

impl Node {
    /// Whether this is YAML's null: `~`, `null` or nothing at all.
    pub fn is_null(&self) -> bool {
        matches!(&self.kind, Kind::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// The value of a mapping's key.
    pub fn get(&self, key: &str) -> Option<&Node> {
        match &self.kind {
            Kind::Map(entries) => entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value),
            _ => None,
        }
    }

    /// A scalar's text, null excluded.
    pub fn text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Scalar { text, .. } if !self.is_null() => Some(text),
            _ => None,
        }
    }

    /// The line of a field, or of the deepest part of its path that exists.
    pub fn line_of(&self, path: &FieldPath) -> u32 {
        let mut node = self;
        let mut line = self.line;
        for segment in &path.0 {
            let next = match (segment, &node.kind) {
                (Segment::Key(key), Kind::Map(entries)) => {
                    entries.iter().find(|entry| entry.key == *key).map(|entry| (entry.line, &entry.value))
                }
                (Segment::Index(index), Kind::List(items)) => items.get(*index).map(|item| (item.line, item)),
                _ => None,
            };
            match next {
                Some((at, child)) => (line, node) = (at, child),
                None => break,
            }
        }
        line
    }

    fn count(&self) -> usize {
        1 + match &self.kind {
            Kind::Scalar { .. } => 0,
            Kind::List(items) => items.iter().map(Node::count).sum(),
            Kind::Map(entries) => entries.iter().map(|entry| entry.value.count()).sum(),
        }
    }
}

/// A collection whose end has not been seen yet.
struct Open {
    anchor: usize,
    line: u32,
    kind: OpenKind,
}

enum OpenKind {
    List(Vec<Node>),
    Map { entries: Vec<Entry>, seen: HashSet<String>, key: Option<(String, u32)> },
}

struct Builder {
    lines_before: u32,
    open: Vec<Open>,
    anchors: HashMap<usize, (Node, usize)>,
    nodes: usize,
    root: Option<Node>,
}

/// Parses one document; `lines_before` is how many lines of the file stand before it.
pub(super) fn parse(text: &str, lines_before: u32) -> Result<Option<Node>, Fault> {
    let mut builder = Builder { lines_before, open: Vec::new(), anchors: HashMap::new(), nodes: 0, root: None };
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        match event {
            Ok((Event::StreamEnd, _)) => break,
            Ok((event, span)) => builder.take(event, span)?,
            Err(error) => {
                let line = builder.lines_before.saturating_add(line_number(error.marker().line()));
                return Err(fault(line, format!("malformed YAML: {}", error.info())));
            }
        }
    }
    Ok(builder.root.filter(|node| !node.is_null()))
}

fn line_number(line: usize) -> u32 {
    u32::try_from(line).unwrap_or(u32::MAX)
}

fn fault(line: u32, why: String) -> Fault {
    Fault { line, path: FieldPath::default(), why }
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Fault> {
        let line = self.lines_before.saturating_add(line_number(span.start.line()));
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && !is_string_tag(tag.as_ref());
                let node = Node { line, kind: Kind::Scalar { text: text.into_owned(), plain } };
                self.place(node, anchor, 1)
            }
            Event::SequenceStart(anchor, _) => self.enter(anchor, line, OpenKind::List(Vec::new())),
            Event::MappingStart(anchor, _) => {
                self.enter(anchor, line, OpenKind::Map { entries: Vec::new(), seen: HashSet::new(), key: None })
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(open) = self.open.pop() else {
                    return Err(fault(line, "malformed YAML: a collection ends that never began".to_owned()));
                };
                let kind = match open.kind {
                    OpenKind::List(items) => Kind::List(items),
                    OpenKind::Map { entries, .. } => Kind::Map(entries),
                };
                self.place(Node { line: open.line, kind }, open.anchor, 1)
            }
            Event::Alias(anchor) => {
                let Some((node, size)) = self.anchors.get(&anchor).cloned() else {
                    return Err(fault(line, "an alias (`*name`) before its anchor is complete".to_owned()));
                };
                self.place(node, 0, size)
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => {
                Ok(())
            }
        }
    }

    fn enter(&mut self, anchor: usize, line: u32, kind: OpenKind) -> Result<(), Fault> {
        if self.open.len() >= MAX_DEPTH {
            return Err(fault(line, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        if let Some(Open { kind: OpenKind::Map { key: None, .. }, .. }) = self.open.last() {
            return Err(fault(line, "a key must be a scalar".to_owned()));
        }
        self.open.push(Open { anchor, line, kind });
        Ok(())
    }

    fn place(&mut self, node: Node, anchor: usize, size: usize) -> Result<(), Fault> {
        self.nodes = self.nodes.saturating_add(size);
        if self.nodes > MAX_NODES {
            return Err(fault(node.line, format!("more than {MAX_NODES} values in one document, aliases included")));
        }
        if anchor > 0 {
            let size = node.count();
            self.anchors.insert(anchor, (node.clone(), size));
        }
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open { kind: OpenKind::List(items), .. }) => items.push(node),
            Some(Open { kind: OpenKind::Map { entries, seen, key }, .. }) => match key.take() {
                Some((name, line)) => entries.push(Entry { key: name, line, value: node }),
                None => {
                    let Kind::Scalar { text, .. } = node.kind else {
                        return Err(fault(node.line, "a key must be a scalar".to_owned()));
                    };
                    if !seen.insert(text.clone()) {
                        return Err(fault(node.line, format!("key `{text}` stands twice in one mapping")));
                    }
                    *key = Some((text, node.line));
                }
            },
        }
        Ok(())
    }
}

fn is_string_tag(tag: Option<&Cow<'_, Tag>>) -> bool {
    tag.is_some_and(|tag| tag.is_yaml_core_schema() && tag.suffix == "str")
}
