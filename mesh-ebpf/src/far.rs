//! Where a redirected socket wanted to go, from its `connect()` until its connection is over. In: sockets. Out: the
//! destination. It stands in ASKED, by the socket's cookie, because giving a fresh socket a storage takes as long as all
//! the rest; what finds no place there is in the socket's own storage, FAR. Nobody asks for it once the socket's state is
//! CLOSE: the kernel then says that it is not connected. So an entry goes when that state is reached, and when a socket is
//! released that never got further than its `connect()`. A cookie is given once, so nothing left behind can ever lie.

use core::ptr;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::bpf_get_socket_cookie;
use aya_ebpf::programs::SockContext;
use mesh_common::abi::{self, Asked};

use crate::maps::{ASKED, FAR};
use crate::socket::local;

const SOCK_STREAM: u32 = 1;
const TCP_SYN_SENT: u32 = 2;
const TCP_CLOSE: u32 = 7;
/// cgroup/sock_release cannot refuse.
const OK: i32 = 1;

/// Notes it, in place of what an earlier `connect()` of the socket asked for. False if there is no memory for it. A socket
/// that is bound to an address of the pod's is not told from one that the application accepts from the agent, by its ends:
/// it has a storage, as those do.
#[inline(always)]
pub fn note(ctx: &impl EbpfContext, sk: *mut bpf_sock, far: &abi::Far) -> bool {
    let from = local(sk);
    if (from.is_unspecified() || from.is_loopback())
        && ASKED.insert(cookie(ctx), Asked { far: *far, sent: 0 }, 0).is_ok()
    {
        FAR.delete(sk);
        return true;
    }
    store(ctx, sk, far)
}

/// As [`note`], in the socket's storage: that of one that is not redirected is not looked for elsewhere.
#[inline(always)]
pub fn store(ctx: &impl EbpfContext, sk: *mut bpf_sock, far: &abi::Far) -> bool {
    let _ = ASKED.remove(cookie(ctx));
    FAR.set(sk, *far)
}

/// The socket's `connect()` goes where it says.
#[inline(always)]
pub fn forget(ctx: &impl EbpfContext, sk: *mut bpf_sock) {
    let _ = ASKED.remove(cookie(ctx));
    FAR.delete(sk);
}

/// Where a redirected socket wanted to go.
pub struct Far {
    pub far: abi::Far,
    /// It stands in the socket's storage, because ASKED had no place for it.
    pub stored: bool,
}

/// Where the socket wanted to go, if it was redirected.
#[inline(always)]
pub fn of(ctx: &impl EbpfContext, sk: *mut bpf_sock) -> Option<Far> {
    match ASKED.get_ptr(cookie(ctx)) {
        // SAFETY: only this socket's own system calls write the entry, and none of them does now.
        Some(asked) => Some(Far { far: unsafe { (*asked).far }, stored: false }),
        None => FAR.get(sk).map(|far| Far { far, stored: true }),
    }
}

/// As [`of`], for a socket whose first packet is about to leave.
#[inline(always)]
pub fn sending(ctx: &impl EbpfContext, sk: *mut bpf_sock) -> Option<Far> {
    match ASKED.get_ptr_mut(cookie(ctx)) {
        Some(asked) => {
            // SAFETY: as in of.
            unsafe { (*asked).sent = 1 };
            // SAFETY: as in of.
            Some(Far { far: unsafe { (*asked).far }, stored: false })
        }
        None => FAR.get(sk).map(|far| Far { far, stored: true }),
    }
}

/// The socket's connection is over. False if ASKED had no place for it.
#[inline(always)]
pub fn over(ctx: &impl EbpfContext) -> bool {
    ASKED.remove(cookie(ctx)).is_ok()
}

/// cgroup/sock_release. What has got further than `connect()` is told by sock_ops.
pub fn released(ctx: &SockContext) -> i32 {
    // SAFETY: fields of the context, read one by one as the verifier wants it.
    let (kind, state) =
        unsafe { (ptr::read_volatile(&raw const (*ctx.sock).type_), ptr::read_volatile(&raw const (*ctx.sock).state)) };
    // In SYN_SENT is, too, who waits for the first byte to send (TCP_FASTOPEN_CONNECT).
    if kind == SOCK_STREAM && (state == TCP_CLOSE || state == TCP_SYN_SENT) {
        let cookie = cookie(ctx);
        // SAFETY: as in of.
        if ASKED.get_ptr(cookie).is_some_and(|asked| state == TCP_CLOSE || unsafe { (*asked).sent } == 0) {
            let _ = ASKED.remove(cookie);
        }
    }
    OK
}

#[inline(always)]
fn cookie(ctx: &impl EbpfContext) -> u64 {
    // SAFETY: the contexts of sock, sock_addr and sock_ops are among those that this helper takes.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}
