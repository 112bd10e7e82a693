//! Requests that two readers could read in two ways, through our agents to nginx and to HAProxy.
//!
//! What must hold of each: the server sees just what the mesh says that it has passed on; what is refused gets its status or is cut off, and
//! stands in the access log once, with Envoy's flag; a neighbour on the same worker and tunnel goes on.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_tests::sys::wait_for;
use mesh_tests::{Dialer, Lab, Process};

use crate::LAB;
use crate::access::{self, Found, Line};
use crate::http2::downgrade;
use crate::neighbour::Neighbour;
use crate::report::{Row, Suite};
use client::{Answers, Client};
use corpus::{Case, Verdict};

mod client;
mod corpus;

/// No fewer cases than there are.
const CASES: usize = 140;
/// Longest that a server takes to write a line of its log.
const LIMIT: Duration = Duration::from_secs(10);

/// A server behind the mesh.
struct Server {
    name: &'static str,
    port: u16,
    /// Its log: client, method, target, host, status, with a tab behind each.
    log: std::path::PathBuf,
    _process: Process,
}

/// A request that a server has seen.
#[derive(Debug)]
struct Seen {
    target: String,
    host: String,
}

impl Server {
    fn nginx(lab: &Lab) -> Result<Self> {
        let pod = lab.pod("server")?;
        let dir = pod.scratch()?;
        let (path, port) = (dir.display(), 8081);
        let conf = format!(
            "daemon off; pid {path}/pid; error_log {path}/nginx-error.log; worker_processes 1; user root;\n\
             events {{ worker_connections 512; }}\n\
             http {{ log_format seen escape=none '$remote_addr:$remote_port\\t$request_method\\t$request_uri\\t$http_host\\t$status\\t';\n\
             access_log {path}/nginx.log seen; client_body_temp_path {path}/body; proxy_temp_path {path}/proxy;\n\
             fastcgi_temp_path {path}/f; uwsgi_temp_path {path}/u; scgi_temp_path {path}/s;\n\
             server {{ listen {port}; location / {{ default_type text/plain; return 200 \"$request_uri\"; }} }} }}\n"
        );
        let file = dir.join("nginx.conf");
        std::fs::write(&file, conf)?;
        let argv = ["nginx", "-p", &dir.display().to_string(), "-e", "stderr", "-c", &file.display().to_string()];
        Ok(Self { name: "nginx", port, log: dir.join("nginx.log"), _process: pod.serve(&argv, port)? })
    }

    fn haproxy(lab: &Lab) -> Result<Self> {
        let pod = lab.pod("server")?;
        let (dir, port) = (pod.scratch()?, 8082);
        let log = dir.join("haproxy.log");
        let conf = format!(
            "global\n  log stdout format raw local0\n  maxconn 512\n  nbthread 1\n\
             defaults\n  mode http\n  log global\n  timeout client 20s\n  timeout server 20s\n  timeout connect 5s\n\
             frontend all\n  bind :{port}\n  http-request capture req.hdr(host) len 200\n\
             \x20 log-format \"%ci:%cp\\t%HM\\t%HU\\t%[capture.req.hdr(0)]\\t%ST\\t\"\n\
             \x20 http-request return status 200 content-type text/plain lf-string \"%[path]\"\n"
        );
        let file = dir.join("haproxy.cfg");
        std::fs::write(&file, conf)?;
        let line = format!("exec haproxy -db -f {} > {}", file.display(), log.display());
        Ok(Self { name: "HAProxy", port, log, _process: pod.serve(&["sh", "-c", &line], port)? })
    }

    /// What it has seen, by client.
    fn seen(&self) -> Result<BTreeMap<String, Vec<Seen>>> {
        read_log(&self.log).with_context(|| format!("{}: {}", self.name, self.log.display()))
    }
}

fn read_log(log: &Path) -> Result<BTreeMap<String, Vec<Seen>>> {
    let mut seen: BTreeMap<String, Vec<Seen>> = BTreeMap::new();
    for line in String::from_utf8_lossy(&std::fs::read(log)?).lines() {
        let fields: Vec<_> = line.split('\t').collect();
        // A connection that ends without a request is told of too, without a method or as a bad one.
        if let [client, method, target, host, ..] = fields[..]
            && !["", "<BADREQ>"].contains(&method)
        {
            let request = Seen { target: target.to_owned(), host: host.to_owned() };
            seen.entry(client.to_owned()).or_default().push(request);
        }
    }
    Ok(seen)
}

/// One case on one server.
struct Done {
    client: SocketAddr,
    answers: Answers,
}

#[test]
fn servers_see_what_the_mesh_says_that_it_has_passed_on() -> Result<()> {
    LAB.test(|lab| {
        let cases = corpus::cases();
        let servers = [Server::nginx(lab)?, Server::haproxy(lab)?];
        let dialer = lab.pod("client")?.dialer()?;
        let neighbour = Neighbour::start(lab)?;
        let mut rows: Vec<Row> = Vec::new();
        for case in &cases {
            rows.push(Row { section: case.group.clone(), name: case.name.clone(), outcomes: Vec::new() });
        }
        let mut below: Vec<Row> = Vec::new();
        for server in &servers {
            let mut kept = Client::new(&dialer, server.port)?;
            let mut done = Vec::new();
            for (number, case) in cases.iter().enumerate() {
                done.push(run(&dialer, server, case, number)?);
                kept.asks("/kept").with_context(|| format!("a neighbour, behind `{}`", case.name))?;
            }
            let told = Told::of(lab, server, &cases, &done)?;
            for ((case, done), row) in cases.iter().zip(&done).zip(&mut rows) {
                row.outcomes.push(told.judge(server, case, done));
            }
            downgraded(lab, server, &dialer, &mut below)?;
            kept.asks("/kept").context("a neighbour, behind the cases of HTTP/2")?;
        }
        neighbour.was_undisturbed()?;
        rows.extend(below);
        let subjects = servers.iter().map(|server| server.name).collect();
        Suite { name: "smuggling", subjects, ours: 2, reference: false, known: &[], rows }.judge(CASES)
    })
}

fn run(dialer: &Dialer, server: &Server, case: &Case, number: usize) -> Result<Done> {
    let mut client = Client::new(dialer, server.port)?;
    let path = format!("/c/{number}");
    client.send(&case.bytes(&format!("server:{}", server.port), &path));
    let answers = match case.verdict {
        Verdict::Bytes => Answers::default(),
        verdict => client.answers(verdict.answers()),
    };
    Ok(Done { client: client.local, answers })
}

/// What everybody says of a server's cases.
struct Told {
    near: Found,
    far: Found,
    seen: BTreeMap<String, Vec<Seen>>,
}

impl Told {
    fn of(lab: &Lab, server: &Server, cases: &[Case], done: &[Done]) -> Result<Self> {
        let each = cases.iter().zip(done);
        let near: Vec<_> = each.clone().map(|(case, done)| (done.client, case.verdict.lines())).collect();
        let far: Vec<_> = each.map(|(case, done)| (done.client, case.verdict.passed())).collect();
        let (near, far) = (access::settled(lab, "a", &near)?, access::settled(lab, "b", &far)?);
        let wanted: usize = cases.iter().map(|case| case.verdict.passed()).sum();
        let enough = || {
            let seen = server.seen()?;
            let count: usize = done.iter().filter_map(|done| seen.get(&done.client.to_string())).map(Vec::len).sum();
            Ok((count >= wanted).then_some(()))
        };
        // Where some are missing, each case tells which.
        let _ = wait_for(LIMIT, "the server's log", enough);
        Ok(Self { near, far, seen: server.seen()? })
    }

    fn judge(&self, server: &Server, case: &Case, done: &Done) -> Result<String, String> {
        let client = done.client.to_string();
        let near = self.near.get(&client).map_or(&[][..], Vec::as_slice);
        let far = self.far.get(&client).map_or(&[][..], Vec::as_slice);
        let seen = self.seen.get(&client).map_or(&[][..], Vec::as_slice);
        let passed = |lines: &[Line]| lines.iter().filter(|line| line.upstream != "-").count();
        let flagged = near.iter().filter(|line| line.flags.contains("DPE")).count();
        let told = || format!("answers {}, near {near:?}, far {far:?}, seen {seen:?}", done.answers);
        let rule = |holds: bool, what: &str| if holds { Ok(()) } else { Err(format!("{what}: {}", told())) };
        rule(!seen.iter().any(|seen| seen.target.contains("smuggled")), "the server saw what nobody asked for")?;
        let host = format!("server:{}", server.port);
        rule(seen.iter().all(|seen| seen.host == host), "the server saw another host")?;
        match case.verdict {
            Verdict::Passed(count) => {
                rule(done.answers.all_are(200, count), "not each request was answered once")?;
                rule(seen.len() == count && passed(far) == count && passed(near) == count, "not as many requests")?;
                rule(flagged == 0, "a flag")?;
            }
            Verdict::Refused(status) => {
                rule(done.answers.all_are(status, 1) && done.answers.closed, "not refused")?;
                rule(seen.is_empty() && far.is_empty(), "passed on")?;
                rule(near.len() == 1 && flagged == 1, "not told of once, with a flag")?;
            }
            Verdict::Bytes => {
                rule(seen.is_empty() && far.is_empty(), "passed on")?;
                rule(near.iter().all(|line| line.request == "- - -"), "told of as a request")?;
            }
            Verdict::Cut => {
                rule(done.answers.at_most_one() && done.answers.closed, "not cut off")?;
                rule(seen.len() <= 1 && seen.len() <= passed(far), "passed on more than told")?;
                rule(near.len() == 1 && flagged == 1, "not told of once, with a flag")?;
            }
        }
        Ok(done.answers.to_string())
    }
}

/// Malformed requests of HTTP/2 that would be others in HTTP/1: no server of HTTP/1 hears of them.
fn downgraded(lab: &Lab, server: &Server, dialer: &Dialer, rows: &mut Vec<Row>) -> Result<()> {
    let done = downgrade(dialer, &format!("server:{}", server.port))?;
    let passed = |lines: &[Line]| lines.iter().filter(|line| line.upstream != "-").count();
    // What is refused has a line, and so has each request that the server saw.
    let near = access::settled_when(lab, "a", |near| {
        let seen = server.seen()?;
        Ok(done.iter().map(|done| done.client.to_string()).all(|client| {
            near.get(&client).is_some_and(|lines| passed(lines) >= seen.get(&client).map_or(0, Vec::len))
        }))
    })?;
    let seen = server.seen()?;
    let first = rows.is_empty();
    for (at, done) in done.into_iter().enumerate() {
        let client = done.client.to_string();
        let lines = near.get(&client).map_or(&[][..], Vec::as_slice);
        let passed = passed(lines);
        let seen = seen.get(&client).map_or(&[][..], Vec::as_slice);
        let outcome = if seen.iter().any(|seen| seen.target.contains("smuggled") || seen.target.contains(' ')) {
            Err(format!("the server saw what nobody asked for: {seen:?}"))
        } else if seen.len() > passed {
            Err(format!("the server saw {seen:?}, the mesh has passed on {passed}: {lines:?}"))
        } else {
            // How it is refused is the other suite's business; a server may have answered before the fault came.
            Ok(done.outcome.unwrap_or_else(|seen| seen))
        };
        if first {
            rows.push(Row { section: "HTTP/2".to_owned(), name: done.name, outcomes: vec![outcome] });
        } else {
            rows[at].outcomes.push(outcome);
        }
    }
    Ok(())
}
