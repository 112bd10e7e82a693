//! Which workload of this node is meant: of pods by their addresses, of those of the host, which share its addresses and one
//! port for tunnels, by their ports.
//!
//! In: the workloads with their ports; the name that a client says first of all (SNI), which names the port that it wants to
//! reach. Out: a workload. The name decides only whose certificate is shown: who the server is the client verifies by that.
//! Never: lets a tunnel to one identity reach the workload of another.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
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

/// The workloads of this node that take connections. Shared by all workers.
#[derive(Default)]
pub(super) struct Residents(Mutex<All>);

#[derive(Default)]
struct All {
    /// Those of the host.
    ports: BTreeMap<u16, Resident>,
    /// Pods; several where two have the same address.
    addresses: HashMap<IpAddr, Vec<Resident>>,
}

impl Residents {
    /// Adds a workload.
    pub(super) fn add(&self, workload: &Arc<Workload>, own_ports: &[u16]) {
        let resident = Resident { workload: workload.clone(), own_ports: own_ports.to_vec() };
        let mut all = self.all();
        match &workload.host {
            Some(host) => all.ports.extend(host.ports.iter().map(|port| (*port, resident.clone()))),
            None => {
                for address in &workload.addresses {
                    all.addresses.entry(*address).or_default().push(resident.clone());
                }
            }
        }
    }

    pub(super) fn remove(&self, id: u32) {
        let mut all = self.all();
        all.ports.retain(|_, resident| resident.workload.id != id);
        all.addresses.retain(|_, residents| {
            residents.retain(|resident| resident.workload.id != id);
            !residents.is_empty()
        });
    }

    /// The workload of the host that has a port.
    pub(super) fn at(&self, port: u16) -> Option<Resident> {
        self.all().ports.get(&port).cloned()
    }

    /// The pod that has an address. `None` if two have it: nobody knows which one is meant.
    pub(super) fn with(&self, address: IpAddr) -> Option<Resident> {
        match self.all().addresses.get(&address).map(Vec::as_slice) {
            Some([resident]) => Some(resident.clone()),
            _ => None,
        }
    }

    /// The port for whose workload a handshake is. Who says no name can mean the one identity only that there is.
    pub(super) fn meant(&self, name: Option<&str>) -> Option<u16> {
        let ports = &self.all().ports;
        match name {
            Some(name) => named_port(name).filter(|port| ports.contains_key(port)),
            None => {
                let (port, first) = ports.first_key_value()?;
                ports.values().all(|one| one.workload.identity == first.workload.identity).then_some(*port)
            }
        }
    }

    fn all(&self) -> MutexGuard<'_, All> {
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
    fn an_address_means_the_one_pod_that_has_it() {
        let residents = residents();
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        assert!(residents.with(address).is_none());
        let text = "{node: n, controlPlane: {address: 'http://a:1'}, workloads: [{name: d, namespace: x, serviceAccount: s, netns: /n}]}";
        let settings = Settings::parse(std::path::Path::new("x"), text).unwrap();
        let netns = Arc::new(NetNs::current().unwrap());
        let pod = |id| {
            let one = &settings.workloads[0];
            Arc::new(Workload::new(id, one, &"c".into(), "cluster.local", netns.clone(), vec![address]).unwrap())
        };
        residents.add(&pod(7), &[]);
        assert_eq!(residents.with(address).unwrap().workload.id, 7);
        residents.add(&pod(8), &[]);
        assert!(residents.with(address).is_none(), "which of the two?");
        residents.remove(7);
        assert_eq!(residents.with(address).unwrap().workload.id, 8);
        residents.remove(8);
        assert!(residents.with(address).is_none());
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
