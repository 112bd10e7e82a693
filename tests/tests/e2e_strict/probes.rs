//! The orchestrator's probes of a workload that takes mutual TLS only: from its node, and only what is declared.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use mesh_tests::place::Place;
use mesh_tests::topology::PodSpec;
use mesh_tests::{LabBuilder, Topology, shared};

use crate::intruder::{Verdict, addresses, seen_by, try_plain};
use crate::{HTTP, TCP, UNDECLARED, server, service};

/// A port with a TCP probe on which nobody listens.
const ABSENT: u16 = 9200;

const STRICT: &str = r#"
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
"#;

/// What curl gets: the status, `000` without an answer.
fn status(place: &Place, ip: IpAddr, path: &str) -> Result<String> {
    let url = format!("http://{}{path}", SocketAddr::new(ip, HTTP));
    let output =
        place.try_run(&["curl", "-sS", "-g", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "20", &url])?;
    Ok(output.text())
}

#[test]
fn the_node_may_send_what_is_declared_and_nothing_else() -> Result<()> {
    let topology = Topology::of_nodes(&["a", "b"])
        .pod(PodSpec::new("client", "a"))
        .pod(PodSpec::new("outside-b", "b").unenrolled())
        .pod(server("server", "b"));
    let lab = LabBuilder::for_test("probes", topology);
    let lab = lab.config("services.yaml", &service("server", "default")).config("strict.yaml", STRICT).up()?;
    let body = || -> Result<()> {
        let agent = lab.node("b")?.agent();
        let probes = format!(
            "  probes: [{{httpGet: {{port: {HTTP}, path: /healthz}}}}, {{tcpSocket: {{port: {TCP}}}}}, {{tcpSocket: {{port: \
             {ABSENT}}}}}]\n"
        );
        let settings = agent.settings().replace("  namespace: ", &format!("{probes}  namespace: "));
        agent.stop()?;
        agent.spawn_with(&settings)?;
        agent.wait_ready()?;
        crate::works(&lab, "client", "server")?;

        let (own, other) = (lab.node("b")?.place(), lab.node("a")?.place());
        let neighbour = lab.pod("outside-b")?.place();
        for ip in addresses(&lab, "server")? {
            ensure!(status(&own, ip, "/healthz")? == "200", "{ip}");
            ensure!(status(&own, ip, "/secret")? == "403", "{ip}");
            for outsider in [&other, &neighbour] {
                let told = status(outsider, ip, "/healthz")?;
                ensure!(told == "000", "{} got {told} from {ip}", outsider.name);
            }
            // A TCP probe is a connection without a word.
            let seen = seen_by(&lab, "server")?.len();
            own.within(|| std::net::TcpStream::connect(SocketAddr::new(ip, TCP)))?.context("the TCP probe")?;
            mesh_tests::sys::wait_for(std::time::Duration::from_secs(20), "the application to see it", || {
                Ok((seen_by(&lab, "server")?.len() > seen).then_some(()))
            })?;
            ensure!(try_plain(&own, SocketAddr::new(ip, TCP))? == Verdict::Refused, "words on the probed port of {ip}");
            ensure!(try_plain(&own, SocketAddr::new(ip, UNDECLARED))? == Verdict::Refused, "another port of {ip}");
            ensure!(try_plain(&own, SocketAddr::new(ip, ABSENT))? == Verdict::Dropped, "nobody listens on {ip}");
        }
        Ok(())
    };
    body().with_context(|| shared::logs(lab.state()))
}
