//! Workloads of the host: units of a VM, which is node `a`. Its namespace plays the host; its units are cgroups in which
//! nginx, curl and others run, and beside them run programs that are no workloads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::place::Place;
use mesh_tests::state;
use mesh_tests::sys::{self, wait_for};
use mesh_tests::topology::PodSpec;
use mesh_tests::{Lab, LabBuilder, Output, Process, Shared, Topology};
use nix::sys::signal::Signal;

#[path = "../e2e_trust/anybody.rs"]
mod anybody;
#[path = "../e2e_trust/authority.rs"]
mod authority;
mod deploy;
mod inbound;
mod life;
mod outbound;
mod refused;
mod tunnel;

static LAB: Shared = Shared::new(|| build("host"));

/// The VM's address.
pub const HOST: &str = "172.31.0.10";
/// Longest that anything takes; only a failure takes so long.
pub const LIMIT: Duration = Duration::from_secs(20);
/// Port of the workload `web`, STRICT.
pub const WEB: u16 = 8080;
/// Port of `web-2`, STRICT, with the same identity.
pub const WEB2: u16 = 8081;
/// Port of `db`, PERMISSIVE.
pub const DB: u16 = 9000;
/// Port of a program that is no workload.
pub const NOBODYS: u16 = 8090;
/// Port of the pod with hostNetwork.
pub const MONITOR: u16 = 9200;

/// A lab with the units enrolled.
pub fn build(name: &str) -> Result<Lab> {
    let server = "mesh-lab-app http-echo --port 8080 & exec mesh-lab-app tcp --port 9000";
    let topology = Topology::of_nodes(&["a", "b"])
        .pod(PodSpec::new("client", "b"))
        .pod(PodSpec::new("near", "a"))
        .pod(PodSpec::new("outside", "b").unenrolled())
        .pod(PodSpec::new("server", "b").command(&["sh", "-c", server], &[8080, 9000]));
    let lab = LabBuilder::for_test(name, topology).config("host.yaml", OBJECTS).up()?;
    for unit in ["web", "web-2", "db", "monitor", "other"] {
        sys::create_dir(&directory(&lab, unit))?;
    }
    write_settings(&lab, &settings(&lab))?;
    lab.node("a")?.agent().signal(Signal::SIGHUP);
    for unit in ["web", "web-2", "db", "monitor", "gone"] {
        says(&lab, &format!("enrolled workload=\"default/{unit}\""))?;
    }
    lab.node("a")?.agent().wait_ready()?;
    Ok(lab)
}

/// The agent's settings for the VM, with its units.
pub fn settings(lab: &Lab) -> String {
    let agent = lab.node("a").unwrap().agent();
    let mut yaml = agent.settings();
    for (name, account, ports) in [
        ("web", "web", "[8080]"),
        ("web-2", "web", "[8081]"),
        ("db", "db", "[9000]"),
        ("monitor", "monitor", "[9200]"),
        ("gone", "gone", "[]"),
    ] {
        yaml += &format!(
            "- name: {name}\n  namespace: default\n  serviceAccount: {account}\n  labels: {{app: {name}}}\n  cgroup: {}\n  ports: {ports}\n",
            cgroup(lab, name).display()
        );
    }
    yaml
}

/// Puts settings in the place of those that the VM's agent reads.
pub fn write_settings(lab: &Lab, yaml: &str) -> Result<()> {
    sys::write_whole(&lab.node("a")?.agent().settings_file(), yaml)
}

/// A unit's cgroup, as settings name it.
pub fn cgroup(lab: &Lab, unit: &str) -> PathBuf {
    let mount = sys::cgroup_mount().unwrap();
    PathBuf::from("/").join(directory(lab, unit).strip_prefix(mount).unwrap())
}

/// A unit's cgroup.
pub fn directory(lab: &Lab, unit: &str) -> PathBuf {
    lab.state().node_cgroup("a").join("units").join(unit)
}

/// Where a unit's processes run; it resolves names as a pod of the mesh does.
pub fn unit(lab: &Lab, name: &str) -> Result<Place> {
    let hosts = lab.pod("client")?.place().hosts;
    Ok(Place { name: format!("unit {name}"), cgroup: Some(directory(lab, name)), hosts, ..lab.node("a")?.place() })
}

/// Waits until the VM's agent has said something.
pub fn says(lab: &Lab, text: &str) -> Result<()> {
    let agent = lab.node("a")?.agent();
    wait_for(LIMIT, &format!("the agent to say {text}"), || Ok(plain(&agent.log()).contains(text).then_some(())))
        .with_context(|| plain(&agent.log()))
}

/// A log without its colours.
pub fn plain(log: &str) -> String {
    let mut text = String::new();
    let mut rest = log;
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        text += before;
        rest = after.split_once('m').map_or("", |(_, rest)| rest);
    }
    text + rest
}

/// Starts a server in a unit, and waits until it listens.
pub fn serve(lab: &Lab, name: &str, argv: &[&str], port: u16) -> Result<Process> {
    let place = unit(lab, name)?;
    let mut process = place.spawn(argv, &lab.state().log(&format!("unit-{name}-{port}")))?;
    wait_for(LIMIT, &format!("unit {name} to listen on {port}"), || {
        ensure!(process.running(), "it ended: {}", process.log());
        Ok(place.listens(port)?.then_some(()))
    })?;
    Ok(process)
}

/// nginx, which tells the client's address and logs each that it has seen.
pub fn nginx(lab: &Lab, name: &str, port: u16) -> Result<Process> {
    let dir = lab.state().node_dir("a").join(format!("nginx-{port}"));
    sys::create_dir(&dir)?;
    let path = dir.display();
    let conf = format!(
        "daemon off; pid {path}/pid; error_log stderr; worker_processes 1; user root;\n\
         events {{ worker_connections 512; }}\n\
         http {{ log_format seen 'seen $remote_addr'; access_log /dev/stdout seen; client_body_temp_path {path}/body;\n\
         proxy_temp_path {path}/proxy; fastcgi_temp_path {path}/f; uwsgi_temp_path {path}/u; scgi_temp_path {path}/s;\n\
         server {{ listen {port}; listen [::]:{port}; location / {{ return 200 \"{name} $remote_addr\"; }} }} }}\n"
    );
    let file = dir.join("nginx.conf");
    std::fs::write(&file, conf)?;
    let (dir, file) = (dir.display().to_string(), file.display().to_string());
    serve(lab, name, &["nginx", "-p", &dir, "-e", "stderr", "-c", &file], port)
}

/// Asks for a page, whatever comes of it.
pub fn curl(place: &Place, url: &str) -> Result<Output> {
    place.try_run(&["curl", "-sS", "--fail", "--max-time", "10", url])
}

/// What curl gets, as it must.
pub fn get(place: &Place, url: &str) -> Result<String> {
    Ok(curl(place, url)?.ok()?.text())
}

/// Ends all processes of a unit, and its cgroup with them, as its service manager does.
pub fn stop(lab: &Lab, name: &str) -> Result<()> {
    let cgroup = directory(lab, name);
    state::kill_cgroup(&cgroup)?;
    wait_for(LIMIT, "the cgroup to go", || Ok(std::fs::remove_dir(&cgroup).is_ok().then_some(())))
}

/// The units as a mesh knows VMs, and who may do what.
const OBJECTS: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: monitor
  labels: {app: monitor}
  annotations: {ambient.istio.io/redirection: enabled}
spec:
  nodeName: a
  hostNetwork: true
  serviceAccountName: monitor
  containers: [{name: app, image: lab, ports: [{containerPort: 9200}]}]
status:
  phase: Running
  hostIP: 172.31.0.10
  podIP: 172.31.0.10
  conditions: [{type: Ready, status: "True"}]
---
apiVersion: v1
kind: Service
metadata: {name: server}
spec:
  selector: {app: server}
  ports: [{name: http, port: 8080}, {name: tcp, port: 9000}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: server}
spec:
  selector: {matchLabels: {app: server}}
  mtls: {mode: STRICT}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: web
  labels: {app: web}
  annotations: {mesh.io/node: a, ambient.istio.io/redirection: enabled}
spec: {address: 172.31.0.10, serviceAccount: web, labels: {app: web}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: web-2
  labels: {app: web-2}
  annotations: {mesh.io/node: a, ambient.istio.io/redirection: enabled}
spec: {address: 172.31.0.10, serviceAccount: web, labels: {app: web-2}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: db
  labels: {app: db}
  annotations: {mesh.io/node: a, ambient.istio.io/redirection: enabled}
spec: {address: 172.31.0.10, serviceAccount: db, labels: {app: db}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: gone
  labels: {app: gone}
  annotations: {mesh.io/node: a, ambient.istio.io/redirection: enabled}
spec: {address: 172.31.0.10, serviceAccount: gone, labels: {app: gone}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: web}
spec:
  hosts: [web.vm]
  addresses: [10.99.0.1]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{name: http, number: 80, targetPort: 8080, protocol: HTTP}]
  workloadSelector: {labels: {app: web}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: web-2}
spec:
  hosts: [web-2.vm]
  addresses: [10.99.0.2]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{name: http, number: 80, targetPort: 8081, protocol: HTTP}]
  workloadSelector: {labels: {app: web-2}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db}
spec:
  hosts: [db.vm]
  addresses: [10.99.0.3]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{name: tcp, number: 9000, protocol: TCP}]
  workloadSelector: {labels: {app: db}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  mtls: {mode: STRICT}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: web-2}
spec:
  selector: {matchLabels: {app: web-2}}
  mtls: {mode: STRICT}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: db}
spec:
  selector: {matchLabels: {app: db}}
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/near]}}]}]
"#;
