//! `deploy/daemonset.yaml`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use mesh_tests::yaml::{At, documents};

use super::{agent_understands, file, names};

/// Where the pod is described.
const POD: &str = "spec.template.spec";

fn at<'a>(from: &At<'a>, path: &str) -> Result<At<'a>> {
    path.split('.').try_fold(from.clone(), |at, key| at.get(key).with_context(|| format!("no {path}")))
}

fn text(from: &At<'_>, path: &str) -> Result<String> {
    at(from, path)?.text()
}

#[test]
fn the_daemonset_asks_for_what_the_lab_gives() -> Result<()> {
    let (_, yaml) = file("deploy/daemonset.yaml")?;
    let nodes = documents("daemonset.yaml", &yaml)?;
    let objects: Vec<_> = nodes.iter().map(|node| At::root("daemonset.yaml", node)).collect();
    let kinds: Vec<_> = objects.iter().map(|o| text(o, "kind")).collect::<Result<_>>()?;
    // No role: the agent reads nothing from the API server.
    assert_eq!(kinds, ["Namespace", "ServiceAccount", "DaemonSet"]);
    let [namespace, account, set] = objects.as_slice() else { unreachable!() };
    for object in [account, set] {
        assert_eq!(text(object, "metadata.namespace")?, text(namespace, "metadata.name")?);
    }
    assert_eq!(text(set, "spec.selector.matchLabels.app")?, text(set, "spec.template.metadata.labels.app")?);
    assert_eq!(text(set, "spec.template.spec.serviceAccountName")?, text(account, "metadata.name")?);

    let pod = at(set, POD)?;
    for (path, wanted) in [
        ("automountServiceAccountToken", "false"),
        ("priorityClassName", "system-node-critical"),
        ("hostPID", "false"),
        ("hostIPC", "false"),
        // The sockets that one agent hands to the next belong to one network namespace.
        ("hostNetwork", "true"),
    ] {
        assert_eq!(text(&pod, path)?, wanted, "{path}");
    }
    assert_eq!(at(&pod, "containers")?.items()?.len(), 1);
    let agent = at(&pod, "containers")?.items()?.remove(0);
    for (path, wanted) in [
        ("privileged", "false"),
        ("allowPrivilegeEscalation", "false"),
        ("readOnlyRootFilesystem", "true"),
        ("runAsUser", "0"),
        ("seccompProfile.type", "RuntimeDefault"),
    ] {
        assert_eq!(text(&agent, &format!("securityContext.{path}"))?, wanted, "{path}");
    }
    assert_eq!(at(&agent, "securityContext.capabilities.drop")?.texts()?, ["ALL"]);
    let added = at(&agent, "securityContext.capabilities.add")?.texts()?;
    assert_eq!(added.iter().map(|name| format!("CAP_{name}")).collect::<BTreeSet<_>>(), names());
    agent_understands(&at(&agent, "args")?.texts()?)
}

#[test]
fn an_old_and_a_new_agent_fit_beside_each_other() -> Result<()> {
    let (_, yaml) = file("deploy/daemonset.yaml")?;
    let nodes = documents("daemonset.yaml", &yaml)?;
    let set = At::root("daemonset.yaml", nodes.last().context("no objects")?);
    let rolling = at(&set, "spec.updateStrategy.rollingUpdate")?;
    assert_eq!((text(&rolling, "maxSurge")?.as_str(), text(&rolling, "maxUnavailable")?.as_str()), ("1", "0"));
    let agent = at(&set, POD)?.get("containers").context("no containers")?.items()?.remove(0);
    // In the host's network a declared port is a host port, and there is one of each.
    ensure!(agent.get("ports").is_none(), "two pods with the same host port do not fit on a node");
    assert_eq!(text(&agent, "readinessProbe.httpGet.path")?, "/healthz/ready");
    assert_eq!(text(&agent, "readinessProbe.httpGet.port")?, mesh_tests::node::READY_PORT.to_string());
    ensure!(agent.get("livenessProbe").is_none(), "a stopped agent takes the mesh from its workloads");
    // A replaced agent that ended would be started again, and take over back.
    for flag in ["--take-over", "--stay"] {
        ensure!(at(&agent, "args")?.texts()?.contains(&flag.to_owned()), "{flag}");
    }
    let grace: u64 = at(&set, POD)?.get("terminationGracePeriodSeconds").context("no grace")?.parse("a number")?;
    ensure!(grace > default_drain()?, "killed before it has drained");
    Ok(())
}

/// Seconds.
fn default_drain() -> Result<u64> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("agent.yaml");
    std::fs::write(&path, "node: n\ncontrolPlane: {address: 'http://127.0.0.1:9'}\n")?;
    Ok(mesh_agent::settings::Settings::load(&path)?.drain().as_secs())
}

/// What is mounted is what the lab lets its agents write, and beside it only what they read.
#[test]
fn mounts_are_those_of_the_lab() -> Result<()> {
    let (_, yaml) = file("deploy/daemonset.yaml")?;
    let nodes = documents("daemonset.yaml", &yaml)?;
    let set = At::root("daemonset.yaml", nodes.last().context("no objects")?);
    let pod = at(&set, POD)?;
    let agent = at(&pod, "containers")?.items()?.remove(0);
    let mut paths = BTreeMap::new();
    for volume in at(&pod, "volumes")?.items()? {
        paths.insert(text(&volume, "name")?, text(&volume, "hostPath.path")?);
    }
    let mut mounts = BTreeSet::new();
    for mount in at(&agent, "volumeMounts")?.items()? {
        let place = text(&mount, "mountPath")?;
        assert_eq!(paths.get(&text(&mount, "name")?), Some(&place), "on the host at the same place");
        let read_only = mount.get("readOnly").is_some_and(|r| r.boolean().unwrap());
        mounts.insert((place, if read_only { "read" } else { "write" }));
    }
    assert_eq!(mounts.len(), paths.len());
    let wanted = [
        ("/etc/mesh", "read"),
        ("/run/mesh-agent", "write"),
        ("/run/netns", "read"),
        ("/sys/fs/bpf", "write"),
        ("/sys/fs/cgroup", "write"),
    ];
    assert_eq!(mounts, wanted.map(|(place, how)| (place.to_owned(), how)).into());
    Ok(())
}
