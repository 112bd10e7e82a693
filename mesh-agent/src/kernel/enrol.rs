//! Enrols one workload: listeners inside its namespace, its entry in the map, its programs. In that order, so that
//! nothing is caught before somebody listens. In: its namespace and addresses. Out: the listeners. A workload that an
//! earlier agent left in force stays so throughout: its entry and its programs are replaced, each in one step, and a
//! step that fails leaves what is there. A new one is undone in the opposite order when a step fails.

use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use aya::Ebpf;
use aya::maps::SockMap;
use mesh_common::abi::{
    self, HAS_PORT_MODES, MAX_ADDRESSES, OutboundKey, Role, SHORTCUTS, STRICT, TAKES_DIRECT, TUNNEL_PORT, maps,
};
use mesh_common::addr::Addr;
use mesh_common::dns::PLACES6;
use mesh_common::host::is_host;
use tracing::warn;

use super::host::{self, Host};
use super::modes::{self, Modes};
use super::{Kernel, KernelError, Listeners, attach, chain, hooks, kept, places, probe, probed, refused};
use crate::net::connections::Connection;
use crate::net::datagram;
use crate::net::listen::{listen, listen_shared};
use crate::net::netns::NetNs;
use crate::settings::ExistingConnections;

/// The ports that Istio uses, taken if the workload does not use them itself.
const OUTBOUND_PORT: u16 = 15001;
const INBOUND_PORT: u16 = 15006;
const DNS_PORT: u16 = 15053;
/// linux/bpf.h.
const BPF_NOEXIST: u64 = 1;

/// What to enrol.
pub(super) struct Subject<'a> {
    pub(super) id: u32,
    /// `namespace/name`.
    pub(super) key: &'a str,
    pub(super) netns: &'a Arc<NetNs>,
    /// Its own; the first of each family is the one that it shows to others.
    pub(super) addresses: &'a [IpAddr],
    /// Of [`abi`], but for what the modes of its ports say.
    pub(super) flags: u32,
    /// Where it is in the host's namespace, if that is where it is.
    pub(super) host: Option<Host>,
}

/// The kernel side of one enrolled workload.
pub(super) struct Pod {
    pub(super) key: String,
    /// By which the maps have it: its namespace's cookie, or that of a workload of the host.
    pub(super) number: u64,
    /// Where it is in the host's namespace, if that is where it is.
    pub(super) host: Option<Host>,
    pub(super) netns: Arc<NetNs>,
    /// Its entry in WORKLOADS.
    pub(super) entry: abi::Workload,
    /// Its ports in PORT_MODES.
    pub(super) modes: BTreeSet<u16>,
    /// Its ports in PROBED.
    pub(super) probed: BTreeSet<u16>,
    /// Its connections in KEPT.
    pub(super) kept: HashSet<Connection>,
    /// What becomes of those that it has when it is enrolled.
    pub(super) existing: ExistingConnections,
}

/// A workload of which everything is ready and nothing is in force yet.
pub struct Prepared {
    id: u32,
    pub(super) pod: Pod,
    /// Its programs, and the interfaces to which they go; those of the host's are there already.
    programs: Option<(Vec<String>, Ebpf)>,
    listeners: Listeners,
    /// Ports with TCP probes.
    pub(super) probed: Vec<u16>,
}

/// Loads the workload's programs, and opens its listeners unless there are some already.
pub(super) fn prepare(
    kernel: &mut Kernel,
    subject: &Subject<'_>,
    listeners: Option<Listeners>,
) -> Result<Prepared, KernelError> {
    let Subject { id, netns, addresses, .. } = *subject;
    let host = subject.host.clone();
    let number = host::number(host.as_ref(), subject.key, netns);
    let failed = |action| move |source| KernelError::Namespace { workload: id, action, source };
    if let Some((other, _)) = kernel.pods.iter().find(|(_, pod)| pod.number == number) {
        let taken = std::io::Error::other(format!("it is already enrolled as workload {other}"));
        return Err(failed("enrol it")(taken));
    }
    if host.is_some() && kernel.pods.values().filter(|pod| pod.host.is_some()).count() >= host::MOST {
        return Err(KernelError::Environment {
            missing: format!("more than {} workloads of the host", host::MOST),
            remedy: "enrol fewer of them on this node".into(),
        });
    }
    if host.is_none()
        && let Some(interface) = probe::foreign::unfit_interface(netns)
    {
        return Err(KernelError::Environment {
            missing: format!(
                "interface {interface} of workload {id} is a netkit device, on which bpf_sk_assign does not hold"
            ),
            remedy: "let the CNI plugin make veth devices (Cilium: bpf.datapathMode=veth), and start the pod anew"
                .into(),
        });
    }
    let open = |role: Role, preferred: u16| {
        let sockets = kernel.sockets.clone();
        listen(netns, preferred, |socket| sockets.mark(socket, role)).map_err(failed("listen"))
    };
    let listeners = match listeners {
        Some(listeners) => listeners,
        None => Listeners {
            outbound: open(Role::Outbound, OUTBOUND_PORT)?,
            inbound: open(Role::Inbound, INBOUND_PORT)?,
            tunnel: match &host {
                Some(host) => host_tunnel(kernel, host, netns, id)?,
                None => open(Role::Tunnel, TUNNEL_PORT)?,
            },
            dns: if host.is_some() {
                Vec::new()
            } else {
                datagram::listen(netns, DNS_PORT, PLACES6 as u16, |socket| kernel.sockets.mark(socket, Role::Dns))
                    .map_err(failed("listen for DNS"))?
            },
        },
    };
    // Also of those that were handed over, which may have been marked otherwise.
    for listener in &listeners.outbound {
        let marked = kernel.sockets.mark_outbound(listener.as_fd(), subject.flags & SHORTCUTS != 0);
        marked.map_err(failed("mark a listener"))?;
    }
    let port_of = |first: Option<std::io::Result<SocketAddr>>| {
        let first = first.unwrap_or_else(|| Err(std::io::ErrorKind::NotFound.into()));
        first.map(|at| at.port()).map_err(failed("read the listeners' ports"))
    };
    let port = |listeners: &[TcpListener]| port_of(listeners.first().map(TcpListener::local_addr));
    // Of the host's nobody asks for either.
    let or_none = |there: bool, port: &dyn Fn() -> Result<u16, KernelError>| if there { port() } else { Ok(0) };
    let entry = abi::Workload {
        id,
        flags: subject.flags,
        mode_ports: modes::marks([]),
        source4: first(addresses, IpAddr::is_ipv4),
        source6: first(addresses, IpAddr::is_ipv6),
        own: own(id, addresses),
        outbound_port: port(&listeners.outbound)?,
        inbound_port: port(&listeners.inbound)?,
        tunnel_port: or_none(!listeners.tunnel.is_empty(), &|| port(&listeners.tunnel))?,
        dns_port: or_none(host.is_none(), &|| port_of(listeners.dns.first().map(UdpSocket::local_addr)))?,
    };
    let programs = match &host {
        Some(_) => None,
        None => {
            let interfaces = netns.interfaces().map_err(failed("list the interfaces"))?;
            let mut programs = kernel.loader.load(netns.cookie())?;
            keep_listeners(&mut programs, &listeners)?;
            attach::load(&mut programs, hooks::pod())?;
            Some((interfaces, programs))
        }
    };
    let pod = Pod {
        key: subject.key.to_owned(),
        number,
        host,
        netns: Arc::clone(netns),
        entry,
        modes: BTreeSet::new(),
        probed: BTreeSet::new(),
        kept: HashSet::new(),
        existing: ExistingConnections::Keep,
    };
    Ok(Prepared { id, pod, programs, listeners, probed: Vec::new() })
}

/// Puts a prepared workload in force.
pub(super) fn commit(kernel: &mut Kernel, prepared: Prepared) -> Result<Listeners, KernelError> {
    let Prepared { id, mut pod, programs, listeners, probed } = prepared;
    let was_there = kernel.pins.has_pod(pod.number);
    let done = put_in_force(kernel, &mut pod, &listeners, programs, !was_there);
    if let Err(e) = done {
        if !was_there {
            // The first error is the one to tell.
            let _ = remove(kernel, &mut pod);
        }
        return Err(e);
    }
    if pod.host.is_none() {
        for foreign in probe::foreign::in_namespace(&pod.netns) {
            warn!(workload = id, "{foreign}");
        }
    }
    kernel.pods.insert(id, pod);
    if let Err(error) = kernel.set_probed(id, &probed) {
        warn!(workload = id, %error, "TCP probes of the workload may succeed without its application");
    }
    Ok(listeners)
}

/// The directory comes first: what is in the map and has none would never be found again.
fn put_in_force(
    kernel: &mut Kernel,
    pod: &mut Pod,
    listeners: &Listeners,
    programs: Option<(Vec<String>, Ebpf)>,
    new: bool,
) -> Result<(), KernelError> {
    let (number, cookie, id) = (pod.number, pod.netns.cookie(), pod.entry.id);
    let pins = kernel.pins.make_pod(number, pod.netns.process(), &pod.key).map_err(|e| KernelError::Pins {
        path: kernel.pins.root().to_owned(),
        why: format!("cannot make a directory for workload {}: {e}", pod.key),
    })?;
    // What was in force stays so until its configuration says otherwise; what is new is STRICT until then.
    pod.entry.flags |= match kernel.workloads.get(number) {
        Some(entry) => entry.flags & (STRICT | HAS_PORT_MODES | TAKES_DIRECT),
        None => STRICT,
    };
    if !new {
        pod.modes = modes::of(&kernel.port_modes, number);
        pod.entry.mode_ports = modes::marks(&pod.modes);
        pod.probed = modes::of(&kernel.probed, number);
        pod.kept = kept::of(&kernel.kept, pod);
    }
    // Before the programs need it; one that is there counts what is on its way.
    match kernel.shares.insert(cookie, abi::Share::default(), BPF_NOEXIST) {
        Err(e) if kernel.shares.get(&cookie, 0).is_err() => return Err(refused(maps::SHARES, &e)),
        _ => {}
    }
    // As the shares: without its listener nobody is redirected.
    for (listener, v4) in listeners.outbound.iter().zip([1, 0]) {
        let key = OutboundKey { netns: cookie, port: pod.entry.outbound_port.into(), v4 };
        kernel.outbound.insert(key, listener.as_raw_fd(), 0).map_err(|e| refused(maps::OUTBOUND, &e))?;
    }
    kernel.workloads.insert(number, &pod.entry)?;
    if let Some(host) = &mut pod.host {
        kernel.hosts.open(number, host, listeners, &kernel.pins.link(host::PROGRAM))?;
        kernel.hosts.follow(number, host)?;
    }
    // From here on every connection is noted by the hooks, so what is there without a note is older.
    if new {
        old_connections(kernel, pod, id);
    }
    let Some((interfaces, mut programs)) = programs else { return Ok(()) };
    let attached = attach::attach_pod(&mut programs, &pod.netns, &interfaces, &pins, kernel.pins.links_of(cookie));
    if new {
        // Those that were opened from outside while the programs were being attached.
        old_connections(kernel, pod, id);
    }
    attached
}

/// What becomes of connections that are older than the enrolment.
fn old_connections(kernel: &mut Kernel, pod: &mut Pod, id: u32) {
    match pod.existing {
        ExistingConnections::Keep => kept::keep(&mut kernel.kept, pod, id),
        ExistingConnections::Close => kept::close(pod, id),
    }
}

/// Stops catching a workload's connections: detaches its programs and removes its entries.
pub(super) fn remove(kernel: &mut Kernel, pod: &mut Pod) -> Result<(), KernelError> {
    kept::clear(&mut kernel.kept, pod);
    Modes { workloads: &mut kernel.workloads, ports: &mut kernel.port_modes }.clear(pod);
    probed::clear(&mut kernel.probed, pod);
    let number = pod.number;
    let direct = match pod.host {
        Some(_) => kernel.hosts.close(number),
        None => {
            attach::detach_filters(&pod.netns);
            places::forget(&mut kernel.places, number);
            kernel.ways.forget(&kernel.pods, pod)
        }
    };
    let removed = kernel.workloads.remove(number);
    if pod.host.is_none() {
        // It is there, or there is nothing to remove.
        let _ = kernel.shares.remove(&number);
    }
    let detached = kernel.pins.remove_pod(number).map_err(|e| wrong_pins(kernel, number, &e));
    removed.and(direct).and(detached).and(leave_host(kernel))
}

/// With its last workload the host's namespace is as if there never had been one.
fn leave_host(kernel: &mut Kernel) -> Result<(), KernelError> {
    let pin = kernel.pins.link(host::PROGRAM);
    if !pin.exists() || kernel.pins.pods().iter().any(|left| is_host(left.cookie)) {
        return Ok(());
    }
    // As in `remove`.
    let _ = kernel.shares.remove(&kernel.hosts.netns.cookie());
    kernel.hosts.detach(&pin)
}

/// The tunnel listener of a workload of the host: all of them stand at the same port, and any of them takes tunnels to each.
fn host_tunnel(kernel: &Kernel, host: &Host, netns: &NetNs, id: u32) -> Result<Vec<TcpListener>, KernelError> {
    if host.ports.is_empty() {
        return Ok(Vec::new());
    }
    let opened = listen_shared(netns, TUNNEL_PORT, |socket| kernel.sockets.mark(socket, Role::Tunnel));
    opened.map_err(|source| match source.kind() {
        std::io::ErrorKind::AddrInUse => KernelError::Environment {
            missing: format!("port {TUNNEL_PORT} of the host, where tunnels come in, is another program's"),
            remedy: "stop that program, or leave the workload's ports out: it is then caught on its way out only"
                .into(),
        },
        _ => KernelError::Namespace { workload: id, action: "listen for tunnels", source },
    })
}

/// As [`remove`], for a pod that another agent has left and of which only the cookie is known. Reads two maps in full.
pub(super) fn discard(kernel: &mut Kernel, cookie: u64) -> Result<(), KernelError> {
    // What is not there needs no removal.
    let removed = kernel.workloads.remove(cookie);
    let _ = kernel.shares.remove(&cookie);
    kept::clear_of(&mut kernel.kept, cookie);
    modes::clear_of(&mut kernel.port_modes, cookie);
    modes::clear_of(&mut kernel.probed, cookie);
    places::forget(&mut kernel.places, cookie);
    let direct = if is_host(cookie) { kernel.hosts.close(cookie) } else { kernel.ways.discard(cookie) };
    kernel.pins.remove_pod(cookie).map_err(|e| wrong_pins(kernel, cookie, &e))?;
    removed.and(direct).and(leave_host(kernel))
}

fn wrong_pins(kernel: &Kernel, cookie: u64, error: &std::io::Error) -> KernelError {
    KernelError::Pins {
        path: kernel.pins.root().to_owned(),
        why: format!("cannot remove the pins of namespace {cookie}: {error}"),
    }
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
