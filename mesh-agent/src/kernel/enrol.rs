//! Enrols one workload: listeners inside its namespace, its entry in the map, its ingress program. In that order, so that
//! nothing is caught before somebody listens. In: its namespace and addresses. Out: the listeners. Undone in the
//! opposite order, also when a step fails.

use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, TcpListener};
use std::sync::Arc;

use aya::Ebpf;
use aya::maps::{HashMap as BpfHashMap, MapData, SockMap};
use mesh_common::abi::{self, MAX_ADDRESSES, Role, STRICT, TUNNEL_PORT, maps};
use mesh_common::addr::Addr;
use tracing::warn;

use super::{Kernel, KernelError, Listeners, attach, chain, kept, load};
use crate::net::connections::Connection;
use crate::net::listen::listen;
use crate::net::netns::NetNs;

/// The ports that Istio uses, taken if the workload does not use them itself.
const OUTBOUND_PORT: u16 = 15001;
const INBOUND_PORT: u16 = 15006;

/// The kernel side of one enrolled workload.
pub(super) struct Pod {
    pub(super) netns: Arc<NetNs>,
    /// Its entry in WORKLOADS.
    pub(super) entry: abi::Workload,
    /// Its ports in PORT_MODES.
    pub(super) modes: BTreeSet<u16>,
    /// Its connections in KEPT.
    pub(super) kept: HashSet<Connection>,
    /// Its instance of the programs.
    programs: Ebpf,
}

impl Pod {
    /// Stops catching this workload's connections.
    pub(super) fn remove(self, workloads: &mut BpfHashMap<MapData, u64, abi::Workload>) -> Result<(), KernelError> {
        let removed = workloads.remove(&self.netns.cookie());
        // Filters of kernels without tcx are found by interface, so they have to be removed inside the namespace.
        let detached = self.netns.run(|| drop(self.programs));
        removed.map_err(|e| KernelError::Map { map: maps::WORKLOADS, why: chain(&e) })?;
        detached.map_err(|e| KernelError::Attach {
            program: "mesh_ingress",
            place: "the namespace that is being left".into(),
            why: e.to_string(),
        })
    }
}

pub(super) fn enrol(
    kernel: &mut Kernel,
    id: u32,
    netns: &Arc<NetNs>,
    addresses: &[IpAddr],
    flags: u32,
) -> Result<Listeners, KernelError> {
    let failed = |action| move |source| KernelError::Namespace { workload: id, action, source };
    if let Some((other, _)) = kernel.pods.iter().find(|(_, pod)| pod.netns.cookie() == netns.cookie()) {
        let taken = std::io::Error::other(format!("it is already enrolled as workload {other}"));
        return Err(failed("enrol it")(taken));
    }
    let open = |role: Role, preferred: u16| {
        let sockets = kernel.sockets.clone();
        listen(netns, preferred, |socket| sockets.mark(socket, role)).map_err(failed("listen"))
    };
    let listeners = Listeners {
        outbound: open(Role::Outbound, OUTBOUND_PORT)?,
        inbound: open(Role::Inbound, INBOUND_PORT)?,
        tunnel: open(Role::Tunnel, TUNNEL_PORT)?,
    };
    let port = |listeners: &[TcpListener]| {
        let first = listeners.first().map_or(Err(std::io::ErrorKind::NotFound.into()), TcpListener::local_addr);
        first.map(|at| at.port()).map_err(failed("read the listeners' ports"))
    };
    let entry = abi::Workload {
        id,
        // Until its configuration says otherwise.
        flags: flags | STRICT,
        source4: first(addresses, IpAddr::is_ipv4),
        source6: first(addresses, IpAddr::is_ipv6),
        own: own(id, addresses),
        outbound_port: port(&listeners.outbound)?,
        inbound_port: port(&listeners.inbound)?,
        tunnel_port: port(&listeners.tunnel)?,
        dns_port: 0,
    };
    let interfaces = netns.interfaces().map_err(failed("list the interfaces"))?;
    let mut programs = load::parse(&kernel.object, kernel.pins.path(), netns.cookie())
        .map_err(|e| KernelError::Map { map: abi::INGRESS_NETNS, why: chain(&e) })?;

    keep_listeners(&mut programs, &listeners)?;
    let inserted = kernel.workloads.insert(netns.cookie(), entry, 0);
    inserted.map_err(|e| KernelError::Map { map: maps::WORKLOADS, why: chain(&e) })?;
    let netns = Arc::clone(netns);
    let mut pod = Pod { netns, entry, modes: BTreeSet::new(), kept: HashSet::new(), programs };
    // From here on every connection is noted by the hooks, so what is there without a note is older.
    kept::keep(&mut kernel.kept, &mut pod, id);
    let attached = attach::attach_lookup(&mut pod.programs, &pod.netns)
        .and_then(|()| attach::attach_interfaces(&mut pod.programs, &pod.netns, &interfaces));
    // Those that were opened from outside while the programs were being attached.
    kept::keep(&mut kernel.kept, &mut pod, id);
    if let Err(e) = attached {
        kernel.remove(id, pod);
        return Err(e);
    }
    kernel.pods.insert(id, pod);
    Ok(listeners)
}

/// Tells this workload's lookup program where the listeners are.
fn keep_listeners(object: &mut Ebpf, listeners: &Listeners) -> Result<(), KernelError> {
    let wrong = |why: String| KernelError::Map { map: maps::LISTENERS, why };
    let map = object.map_mut(maps::LISTENERS).ok_or_else(|| wrong("not in the object".into()))?;
    let mut map = SockMap::try_from(map).map_err(|e| wrong(chain(&e)))?;
    for (group, v4, v6) in [
        (&listeners.inbound, abi::LISTENER_PLAIN4, abi::LISTENER_PLAIN6),
        (&listeners.tunnel, abi::LISTENER_TUNNEL4, abi::LISTENER_TUNNEL6),
    ] {
        for (place, listener) in [v4, v6].into_iter().zip(group) {
            map.set(place, listener, 0).map_err(|e| wrong(chain(&e)))?;
        }
    }
    Ok(())
}

fn first(addresses: &[IpAddr], family: impl Fn(&IpAddr) -> bool) -> Addr {
    addresses.iter().find(|ip| family(ip)).map_or(Addr::ZERO, |ip| Addr::from(*ip))
}

fn own(id: u32, addresses: &[IpAddr]) -> [Addr; MAX_ADDRESSES] {
    if let Some(more) = addresses.get(MAX_ADDRESSES..).filter(|more| !more.is_empty()) {
        warn!(
            workload = id,
            ?more,
            "more than {MAX_ADDRESSES} addresses: connections to these own ones go by the agent"
        );
    }
    let mut own = [Addr::ZERO; MAX_ADDRESSES];
    for (place, ip) in own.iter_mut().zip(addresses) {
        *place = (*ip).into();
    }
    own
}
