//! Where a socket wanted to go that was redirected or goes directly, from its `connect()` until its connection is over. In:
//! sockets. Out: the destination. It stands in ASKED, at the place of the socket's cookie, because giving a fresh socket a
//! storage takes as long as all the rest, and a hash half of that; a socket whose place another has is given one, FAR. Nobody
//! asks for it once the socket's state is CLOSE: the kernel then says that it is not connected. So a place is left when that
//! state is reached, and when a socket is released that never got further than its `connect()`. A cookie is given once, so
//! nothing left behind can ever lie.

use core::arch::asm;
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

/// Notes it for a socket that is redirected, in place of what an earlier `connect()` of the socket asked for. False if there is
/// no memory for it. A socket that is bound to an address of the pod's is not told from one that the application accepts from
/// the agent, by its ends: it has a storage, as those do. `cookie` is the socket's.
#[inline(always)]
pub fn note(cookie: u64, sk: *mut bpf_sock, far: &abi::Far) -> bool {
    let from = local(sk);
    if from.is_unspecified() || from.is_loopback() {
        return place(sk, cookie, far);
    }
    leave(cookie);
    FAR.set(sk, *far)
}

/// As [`note`], for one that goes directly.
#[inline(always)]
pub fn note_direct(cookie: u64, sk: *mut bpf_sock, far: &abi::Far) -> bool {
    place(sk, cookie, far)
}

/// In the socket's place if that can be had, otherwise in its storage.
#[inline(always)]
fn place(sk: *mut bpf_sock, cookie: u64, far: &abi::Far) -> bool {
    let Some(asked) = ASKED.get_ptr_mut(abi::asked_at(cookie)) else { return false };
    if !take(asked, cookie) {
        return FAR.set(sk, *far);
    }
    // SAFETY: the place is this socket's, whose own system calls alone write it.
    unsafe {
        (*asked).far = *far;
        (*asked).sent = 0;
    }
    FAR.delete(sk);
    true
}

/// Takes a place for a socket. False if another has it.
#[inline(always)]
fn take(asked: *mut Asked, cookie: u64) -> bool {
    let mut had = 0_u64;
    // SAFETY: an aligned number in the map, which lives as long as its programs. One instruction (RFC 9669, 5.3: CMPXCHG,
    // which compares with R0 and puts there what it finds), because two sockets may want a place at a time.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({} + 0, r0, {})",
            in(reg) &raw mut (*asked).cookie,
            in(reg) cookie,
            inlateout("r0") had,
        );
    }
    had == 0 || had == cookie
}

/// The socket's `connect()` goes where it says.
#[inline(always)]
pub fn forget(ctx: &impl EbpfContext, sk: *mut bpf_sock) {
    leave(cookie(ctx));
    FAR.delete(sk);
}

/// The socket's place, if it has it.
#[inline(always)]
fn own(cookie: u64) -> Option<*mut Asked> {
    let asked = ASKED.get_ptr_mut(abi::asked_at(cookie))?;
    // SAFETY: as in take.
    if unsafe { (&raw const (*asked).cookie).read_volatile() } == cookie { Some(asked) } else { None }
}

/// Frees the socket's place. False if it does not have it.
#[inline(always)]
fn leave(cookie: u64) -> bool {
    let Some(asked) = own(cookie) else { return false };
    // SAFETY: as in take. Who has the place is the only one to write this.
    unsafe { (&raw mut (*asked).cookie).write_volatile(0) };
    true
}

/// Where a socket wanted to go.
pub struct Far<'a> {
    pub far: &'a abi::Far,
    /// It stands in the socket's storage, because another has its place in ASKED.
    pub stored: bool,
}

/// Where the socket wanted to go, if it was redirected or goes directly.
#[inline(always)]
pub fn of<'a>(ctx: &impl EbpfContext, sk: *mut bpf_sock) -> Option<Far<'a>> {
    match own(cookie(ctx)) {
        // SAFETY: only this socket's own system calls write its place, and none of them does while this program runs.
        Some(asked) => Some(Far { far: unsafe { &(*asked).far }, stored: false }),
        None => FAR.find(sk).map(|far| Far { far, stored: true }),
    }
}

/// As [`of`], for a socket whose first packet is about to leave.
#[inline(always)]
pub fn sending<'a>(ctx: &impl EbpfContext, sk: *mut bpf_sock) -> Option<Far<'a>> {
    match own(cookie(ctx)) {
        // SAFETY: as in of.
        Some(asked) => unsafe {
            (*asked).sent = 1;
            Some(Far { far: &(*asked).far, stored: false })
        },
        None => FAR.find(sk).map(|far| Far { far, stored: true }),
    }
}

/// The socket's connection is over. False if it had no place in ASKED.
#[inline(always)]
pub fn over(ctx: &impl EbpfContext) -> bool {
    leave(cookie(ctx))
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
        if own(cookie).is_some_and(|asked| state == TCP_CLOSE || unsafe { (*asked).sent } == 0) {
            leave(cookie);
        }
    }
    OK
}

/// A number that no other socket ever has.
#[inline(always)]
pub fn cookie(ctx: &impl EbpfContext) -> u64 {
    // SAFETY: the contexts of sock, sock_addr and sock_ops are among those that this helper takes.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}
