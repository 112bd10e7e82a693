//! gRPC's interoperability cases, by its own implementation at both ends: `grpc/client.py` and `grpc/server.py`.
//!
//! In: two pods, and what the one calls the other. Out: what was wrong with each case. Never: judges what may be wrong.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::tools::{self, Python};
use crate::{Pod, Process};

/// No fewer cases than there are.
pub const CASES: usize = 22;

/// Serves at a port of a pod, until it is dropped.
///
/// # Errors
/// gRPC cannot be installed, or the server does not listen in time.
pub fn serve(pod: &Pod, port: u16) -> Result<Process> {
    pod.serve(&python()?.argv(&script("server.py"), &[&port.to_string()]), port)
}

/// Has a pod's program ask a server all cases: by name what was wrong, nothing if it passed.
///
/// # Errors
/// gRPC cannot be installed, or the client ends without a word about its cases.
pub fn ask(pod: &Pod, to: &str) -> Result<BTreeMap<String, String>> {
    let output = pod.run(&python()?.argv(&script("client.py"), &[to]))?.text();
    serde_json::from_str(output.trim()).with_context(|| format!("the client says: {output}"))
}

fn python() -> Result<Python> {
    tools::python(tools::GRPC)
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/grpc").join(name)
}
