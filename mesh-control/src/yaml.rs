//! YAML with positions: a document becomes a bounded tree of nodes that know their line, the tree becomes serde types,
//! and whatever is wrong is told by line and field path.
//!
//! In: text. Out: [`Document`]s and typed values with their [`Fault`]s. No I/O, no knowledge of any kind of object.

mod de;
mod node;
mod path;

#[cfg(test)]
mod tests;

pub use de::{Reading, read};
pub use node::{Entry, Kind, MAX_DEPTH, MAX_NODES, Node};
pub use path::{FieldPath, Segment};

/// One document of a file: its tree, or why it is none.
#[derive(Debug)]
pub struct Document {
    /// Line of the document's first content, 1-based, in the file.
    pub line: u32,
    /// The tree; documents without content are left out by [`documents`].
    pub tree: Result<Node, Fault>,
}

/// Something wrong at a place in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// 1-based line in the file.
    pub line: u32,
    /// Where in the document.
    pub path: FieldPath,
    /// What is wrong.
    pub why: String,
}

/// Splits a file into its documents and parses each on its own, so that a malformed one does not take the others along.
///
/// A line that starts with `---` begins a document wherever it stands (YAML 1.2.2, section 9.1.4), so the split needs no parser.
pub fn documents(text: &str) -> Vec<Document> {
    let mut found = Vec::new();
    let mut start_line = 1u32;
    let mut chunk_line = 1u32;
    let mut chunk_start = 0usize;
    let mut offset = 0usize;
    let mut take = |from: usize, to: usize, line: u32| match node::parse(&text[from..to], line - 1) {
        Ok(None) => {}
        Ok(Some(node)) => found.push(Document { line: node.line, tree: Ok(node) }),
        Err(fault) => found.push(Document { line: fault.line, tree: Err(fault) }),
    };
    for line in text.split_inclusive('\n') {
        let marker =
            line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marker && offset > chunk_start {
            take(chunk_start, offset, chunk_line);
            chunk_start = offset;
            chunk_line = start_line;
        }
        offset += line.len();
        start_line = start_line.saturating_add(1);
    }
    take(chunk_start, offset, chunk_line);
    found
}
