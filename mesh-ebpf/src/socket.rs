//! What the hooks need of a socket: its storages, its namespace, its addresses. In: a context. Out: values. Decides
//! nothing.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    BPF_SK_STORAGE_GET_F_CREATE, bpf_sock, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1 as Addresses,
};
use aya_ebpf::bindings::{
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Tuple4, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as Tuple6,
};
use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_map_lookup_elem, bpf_sk_lookup_udp, bpf_sk_release,
    bpf_sk_storage_delete, bpf_sk_storage_get,
};
use aya_ebpf::programs::{SockAddrContext, SockOpsContext};
use mesh_common::abi::{MAX_AGENTS, OutboundKey, Role, Tuple};
use mesh_common::addr::{Addr, Endpoint};

use crate::maps::{AGENT, AGENTS, OUTBOUND, SkStorage};

pub const AF_INET: u32 = 2;
/// Lookups in the namespace of the context's socket or device.
pub const BPF_F_CURRENT_NETNS: u64 = u64::MAX;
pub const TCP_LISTEN: u32 = 10;

impl<T: Copy, const FLAGS: usize> SkStorage<T, FLAGS> {
    /// The socket's value. `sk` must have been tested for null.
    #[inline(always)]
    pub fn get(&self, sk: *mut bpf_sock) -> Option<T> {
        self.find(sk).copied()
    }

    /// As [`SkStorage::get`], where it is.
    #[inline(always)]
    pub fn find<'a>(&self, sk: *mut bpf_sock) -> Option<&'a T> {
        // SAFETY: the verifier has seen that sk is a socket and not null; without a value the helper only looks up.
        let value = unsafe { bpf_sk_storage_get(self.as_ptr(), sk.cast(), ptr::null_mut(), 0) }.cast::<T>();
        // SAFETY: null or a T in the socket's storage, which outlives this program's run.
        unsafe { value.as_ref() }
    }

    /// Gives the socket a value, in place of one that it may have. False if there is no memory for it.
    #[inline(always)]
    pub fn set(&self, sk: *mut bpf_sock, mut value: T) -> bool {
        let create = BPF_SK_STORAGE_GET_F_CREATE.into();
        // SAFETY: as in get; the initial value lives on this stack frame and is copied.
        let place =
            unsafe { bpf_sk_storage_get(self.as_ptr(), sk.cast(), (&raw mut value).cast(), create) }.cast::<T>();
        if place.is_null() {
            return false;
        }
        // SAFETY: not null, so it points to a T in the socket's storage. Only this socket's own system call writes it.
        unsafe { *place = value };
        true
    }

    /// Takes the socket's value away, if it has one. Most have none, and to ask costs less than to take: that takes a
    /// reference to the socket.
    #[inline(always)]
    pub fn delete(&self, sk: *mut bpf_sock) {
        if self.find(sk).is_none() {
            return;
        }
        // SAFETY: as in get. That there was nothing to delete is no error here.
        let _ = unsafe { bpf_sk_storage_delete(self.as_ptr(), sk.cast()) };
    }
}

/// Who would take a packet to `at`, as the lookup helpers want it, and how much of it they read.
#[inline(always)]
fn packet_to(at: &Endpoint) -> (bpf_sock_tuple, usize) {
    let port = (at.port as u16).to_be();
    match at.addr.v4_wire() {
        Some(daddr) => {
            let ipv4 = Tuple4 { saddr: 0, daddr, sport: 0, dport: port };
            (bpf_sock_tuple { __bindgen_anon_1: Addresses { ipv4 } }, size_of::<Tuple4>())
        }
        None => {
            let ipv6 = Tuple6 { saddr: [0; 4], daddr: at.addr.0, sport: 0, dport: port };
            (bpf_sock_tuple { __bindgen_anon_1: Addresses { ipv6 } }, size_of::<Tuple6>())
        }
    }
}

/// Whether the agent's DNS listener is at `at` in the context's namespace.
#[inline(always)]
pub fn agent_answers(ctx: &impl EbpfContext, at: &Endpoint) -> bool {
    let (mut tuple, size) = packet_to(at);
    // SAFETY: the tuple is initialised in its first `size` bytes, which is what the helper reads.
    let sk = unsafe { bpf_sk_lookup_udp(ctx.as_ptr(), &raw mut tuple, size as u32, BPF_F_CURRENT_NETNS, 0) };
    if sk.is_null() {
        return false;
    }
    let found = role(sk) == Some(Role::Dns as u32);
    // SAFETY: sk came from the lookup and is not null; this is the one release of this reference.
    unsafe { bpf_sk_release(sk.cast()) };
    found
}

/// What a socket of the agent's is for; nothing if it is an application's. `sk` must have been tested for null.
#[inline(always)]
pub fn role(sk: *mut bpf_sock) -> Option<u32> {
    AGENT.get(sk).map(|agent| agent.role)
}

/// Whether the socket is the agent's, or the process that makes the system call. `sk` must have been tested for null.
#[inline(always)]
pub fn is_agents(sk: *mut bpf_sock) -> bool {
    if AGENT.get(sk).is_some() {
        return true;
    }
    agent_calls()
}

/// Whether an agent's process makes the system call.
#[inline(always)]
pub fn agent_calls() -> bool {
    // SAFETY: no arguments, no precondition.
    let cgroup = unsafe { bpf_get_current_cgroup_id() };
    let Some(agents) = AGENTS.get(0) else { return false };
    // That is a free place.
    if cgroup == 0 {
        return false;
    }
    let mut i = 0;
    while i < MAX_AGENTS {
        if agents[i] == cgroup {
            return true;
        }
        i += 1;
    }
    false
}

/// Whether an agent listens at `at` in a namespace. OUTBOUND has its listeners, from which one that is closed is gone: an
/// application that bound the port after the agent had died is not there.
#[inline(always)]
pub fn agent_listens(netns: u64, at: &Endpoint) -> bool {
    let key = OutboundKey { netns, port: at.port, v4: at.addr.is_v4().into() };
    listens(ptr::from_ref(&OUTBOUND).cast(), &key)
}

/// Whether a listener is there, in a map of sockets with keys of this type.
#[inline(always)]
pub fn listens<K>(map: *const c_void, key: &K) -> bool {
    // SAFETY: the callers give a sockmap or sockhash, and a key of its type, of which the helper reads one.
    let sk = unsafe { bpf_map_lookup_elem(map.cast_mut(), ptr::from_ref(key).cast()) }.cast::<bpf_sock>();
    if sk.is_null() {
        return false;
    }
    // SAFETY: sk came from the lookup and is not null.
    let listens = unsafe { (*sk).state } == TCP_LISTEN;
    // SAFETY: the one release of this reference.
    unsafe { bpf_sk_release(sk.cast()) };
    listens
}

/// The cookie of the network namespace in which the context's socket lives.
#[inline(always)]
pub fn netns(ctx: &impl EbpfContext) -> u64 {
    // SAFETY: the contexts of sock_addr, sock_ops and sockopt are among those that this helper takes.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// The socket of a sock_addr hook; null is left to the caller to test.
#[inline(always)]
pub fn of_sock_addr(ctx: &SockAddrContext) -> *mut bpf_sock {
    // SAFETY: a field of the context.
    unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk }
}

/// The socket of a sock_ops hook; null (a request, not yet a socket) is left to the caller to test.
#[inline(always)]
pub fn of_sock_ops(ctx: &SockOpsContext) -> *mut bpf_sock {
    // SAFETY: a field of the context.
    unsafe { (*ctx.ops).__bindgen_anon_2.sk }
}

/// The IPv4 endpoint that the system call is about.
#[inline(always)]
pub fn user4(ctx: &SockAddrContext) -> Endpoint {
    // SAFETY: fields of the context, read one by one as the verifier wants it.
    unsafe {
        let a = ctx.sock_addr;
        let word = ptr::read_volatile(&raw const (*a).user_ip4);
        Endpoint { addr: Addr::from_v4_wire(word), port: user_port(ctx) }
    }
}

/// The IPv6 endpoint that the system call is about.
#[inline(always)]
pub fn user6(ctx: &SockAddrContext) -> Endpoint {
    // SAFETY: as user4.
    unsafe {
        let words = &raw const (*ctx.sock_addr).user_ip6;
        let word = |i: usize| ptr::read_volatile(words.cast::<u32>().add(i));
        Endpoint { addr: Addr([word(0), word(1), word(2), word(3)]), port: user_port(ctx) }
    }
}

#[inline(always)]
fn user_port(ctx: &SockAddrContext) -> u32 {
    // SAFETY: as user4. The port is the low half, in network order.
    u16::from_be(unsafe { ptr::read_volatile(&raw const (*ctx.sock_addr).user_port) } as u16).into()
}

/// Puts an endpoint in the place of the IPv4 one; one of the other family is left out.
#[inline(always)]
pub fn set_user4(ctx: &SockAddrContext, to: &Endpoint) {
    if let Some(word) = to.addr.v4_wire() {
        // SAFETY: fields of the context that these hooks may write.
        unsafe {
            ptr::write_volatile(&raw mut (*ctx.sock_addr).user_ip4, word);
            ptr::write_volatile(&raw mut (*ctx.sock_addr).user_port, (to.port as u16).to_be().into());
        }
    }
}

/// Puts an endpoint in the place of the IPv6 one.
#[inline(always)]
pub fn set_user6(ctx: &SockAddrContext, to: &Endpoint) {
    // SAFETY: as set_user4.
    unsafe {
        let words = (&raw mut (*ctx.sock_addr).user_ip6).cast::<u32>();
        ptr::write_volatile(words, to.addr.0[0]);
        ptr::write_volatile(words.add(1), to.addr.0[1]);
        ptr::write_volatile(words.add(2), to.addr.0[2]);
        ptr::write_volatile(words.add(3), to.addr.0[3]);
        ptr::write_volatile(&raw mut (*ctx.sock_addr).user_port, (to.port as u16).to_be().into());
    }
}

/// Where a socket is connected to. `sk` must have been tested for null.
#[inline(always)]
pub fn remote(sk: *mut bpf_sock) -> Endpoint {
    // SAFETY: sk is a socket; its fields are read one by one as the verifier wants it.
    unsafe {
        let v4 = ptr::read_volatile(&raw const (*sk).family) == AF_INET;
        let ip4 = ptr::read_volatile(&raw const (*sk).dst_ip4);
        let words = (&raw const (*sk).dst_ip6).cast::<u32>();
        let word = |i: usize| ptr::read_volatile(words.add(i));
        let ip6 = Addr([word(0), word(1), word(2), word(3)]);
        let port = u16::from_be(ptr::read_volatile(&raw const (*sk).dst_port)).into();
        Endpoint { addr: if v4 { Addr::from_v4_wire(ip4) } else { ip6 }, port }
    }
}

/// The address that a socket has here. `sk` must have been tested for null.
#[inline(always)]
pub fn local(sk: *mut bpf_sock) -> Addr {
    // SAFETY: as in remote.
    unsafe {
        let v4 = ptr::read_volatile(&raw const (*sk).family) == AF_INET;
        let ip4 = ptr::read_volatile(&raw const (*sk).src_ip4);
        let words = (&raw const (*sk).src_ip6).cast::<u32>();
        let word = |i: usize| ptr::read_volatile(words.add(i));
        let ip6 = Addr([word(0), word(1), word(2), word(3)]);
        if v4 { Addr::from_v4_wire(ip4) } else { ip6 }
    }
}

/// Both ends of a sock_ops hook's socket.
#[derive(Clone, Copy)]
pub struct Ends {
    pub local: Endpoint,
    pub remote: Endpoint,
}

impl Ends {
    /// Reads both ends, and of both families: were a field read in one of two branches, the compiler might move the
    /// choice into the offset, which the verifier refuses.
    #[inline(always)]
    pub fn of(ctx: &SockOpsContext) -> Ends {
        // SAFETY: fields of the context, read one by one as the verifier wants it.
        unsafe {
            let o = ctx.ops;
            let v4 = ptr::read_volatile(&raw const (*o).family) == AF_INET;
            let local4 = ptr::read_volatile(&raw const (*o).local_ip4);
            let remote4 = ptr::read_volatile(&raw const (*o).remote_ip4);
            let words = (&raw const (*o).local_ip6).cast::<u32>();
            let word = |i: usize| ptr::read_volatile(words.add(i));
            let local6 = Addr([word(0), word(1), word(2), word(3)]);
            let words = (&raw const (*o).remote_ip6).cast::<u32>();
            let word = |i: usize| ptr::read_volatile(words.add(i));
            let remote6 = Addr([word(0), word(1), word(2), word(3)]);
            // The local port is in host byte order, the remote one in network byte order, in 32 bits.
            let local_port = ptr::read_volatile(&raw const (*o).local_port);
            let remote_port = u32::from_be(ptr::read_volatile(&raw const (*o).remote_port));
            let pick = |v4addr: u32, v6: Addr| if v4 { Addr::from_v4_wire(v4addr) } else { v6 };
            Ends {
                local: Endpoint { addr: pick(local4, local6), port: local_port },
                remote: Endpoint { addr: pick(remote4, remote6), port: remote_port },
            }
        }
    }

    /// The connection, if this socket connected.
    #[inline(always)]
    pub fn connected(&self, ctx: &SockOpsContext) -> Tuple {
        Tuple { netns: netns(ctx), client: self.local, server: self.remote }
    }

    /// The connection, if this socket was accepted.
    #[inline(always)]
    pub fn accepted(&self, ctx: &SockOpsContext) -> Tuple {
        Tuple { netns: netns(ctx), client: self.remote, server: self.local }
    }
}
