//! Every program that the agent attaches: where, from which kernel on, and why from that one. The one list of them: what
//! attaches, what probes the kernel and what tells a refusal all read it. A new hook is one more line here. No logic.

/// A program of the object and its hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// The program's name in the object.
    pub program: &'static str,
    /// Where it is attached.
    pub place: Place,
    /// The oldest kernel on which it works, `major.minor`.
    pub since: &'static str,
    /// The helper or hook that asks for that kernel.
    pub because: &'static str,
}

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// To the cgroup, as this attach type.
    Cgroup(AttachType),
    /// To each interface of a pod.
    Interface(Direction),
    /// To a pod's namespace.
    Lookup,
    /// To the host's namespace, where there are workloads of the host.
    HostLookup,
    /// To the map of sockets with a shortcut.
    Sockets,
}

/// A side of an interface, seen from the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Into the pod.
    Ingress,
    /// Out of the pod.
    Egress,
}

/// `enum bpf_attach_type` of linux/bpf.h, as far as cgroup hooks of ours go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs, reason = "the kernel's names")]
pub enum AttachType {
    SockOps = 3,
    Connect4 = 10,
    Connect6 = 11,
    SendMsg4 = 14,
    SendMsg6 = 15,
    RecvMsg4 = 19,
    RecvMsg6 = 20,
    SetSockOpt = 22,
    GetPeerName4 = 29,
    GetPeerName6 = 30,
    GetSockName4 = 31,
    GetSockName6 = 32,
    SockRelease = 34,
}

impl AttachType {
    /// The hook's name in the kernel's documentation (libbpf's section names).
    pub fn name(self) -> &'static str {
        match self {
            AttachType::SockOps => "sockops",
            AttachType::Connect4 => "cgroup/connect4",
            AttachType::Connect6 => "cgroup/connect6",
            AttachType::SendMsg4 => "cgroup/sendmsg4",
            AttachType::SendMsg6 => "cgroup/sendmsg6",
            AttachType::RecvMsg4 => "cgroup/recvmsg4",
            AttachType::RecvMsg6 => "cgroup/recvmsg6",
            AttachType::SetSockOpt => "cgroup/setsockopt",
            AttachType::GetPeerName4 => "cgroup/getpeername4",
            AttachType::GetPeerName6 => "cgroup/getpeername6",
            AttachType::GetSockName4 => "cgroup/getsockname4",
            AttachType::GetSockName6 => "cgroup/getsockname6",
            AttachType::SockRelease => "cgroup/sock_release",
        }
    }
}

impl Place {
    /// The hook's name in the kernel's documentation.
    pub fn name(self) -> &'static str {
        match self {
            Place::Cgroup(at) => at.name(),
            Place::Interface(Direction::Ingress) => "tc ingress",
            Place::Interface(Direction::Egress) => "tc egress",
            Place::Lookup | Place::HostLookup => "sk_lookup",
            Place::Sockets => "sk_msg",
        }
    }
}

/// In the order in which they are attached: sock_ops before connect, so that no redirected connection goes unnoted, and
/// before it what its sockets send by; what
/// tells addresses before what changes them; a pod's programs at its enrolment.
pub const HOOKS: [Hook; 18] = [
    hook("mesh_shortcut", Place::Sockets, STORAGE),
    hook("mesh_sock_ops", Place::Cgroup(AttachType::SockOps), "bpf_get_netns_cookie"),
    hook("mesh_sock_release", Place::Cgroup(AttachType::SockRelease), "bpf_get_socket_cookie"),
    hook("mesh_getsockname6", Place::Cgroup(AttachType::GetSockName6), STORAGE),
    hook("mesh_getsockname4", Place::Cgroup(AttachType::GetSockName4), STORAGE),
    hook("mesh_getpeername6", Place::Cgroup(AttachType::GetPeerName6), STORAGE),
    hook("mesh_getpeername4", Place::Cgroup(AttachType::GetPeerName4), STORAGE),
    hook("mesh_recvmsg6", Place::Cgroup(AttachType::RecvMsg6), STORAGE),
    hook("mesh_recvmsg4", Place::Cgroup(AttachType::RecvMsg4), STORAGE),
    hook("mesh_sendmsg6", Place::Cgroup(AttachType::SendMsg6), "bpf_sk_lookup_udp"),
    hook("mesh_sendmsg4", Place::Cgroup(AttachType::SendMsg4), "bpf_sk_lookup_udp"),
    hook("mesh_setsockopt", Place::Cgroup(AttachType::SetSockOpt), "bpf_get_netns_cookie"),
    hook("mesh_connect6", Place::Cgroup(AttachType::Connect6), "bpf_set_retval"),
    hook("mesh_connect4", Place::Cgroup(AttachType::Connect4), "bpf_set_retval"),
    hook("mesh_host_lookup", Place::HostLookup, ASSIGN),
    hook("mesh_lookup", Place::Lookup, ASSIGN),
    hook("mesh_ingress", Place::Interface(Direction::Ingress), ASSIGN),
    hook("mesh_egress", Place::Interface(Direction::Egress), "bpf_sk_fullsock"),
];

const STORAGE: &str = "bpf_sk_storage_get";
const ASSIGN: &str = "bpf_sk_assign";
/// The oldest kernel on which the whole has been tried (docs/kernels.md).
pub const FLOOR: &str = "6.1";

const fn hook(program: &'static str, place: Place, because: &'static str) -> Hook {
    Hook { program, place, since: FLOOR, because }
}

/// The programs of the cgroup, in the order in which they are attached.
pub fn cgroup() -> impl Iterator<Item = &'static Hook> {
    HOOKS.iter().filter(|hook| matches!(hook.place, Place::Cgroup(_)))
}

/// The programs that work for all pods, or for the host: those of the cgroup, what decides on shortcuts, and the host's.
pub fn shared() -> impl Iterator<Item = &'static Hook> {
    HOOKS.iter().filter(|hook| matches!(hook.place, Place::Cgroup(_) | Place::Sockets | Place::HostLookup))
}

/// The programs of one pod, in the order in which they are attached.
pub fn pod() -> impl Iterator<Item = &'static Hook> {
    HOOKS.iter().filter(|hook| matches!(hook.place, Place::Interface(_) | Place::Lookup))
}

/// What a kernel must be for a program: `6.1 (bpf_sk_assign in tc ingress)`.
pub fn needed(program: &str) -> String {
    match HOOKS.iter().find(|hook| hook.program == program) {
        Some(hook) => format!("{} ({} in {})", hook.since, hook.because, hook.place.name()),
        None => FLOOR.to_owned(),
    }
}
