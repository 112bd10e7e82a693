//! Sockets and byte streams: namespaces, listeners, looking ahead, relaying. No protocol above TCP.

pub mod connections;
pub mod copy;
pub mod listen;
pub mod netlink;
pub mod netns;
pub mod peek;
