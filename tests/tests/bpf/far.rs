//! Where redirected sockets wanted to go: known as long as anybody can ask for it, and gone afterwards.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Instant;

use super::support::*;

/// How many sockets are noted.
pub fn noted(pins: &Path) -> usize {
    asked(pins).iter().map(Result::unwrap).filter(|place| place.cookie != 0).count()
}

/// Waits for the end of a connection, which takes packets, and whatever holds its sockets for a moment longer.
fn wait_for_nothing(mesh: &Mesh, what: &str) {
    let end = Instant::now() + PATIENCE;
    while noted(&mesh.pins) != 0 {
        assert!(Instant::now() < end, "{what}: {} left", noted(&mesh.pins));
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
}

#[test]
fn a_destination_is_known_until_its_connection_is_over() {
    let mesh = Mesh::new();
    for to in ["10.77.0.1:8080", "[fd77::1]:8080"] {
        let open = || {
            let client = mesh.connect(to).unwrap();
            let (server, origin) = mesh.accept_outbound(at(to).is_ipv4());
            assert_eq!(origin, Some(at(to)));
            assert_eq!(noted(&mesh.pins), 1);
            assert_eq!(client.peer_addr().unwrap(), at(to));
            (client, server)
        };
        // Whoever ends it, and however.
        let (client, server) = open();
        drop(client);
        drop(server);
        wait_for_nothing(&mesh, "the client first");
        let (client, server) = open();
        drop(server);
        assert_eq!((&client).read(&mut [0]).unwrap(), 0);
        assert_eq!(client.peer_addr().unwrap(), at(to), "half of it is still open");
        drop(client);
        wait_for_nothing(&mesh, "the agent first");
        let (client, server) = open();
        reset(client);
        wait_for_nothing(&mesh, "the client resets");
        drop(server);
        let (client, server) = open();
        let own = client.local_addr().unwrap();
        assert!(!own.ip().is_loopback());
        reset(server);
        wait_for_nothing(&mesh, "the agent resets");
        assert_eq!(client.peer_addr().unwrap_err().kind(), std::io::ErrorKind::NotConnected);
        assert_eq!(client.local_addr().unwrap(), own, "as without the mesh");
    }
}

/// A socket that is bound to an address has its destination in a storage, where a later connection must not find it.
#[test]
fn who_goes_elsewhere_is_told_so() {
    let mesh = Mesh::new();
    let app = listen_in(&mesh.net.pod, "10.77.0.2:8080");
    let socket = socket_in(&mesh.net.pod, "10.77.0.2:0");
    socket.bind(&at("10.77.0.2:0").into()).unwrap();
    socket.connect(&at("192.0.2.80:80").into()).unwrap();
    assert_eq!(mesh.accept_outbound(true).1, Some(at("192.0.2.80:80")));
    assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(at("192.0.2.80:80")));
    disconnect(&socket);
    socket.connect(&at("10.77.0.2:8080").into()).unwrap();
    let _server = accept(&app);
    assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(at("10.77.0.2:8080")));
}

#[test]
fn nothing_is_left_of_a_connect_that_fails() {
    let mesh = Mesh::new();
    // No port is free.
    let write = |name: &str, value: &str| {
        let path = format!("/proc/sys/net/ipv4/{name}");
        mesh.net.pod.run(|| std::fs::write(path, value)).unwrap().unwrap();
    };
    write("ip_local_port_range", "40000 40001");
    for (to, next) in [("10.77.0.1:8080", "10.77.0.1:8081"), ("[fd77::1]:8080", "[fd77::1]:8081")] {
        write("ip_local_reserved_ports", "40000-40001");
        let socket = socket_in(&mesh.net.pod, to);
        for _ in 0..2 {
            let error = socket.connect(&at(to).into()).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL), "{to}");
        }
        assert_eq!(noted(&mesh.pins), 1, "{to}: by its one cookie");
        drop(socket);
        wait_for_nothing(&mesh, "released");
        // The next one of a socket goes where that one says.
        let socket = socket_in(&mesh.net.pod, to);
        socket.connect(&at(to).into()).unwrap_err();
        write("ip_local_reserved_ports", "\n");
        socket.connect(&at(next).into()).unwrap();
        let (server, origin) = mesh.accept_outbound(at(to).is_ipv4());
        assert_eq!(origin, Some(at(next)));
        assert_eq!(socket.peer_addr().unwrap().as_socket().unwrap(), at(next));
        drop((socket, server));
        wait_for_nothing(&mesh, "connected at last");
    }
    // Redirected first, and then to where it says.
    let socket = socket_in(&mesh.net.pod, "10.77.0.1:8080");
    socket.connect(&at("10.77.0.1:8080").into()).unwrap();
    mesh.accept_outbound(true);
    disconnect(&socket);
    assert_eq!(noted(&mesh.pins), 0);
    let own = listen_in(&mesh.net.pod, "10.77.0.2:8081");
    socket.connect(&at("10.77.0.2:8081").into()).unwrap();
    accept(&own);
    assert_eq!(noted(&mesh.pins), 0);
    assert_eq!(socket.peer_addr().unwrap().as_socket().unwrap(), at("10.77.0.2:8081"));
}

/// Such a `connect()` sends nothing: the kernel waits for the first byte, to put it into the SYN.
#[test]
fn who_waits_for_the_first_byte_is_known_however_long_that_takes() {
    /// Data in the SYN, without a cookie.
    const CLIENT_WITHOUT_COOKIE: &str = "5";
    let mesh = Mesh::new();
    let path = "/proc/sys/net/ipv4/tcp_fastopen";
    mesh.net.pod.run(|| std::fs::write(path, CLIENT_WITHOUT_COOKIE)).unwrap().unwrap();
    let to = at("10.77.0.1:8080");
    let connect = || {
        let socket = socket_in(&mesh.net.pod, "10.77.0.1:8080");
        let on: i32 = 1;
        // SAFETY: the value is live and its size is given.
        let done = unsafe {
            let (value, size) = ((&raw const on).cast(), size_of::<i32>() as u32);
            libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, value, size)
        };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        socket.connect(&to.into()).unwrap();
        assert_eq!((noted(&mesh.pins), mesh.kernel.in_flight().unwrap()), (1, (0, 0)), "nothing was sent");
        TcpStream::from(socket)
    };
    let client = connect();
    (&client).write_all(b"first").unwrap();
    let (mut server, origin) = mesh.accept_outbound(true);
    assert_eq!(origin, Some(to));
    let mut said = [0; 5];
    server.read_exact(&mut said).unwrap();
    assert_eq!(client.peer_addr().unwrap(), to);
    drop((client, server));
    wait_for_nothing(&mesh, "after the first byte");
    drop(connect());
    wait_for_nothing(&mesh, "without a byte");
}
