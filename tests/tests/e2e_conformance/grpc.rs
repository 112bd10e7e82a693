//! gRPC's interoperability cases, by its own implementation at both ends: through our agents, from pod to pod, and through Envoy.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use mesh_tests::{Lab, Process, tools};

use crate::neighbour::Neighbour;
use crate::report::{Row, Suite};
use crate::{LAB, envoy};

/// No fewer cases than there are.
const CASES: usize = 22;
/// Where the servers listen.
const PORT: u16 = 8085;

/// A script beside this file.
fn script(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e_conformance/grpc").join(name)
}

fn serve(lab: &Lab, python: &tools::Python, pod: &str) -> Result<Process> {
    lab.pod(pod)?.serve(&python.argv(&script("server.py"), &[&PORT.to_string()]), PORT)
}

/// What was wrong with each case.
fn ask(lab: &Lab, python: &tools::Python, pod: &str, to: &str) -> Result<BTreeMap<String, String>> {
    let output = lab.pod(pod)?.run(&python.argv(&script("client.py"), &[to]))?.text();
    serde_json::from_str(output.trim()).with_context(|| format!("the client says: {output}"))
}

#[test]
fn grpc_s_own_cases_pass() -> Result<()> {
    LAB.test(|lab| {
        let python = tools::python(tools::GRPC)?;
        let _servers = [serve(lab, &python, "server")?, serve(lab, &python, "envoy")?];
        let neighbour = Neighbour::start(lab)?;
        let ours = ask(lab, &python, "client", &format!("server:{PORT}"))?;
        neighbour.was_undisturbed()?;
        let envoy = format!("{}:{}", lab.pod("envoy")?.address(), envoy::GRPC);
        let theirs = ask(lab, &python, "outside", &envoy)?;
        let outcome = |of: &BTreeMap<String, String>, name: &str| match of.get(name).map(String::as_str) {
            Some("") => Ok("passed".to_owned()),
            Some(why) => Err(why.to_owned()),
            None => Err("has not run".to_owned()),
        };
        let row = |name: &String| Row {
            section: "gRPC".to_owned(),
            name: name.clone(),
            outcomes: vec![outcome(&ours, name), outcome(&theirs, name)],
        };
        let rows = ours.keys().map(row).collect();
        Suite {
            name: "grpc",
            subjects: vec!["agents, pod to pod", "Envoy"],
            ours: 1,
            reference: true,
            known: &[],
            rows,
        }
        .judge(CASES)
    })
}
