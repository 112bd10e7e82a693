//! Garbage, floods of headers and half-open connections on every port of agent and control plane cost nothing but
//! themselves.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::place::Place;
use mesh_tests::sys::wait_for;
use mesh_tests::topology::PodSpec;
use mesh_tests::{Lab, LabBuilder, Topology, network, shared};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Longest that a victim takes to answer or close; it need not.
const PATIENCE: Duration = Duration::from_millis(150);
/// Half-open connections to each port.
const HALF_OPEN: usize = 10;
/// File descriptors by which an agent may have grown at the end: for what is cached, not for what was abused.
const SLACK: usize = 24;

fn payloads() -> Vec<Vec<u8>> {
    // A fixed sequence of bytes without meaning (xorshift).
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
    .take(16 * 1024)
    .collect();
    let hello = [&[0x16, 3, 1, 0x3f, 0xff, 1, 0, 0x3f, 0xfb, 3, 3], &noise[..]].concat();
    let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &noise[..4096]].concat();
    let headers = [b"GET / HTTP/1.1\r\nhost: x\r\n".to_vec(), b"a: b\r\n".repeat(30_000)].concat();
    let smuggle =
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n".to_vec();
    let connect = b"CONNECT 10.11.0.2:15008 HTTP/1.1\r\nhost: \x00\xff\r\n\r\n".to_vec();
    vec![Vec::new(), noise, hello, preface, headers, smuggle, connect, b"GET / HTTP/1.1\r\n".to_vec(), vec![0; 100]]
}

/// Sends everything there is to one port and leaves some connections open.
fn abuse(from: &Place, to: SocketAddr) -> Result<Vec<TcpStream>> {
    from.within(|| {
        for payload in payloads() {
            let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_secs(2)) else { continue };
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.set_write_timeout(Some(PATIENCE)).unwrap();
            // It may refuse at any point.
            let _ = stream.write_all(&payload);
            let _ = stream.read(&mut [0; 4096]);
        }
        (0..HALF_OPEN).filter_map(|_| TcpStream::connect_timeout(&to, Duration::from_secs(2)).ok()).collect()
    })
}

fn pid(lab: &Lab, cgroup: &str) -> Result<u32> {
    let file = lab.state().cgroup.join(cgroup).join("cgroup.procs");
    let text = std::fs::read_to_string(&file)?;
    text.trim().parse().with_context(|| format!("{cgroup}: one process expected, found `{}`", text.trim()))
}

fn descriptors(pid: u32) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

#[test]
fn garbage_on_every_port_costs_nothing_but_itself() -> Result<()> {
    let both = "mesh-lab-app http-echo --port 8080 & exec mesh-lab-app tcp --port 9000";
    let topology = Topology::of_nodes(&["a", "b"])
        .pod(PodSpec::new("client", "a"))
        .pod(PodSpec::new("server", "b").command(&["sh", "-c", both], &[8080, 9000]))
        .pod(PodSpec::new("outside", "a").unenrolled());
    let services = "apiVersion: v1\nkind: Service\nmetadata: {name: server}\nspec:\n  selector: {app: server}\n  \
                    ports: [{name: http, port: 8080}, {name: tcp, port: 9000}]\n";
    let lab = LabBuilder::for_test("garbage", topology).config("s.yaml", services).up()?;
    let body = || -> Result<()> {
        let argv = ["mesh-lab-app", "steady", "--http", "server:8080", "--tcp", "server:9000"];
        let mut steady = lab.pod("client")?.spawn(&argv)?;
        steady.wait_log(Duration::from_secs(10), "traffic to start", |l| l.contains("started").then_some(()))?;
        let victims = ["a/agent", "b/agent", "control"].map(|v| (v, pid(&lab, v)));
        let victims: Vec<(&str, u32)> = victims.into_iter().map(|(v, p)| p.map(|p| (v, p))).collect::<Result<_>>()?;
        let before: Vec<usize> = victims.iter().map(|(_, p)| descriptors(*p)).collect::<Result<_>>()?;

        let mut open = Vec::new();
        let mut abused = 0;
        let mut attack = |from: &Place, address: IpAddr, ports: BTreeSet<u16>| -> Result<()> {
            for port in ports {
                abused += 1;
                open.extend(abuse(from, SocketAddr::new(address, port))?);
            }
            Ok(())
        };
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let node = lab.node("b")?.place();
        let ports = node.listeners()?;
        ensure!([15000, 15020, 15021].iter().all(|p| ports.contains(p)), "the agent's own ports: {ports:?}");
        attack(&node, local, ports)?;
        let control = lab.control().place();
        let ports = control.listeners()?;
        ensure!([15012, 15014].iter().all(|p| ports.contains(p)), "the control plane's ports: {ports:?}");
        attack(&lab.node("b")?.place(), network::CONTROL.0.into(), ports)?;
        let server = lab.pod("server")?;
        let ports = server.place().listeners()?;
        ensure!(ports.len() > 2, "the agent's listeners in the pod: {ports:?}");
        // From inside the pod, from its own address, and from the wire; there also the ports people expect.
        attack(&server.place(), local, ports.clone())?;
        attack(&server.place(), server.address(), ports.clone())?;
        let outside = lab.pod("outside")?.place();
        attack(&outside, server.address(), ports.into_iter().chain([15001, 15006, 15008, 1]).collect())?;
        ensure!(abused >= 15, "only {abused} ports");

        ensure!(steady.running(), "the traffic ended: {}", steady.log());
        steady.signal(Signal::SIGTERM);
        steady.wait(Duration::from_secs(15))?;
        let last = steady.log().lines().last().unwrap_or_default().to_owned();
        let said: Value = serde_json::from_str(&last).with_context(|| steady.log())?;
        ensure!(said["failed_requests"] == 0 && said["failed_echoes"] == 0, "{said}");
        drop(open);
        for ((victim, pid), before) in victims.iter().zip(before) {
            ensure!(self::pid(&lab, victim)? == *pid, "{victim} was restarted");
            wait_for(Duration::from_secs(40), &format!("{victim} to close what was abused"), || {
                let now = descriptors(*pid)?;
                Ok((now <= before + SLACK).then_some(()))
            })
            .with_context(|| format!("{victim} had {before} descriptors, has {:?}", descriptors(*pid)))?;
        }
        for log in [lab.node("a")?.agent().log(), lab.node("b")?.agent().log(), lab.control().log()] {
            ensure!(!log.contains("panicked"), "a task panicked: {log}");
        }
        Ok(())
    };
    body().with_context(|| shared::logs(lab.state()))
}
