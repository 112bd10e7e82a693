//! Keys and values of the maps about what connections carry, as [`super`] has them of all others. In and out: nothing, these
//! are declarations. No field is ever padding.

use crate::addr::Endpoint;

/// Between whom direct connections are. The key of DIRECT_STATS and DIRECT_TOLD.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pair {
    /// Cookie of the client's network namespace.
    pub client: u64,
    /// Where the client wanted to go: a service's address, or the endpoint itself.
    pub to: Endpoint,
    /// Where it got to.
    pub endpoint: Endpoint,
}

impl Pair {
    /// Stands for all that have no place of their own. Always there.
    pub const NOBODY: Pair = Pair { client: 0, to: Endpoint::ZERO, endpoint: Endpoint::ZERO };
}

/// What direct connections of a [`Pair`] have come to. The value of DIRECT_STATS and DIRECT_TOLD.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Cookie of the network namespace of the server, as of the last one that was opened.
    pub server: u64,
    /// Connections that were established.
    pub opened: u64,
    /// Of these, those that are over.
    pub closed: u64,
    /// Bytes from the client to the server, of connections that are over.
    pub forward: u64,
    /// Bytes from the server to the client, likewise.
    pub back: u64,
}

/// By which way a connection's packets leave or reach a workload.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// From one workload of the node to another, without the agent.
    Direct = 0,
    /// From agent to agent, over HBONE.
    Tunnel = 1,
    /// Between an agent and somebody in the open.
    Plain = 2,
    /// From one workload of the node to another, within the agent: it has no packets of its own.
    Neighbour = 3,
    /// Between an agent and somebody who speaks TLS at a port of an application.
    Tls = 4,
}

impl Path {
    /// Every path with its name in metrics.
    pub const ALL: [(Path, &'static str); 5] = [
        (Path::Direct, "direct"),
        (Path::Tunnel, "tunnel"),
        (Path::Plain, "plain"),
        (Path::Neighbour, "neighbour"),
        (Path::Tls, "tls"),
    ];
    /// Those of which TCP tells something.
    pub const OF_PACKETS: [(Path, &'static str); 3] = [Path::ALL[0], Path::ALL[1], Path::ALL[2]];
}

const _: () = {
    assert!(size_of::<Pair>() == 48 && align_of::<Pair>() == 8);
    assert!(size_of::<Carried>() == 40 && align_of::<Carried>() == 8);
};
