//! Full maps of the host's workloads: who finds no place is not enrolled, or not caught and said so; others notice nothing,
//! and once there is a place all is as it should be.

use aya::maps::{Map, MapData, SockHash};
use mesh_common::abi::{DoorKey, maps};

use super::super::full::{fill, nobody, open};
use super::*;

/// Ports that no host has.
fn port(i: u32) -> u32 {
    u32::from(u16::MAX) + 1 + i
}

/// The workload's ports lead to its application, and its processes go where they want.
fn assert_left_alone(net: &Net, slice: &Slice) {
    let (app, wire) = (listen_in(&net.pod, OWN), listen_in(&net.wire, WIRE));
    let client = connect_in(&net.wire, OWN).unwrap();
    assert_joined(&client, &accept(&app).0);
    assert_eq!(Process::start(&slice.directory.join("unit"), &net.pod).connects(WIRE), at(WIRE));
    accept(&wire);
}

#[test]
fn no_place_for_a_unit() {
    for name in [maps::CGROUPS, maps::HOST_PORTS, maps::HOST_DOORS] {
        let (net, pins, slice) = (Net::new(), pins(), Slice::new());
        slice.start("unit");
        let mut kernel = Host::load(&net, &pins);
        let doors = || -> SockHash<MapData, DoorKey> {
            Map::from_map_data(MapData::from_pin(map(&pins, maps::HOST_DOORS)).unwrap()).unwrap().try_into().unwrap()
        };
        let door = |i| DoorKey { port: port(i), v4: 1 };
        // A socket that is in the map too often is slow to take out again.
        let somebody: Vec<TcpListener> = (0..64).map(|_| listen_in(&net.wire, "127.0.0.1:0")).collect();
        match name {
            maps::CGROUPS => fill(open::<u64, u64>(&pins, name), nobody, 1),
            maps::HOST_PORTS => fill(open::<u32, u64>(&pins, name), port, 1),
            _ => {
                let mut doors = doors();
                let full = (0..)
                    .zip(somebody.iter().cycle())
                    .find_map(|(i, one)| doors.insert(door(i), one.as_raw_fd(), 0).err());
                assert!(full.is_some());
            }
        }
        let addresses = net.pod.addresses().unwrap();
        let error = kernel.enrol_cgroup(ID, &slice.place("unit", &[8080]), &addresses, 0).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("full") && error.contains("fewer"), "{error}");
        assert_left_alone(&net, &slice);
        match name {
            maps::CGROUPS => open::<u64, u64>(&pins, name).remove(&nobody(0)).unwrap(),
            maps::HOST_PORTS => open::<u32, u64>(&pins, name).remove(&port(0)).unwrap(),
            _ => (0..2).for_each(|i| doors().remove(&door(i)).unwrap()),
        }
        let listeners = enrol_unit(&mut kernel, &net, &slice, 0);
        let host = Host { listeners, kernel, net, slice, pins };
        host.process("unit").connects(WIRE);
        assert_eq!(host.caught(), Some(at(WIRE)), "{name}");
        connect_in(&host.net.wire, OWN).unwrap();
        accept(&host.listeners.inbound[0]);
    }
}

/// One whose unit is started when there is no place any more: said once, and caught as soon as there is.
#[test]
fn no_place_for_a_unit_that_is_started_later() {
    let mut host = Host::without(Slice::new(), 0);
    fill(open::<u64, u64>(&host.pins, maps::CGROUPS), nobody, 1);
    host.slice.start("unit");
    let mut told = host.kernel.follow_host();
    let (ID, Err(error)) = told.remove(0) else { panic!("{told:?}") };
    assert!(error.to_string().contains("CGROUPS"), "{error}");
    assert!(host.kernel.follow_host().is_empty() && !host.kernel.has_processes(ID));
    let wire = listen_in(&host.net.wire, WIRE);
    let mut unit = host.process("unit");
    unit.connects(WIRE);
    goes_to(&wire, &host.listeners.outbound[0]);
    // What comes in is the agent's all the while.
    connect_in(&host.net.wire, OWN).unwrap();
    accept(&host.listeners.inbound[0]);

    open::<u64, u64>(&host.pins, maps::CGROUPS).remove(&nobody(0)).unwrap();
    let told: Vec<_> = host.kernel.follow_host().into_iter().map(|(id, told)| (id, told.unwrap())).collect();
    assert_eq!(told, [(ID, Followed::Came)]);
    unit.connects(WIRE);
    assert_eq!(host.caught(), Some(at(WIRE)));
}
