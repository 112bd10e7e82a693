//! Lines of the agents' access logs, by the client's end of a connection.
//!
//! In: a node, and connections. Out: for each, what its lines say: status, flags, details.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_tests::sys::wait_for;
use mesh_tests::{Lab, shared};

/// Longest that a line takes to be written: the writer lets lines gather.
const LIMIT: Duration = Duration::from_secs(10);

/// Lines by client.
pub type Found = BTreeMap<String, Vec<Line>>;

/// What one line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Method, path and version, as they were logged.
    pub request: String,
    pub status: String,
    pub flags: String,
    pub details: String,
    /// Where the request went, `-` for nowhere.
    pub upstream: String,
    pub client: String,
}

/// Splits a line of the log: `[…]` and `"…"` are one each.
fn tokens(line: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = line.trim();
    while !rest.is_empty() {
        let (token, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => rest.split_once(' ').unwrap_or((rest, "")),
        };
        tokens.push(token);
        rest = after.trim_start();
    }
    tokens
}

/// All lines of a node's agent, by client.
pub fn lines(lab: &Lab, node: &str) -> Result<Found> {
    let mut found: Found = BTreeMap::new();
    for line in lab.node(node)?.agent().access_log().lines() {
        let tokens = tokens(line);
        let at = |index: usize| tokens.get(index).map(|&token| token.to_owned());
        let read = || {
            let (request, status, flags, details) = (at(1)?, at(2)?, at(3)?, at(4)?);
            Some(Line { request, status, flags, details, upstream: at(15)?, client: at(19)? })
        };
        let line = read().with_context(|| format!("a line of the access log: {line}"))?;
        found.entry(line.client.clone()).or_default().push(line);
    }
    Ok(found)
}

/// The lines of these connections, once each has the number that it must have, or nobody believes that it will.
pub fn settled(lab: &Lab, node: &str, wanted: &[(SocketAddr, usize)]) -> Result<Found> {
    let lines_of = |found: &Found, client: &SocketAddr| found.get(&client.to_string()).map_or(0, Vec::len);
    settled_when(lab, node, |found| Ok(wanted.iter().all(|(client, count)| lines_of(found, client) >= *count)))
}

/// All lines of a node's agent, once there is enough of them, or nobody believes that there will be.
pub fn settled_when(lab: &Lab, node: &str, enough: impl Fn(&Found) -> Result<bool>) -> Result<Found> {
    let look = || {
        let found = lines(lab, node)?;
        Ok(enough(&found)?.then_some(found))
    };
    match wait_for(LIMIT, "lines of the access log", look) {
        Ok(found) => Ok(found),
        // Who looks at the lines says better what is missing.
        Err(_) => lines(lab, node).with_context(|| shared::logs(lab.state())),
    }
}
