//! gRPC's interoperability cases, by its own implementation at both ends: through our agents, from pod to pod, and through Envoy.

use std::collections::BTreeMap;

use anyhow::Result;
use mesh_tests::grpc::{CASES, ask, serve};

use crate::neighbour::Neighbour;
use crate::report::{Row, Suite};
use crate::{LAB, envoy};

/// Where the servers listen.
const PORT: u16 = 8085;

#[test]
fn grpc_s_own_cases_pass() -> Result<()> {
    LAB.test(|lab| {
        let _servers = [serve(&lab.pod("server")?, PORT)?, serve(&lab.pod("envoy")?, PORT)?];
        let neighbour = Neighbour::start(lab)?;
        let ours = ask(&lab.pod("client")?, &format!("server:{PORT}"))?;
        neighbour.was_undisturbed()?;
        let envoy = format!("{}:{}", lab.pod("envoy")?.address(), envoy::GRPC);
        let theirs = ask(&lab.pod("outside")?, &envoy)?;
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
