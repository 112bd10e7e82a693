//! Who may come in: PeerAuthentication on every level, from files to the application's own log.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use anyhow::{Result, ensure};
use mesh_tests::topology::PodSpec;
use mesh_tests::{Lab, LabBuilder, Shared, Topology};

mod disable;
mod intruder;
mod levels;
mod live;
mod probes;

static LAB: Shared = Shared::new(build);

/// Port of every server that is declared HTTP.
pub const HTTP: u16 = 8080;
/// Port of every server that is declared TCP.
pub const TCP: u16 = 9000;
/// Port of every server that nothing declares.
pub const UNDECLARED: u16 = 9100;

/// A server with all three ports; those of TCP log every connection that the application gets to see.
pub fn server(name: &str, node: &str) -> PodSpec {
    let all = format!(
        "mesh-lab-app http-echo --port {HTTP} & mesh-lab-app tcp --port {TCP} & exec mesh-lab-app tcp --port {UNDECLARED}"
    );
    PodSpec::new(name, node).command(&["sh", "-c", &all], &[HTTP, TCP, UNDECLARED])
}

fn build() -> Result<Lab> {
    let topology = Topology::of_nodes(&["a", "b"])
        .pod(PodSpec::new("client", "a"))
        .pod(PodSpec::new("client-b", "b"))
        .pod(PodSpec::new("outside", "a").unenrolled())
        .pod(PodSpec::new("outside-b", "b").unenrolled())
        .pod(server("open", "b"))
        .pod(server("strict", "b"))
        .pod(server("mixed", "b"))
        .pod(server("off", "b"))
        .pod(server("closed", "b").account("closed", "closed"))
        .pod(server("opened", "b").account("closed", "opened"));
    let services: String = ["open", "strict", "mixed", "off"].map(|name| service(name, "default")).concat();
    let services = services + &service("closed", "closed") + &service("opened", "closed");
    LabBuilder::for_test("strict", topology).config("services.yaml", &services).config("who.yaml", WHO).up()
}

/// A Service for a server's declared ports.
pub fn service(name: &str, namespace: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  selector: {{app: \
         {name}}}\n  ports: [{{name: http, port: {HTTP}}}, {{name: tcp, port: {TCP}}}]\n"
    )
}

/// Every level but the mesh's, which has a lab of its own.
const WHO: &str = r#"
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec:
  selector: {matchLabels: {app: strict}}
  mtls: {mode: STRICT}
---
apiVersion: security.istio.io/v1beta1
kind: PeerAuthentication
metadata: {name: mixed}
spec:
  selector: {matchLabels: {app: mixed}}
  mtls: {mode: STRICT}
  portLevelMtls:
    8080: {mode: PERMISSIVE}
    9000: {mode: DISABLE}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: off}
spec:
  selector: {matchLabels: {app: off}}
  mtls: {mode: DISABLE}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: closed}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: opened, namespace: closed}
spec:
  selector: {matchLabels: {app: opened}}
  mtls: {mode: PERMISSIVE}
"#;

/// An enrolled client reaches both declared ports of a server by its name.
pub fn works(lab: &Lab, client: &str, host: &str) -> Result<()> {
    let client = lab.pod(client)?;
    let url = format!("http://{host}:{HTTP}/");
    let seen = client.run(&["curl", "-sS", "--fail", "--max-time", "20", &url])?.text();
    ensure!(seen.contains("\"pod\""), "{url}: {seen}");
    let to = format!("{host}:{TCP}");
    let said = client.run(&["mesh-lab-app", "talk", "--to", &to, "--say", "whoami"])?.text();
    ensure!(said.contains("\"received\":\"peer "), "{to}: {said}");
    Ok(())
}
