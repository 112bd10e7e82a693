//! The places under which DNS servers are asked through the agent. In: a namespace. Out: its places are gone. The
//! programs make them.

use aya::maps::{HashMap as BpfHashMap, MapData};
use mesh_common::abi::DnsPlace;
use mesh_common::addr::Endpoint;

/// The map DNS.
pub(super) type Places = BpfHashMap<MapData, DnsPlace, Endpoint>;

/// Removes every place of a namespace whose workload is withdrawn.
pub(super) fn forget(places: &mut Places, netns: u64) {
    let of_it: Vec<_> = places.keys().flatten().filter(|place| place.netns == netns).collect();
    for place in of_it {
        // Gone is as good as removed.
        let _ = places.remove(&place);
    }
}
