//! A pod with several interfaces: every one that it has at its enrolment is covered, in both directions.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use mesh_agent::net::netns::NetNs;
use mesh_common::abi::Counter;
use socket2::{Domain, Protocol, Socket, Type};

use super::ingress::assert_inbound;
use super::packets::{SYN, segment};
use super::support::*;

/// The pod's addresses on its second wire, and those at that wire's other end.
const SECOND: [(&str, &str); 2] = [("10.78.0.2", "10.78.0.1"), ("fd78::2", "fd78::1")];

/// A second wire for the pod.
fn second_wire(net: &Net) -> Arc<NetNs> {
    let wire = scratch();
    let peer = format!("/proc/{}/fd/{}", std::process::id(), wire.as_fd().as_raw());
    ip(&net.pod, &format!("link add net1 type veth peer name eth0 netns {peer}"));
    ip(&wire, "link set lo up");
    for (ns, name, own) in [(&net.pod, "net1", SECOND.map(|(pod, _)| pod)), (&wire, "eth0", SECOND.map(|(_, far)| far))]
    {
        ip(ns, &format!("link set {name} up"));
        ip(ns, &format!("addr add {}/24 dev {name}", own[0]));
        ip(ns, &format!("addr add {}/64 dev {name} nodad", own[1]));
    }
    wire
}

#[test]
fn every_interface_is_covered() {
    let net = Net::new();
    let wire = second_wire(&net);
    let mut mesh = Mesh::of_any(net, 0);
    mesh.kernel.set_inbound_modes(ID, false, &[]).unwrap();
    for (i, (own, far)) in SECOND.into_iter().enumerate() {
        let app = listen_in(&mesh.net.pod, &SocketAddr::new(ip_of(own), 8080).to_string());
        let to = app.local_addr().unwrap().to_string();
        let client = connect_in(&wire, &to).unwrap();
        assert_inbound(&mesh, &mesh.listeners.inbound[i], &client, &to);
        assert!(!is_waiting(&app));

        let to = SocketAddr::new(ip_of(far), 80);
        let _client = mesh.connect(&to.to_string()).unwrap();
        assert_eq!(mesh.accept_outbound(to.is_ipv4()).1, Some(to));

        let before = mesh.count(Counter::EgressUnexplained);
        let raw = mesh.net.pod.run(|| Socket::new(Domain::for_address(to), Type::RAW, Some(Protocol::TCP)));
        let syn = segment(SocketAddr::new(ip_of(own), 4000), to, SYN, b"");
        // The kernel may tell of the drop.
        let _ = raw.unwrap().unwrap().send_to(&syn, &SocketAddr::new(to.ip(), 0).into());
        assert_eq!(mesh.count(Counter::EgressUnexplained), before + 1, "the backstop on the second interface");
    }
}
