//! A client uses an old tuple again while its server still has the old connection.

use super::*;

const TO: &str = "10.78.2.2:8080";

#[test]
fn the_end_of_the_old_connection_leaves_the_new_ones_record() {
    let node = Node::allowing(&[TO]);
    let app = node.app("0.0.0.0:8080");
    let connect = |from: SocketAddr| -> TcpStream {
        let socket = socket_in(&node.client, TO);
        socket.set_reuse_address(true).unwrap();
        socket.bind(&from.into()).unwrap();
        socket.connect(&at(TO).into()).unwrap();
        socket.into()
    };
    let (client, server) = node.assert_accepted(&app, connect(at("10.78.1.2:0")));
    let from = client.local_addr().unwrap();
    let old = node.the_record().sequence;
    // The server does not hear that its client is gone.
    ip(&node.router, "route add blackhole 10.78.2.2/32");
    socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    ip(&node.router, "route del blackhole 10.78.2.2/32");
    assert_eq!(node.the_record().sequence, old);
    std::thread::scope(|scope| {
        // Its kernel answers for the old connection, hears that there is none, and is asked once more, a second later.
        let client = scope.spawn(|| connect(from));
        assert_reset(&server);
        assert_ne!(node.the_record().sequence, old);
        assert_eq!(node.held(), 1);
        node.assert_accepted(&app, client.join().unwrap());
    });
    node.assert_forgotten();
}
