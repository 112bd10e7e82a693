//! HTTP/2 byte by byte: each case is a connection of its own, to our agents' outbound and inbound listeners and to Envoy's, with the same
//! server of HTTP/1 behind.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use mesh_tests::{Dialer, Lab};

use crate::access::{self, Line};
use crate::neighbour::Neighbour;
use crate::report::{Row, Suite};
use crate::{LAB, envoy};
use case::Case;
use peer::{Outcome, Peer, Seen};

mod case;
mod connection;
mod controls;
mod fields;
mod frames;
mod hpack;
mod payloads;
mod peer;
mod requests;
mod status;
mod streams;

/// Cases at once: where nothing happens that should, they wait.
const AT_ONCE: usize = 16;
/// No fewer cases than there are.
const CASES: usize = 200;

/// What our agents do not pass, and why.
const KNOWN: &[(&str, &str)] = &[
    ("a value that begins with a space", SPACES),
    ("a value that ends with a space", SPACES),
    ("a value that ends with a tab", SPACES),
];
const SPACES: &str = "as with Envoy, so that a client that does so goes on as before; to HTTP/1 they mean nothing";

/// Somebody who serves HTTP/2.
struct Subject {
    name: &'static str,
    dialer: Dialer,
    to: String,
    /// The node whose agent's access log tells of it.
    node: Option<&'static str>,
}

/// What one subject did in one case.
struct Done {
    client: Option<SocketAddr>,
    outcome: Outcome,
}

#[test]
fn http2_is_served_as_its_rules_say_and_as_envoy_does() -> Result<()> {
    LAB.test(|lab| {
        let (outside, server) = (lab.pod("outside")?, lab.pod("server")?.address());
        let subject = |name, dialer, to, node| Subject { name, dialer, to, node };
        let subjects = [
            subject("agent, outbound", lab.pod("client")?.dialer()?, "server:80".to_owned(), Some("a")),
            subject("agent, inbound", outside.dialer()?, format!("{server}:8080"), Some("b")),
            subject("Envoy", outside.dialer()?, format!("{}:{}", lab.pod("envoy")?.address(), envoy::HTTP2), None),
        ];
        let cases: Vec<Case> = [
            connection::CASES,
            streams::CASES,
            controls::CASES,
            payloads::CASES,
            requests::CASES,
            fields::CASES,
            hpack::CASES,
        ]
        .concat();
        let neighbour = Neighbour::start(lab)?;
        let done: Vec<Vec<Done>> = subjects.iter().map(|subject| all(subject, &cases)).collect();
        neighbour.was_undisturbed()?;
        let rows = cases.iter().enumerate().map(|(at, case)| Row {
            section: section(case),
            name: case.name.to_owned(),
            outcomes: done.iter().map(|done| done[at].outcome.clone().map(|seen| seen.to_string())).collect(),
        });
        let subjects_of = subjects.iter().map(|subject| subject.name).collect();
        Suite { name: "http2", subjects: subjects_of, ours: 2, reference: true, known: KNOWN, rows: rows.collect() }
            .judge(CASES)?;
        for (subject, done) in subjects.iter().zip(&done) {
            if let Some(node) = subject.node {
                logged_once(lab, node, &cases, done).with_context(|| subject.name)?;
            }
        }
        Ok(())
    })
}

/// A malformed request on its way to a server of HTTP/1.
pub struct Downgraded {
    pub client: SocketAddr,
    pub name: String,
    pub outcome: Result<String, String>,
}

/// Sends every malformed head and body to a server.
pub fn downgrade(dialer: &Dialer, to: &str) -> Result<Vec<Downgraded>> {
    let cases = [requests::CASES, fields::CASES].concat();
    let mut all = Vec::new();
    for case in cases.iter().filter(|case| case.malformed && !KNOWN.iter().any(|known| known.0 == case.name)) {
        let (socket, client) = dialer.connect(to)?;
        let mut peer = Peer::new(socket)?;
        let outcome = peer.greet().and_then(|()| (case.run)(&mut peer)).map(|seen| seen.to_string());
        all.push(Downgraded { client, name: case.name.to_owned(), outcome });
    }
    Ok(all)
}

fn section(case: &Case) -> String {
    match case.section.split_once('/') {
        Some((document, section)) => format!("RFC {document}, {section}"),
        None if case.section == "8441" => "RFC 8441".to_owned(),
        None => format!("RFC 9113, {}", case.section),
    }
}

/// Runs the cases against one subject, some at a time.
fn all(subject: &Subject, cases: &[Case]) -> Vec<Done> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((at, case)) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, cases.get(at)?)))
                {
                    let one = one(subject, case);
                    done.lock().unwrap().push((at, one));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap();
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, done)| done).collect()
}

fn one(subject: &Subject, case: &Case) -> Done {
    let (socket, client) = match subject.dialer.connect(&subject.to) {
        Ok((socket, client)) => (socket, client),
        Err(error) => return Done { client: None, outcome: Err(format!("{error:#}")) },
    };
    let outcome = Peer::new(socket).map_err(|error| error.to_string()).and_then(|mut peer| {
        if case.greeted {
            peer.greet()?;
        }
        (case.run)(&mut peer)
    });
    Done { client: Some(client), outcome }
}

/// Every malformed message stands in the access log once, with Envoy's flag; what is well formed, without one.
fn logged_once(lab: &Lab, node: &str, cases: &[Case], done: &[Done]) -> Result<()> {
    let refusals = |done: &Done| {
        matches!(done.outcome, Ok(Seen::Answer(_, 400..) | Seen::Reset(..) | Seen::GoAway(_) | Seen::Closed))
    };
    let wanted: Vec<_> = cases.iter().zip(done).filter(|(case, done)| case.logged && refusals(done)).collect();
    let clients: Vec<_> = wanted.iter().filter_map(|(_, done)| Some((done.client?, 1))).collect();
    let found = access::settled(lab, node, &clients)?;
    let mut wrong = Vec::new();
    for (case, done) in cases.iter().zip(done) {
        let lines: &[Line] = done.client.and_then(|client| found.get(&client.to_string())).map_or(&[], Vec::as_slice);
        let told = lines.iter().filter(|line| line.flags.contains("DPE")).count();
        let expected = usize::from(case.logged && refusals(done));
        if told != expected && (case.logged || !case.malformed) {
            let lines: Vec<_> =
                lines.iter().map(|l| format!("{} {} {} {}", l.request, l.status, l.flags, l.details)).collect();
            wrong.push(format!("  {}: {}: {told} with DPE, expected {expected}: {lines:?}", case.section, case.name));
        }
    }
    ensure!(wrong.is_empty(), "{} are not told of as they should be:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}
