//! Which workload of the host a tunnel is for: they share the host's addresses, and so one port for tunnels.
//!
//! In: the workloads with their ports; the name that a client says first of all (SNI), which names the port that it wants to
//! reach. Out: a workload. The name decides only whose certificate is shown: who the server is the client verifies by that.
//! Never: lets a tunnel to one identity reach the workload of another.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::kernel::Listeners;
use crate::tls::named_port;
use crate::workload::Workload;

/// A workload, with the ports of the agent's listeners for it.
#[derive(Clone)]
pub(super) struct Resident {
    pub(super) workload: Arc<Workload>,
    pub(super) own_ports: Vec<u16>,
}

/// The workloads of the host that take connections, by port. Shared by all workers.
#[derive(Default)]
pub(super) struct Residents(Mutex<BTreeMap<u16, Resident>>);

impl Residents {
    /// Adds a workload, if it is one of the host.
    pub(super) fn add(&self, workload: &Arc<Workload>, own_ports: &[u16]) {
        for port in workload.host.iter().flat_map(|host| &host.ports) {
            let resident = Resident { workload: workload.clone(), own_ports: own_ports.to_vec() };
            self.all().insert(*port, resident);
        }
    }

    pub(super) fn remove(&self, id: u32) {
        self.all().retain(|_, resident| resident.workload.id != id);
    }

    /// The workload that has a port.
    pub(super) fn at(&self, port: u16) -> Option<Resident> {
        self.all().get(&port).cloned()
    }

    /// The port for whose workload a handshake is. Who says no name can mean the one identity only that there is.
    pub(super) fn meant(&self, name: Option<&str>) -> Option<u16> {
        let all = self.all();
        match name {
            Some(name) => named_port(name).filter(|port| all.contains_key(port)),
            None => {
                let (port, first) = all.first_key_value()?;
                all.values().all(|one| one.workload.identity == first.workload.identity).then_some(*port)
            }
        }
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<u16, Resident>> {
        // Between any two of these calls the list is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The ports of a workload's listeners, those of the agent itself.
pub(super) fn own_ports(listeners: &Listeners) -> Vec<u16> {
    let all = listeners.outbound.iter().chain(&listeners.inbound).chain(&listeners.tunnel);
    all.filter_map(|listener| Some(listener.local_addr().ok()?.port())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::netns::NetNs;
    use crate::settings::Settings;

    fn residents() -> Residents {
        let text = "
node: n
controlPlane: {address: 'http://a:1'}
workloads:
- {name: a, namespace: x, serviceAccount: s, cgroup: /a, ports: [80, 81]}
- {name: b, namespace: x, serviceAccount: s, cgroup: /b, ports: [90]}
- {name: c, namespace: x, serviceAccount: other, cgroup: /c, ports: [70]}
";
        let settings = Settings::parse(std::path::Path::new("x"), text).unwrap();
        let netns = Arc::new(NetNs::current().unwrap());
        let residents = Residents::default();
        for (i, one) in settings.workloads.iter().enumerate() {
            let workload =
                Workload::new(i as u32, one, &"c".into(), "cluster.local", netns.clone(), Vec::new()).unwrap();
            residents.add(&Arc::new(workload), &[15006]);
        }
        residents
    }

    #[test]
    fn a_name_means_the_workload_of_its_port() {
        let residents = residents();
        for (name, port) in [("port-80.hbone", Some(80)), ("port-90.hbone", Some(90)), ("port-99.hbone", None)] {
            assert_eq!(residents.meant(Some(name)), port, "{name}");
        }
        assert_eq!(residents.meant(Some("istiod.istio-system.svc")), None);
        assert_eq!(&*residents.at(81).unwrap().workload.name, "a");
        assert!(residents.at(99).is_none());
    }

    #[test]
    fn no_name_means_somebody_only_if_all_are_the_same() {
        let residents = residents();
        assert_eq!(residents.meant(None), None);
        residents.remove(2);
        assert_eq!(residents.meant(None), Some(80));
        assert_eq!(residents.meant(Some("port-70.hbone")), None);
        residents.remove(0);
        residents.remove(1);
        assert_eq!(residents.meant(None), None);
    }
}
