//! Keys and values of the maps of direct connections, as [`super`] has them of all others. In and out: nothing, these are
//! declarations. No field is ever padding.

use crate::addr::Endpoint;

/// The endpoints of a service: places 0 to `count` - 1 of SLOTS. The value of SERVICES. When they change, so does `id`: whoever
/// has read the old one finds either its places or none.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// Of which list of endpoints.
    pub id: u64,
    /// How many places it has, at least 1.
    pub count: u32,
    /// 0; in the place of padding.
    pub zero: u32,
}

/// A place in a list of endpoints. The key of SLOTS.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    /// [`Service::id`].
    pub service: u64,
    /// Which place.
    pub index: u32,
    /// 0; in the place of padding.
    pub zero: u32,
}

/// In [`Allowance::flags`]: open connections may go on, and new ones go through the agent, because it is not known just now
/// what is allowed.
pub const PAUSED: u32 = 1;
/// In [`Allowance::flags`]: only for connections to a service of which this is the endpoint that was chosen.
pub const BY_SERVICE: u32 = 1 << 1;

/// Where a workload may connect to by itself, or a service that it knows. The key of ALLOWED and SERVICES.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Way {
    /// Cookie of the client's network namespace.
    pub netns: u64,
    /// A port of another workload of this node, or of a service.
    pub to: Endpoint,
    /// 0; in the place of padding.
    pub zero: u32,
}

/// That a workload may connect to a port by itself: its policies let it, and nothing there needs the agent. The value of
/// ALLOWED.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Cookie of the server's network namespace.
    pub server: u64,
    /// Another one each time that this was not allowed in between: no connection outlives its allowance.
    pub generation: u64,
    /// Answers by somebody else and ends of connections since a SYN last came to the server as it had left the client.
    pub missed: u32,
    /// [`PAUSED`] and [`BY_SERVICE`].
    pub flags: u32,
}

/// A connection between two workloads of this node without the agent. The value of DIRECT.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Direct {
    /// Cookie of the client's network namespace.
    pub client: u64,
    /// Cookie of the server's network namespace.
    pub server: u64,
    /// Of the [`Allowance`] by which it was opened.
    pub generation: u64,
    /// The initial sequence number, as the client's SYN carried it out of its pod.
    pub sequence: u32,
    /// A [`Stage`].
    pub stage: u32,
    /// Where the client wanted to go, from the handshake's end on; [`Endpoint::ZERO`] before.
    pub to: Endpoint,
    /// How many bytes the client had received when the server had taken note of its end (FIN_WAIT2), modulo 2³².
    pub received: u32,
    /// Id of the shortcut that the client has become an end of, or 0.
    pub link: u64,
}

/// How far a direct connection has come.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Its SYN has left the client.
    Sent = 0,
    /// Its SYN has come to the server.
    Arrived = 1,
    /// The server's kernel has accepted it: the record lives as long as the server's socket.
    Accepted = 2,
}

const _: () = {
    assert!(size_of::<Service>() == 16 && align_of::<Service>() == 8);
    assert!(size_of::<Slot>() == 16 && align_of::<Slot>() == 8);
    assert!(size_of::<Way>() == 32 && core::mem::offset_of!(Way, zero) == 28);
    assert!(size_of::<Allowance>() == 24 && align_of::<Allowance>() == 8);
    assert!(size_of::<Direct>() == 64 && align_of::<Direct>() == 8);
    assert!(core::mem::offset_of!(Direct, link) == 56);
};
