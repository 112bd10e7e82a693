//! Authenticates nodes by bearer token.
//!
//! In: request metadata and the nodes' token files. Out: the node's name, or a refusal. Tokens are compared in constant time.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::settings::NodeSettings;

/// How long tokens read from their files are used before the files are read again.
const TOKEN_AGE: Duration = Duration::from_secs(1);
/// Longest token in bytes.
const MAX_TOKEN: usize = 16 * 1024;
/// Shortest token in bytes; a shorter one is treated as absent.
const MIN_TOKEN: usize = 16;

/// The nodes that may connect. Cheap to clone.
#[derive(Clone)]
pub struct NodeAuth(Arc<Inner>);

struct Inner {
    files: Vec<(Arc<str>, PathBuf)>,
    tokens: Mutex<Tokens>,
}

#[derive(Default)]
struct Tokens {
    read_at: Option<Instant>,
    list: Vec<Option<Vec<u8>>>,
}

impl NodeAuth {
    /// For the nodes of the settings.
    pub fn new(nodes: &[NodeSettings]) -> NodeAuth {
        let files = nodes.iter().map(|node| (node.name.as_str().into(), node.token_file.clone())).collect();
        NodeAuth(Arc::new(Inner { files, tokens: Mutex::default() }))
    }

    /// The node that a request comes from.
    pub fn node(&self, metadata: &MetadataMap) -> Result<Arc<str>, Status> {
        let header = metadata
            .get("authorization")
            .ok_or_else(|| Status::unauthenticated("no `authorization: Bearer <node token>` in the request"))?
            .as_bytes();
        let token = match header.split_at_checked(7) {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"bearer ") => token.trim_ascii(),
            _ => return Err(Status::unauthenticated("the `authorization` header is not `Bearer <node token>`")),
        };
        self.find(token).ok_or_else(|| Status::unauthenticated("the bearer token is not that of a known node"))
    }

    fn find(&self, token: &[u8]) -> Option<Arc<str>> {
        if !(MIN_TOKEN..=MAX_TOKEN).contains(&token.len()) {
            return None;
        }
        let mut tokens = self.0.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.read_at.is_none_or(|at| at.elapsed() >= TOKEN_AGE) {
            *tokens = Tokens { read_at: Some(Instant::now()), list: self.read() };
        }
        let mut found = None;
        for ((name, _), known) in self.0.files.iter().zip(&tokens.list) {
            if known.as_deref().is_some_and(|known| same(known, token)) {
                found = Some(name.clone());
            }
        }
        found
    }

    fn read(&self) -> Vec<Option<Vec<u8>>> {
        let read = |(name, file): &(Arc<str>, PathBuf)| match std::fs::read(file) {
            Ok(content) => {
                let token = content.trim_ascii();
                if (MIN_TOKEN..=MAX_TOKEN).contains(&token.len()) {
                    return Some(token.to_vec());
                }
                tracing::warn!(node = %name, file = %file.display(), "token file holds no token of {MIN_TOKEN} to {MAX_TOKEN} bytes; the node cannot connect");
                None
            }
            Err(error) => {
                tracing::warn!(node = %name, file = %file.display(), %error, "token file cannot be read; the node cannot connect");
                None
            }
        };
        self.0.files.iter().map(read).collect()
    }
}

/// Compares without telling by its duration where the difference is; only the length is not secret.
fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let difference = a.iter().zip(b).fold(0u8, |sum, (a, b)| sum | (a ^ b));
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn request(value: &str) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", value.parse().unwrap());
        metadata
    }

    #[test]
    fn only_the_right_token_names_a_node() {
        let dir = tempfile::tempdir().unwrap();
        let nodes: Vec<_> = ["a", "b", "empty", "absent"]
            .iter()
            .map(|name| NodeSettings { name: (*name).to_owned(), token_file: dir.path().join(name) })
            .collect();
        std::fs::write(dir.path().join("a"), "token-of-node-a-0001\n").unwrap();
        std::fs::write(dir.path().join("b"), "token-of-node-b-0001").unwrap();
        std::fs::write(dir.path().join("empty"), "\n").unwrap();
        let auth = NodeAuth::new(&nodes);
        assert_eq!(&*auth.node(&request("Bearer token-of-node-a-0001")).unwrap(), "a");
        assert_eq!(&*auth.node(&request("bearer token-of-node-b-0001")).unwrap(), "b");
        for wrong in
            ["Bearer token-of-node-a-0002", "Bearer token-of-node-a-000", "Bearer ", "Basic token-of-node-a-0001", ""]
        {
            assert_eq!(auth.node(&request(wrong)).unwrap_err().code(), tonic::Code::Unauthenticated, "{wrong}");
        }
        assert!(auth.node(&MetadataMap::new()).is_err());
    }
}
