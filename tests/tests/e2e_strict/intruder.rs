//! Somebody who is not in the mesh and tries all the same, from inside of any network namespace.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::Lab;
use mesh_tests::place::Place;

/// Longest that a server takes to answer or to refuse; the agent's wait for a configuration is shorter.
const LIMIT: Duration = Duration::from_secs(20);
/// Longest that a SYN is answered after; what is dropped is dropped for good.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// How a server took us.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It answered.
    Served(String),
    /// It was not there or reset us, without a byte.
    Refused,
    /// Nobody answers our SYN.
    Dropped,
}

/// Says something to a server in the open. The answer is to `whoami` or, on a port that speaks HTTP, a bad request's.
pub fn try_plain(place: &Place, to: SocketAddr) -> Result<Verdict> {
    place.within(|| speak(to))?.with_context(|| format!("{} to {to}", place.name))
}

fn speak(to: SocketAddr) -> Result<Verdict> {
    let refused =
        |kind| matches!(kind, ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused | ErrorKind::BrokenPipe);
    let mut stream = match TcpStream::connect_timeout(&to, CONNECT_LIMIT) {
        Ok(stream) => stream,
        Err(e) if refused(e.kind()) => return Ok(Verdict::Refused),
        Err(e) if e.kind() == ErrorKind::TimedOut => return Ok(Verdict::Dropped),
        Err(e) => return Err(e).context("connecting"),
    };
    stream.set_read_timeout(Some(LIMIT))?;
    if let Err(e) = stream.write_all(b"whoami\n\r\n\r\n") {
        ensure!(refused(e.kind()), "writing: {e}");
        return Ok(Verdict::Refused);
    }
    let mut answer = [0; 256];
    match stream.read(&mut answer) {
        Ok(0) => bail!("an end without an answer: it looks like a server that has nothing to say"),
        Ok(n) => Ok(Verdict::Served(String::from_utf8_lossy(&answer[..n]).into_owned())),
        Err(e) if refused(e.kind()) => Ok(Verdict::Refused),
        Err(e) => Err(e).context("reading"),
    }
}

/// Everybody outside of the mesh: pods that are not enrolled and the hosts themselves, on the server's node (`b`) and on
/// the other one.
pub fn everybody(lab: &Lab) -> Result<Vec<Place>> {
    Ok(vec![lab.pod("outside")?.place(), lab.pod("outside-b")?.place(), lab.node("a")?.place(), lab.node("b")?.place()])
}

/// A pod's addresses of both families.
pub fn addresses(lab: &Lab, pod: &str) -> Result<[IpAddr; 2]> {
    let pod = lab.pod(pod)?;
    Ok([pod.address(), pod.address_v6()?])
}

/// The clients of all connections that a pod's TCP applications have accepted.
pub fn seen_by(lab: &Lab, pod: &str) -> Result<Vec<String>> {
    let log = lab.pod(pod)?.log();
    Ok(log.lines().filter_map(|line| line.strip_prefix("begin ")).map(str::to_owned).collect())
}
