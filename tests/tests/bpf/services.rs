//! The lists that the kernel draws endpoints from: whatever stood in the maps before, what was asked for last is there, and
//! nothing else.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use mesh_agent::kernel::{Choices, DirectPlan};
use mesh_common::abi::{Service, Slot, Way, maps};
use mesh_common::addr::Endpoint;

use super::direct::Node;
use super::support::*;

const CLIENTS: [u32; 2] = [1, 2];
const ROUNDS: u64 = 300;

/// Endpoints by namespace and the service's address.
type Lists = BTreeMap<(u64, SocketAddr), Vec<SocketAddr>>;

/// What stands in the maps; nothing but the lists that are named.
fn lists(node: &Node) -> Lists {
    let slots = node.map::<Slot, Endpoint>(maps::SLOTS);
    let services = node.map::<Way, Service>(maps::SERVICES);
    let mut named = HashSet::new();
    let endpoint = |service, index| slots.get(&Slot { service, index, zero: 0 }, 0).unwrap().into();
    let all = services.iter().map(Result::unwrap).map(|(way, service)| {
        named.extend((0..service.count).map(|index| (service.id, index)));
        let list = (0..service.count).map(|index| endpoint(service.id, index));
        ((way.netns, way.to.into()), list.collect())
    });
    let all = all.collect();
    assert_eq!(slots.keys().count(), named.len(), "lists that nobody names");
    all
}

/// Numbers that look like chance and are the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

#[test]
fn what_was_asked_for_last_is_there() {
    let mut node = Node::allowing(&[]);
    let cookies = [node.client.cookie(), node.server.cookie()];
    let service = |number: u64| at(&format!("10.96.0.{number}:80"));
    // Clients ask for the same lists, and each has its own copy.
    let list = |number: u64| -> Arc<[SocketAddr]> {
        (0..number).map(|endpoint| at(&format!("192.0.2.{number}:{}", endpoint + 1))).collect()
    };
    let mut dice = Dice(4);
    let mut asked = [Choices::default(), Choices::default()];
    let mut expected = Lists::new();
    for round in 0..ROUNDS {
        for _ in 0..dice.roll(4) {
            let choices = &mut asked[usize::from(dice.roll(2) == 0)];
            match dice.roll(5) {
                0 => {
                    choices.remove(&service(dice.roll(6)));
                }
                length => choices.insert(service(dice.roll(6)), list(length)),
            }
        }
        // One may not be known of now and then, or not be there any more.
        let unknown = (dice.roll(5) == 0).then(|| usize::from(dice.roll(2) == 0));
        let undecided: HashSet<u32> =
            unknown.filter(|_| dice.roll(2) == 0).map(|one| CLIENTS[one]).into_iter().collect();
        let mut plan = DirectPlan::default();
        for index in (0..2).filter(|index| Some(*index) != unknown) {
            plan.services.insert(CLIENTS[index], asked[index].clone());
        }
        node.kernel.set_direct(&plan, &undecided).unwrap();
        for (index, cookie) in
            cookies.into_iter().enumerate().filter(|(index, _)| !undecided.contains(&CLIENTS[*index]))
        {
            expected.retain(|(netns, _), _| *netns != cookie);
            let there = asked[index].iter().filter(|_| Some(index) != unknown);
            expected.extend(there.map(|(to, list)| ((cookie, *to), list.to_vec())));
        }
        assert_eq!(lists(&node), expected, "round {round}");
    }
    node.kernel.withdraw(CLIENTS[0]);
    expected.retain(|(netns, _), _| *netns != cookies[0]);
    assert_eq!(lists(&node), expected);
    // The same namespace, as another workload.
    let addresses = node.client.addresses().unwrap();
    let _listeners = node.kernel.enrol_namespace(3, &node.client, &addresses, 0).unwrap();
    let services = [(3, asked[0].clone()), (CLIENTS[1], asked[1].clone())].into();
    node.kernel.set_direct(&DirectPlan { services, ..DirectPlan::default() }, &HashSet::new()).unwrap();
    let both = cookies
        .iter()
        .zip(&asked)
        .flat_map(|(cookie, all)| all.iter().map(|(to, list)| ((*cookie, *to), list.to_vec())));
    assert_eq!(lists(&node), both.collect());
    node.kernel.withdraw(3);
    node.kernel.withdraw(CLIENTS[1]);
    assert_eq!(lists(&node), Lists::new());
}
