//! Datagrams on loopback of a namespace of the test's own.

use super::*;

fn scratch() -> NetNs {
    let made = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("this test needs root");
        let ns = NetNs::current().unwrap();
        for line in ["link set lo up", "link add wire type veth peer name pod", "addr add 10.9.9.1/24 dev wire"] {
            let done = std::process::Command::new("ip").args(line.split(' ')).status().unwrap();
            assert!(done.success(), "ip {line}");
        }
        ns
    });
    made.join().unwrap()
}

fn blocking(socket: &UdpSocket) {
    socket.set_nonblocking(false).unwrap();
    socket.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
}

/// As [`receive`], but waits.
fn wait(socket: &UdpSocket, buffer: &mut [u8]) -> (usize, SocketAddr, SocketAddr) {
    let mut poll = [nix::poll::PollFd::new(socket.as_fd(), nix::poll::PollFlags::POLLIN)];
    assert_eq!(nix::poll::poll(&mut poll, 20_000_u16).unwrap(), 1, "nothing came");
    receive(socket, socket.local_addr().unwrap(), buffer).unwrap()
}

#[test]
fn one_socket_stands_for_all_of_loopback() {
    let ns = scratch();
    let sockets = listen(&ns, 15053, 2, |_| Ok(())).unwrap();
    let bound: Vec<_> = sockets.iter().map(|s| s.local_addr().unwrap().to_string()).collect();
    assert_eq!(bound, ["0.0.0.0:15053", "[::1]:15053", "[::1]:15054"]);
    let mut buffer = vec![0; MAX_DATAGRAM];
    for (socket, at) in [(0, "127.53.0.9:15053"), (0, "127.0.0.1:15053"), (1, "[::1]:15053"), (2, "[::1]:15054")] {
        let at: SocketAddr = at.parse().unwrap();
        let any = if at.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let client = ns.run(|| UdpSocket::bind(any)).unwrap().unwrap();
        blocking(&client);
        client.connect(at).unwrap();
        // The largest that IPv4 carries.
        let question = vec![7; 65_507];
        client.send(&question).unwrap();
        let (n, from, came) = wait(&sockets[socket], &mut buffer);
        assert_eq!((n, from, came), (question.len(), client.local_addr().unwrap(), at));
        assert!(buffer[..n] == question[..]);
        send(&sockets[socket], came, from, &buffer[..n]).unwrap();
        // Connected: only an answer from the right address arrives.
        assert_eq!(client.recv(&mut buffer).unwrap(), question.len());
    }
}

#[test]
fn ports_in_use_are_left_alone() {
    let ns = scratch();
    let _taken =
        ns.run(|| [UdpSocket::bind("127.0.0.1:15053"), UdpSocket::bind("[::]:15103")]).unwrap().map(Result::unwrap);
    let sockets = listen(&ns, 15053, 4, |_| Ok(())).unwrap();
    assert_eq!(sockets[0].local_addr().unwrap().port(), 15104);
    assert_eq!(sockets.len(), 5);
}

#[test]
fn what_comes_by_another_interface_is_not_queued() {
    let (pod, wire) = (scratch(), scratch());
    let ip = |ns: &NetNs, line: &str| {
        let done = ns.run(|| std::process::Command::new("ip").args(line.split(' ')).status()).unwrap().unwrap();
        assert!(done.success(), "ip {line}");
    };
    ip(&pod, "link del wire");
    ip(&wire, &format!("link set pod netns /proc/{}/fd/{}", std::process::id(), pod.as_fd().as_raw_fd()));
    ip(&wire, "link set wire up");
    ip(&pod, "addr add 10.9.9.2/24 dev pod");
    ip(&pod, "link set pod up");
    let sockets = listen(&pod, 15053, 0, |_| Ok(())).unwrap();
    // A socket without the filter, to know when the wire's datagrams have come.
    let beside = pod.run(|| UdpSocket::bind("10.9.9.2:9")).unwrap().unwrap();
    blocking(&beside);
    let stranger = wire.run(|| UdpSocket::bind("10.9.9.1:0")).unwrap().unwrap();
    stranger.send_to(b"from the wire", "10.9.9.2:15053").unwrap();
    stranger.send_to(b"done", "10.9.9.2:9").unwrap();
    beside.recv(&mut [0; 8]).unwrap();
    let own = pod.run(|| UdpSocket::bind("10.9.9.2:0")).unwrap().unwrap();
    own.send_to(b"from the host", "127.0.0.1:15053").unwrap();
    let mut buffer = [0; 64];
    let (n, from, _) = wait(&sockets[0], &mut buffer);
    assert_eq!((&buffer[..n], from), (&b"from the host"[..], own.local_addr().unwrap()));
    let nothing = receive(&sockets[0], sockets[0].local_addr().unwrap(), &mut buffer).unwrap_err();
    assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
}
