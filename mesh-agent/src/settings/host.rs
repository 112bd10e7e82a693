//! Workloads of the host in the settings: a cgroup and ports instead of a network namespace. In: what the file says of all
//! workloads. Out: nothing, or an error that names file, line, path and what to do. Looks at no cgroup.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use mesh_common::abi::{MAX_HOST_PORTS, MAX_HOST_WORKLOADS, TUNNEL_PORT};
use mesh_common::host::MAX_LEVEL;

use super::yaml::Located;
use super::{Settings, SettingsError, Shortcuts, Udp, WorkloadSettings};

/// A workload of the host: a cgroup, with everything below it, and ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPlace {
    /// As in `/proc/PID/cgroup`; need not be there.
    pub cgroup: PathBuf,
    /// On which it takes connections.
    pub ports: Vec<u16>,
}

/// What a workload of the host lacks of what one with a network namespace has. Said at each enrolment, one line each, and in
/// docs/agent.md (tested).
pub const UNSUPPORTED: [&str; 11] = [
    "what it and other programs of this host say to each other, by loopback or by an address of the host, goes without the mesh: no identity, no policy, no STRICT",
    "it goes to no workload of this node directly or within the agent, and none goes so to it (sameNode)",
    "socket shortcuts are not used (shortcuts)",
    "DNS and other UDP go as without the mesh (udp)",
    "raw and packet sockets are not held back: there is no backstop on the host's interfaces",
    "connections that it opened before its enrolment go on as they are, also with existingConnections: close",
    "its address is the host's: others know it by its certificate, and where there is none by nothing",
    "all workloads of the host have one pod's places for connections on their way (flow_full, peer_full)",
    "to a pod with hostNetwork mesh-control and istiod tell nobody a tunnel: nothing but this host comes to a STRICT port of it, unless it is a WorkloadEntry, too",
    "connections that came in while no agent was there go on when their port becomes STRICT",
    "a process that is moved out of its cgroup, which takes root's rights, is out of the mesh from its next connection on; and after its cgroup was made anew a process may connect without the mesh until the agent has looked again",
];

impl WorkloadSettings {
    /// Where it is on the host, if it is a workload of the host.
    pub fn host(&self) -> Option<HostPlace> {
        self.cgroup.as_ref().map(|cgroup| HostPlace { cgroup: cgroup.clone(), ports: self.ports.clone() })
    }

    /// What can be said of one workload alone.
    pub(super) fn check_host(&self, field: &str, at: &Located<'_>) -> Result<(), SettingsError> {
        let fail = |name: &str, why: String| Err(at.error(&format!("{field}.{name}"), why));
        let Some(cgroup) = &self.cgroup else {
            return match self.ports.is_empty() {
                true => Ok(()),
                false => fail("ports", "only a workload with a cgroup has ports; every port of a network namespace is its workload's: leave this out".into()),
            };
        };
        if let Err(why) = check_path(cgroup) {
            return fail("cgroup", why);
        }
        for (i, port) in self.ports.iter().enumerate() {
            let name = format!("ports[{i}]");
            match *port {
                0 => return fail(&name, "0 is not a port".into()),
                TUNNEL_PORT => return fail(&name, format!("{TUNNEL_PORT} is where tunnels come in: give another one")),
                _ if self.ports[..i].contains(port) => return fail(&name, format!("{port} stands here twice")),
                _ => {}
            }
        }
        if self.udp != Udp::Allow {
            return fail("udp", "UDP of a workload with a cgroup is not looked at: leave this out".into());
        }
        if self.shortcuts == Shortcuts::On {
            return fail("shortcuts", "a workload with a cgroup has none: leave this out".into());
        }
        if !self.probes.is_empty() {
            let why = "what the node asks a workload with a cgroup passes by the mesh anyway: leave this out";
            return fail("probes", why.into());
        }
        Ok(())
    }
}

impl Settings {
    /// What can be said of all workloads together.
    pub(super) fn check_hosts(&self, at: &Located<'_>) -> Result<(), SettingsError> {
        let hosts = || self.workloads.iter().enumerate().filter_map(|(i, one)| Some((i, one, one.cgroup.as_ref()?)));
        if hosts().count() > MAX_HOST_WORKLOADS as usize {
            return Err(at.error("workloads", format!("at most {MAX_HOST_WORKLOADS} workloads with a cgroup")));
        }
        if hosts().map(|(_, one, _)| one.ports.len()).sum::<usize>() > MAX_HOST_PORTS as usize {
            return Err(
                at.error("workloads", format!("at most {MAX_HOST_PORTS} ports of the host, of all workloads together"))
            );
        }
        let own = [("admin", self.listen.admin), ("metrics", self.listen.metrics), ("ready", self.listen.ready)];
        let mut ports: HashMap<u16, (usize, String)> = HashMap::new();
        for (i, one, cgroup) in hosts() {
            let inside = hosts().find(|(j, _, other)| *j != i && cgroup.starts_with(other));
            if let Some((j, other, path)) = inside {
                let (field, key) = (format!("workloads[{i}].cgroup"), other.key());
                let why = format!(
                    "{} is, or is below, {}, the cgroup of workloads[{j}] ({key}): a process is one workload's; give each a cgroup beside the other's",
                    cgroup.display(),
                    path.display()
                );
                return Err(at.error(&field, why));
            }
            for (place, port) in one.ports.iter().enumerate() {
                let fail = |why: String| Err(at.error(&format!("workloads[{i}].ports[{place}]"), why));
                if let Some((name, _)) = own.iter().find(|(_, address)| address.port() == *port) {
                    return fail(format!("{port} is the agent's own (listen.{name}): give one of them another port"));
                }
                if let Some((j, key)) = ports.insert(*port, (i, one.key())) {
                    return fail(format!(
                        "{port} is a port of workloads[{j}] ({key}) already: a port of the host is one workload's; take it out of one of them"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Refuses a workload that is the agent itself. `own`: the agent's cgroup, as in `/proc/self/cgroup`; inside of a cgroup
    /// namespace that says nothing, and the enrolment finds out.
    pub(super) fn check_own(&self, own: &Path, at: &Located<'_>) -> Result<(), SettingsError> {
        let is = |one: &WorkloadSettings| one.cgroup.as_ref().is_some_and(|cgroup| own.starts_with(cgroup));
        let Some(i) = self.workloads.iter().position(is) else { return Ok(()) };
        let why = format!(
            "the agent itself is in it ({}): name the cgroup of the workload's own unit, and run the agent in another one",
            own.display()
        );
        Err(at.error(&format!("workloads[{i}].cgroup"), why))
    }
}

/// Whether this names one cgroup below the root, in one way.
fn check_path(path: &Path) -> Result<(), String> {
    if path == Path::new("/") {
        return Err("the root is everybody, the agent too: name the cgroup of one unit".into());
    }
    let text = path.to_str().unwrap_or_default();
    let names = || path.components().skip(1);
    let plain = names().all(|name| matches!(name, Component::Normal(_)));
    if !path.is_absolute() || !plain || text.contains("//") || text.contains("/./") || text.ends_with(['/', '\0']) {
        return Err(
            "write it as /proc/PID/cgroup does, from the hierarchy's root on: /system.slice/NAME.service".into()
        );
    }
    match names().count() > MAX_LEVEL as usize {
        true => Err(format!("at most {MAX_LEVEL} levels below the root")),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests;
