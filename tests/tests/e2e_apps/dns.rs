//! Resolvers as programs have them, against real DNS servers on both nodes: everything goes through the agent, and
//! nobody can tell.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use mesh_tests::Lab;

use crate::LAB;

/// Longer than any UDP answer without EDNS, and than one packet of the wire.
const BIG: usize = 3000;

/// A DNS server that tells its own name, and logs who asks.
pub fn server(name: &str) -> String {
    let part = "x".repeat(200);
    let big = vec![part; BIG / 200].join(",");
    format!(
        "exec dnsmasq --no-daemon --conf-file=/dev/null --no-resolv --no-hosts --log-queries --edns-packet-max=4096 \
         --address=/one.test/192.0.2.1 --address=/one.test/2001:db8::1 --txt-record=who.test,{name} \
         --txt-record=big.test,{big}"
    )
}

fn addresses(lab: &Lab, pod: &str) -> Result<[IpAddr; 2]> {
    let pod = lab.pod(pod)?;
    Ok([pod.address(), pod.address_v6()?])
}

/// What `dig` prints, for options and a name.
fn dig(lab: &Lab, server: IpAddr, question: &str) -> Result<String> {
    dig_in(lab, "client", server, question)
}

fn dig_in(lab: &Lab, pod: &str, server: IpAddr, question: &str) -> Result<String> {
    let mut argv = vec!["dig".to_owned(), "+tries=1".into(), "+timeout=10".into(), format!("@{server}")];
    argv.extend(question.split(' ').map(str::to_owned));
    Ok(lab.pod(pod)?.try_run(&argv)?.text())
}

/// Metrics of the client's agent: questions, answers, refusals.
fn counted(lab: &Lab) -> Result<[f64; 3]> {
    let metrics = lab.node("a")?.agent().metrics()?;
    let refused = [("reason", "refused")];
    let sum = |name: &str, labels: &[(&str, &str)]| metrics.sum(&format!("mesh_agent_dns_{name}_total"), labels);
    Ok([sum("queries", &[]), sum("answers", &[]), sum("dropped", &refused)])
}

#[test]
fn dig_gets_every_answer_from_the_server_it_asked() -> Result<()> {
    LAB.test(|lab| {
        let before = counted(lab)?;
        let mut asked = 0;
        for (pod, name) in [("names-a", "a"), ("names-b", "b")] {
            for server in addresses(lab, pod)? {
                let told = dig(lab, server, "who.test TXT")?;
                ensure!(told.contains(&format!("\"{name}\"")), "{server}: {told}");
                ensure!(told.contains(&format!("SERVER: {server}#53")), "{told}");
                // Larger than the wire's packets; and cut short, so that dig asks again over TCP.
                for (how, over) in [("+bufsize=4096 +notcp", "(UDP)"), ("+noedns", "(TCP)")] {
                    let told = dig(lab, server, &format!("{how} big.test TXT"))?;
                    ensure!(told.matches('x').count() >= BIG && told.contains(over), "{server} {how}: {told}");
                }
                asked += 3;
            }
        }
        let after = counted(lab)?;
        let [questions, answers, _] = [0, 1, 2].map(|i| after[i] - before[i]);
        ensure!(questions >= f64::from(asked) && answers >= f64::from(asked), "{asked} asked: {before:?}, {after:?}");
        // The server sees the pod itself, as without the mesh.
        let log = lab.pod("names-b")?.log();
        for own in addresses(lab, "client")? {
            ensure!(log.contains(&format!("query[TXT] who.test from {own}\n")), "{own}: {log}");
        }
        Ok(())
    })
}

#[test]
fn a_server_that_is_not_there_refuses_at_once() -> Result<()> {
    LAB.test(|lab| {
        let before = counted(lab)?;
        for server in addresses(lab, "outside-b")? {
            let told = dig(lab, server, "who.test TXT")?;
            ensure!(told.contains("connection refused"), "{server}: {told}");
        }
        let after = counted(lab)?;
        ensure!(after[2] - before[2] >= 2.0, "{before:?}, {after:?}");
        Ok(())
    })
}

/// The C library's resolver, with the first server of its list not there and with lists of both families.
#[test]
fn getent_resolves_by_the_list_of_servers() -> Result<()> {
    LAB.test(|lab| {
        let before = counted(lab)?;
        let client = lab.pod("client")?;
        let list = client.scratch()?.join("resolv.conf");
        let nobody = addresses(lab, "outside-b")?;
        let (a, b) = (addresses(lab, "names-a")?, addresses(lab, "names-b")?);
        for servers in [[a[0], b[0]], [nobody[0], b[0]], [a[1], b[1]], [nobody[1], a[1]], [b[1], a[0]]] {
            let lines: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
            std::fs::write(&list, lines)?;
            let line = format!("mount --bind {} /etc/resolv.conf && exec getent ahosts one.test", list.display());
            let told = client.run(&["sh", "-c", &line])?.text();
            let both = told.contains("192.0.2.1 ") && told.contains("2001:db8::1 ");
            ensure!(both, "{servers:?}: {told}");
        }
        let after = counted(lab)?;
        ensure!(after[1] - before[1] >= 10.0, "A and AAAA five times: {before:?}, {after:?}");
        Ok(())
    })
}

#[test]
fn a_client_that_binds_its_source_keeps_it() -> Result<()> {
    LAB.test(|lab| {
        let own = addresses(lab, "client")?;
        for (own, server) in own.into_iter().zip(addresses(lab, "names-a")?) {
            let told = dig(lab, server, &format!("-b {own} bound-source.test TXT"))?;
            ensure!(told.contains(&format!("SERVER: {server}#53")), "{told}");
            let log = lab.pod("names-a")?.log();
            ensure!(log.contains(&format!("query[TXT] bound-source.test from {own}\n")), "{own}: {log}");
        }
        Ok(())
    })
}

/// A forwarder asks by sockets that are not connected, each of them several servers.
#[test]
fn a_forwarder_in_a_pod_asks_its_servers_through_the_agent() -> Result<()> {
    LAB.test(|lab| {
        let before = counted(lab)?;
        let (a, b) = (addresses(lab, "names-a")?, addresses(lab, "names-b")?);
        let line = format!(
            "exec dnsmasq --no-daemon --conf-file=/dev/null --no-resolv --no-hosts --cache-size=0 --edns-packet-max=4096 \
             --listen-address=127.0.0.54 --bind-interfaces --server={} --server={} --server={} --server={} --all-servers",
            a[0], b[0], a[1], b[1]
        );
        let near = lab.pod("near")?;
        let _forwarder = near.serve(&["sh", "-c", &line], 53).context("a forwarder in the pod")?;
        for _ in 0..5 {
            let told = dig_in(lab, "near", "127.0.0.54".parse()?, "one.test A")?;
            ensure!(told.contains("192.0.2.1"), "{told}");
            let told = dig_in(lab, "near", "127.0.0.54".parse()?, "+bufsize=4096 +notcp big.test TXT")?;
            ensure!(told.matches('x').count() >= BIG, "{told}");
        }
        let asked = counted(lab)?[0] - before[0];
        ensure!(asked >= 40.0, "ten questions to each of four servers: {asked}");
        Ok(())
    })
}

/// Names that programs look up through a server on loopback are not the mesh's business.
#[test]
fn a_resolver_on_loopback_is_left_alone() -> Result<()> {
    LAB.test(|lab| {
        let client = lab.pod("client")?;
        let line = server("local") + " --listen-address=127.0.0.53 --bind-interfaces";
        let _resolver = client.serve(&["sh", "-c", &line], 53).context("a resolver in the pod")?;
        let told = dig(lab, "127.0.0.53".parse()?, "who.test TXT")?;
        ensure!(told.contains("\"local\"") && told.contains("SERVER: 127.0.0.53#53"), "{told}");
        Ok(())
    })
}
