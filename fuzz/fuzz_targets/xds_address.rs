//! Any bytes are a workload, a service, or refused; what is accepted is found again under its own name.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_core::ambient::Store;
use mesh_core::resource::workload::Address;
use mesh_core::resource::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use mesh_core::store::Upsert;
use mesh_proto::workload as pb;
use prost::Message;

fuzz_target!(|body: &[u8]| {
    let name = match pb::Address::decode(body).map(|message| message.r#type) {
        Ok(Some(pb::address::Type::Workload(workload))) => workload.uid,
        Ok(Some(pb::address::Type::Service(service))) => format!("{}/{}", service.namespace, service.hostname),
        _ => String::new(),
    };
    let Ok(parsed) = Address::parse(&name, body) else { return };
    assert_eq!(**parsed.key(), *name);
    let mut store = Store::new();
    store.apply(AUTHORIZATION_TYPE, &[], &[]);
    let upsert = Upsert { name: name.clone(), version: "1".into(), body: body.to_vec().into() };
    assert!(store.apply(ADDRESS_TYPE, &[upsert], &[]).is_empty());
    let known = store.snapshot().expect("both were answered");
    if let Address::Workload(workload) = parsed {
        assert!(known.workload(&name).is_some());
        for address in workload.addresses.iter().filter(|_| !workload.host_network && workload.network.is_empty()) {
            assert!(known.at(*address).is_some());
        }
    }
    store.apply(ADDRESS_TYPE, &[], &[name]);
    let counts = store.snapshot().expect("both were answered").counts();
    assert_eq!((counts.workloads, counts.services), (0, 0));
});
