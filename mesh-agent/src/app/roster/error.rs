//! Why a workload cannot be enrolled. In: what failed. Out: words for the operator. Decides nothing.

use std::io;

use mesh_core::identity::IdentityError;

use crate::kernel::KernelError;

/// Why a workload cannot be enrolled.
#[derive(Debug, thiserror::Error)]
pub(super) enum EnrolError {
    #[error("cannot open the network namespace {path}: {source}")]
    Namespace { path: String, source: io::Error },
    #[error("no process {pid}, or not one whose network namespace can be opened: {source}")]
    Process { pid: u32, source: io::Error },
    #[error(
        "process {pid} is another one than the workload's, which has ended: give its pid of now, or its namespace as netns; \
         if this is the workload after all, remove it from the settings, reload, and list it again"
    )]
    Reused { pid: u32 },
    #[error("cannot read the addresses of its network namespace: {0}")]
    Addresses(io::Error),
    #[error("cannot copy its listeners: {0}")]
    Listeners(io::Error),
    #[error("its network namespace has no address yet")]
    NoAddress,
    #[error(
        "its network namespace is the agent's own, as of a pod with hostNetwork: give its cgroup and ports instead \
         (docs/agent.md)"
    )]
    OwnNamespace,
    #[error("shares its network namespace with {0}; enrol one of them")]
    Shared(String),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
}
