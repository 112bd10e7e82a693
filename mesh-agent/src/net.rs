//! Sockets and byte streams: namespaces, listeners, looking ahead, relaying; datagrams. No protocol above TCP and UDP.

pub mod ahead;
pub mod connections;
pub mod copy;
pub mod datagram;
pub mod gather;
pub mod listen;
pub mod netlink;
pub mod netns;
pub mod peek;
pub mod process;
pub mod share;
pub mod tcp_info;
