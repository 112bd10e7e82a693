//! What a running agent of the lab may do, as the kernel says.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use mesh_agent::kernel::capabilities::CAPABILITIES;
use mesh_tests::topology::PodSpec;
use mesh_tests::{LabBuilder, Topology, sys};

fn field<'a>(status: &'a str, key: &str) -> Result<&'a str> {
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.map(str::trim).with_context(|| format!("no {key}"))
}

#[test]
fn the_labs_agents_have_these_rights_and_no_others() -> Result<()> {
    let server = PodSpec::new("server", "b")
        .label("app", "server")
        .command(&["mesh-lab-app", "http-echo", "--port", "8080"], &[8080]);
    let topology = Topology::of_nodes(&["a", "b"]).pod(PodSpec::new("client", "a")).pod(server);
    let services = "apiVersion: v1\nkind: Service\nmetadata: {name: server}\n\
                    spec: {selector: {app: server}, ports: [{name: http, port: 8080}]}\n";
    let lab = LabBuilder::for_test("rights", topology).config("services.yaml", services).up()?;
    for node in ["a", "b"] {
        let agent = lab.node(node)?.agent();
        let [pid] = agent.processes()[..] else { panic!("{:?}", agent.processes()) };
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let status = std::fs::read_to_string(proc.join("status"))?;
        let set = CAPABILITIES.iter().fold(0_u64, |set, c| set | 1 << c.number);
        for (key, wanted) in [("CapEff", set), ("CapPrm", set), ("CapBnd", set), ("CapInh", 0), ("CapAmb", 0)] {
            assert_eq!(u64::from_str_radix(field(&status, key)?, 16)?, wanted, "{key}");
        }
        assert_eq!(field(&status, "NoNewPrivs")?, "1");
        let namespace = |of: &Path, kind| std::fs::read_link(of.join("ns").join(kind));
        for kind in ["cgroup", "mnt", "net"] {
            ensure!(namespace(&proc, kind)? != namespace(Path::new("/proc/self"), kind)?, "{kind} is the host's");
        }
        let writable = writable(&std::fs::read_to_string(proc.join("mountinfo"))?);
        let wanted = agent.place().confinement.context("not confined")?.writable;
        assert_eq!(writable, wanted.into_iter().collect());
        ensure!(writable.contains(Path::new(sys::BPFFS)) && writable.len() == 4, "{writable:?}");
    }
    // And with them it works.
    lab.pod("client")?.run(&["curl", "-sSf", "--max-time", "10", "http://server:8080/"])?;
    Ok(())
}

/// Where something can be written. Format: proc_pid_mountinfo(5). Of mounts at one place the last is seen. The names of
/// namespaces (nsfs), also of those that come while the agent runs, hold nothing that could be.
fn writable(mountinfo: &str) -> std::collections::BTreeSet<PathBuf> {
    let mut all = std::collections::BTreeMap::new();
    for line in mountinfo.lines() {
        if line.contains(" - nsfs ") {
            continue;
        }
        let fields: Vec<_> = line.split(' ').collect();
        all.insert(PathBuf::from(fields[4]), fields[5].split(',').any(|option| option == "rw"));
    }
    all.into_iter().filter(|(_, rw)| *rw).map(|(path, _)| path).collect()
}
