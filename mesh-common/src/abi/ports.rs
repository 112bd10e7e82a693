//! Keys and values of the maps about ports and listeners, as [`super`] has them of all others. In and out: nothing, these are
//! declarations. No field is ever padding.

/// A port of a workload. The key of PORT_MODES and PROBED.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortKey {
    /// Cookie of the network namespace, or the number of a workload of the host ([`crate::host::key`]).
    pub netns: u64,
    /// In host byte order, widened.
    pub port: u32,
    /// 0; in the place of padding.
    pub zero: u32,
}

/// An outbound listener of the agent's: one in each family of a namespace. The key of OUTBOUND.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OutboundKey {
    /// Cookie of the network namespace.
    pub netns: u64,
    /// Where it listens, in host byte order, widened.
    pub port: u32,
    /// 1 if it takes IPv4, 0 if IPv6.
    pub v4: u32,
}

/// Whether a port takes connections in the open.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It does.
    Permissive = 0,
    /// It takes only connections with a verified identity, which come by the agent's tunnel.
    Strict = 1,
}

const _: () = {
    assert!(size_of::<OutboundKey>() == 16 && align_of::<OutboundKey>() == 8);
    assert!(size_of::<PortKey>() == 16 && align_of::<PortKey>() == 8);
};
