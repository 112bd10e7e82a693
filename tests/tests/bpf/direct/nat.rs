//! Somebody between two pods gives their packets another source (SNAT, by the kernel's own NAT): the server cannot know them
//! for the client's, says so by saying nothing, and from then on the client's agent is asked.

use std::process::Command;

use super::*;

const TO: &str = "10.78.2.2:8080";

fn nat(node: &Node, change: &str) {
    let rule = format!("-w -t nat {change} POSTROUTING -s 10.78.1.2 -d 10.78.2.2 -j SNAT --to-source 10.78.2.1");
    let output = node.router.run(|| Command::new("iptables").args(rule.split(' ')).output()).unwrap().unwrap();
    assert!(output.status.success(), "iptables {rule}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_source_that_is_changed_on_the_way_is_not_the_clients() {
    let node = Node::allowing(&[TO]);
    let app = node.app("0.0.0.0:8080");
    let (client, server) = node.assert_direct(&app, TO);
    drop((client, server));
    node.assert_forgotten();
    nat(&node, "-A");
    let before = node.count(Counter::DirectMissed);
    while node.count(Counter::DirectMissed) - before < u64::from(MAX_MISSED) {
        // The server's agent would serve whoever comes from there; the client says nothing to it.
        let mut client = connect_in(&node.client, TO).unwrap();
        node.counts(Counter::DirectMissed, || client.write_all(b"secret").unwrap());
        assert!(!is_waiting(&app) && !node.server_listeners.inbound.iter().any(is_waiting));
        socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
    }
    node.assert_by_the_agent(TO);
    assert!(!is_waiting(&app));
    node.assert_forgotten();
}
