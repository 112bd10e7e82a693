//! Workloads of the mesh that are dialled by their own address: pods of headless services, and whoever is known by address.
//!
//! In: what is told of the whole mesh, and an address. Out: the workload there as an endpoint with its tunnel and identity.
//! Never: guesses where several workloads have the address, or leads to one that is reached some other way.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_core::ambient::Ambient;
use mesh_core::resource::endpoint::{Endpoint, Health, WorkloadRef};
use mesh_core::resource::workload::{Tunnel, Workload};

/// The endpoint at an address; `own` is the mesh's trust domain. `None`: nobody is known there, or nobody with a tunnel.
pub(super) fn endpoint(mesh: &Ambient, to: SocketAddr, own: &str) -> Option<Arc<Endpoint>> {
    let workload = mesh.at(to.ip())?;
    // What has to pass a waypoint must not be reached around it.
    if workload.tunnel != Tunnel::Hbone || workload.waypoint {
        return None;
    }
    Some(Arc::new(Endpoint {
        address: to,
        weight: 1,
        health: Health::Healthy,
        tunnel: true,
        istio_mtls: false,
        identity: Some(workload.identity(own)?),
        host: !workload.is_pod(),
        workload: Some(Arc::new(names(workload))),
        runtime: Arc::default(),
    }))
}

fn names(workload: &Workload) -> WorkloadRef {
    WorkloadRef {
        name: workload.workload_name.clone(),
        namespace: workload.namespace.clone(),
        canonical_service: workload.canonical_name.clone(),
        canonical_revision: workload.canonical_revision.clone(),
        cluster: workload.cluster.clone(),
        // Not told; the other agent says them.
        ..WorkloadRef::default()
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::ambient::Store;
    use mesh_core::resource::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
    use mesh_core::store::Upsert;
    use mesh_proto::workload as pb;
    use prost::Message;

    use super::*;

    fn pod() -> pb::Workload {
        pb::Workload {
            uid: "c//Pod/shop/db-0".into(),
            name: "db-0".into(),
            namespace: "shop".into(),
            addresses: vec![vec![10, 0, 0, 2]],
            tunnel_protocol: pb::TunnelProtocol::Hbone.into(),
            service_account: "db".into(),
            workload_name: "db".into(),
            ..Default::default()
        }
    }

    fn found(workloads: &[pb::Workload]) -> Option<Arc<Endpoint>> {
        let upserts: Vec<Upsert> = workloads
            .iter()
            .map(|one| Upsert {
                name: one.uid.clone(),
                version: "1".into(),
                body: pb::Address { r#type: Some(pb::address::Type::Workload(one.clone())) }.encode_to_vec().into(),
            })
            .collect();
        let mut store = Store::new();
        assert_eq!(store.apply(ADDRESS_TYPE, &upserts, &[]), []);
        store.apply(AUTHORIZATION_TYPE, &[], &[]);
        endpoint(&store.snapshot().unwrap(), "10.0.0.2:6379".parse().unwrap(), "cluster.local")
    }

    #[test]
    fn a_pod_of_the_mesh_has_a_tunnel_and_an_identity() {
        let one = found(&[pod()]).unwrap();
        assert_eq!((one.address, one.tunnel, one.host), ("10.0.0.2:6379".parse().unwrap(), true, false));
        assert_eq!(one.identity.as_ref().unwrap().as_str(), "spiffe://cluster.local/ns/shop/sa/db");
        let workload = one.workload.as_ref().unwrap();
        assert_eq!((&*workload.name, &*workload.namespace), ("db", "shop"));
    }

    #[test]
    fn whoever_is_not_surely_meant_or_has_no_tunnel_has_none() {
        let vm = |name: &str| pb::Workload {
            uid: format!("c/networking.istio.io/WorkloadEntry/shop/{name}"),
            service_account: name.into(),
            ..pod()
        };
        let elsewhere = pb::Workload { addresses: vec![vec![10, 0, 0, 3]], ..pod() };
        let waypoint = Some(pb::GatewayAddress::default());
        for (all, is_there) in [
            (vec![], false),
            (vec![elsewhere], false),
            (vec![pb::Workload { tunnel_protocol: 0, ..pod() }], false),
            (vec![pb::Workload { waypoint, ..pod() }], false),
            (vec![pb::Workload { network: "other".into(), ..pod() }], false),
            (vec![pb::Workload { network_mode: pb::NetworkMode::HostNetwork.into(), ..pod() }], false),
            (vec![vm("a")], true),
            (vec![vm("a"), vm("b")], false),
            (vec![vm("a"), pb::Workload { network: "other".into(), ..vm("b") }], true),
            // An entry may claim the address of a pod.
            (vec![pod(), vm("a")], true),
            (vec![pod(), pb::Workload { uid: "c//Pod/shop/db-1".into(), ..pod() }], false),
        ] {
            assert_eq!(found(&all).is_some(), is_there, "{all:#?}");
        }
        assert!(found(&[vm("a")]).unwrap().host);
        let both = found(&[vm("a"), pod()]).unwrap();
        assert_eq!((both.host, both.identity.as_ref().unwrap().service_account()), (false, "db"));
    }
}
