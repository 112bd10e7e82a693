//! Keys and bounds of the maps about workloads of the host, as [`super`] has them of all others. In and out: nothing, these are
//! declarations. No field is ever padding.

/// Workloads of the host: cgroups that share its network namespace.
pub const MAX_HOST_WORKLOADS: u32 = 256;
/// Their cgroups: one each, and as many more while one follows another.
pub const MAX_CGROUPS: u32 = 2 * MAX_HOST_WORKLOADS;
/// Ports of the host that workloads have, all together.
pub const MAX_HOST_PORTS: u32 = 4096;

/// Name of the load-time constant that holds the cookie of the host's network namespace: the agent's own.
pub const HOST_NETNS: &str = "HOST_NETNS";

/// The agent's inbound listener for a port of the host. The key of HOST_DOORS.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DoorKey {
    /// The port that others dial, in host byte order, widened.
    pub port: u32,
    /// 1 if it takes IPv4, 0 if IPv6.
    pub v4: u32,
}

const _: () = {
    assert!(size_of::<DoorKey>() == 8 && align_of::<DoorKey>() == 4);
};
