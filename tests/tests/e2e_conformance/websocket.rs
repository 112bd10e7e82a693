//! WebSocket: the cases of the Autobahn suite by an independent client (`kosoku`), against an independent server (`websockets`): without a
//! proxy, through our agents from pod to pod, and through Envoy. What passes without a proxy must pass through ours.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_tests::{Lab, Process, tools};

use crate::neighbour::Neighbour;
use crate::report::{self, Row, Suite};
use crate::{LAB, envoy};

/// Where the servers listen.
const PORT: u16 = 8084;
/// Cases at once.
const AT_ONCE: &str = "4";
/// The share: framing, pings, reserved bits, opcodes, fragments, UTF-8, closing, a large message, two compressed ones.
const SHARE: &[&str] = &["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.1.1", "9.2.1", "10.*", "12.1.1", "13.1.1"];
/// The same compressed messages with other parameters of the compression, which is the ends' own: a proxy passes bytes on. They would take
/// a quarter of an hour.
const REPEATED: &[&str] =
    &["12.2.*", "12.3.*", "12.4.*", "12.5.*", "13.2.*", "13.3.*", "13.4.*", "13.5.*", "13.6.*", "13.7.*"];
/// No fewer cases than there are in the share, and in all.
const CASES: (usize, usize) = (250, 330);
/// Longest that one run of all cases takes; compressing takes the servers minutes.
const LIMIT: Duration = Duration::from_secs(1200);

/// Verdicts on the messages and on the close.
type Verdicts = BTreeMap<String, (String, String)>;

/// A script beside this file.
fn script(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e_conformance/websocket").join(name)
}

fn serve(lab: &Lab, python: &tools::Python, pod: &str) -> Result<Process> {
    lab.pod(pod)?.serve(&python.argv(&script("server.py"), &[&PORT.to_string()]), PORT)
}

fn ask(lab: &Lab, python: &tools::Python, pod: &str, to: &str) -> Result<Verdicts> {
    let (cases, left) = if report::everything() { (&["*"][..], REPEATED) } else { (SHARE, &[][..]) };
    let words = [&[to, AT_ONCE], cases, &["--"], left].concat();
    let mut client = lab.pod(pod)?.spawn(&python.argv(&script("client.py"), &words))?;
    client.wait(LIMIT)?;
    let log = client.log();
    let last = log.lines().last().unwrap_or_default();
    serde_json::from_str(last).with_context(|| format!("the client says: {log}"))
}

fn outcome(of: &Verdicts, case: &str) -> Result<String, String> {
    let Some((messages, close)) = of.get(case) else { return Err("has not run".to_owned()) };
    let passed = |verdict: &str| ["OK", "NON-STRICT", "INFORMATIONAL"].contains(&verdict);
    let told = format!("{messages}, close {close}");
    if passed(messages) && passed(close) { Ok(told) } else { Err(told) }
}

/// Cases in their order, by number and not by letter.
fn order(case: &str) -> Vec<u32> {
    case.split('.').map(|part| part.parse().unwrap_or_default()).collect()
}

#[test]
fn websockets_go_through_as_without_a_proxy() -> Result<()> {
    LAB.test(|lab| {
        let python = tools::python(tools::WEBSOCKET)?;
        let _servers = [serve(lab, &python, "server")?, serve(lab, &python, "envoy")?];
        let neighbour = Neighbour::start(lab)?;
        let ours = ask(lab, &python, "client", &format!("server:{PORT}"))?;
        neighbour.was_undisturbed()?;
        let envoy = format!("{}:{}", lab.pod("envoy")?.address(), envoy::WEBSOCKET);
        let theirs = ask(lab, &python, "outside", &envoy)?;
        // From the server's own pod, by loopback.
        let direct = ask(lab, &python, "envoy", &format!("127.0.0.1:{PORT}"))?;
        let mut cases: Vec<_> = direct.keys().collect();
        cases.sort_by_key(|case| order(case));
        let row = |case: &&String| Row {
            section: format!("Autobahn {}", case.split('.').next().unwrap_or_default()),
            name: (*case).clone(),
            outcomes: [&ours, &theirs, &direct].map(|of| outcome(of, case)).to_vec(),
        };
        let rows = cases.iter().map(row).collect();
        let subjects = vec!["agents, pod to pod", "Envoy", "no proxy"];
        let least = if report::everything() { CASES.1 } else { CASES.0 };
        Suite { name: "websocket", subjects, ours: 1, reference: true, known: &[], rows }.judge(least)
    })
}
