//! sk_lookup: what tc ingress leaves to the kernel reaches the agent all the same.

use std::io::Read;
use std::net::TcpStream;
use std::os::fd::AsRawFd;

use mesh_common::abi::Counter;

use super::ingress::{assert_inbound, connect_from};
use super::support::*;

/// The agent closed first, so its side of the old connection is in TIME_WAIT; then the client comes from the same port.
#[test]
fn a_syn_that_meets_time_wait_reaches_the_agent() {
    for strict in [false, true] {
        let mut mesh = Mesh::new();
        mesh.kernel.set_inbound_modes(ID, strict, &[]).unwrap();
        for (i, (from, to)) in
            [("10.77.0.1:40000", "10.77.0.2:8080"), ("[fd77::1]:40000", "[fd77::2]:8080")].into_iter().enumerate()
        {
            // The application's own listener, which the kernel would choose.
            let app = listen_in(&mesh.net.pod, to);
            for round in 0..3 {
                let client = connect_from(&mesh, from, to);
                let server = assert_inbound(&mesh, &mesh.listeners.inbound[i], &client, to);
                drop(server);
                let mut rest = Vec::new();
                (&client).read_to_end(&mut rest).unwrap();
                drop(client);
                assert!(!is_waiting(&app), "round {round}");
            }
        }
        // Who looks at no connection does not know.
        assert_eq!(mesh.count(Counter::InboundTimeWait), if strict { 4 } else { 0 });
        assert_eq!(mesh.count(Counter::InboundAssigned) > 0, strict);
    }
}

/// A destination options header (RFC 8200, 4.6) with nothing but padding stands before the client's TCP header.
#[test]
fn tcp_behind_an_extension_header_reaches_the_agent() {
    let mesh = Mesh::of(Net::new(), 0);
    let app = listen_in(&mesh.net.pod, "[fd77::2]:8080");
    for (listener, to) in
        [(&mesh.listeners.inbound[1], "[fd77::2]:8080"), (&mesh.listeners.tunnel[1], "[fd77::2]:15008")]
    {
        let socket = socket_in(&mesh.net.wire, to);
        let header: [u8; 8] = [0, 0, 1, 4, 0, 0, 0, 0];
        let (level, option) = (libc::IPPROTO_IPV6, libc::IPV6_DSTOPTS);
        // SAFETY: the value is a live array and its size is given.
        let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, header.as_ptr().cast(), 8) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        socket.connect_timeout(&at(to).into(), PATIENCE).unwrap();
        let client = TcpStream::from(socket);
        let (server, from) = accept(listener);
        assert_eq!((server.local_addr().unwrap(), from), (at(to), client.local_addr().unwrap()));
        assert_joined(&client, &server);
    }
    assert!(!is_waiting(&app));
    assert_eq!(mesh.count(Counter::InboundAssigned), 0, "the header did not hide the packets from ingress");
    assert!(mesh.count(Counter::InboundSteered) >= 2);
}
