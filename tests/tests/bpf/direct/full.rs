//! Full maps of direct connections: what finds no place goes by the agent, or waits, and never past what is allowed; once there
//! is a place all is as it should be.

use super::super::full::{fill, nobody};
use super::*;

const TO: &str = "10.78.2.2:8080";
const SERVICE: &str = "10.96.0.10:80";

fn way_of(i: u32) -> Way {
    Way { netns: nobody(i), to: Endpoint::ZERO, zero: 0 }
}

fn slot(i: u32) -> Slot {
    Slot { service: 1 << 62, index: i, zero: 0 }
}

fn tuple(i: u32) -> Tuple {
    Tuple { netns: nobody(i), client: Endpoint::ZERO, server: Endpoint::ZERO }
}

/// An agent that has looked at the maps already: what nobody has named before it would take out.
fn settled() -> Node {
    let mut node = Node::new();
    node.allow(&[]);
    node
}

fn assert_full(node: &mut Node, plan: &DirectPlan, name: &str) {
    let error = node.kernel.set_direct(plan, &HashSet::new()).unwrap_err().to_string();
    assert!(error.contains(name) && error.contains("full"), "{error}");
}

#[test]
fn no_place_for_what_is_allowed() {
    let mut node = settled();
    let nobodys = Allowance { server: 0, generation: 0, missed: 0, flags: 0 };
    fill(node.map::<Way, Allowance>(maps::ALLOWED), way_of, nobodys);
    let app = node.app("0.0.0.0:8080");
    let plan = DirectPlan { ways: vec![way(TO, false)], ..DirectPlan::default() };
    assert_full(&mut node, &plan, maps::ALLOWED);
    node.assert_by_the_agent(TO);
    node.map::<Way, Allowance>(maps::ALLOWED).remove(&way_of(0)).unwrap();
    node.kernel.set_direct(&plan, &HashSet::new()).unwrap();
    node.assert_direct(&app, TO);
}

#[test]
fn no_place_for_a_service() {
    for name in [maps::SERVICES, maps::SLOTS] {
        let mut node = settled();
        match name {
            maps::SERVICES => fill(node.map::<Way, Service>(name), way_of, Service { id: 1 << 62, count: 1, zero: 0 }),
            _ => fill(node.map::<Slot, Endpoint>(name), slot, Endpoint::ZERO),
        }
        let app = node.app("0.0.0.0:8080");
        let plan = service(SERVICE, &[TO]);
        assert_full(&mut node, &plan, name);
        node.assert_by_the_agent(SERVICE);
        match name {
            maps::SERVICES => node.map::<Way, Service>(name).remove(&way_of(0)).unwrap(),
            _ => node.map::<Slot, Endpoint>(name).remove(&slot(0)).unwrap(),
        }
        node.kernel.set_direct(&plan, &HashSet::new()).unwrap();
        let client = connect_in(&node.client, SERVICE).unwrap();
        assert_joined(&client, &accept(&app).0);
        node.assert_agent_knows_nothing();
    }
}

/// Its SYN waits for a place; TCP sends it again.
#[test]
fn no_place_for_a_connection() {
    let node = Node::allowing(&[TO]);
    let app = node.app("0.0.0.0:8080");
    let (client, server) = node.assert_direct(&app, TO);
    // SAFETY: made of integers only.
    let nobodys: Direct = unsafe { std::mem::zeroed() };
    fill(node.map::<Tuple, Direct>(maps::DIRECT), tuple, nobodys);
    let late = socket_in(&node.client, TO);
    late.set_nonblocking(true).unwrap();
    node.counts(Counter::DirectFull, || drop(late.connect(&at(TO).into())));
    assert!(!is_waiting(&app));
    node.assert_agent_knows_nothing();
    assert_joined(&client, &server);
    node.map::<Tuple, Direct>(maps::DIRECT).remove(&tuple(0)).unwrap();
    let (server, _) = accept(&app);
    late.set_nonblocking(false).unwrap();
    assert_joined(&late.into(), &server);
}
