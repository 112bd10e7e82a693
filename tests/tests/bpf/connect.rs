//! connect4 and connect6: who is redirected, and that the agent learns where they wanted to go.

use std::io;
use std::net::TcpStream;

use mesh_common::abi::Counter;
use socket2::{Domain, Protocol, Socket, Type};

use super::support::*;

#[test]
fn a_connection_to_anywhere_reaches_the_agent_with_its_destination() {
    let mesh = Mesh::new();
    for (to, v4) in
        [("192.0.2.80:80", true), ("10.77.0.1:443", true), ("[2001:db8::80]:8080", false), ("[fd77::1]:15008", false)]
    {
        let client = mesh.connect(to).unwrap();
        let (server, origin) = mesh.accept_outbound(v4);
        assert_eq!(origin, Some(at(to)));
        assert_joined(&client, &server);
    }
    assert_eq!(mesh.count(Counter::OutboundCaptured), 4);
    assert_eq!(mesh.kernel.in_flight().unwrap(), (0, 0));
}

#[test]
fn an_ipv4_mapped_destination_reaches_the_ipv4_listener() {
    let mesh = Mesh::new();
    let client = mesh.connect("[::ffff:192.0.2.80]:80").unwrap();
    let (server, origin) = mesh.accept_outbound(true);
    assert_eq!(origin, Some(at("192.0.2.80:80")));
    assert_joined(&client, &server);
}
