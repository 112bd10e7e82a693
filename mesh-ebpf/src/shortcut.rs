//! Shortcuts: what one end of a connection between an application and its agent, or a direct one between two applications,
//! sends goes straight into the other end's queue. In: a send (sk_msg), and from connect and sock_ops the beginning and end of both sockets. Out: the send
//! redirected, or left to TCP; both sockets in SHORT_SOCKETS, each from when it is established until TCP has all that is still to
//! come. Only sockets of workloads that
//! may have shortcuts are ever there, and none that carries TLS: what the agent sends on the wire has another role. Decides
//! nothing: mesh-common's `shortcut` does.

use core::arch::asm;
use core::ptr;

use aya_ebpf::bindings::{BPF_F_INGRESS, bpf_sock};
use aya_ebpf::helpers::generated::{
    bpf_get_current_pid_tgid, bpf_get_socket_cookie, bpf_map_delete_elem, bpf_probe_read_kernel,
};
use aya_ebpf::programs::{SkMsgContext, SockOpsContext};
use mesh_common::abi::{self, Counter, End, Place, SIDE_CLIENT, SIDE_SERVER, Short, Shortcut, Tuple, Workload};
use mesh_common::capture;
use mesh_common::shortcut::{self, Fall, Half, Incoming, Leaving, Reader, SEVERAL, SILENCED, Send, Way, queue};

use crate::maps::{AGENT, QUEUE, SHORT, SHORT_READ, SHORT_SOCKETS, SHORT_WAY, SHORTCUTS};
use crate::report::{add, count};
use crate::socket::{Ends, netns};
use crate::{direct, far};

/// The message goes by TCP.
const PASS: u32 = 1;
const TCP_ESTABLISHED: u32 = 1;
/// In the callback flags of a socket that connects and may have a shortcut: so that others need no look for one.
/// It asks for a run of sock_ops at each packet with options that TCP does not know, of which there are none on loopback;
/// others that attach to sock_ops hardly ever ask for it.
pub const MARK: u32 = 1 << 5;
/// What asks for a run of sock_ops when TCP sends.
const HDR_OPT_FLAG: u32 = 1 << 6;
/// First argument of that run where TCP asks before it takes a send into its queue (`BPF_WRITE_HDR_TCP_CURRENT_MSS`).
const TCP_CURRENT_MSS: u32 = 1;
const BPF_ANY: u64 = 0;
const BPF_NOEXIST: u64 = 1;

/// A socket of SHORT_SOCKETS sends.
pub fn run(ctx: &SkMsgContext) -> u32 {
    // SAFETY: fields of the context. The socket is never null here.
    let (sk, size) = unsafe { ((*ctx.msg).__bindgen_anon_3.sk, (*ctx.msg).size) };
    let Some(short) = SHORT.get(sk) else { return PASS };
    let Some(link) = SHORTCUTS.get_ptr_mut(short.id) else { return PASS };
    let (own, other) = halves(link, short.side);
    if !begins(own) {
        return PASS;
    }
    // SAFETY: the entry stays readable until this program has ended. Of its two halves only this socket's programs write
    // the one, one after the other since each holds the socket's lock; the other is read as single numbers.
    let (half, heard, alone) = unsafe {
        let (messages, fallen) = (&raw const (*other).messages, &raw const (*other).fallen);
        (&mut *own, ptr::read_volatile(messages), ptr::read_volatile(fallen) != 0)
    };
    // SAFETY: a field of the socket.
    let open = unsafe { (*sk).state } == TCP_ESTABLISHED;
    // SAFETY: fields of the entry that are written once, before its first end joins.
    let allowed =
        unsafe { half.fallen != 0 || (*link).direct.client == 0 || direct::is_allowed(&(*link).direct, &(*link).to) };
    let reader = if short.reader == Reader::Agent as u32 { Reader::Agent } else { Reader::App };
    let way = half.send(
        Send { size, open, allowed, reader, heard, alone },
        || read(short.id),
        || is_drained(link, short.side ^ 1),
    );
    let fall = match way {
        Way::Tcp => return PASS,
        Way::Falls(fall) => fall,
        Way::Shortcut => match redirect(ctx, &short, size) {
            true => return PASS,
            false => half.no_peer(size),
        },
    };
    count(match fall {
        Fall::NoPeer => Counter::ShortcutNoPeer,
        Fall::Window => Counter::ShortcutWindow,
        Fall::Allowance => Counter::ShortcutAllowance,
        Fall::Small => Counter::ShortcutSmall,
        Fall::Ending => Counter::ShortcutEnding,
        Fall::TcpFirst => Counter::ShortcutTcpFirst,
        Fall::Revoked => Counter::ShortcutRevoked,
        Fall::Follows => Counter::ShortcutFollows,
    });
    if swap_if(other, 0, SILENCED) == 0 {
        // SAFETY: a field of the entry, as above, which its sender leaves alone from now on.
        unsafe { ptr::write_volatile(&raw mut (*other).fallen, Fall::Follows as u32) };
        count(Counter::ShortcutFollows);
    }
    PASS
}

/// What the socket at this side sends, and what it reads.
#[inline(always)]
fn halves(link: *mut Shortcut, side: u32) -> (*mut Half, *mut Half) {
    // SAFETY: only addresses are taken.
    let (client, server) = unsafe { (&raw mut (*link).client, &raw mut (*link).server) };
    if side == SIDE_CLIENT { (client, server) } else { (server, client) }
}

/// Notes which thread sends. False if the other side has changed this direction to TCP, before anything was sent.
#[inline(always)]
fn begins(half: *mut Half) -> bool {
    // SAFETY: no arguments, no precondition.
    let thread = unsafe { bpf_get_current_pid_tgid() };
    // SAFETY: fields of the map's entry, which stays readable until this program has ended.
    let (mut there, fallen) = unsafe { (ptr::read_volatile(&raw const (*half).thread), (*half).fallen) };
    if there == 0 {
        there = swap_if(half, 0, thread);
    }
    if there != 0 && there != thread && there < SEVERAL && fallen == 0 {
        swap_if(half, there, SEVERAL);
    }
    there != SILENCED
}

/// Notes a direction's thread in place of what is there, if that is this. Returns what was there.
#[inline(always)]
fn swap_if(half: *mut Half, there: u64, thread: u64) -> u64 {
    let mut had = there;
    // SAFETY: an aligned number in the map's entry, which stays readable and writable until this program has ended. One
    // instruction, as in `far`, before which all is seen that was written before, and after it all that comes after.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({} + 0, r0, {})",
            in(reg) &raw mut (*half).thread,
            in(reg) thread,
            inlateout("r0") had,
        );
    }
    had
}

/// What the agent has said that it has read.
#[inline(always)]
fn read(id: u64) -> u64 {
    // SAFETY: the agent replaces whole entries, and a replaced one stays readable until this program has ended.
    unsafe { SHORT_READ.get(id) }.copied().unwrap_or(0)
}

/// Whether the application at this side is seen to have read everything.
#[inline(always)]
fn is_drained(link: *mut Shortcut, side: u32) -> bool {
    let at = QUEUE.load();
    // The verifier knows the constant, and sees no more of this where the kernel lets nobody look.
    if at == 0 {
        return false;
    }
    // SAFETY: the entry stays readable until this program has ended; its fields are written once, and read as one number each.
    // Who reads an address that is there already may read a cookie that is not, which is no socket's.
    let Place { address, cookie } = unsafe { ptr::read_volatile(place(link, side)) };
    queue::is_empty(at, address, cookie, |address| {
        let mut found = 0_u64;
        let size = size_of::<u64>() as u32;
        // SAFETY: the helper writes as much to this stack frame, and reads wherever it is safe to.
        let done = unsafe { bpf_probe_read_kernel((&raw mut found).cast(), size, address as *const _) };
        (done == 0).then_some(found)
    })
}

/// Where a shortcut has the socket at this side.
#[inline(always)]
fn place(link: *mut Shortcut, side: u32) -> *mut Place {
    // SAFETY: only addresses are taken.
    let [client, server] = unsafe { [&raw mut (*link).sockets[0], &raw mut (*link).sockets[1]] };
    if side == SIDE_CLIENT { client } else { server }
}

/// Into the queue of the other end. False if it is not there.
#[inline(always)]
fn redirect(ctx: &SkMsgContext, short: &Short, size: u32) -> bool {
    let peer = End { id: short.id, side: short.side ^ 1, zero: 0 };
    if SHORT_SOCKETS.redirect_msg(SkMsgContext::new(ctx.msg), peer, BPF_F_INGRESS.into()) != i64::from(PASS) {
        return false;
    }
    count(Counter::ShortcutSends);
    add(Counter::ShortcutBytes, size.into());
    true
}

/// A redirected application's socket is about to connect.
#[inline(always)]
pub fn may_begin(sk: *mut bpf_sock, workload: &Workload) {
    if workload.flags & abi::SHORTCUTS != 0 {
        begin(sk, Reader::Agent);
    }
}

/// The connection that this socket is about to make is to have a shortcut. A socket that had one, and was disconnected,
/// keeps the storage of it and gets no second one.
#[inline(always)]
pub fn begin(sk: *mut bpf_sock, reader: Reader) {
    if SHORT.get(sk).is_none() {
        // Without it there is no shortcut.
        SHORT.set(sk, Short { id: 0, side: SIDE_CLIENT, reader: reader as u32 });
    }
}

/// [`MARK`] if the connection that this socket is about to make may have a shortcut, or nothing.
#[inline(always)]
pub fn mark(sk: *mut bpf_sock) -> i32 {
    if SHORT.get(sk).is_some() { MARK as i32 } else { 0 }
}

/// A socket with [`MARK`] that connected is established; the other one is not yet.
#[inline(always)]
pub fn connected(ctx: &SockOpsContext, sk: *mut bpf_sock) {
    let Some(short) = SHORT.get(sk) else { return };
    if short.id != 0 {
        return;
    }
    let ends = Ends::of(ctx);
    // SAFETY: this helper takes the context.
    let id = unsafe { bpf_get_socket_cookie(ctx.ops.cast()) };
    if short.reader == Reader::App as u32 {
        with_agent(ctx, sk, &ends, Short { id, ..short });
    } else if direct::is_connecting(sk) {
        with_another(ctx, sk, &ends, id);
    } else if capture::may_be_redirected(&ends.local.addr, &ends.remote.addr) && far::of(ctx, sk).is_some() {
        // Redirected: its first `connect()` may have failed, and a later one have gone elsewhere.
        with_agent(ctx, sk, &ends, Short { id, ..short });
    }
}

/// Between an application and the agent.
#[inline(always)]
fn with_agent(ctx: &SockOpsContext, sk: *mut bpf_sock, ends: &Ends, short: Short) {
    let (id, key) = (short.id, ends.connected(ctx));
    let noted = SHORTCUTS.insert(id, NEW, BPF_NOEXIST).is_ok()
        && SHORT_READ.insert(id, 0, BPF_NOEXIST).is_ok()
        && SHORT_WAY.insert(key, id, BPF_ANY).is_ok();
    if !noted {
        count(Counter::ShortcutFull);
    }
    if !noted || !join(ctx, sk, short) {
        forget(id, &key);
        return;
    }
    if let Some(agent) = AGENT.get(sk) {
        AGENT.set(sk, abi::Agent { link: id, ..agent });
    }
}

/// Between two applications, directly. The server's socket finds the shortcut in the connection's record.
#[inline(always)]
fn with_another(ctx: &SockOpsContext, sk: *mut bpf_sock, ends: &Ends, id: u64) {
    let Some(record) = direct::to_shorten(netns(ctx), ends) else { return };
    if SHORTCUTS.insert(id, NEW, BPF_NOEXIST).is_err() {
        count(Counter::ShortcutFull);
        return;
    }
    let Some(link) = SHORTCUTS.get_ptr_mut(id) else { return };
    // SAFETY: both entries stay readable and writable until this program has ended, and nobody else knows of the shortcut.
    unsafe { ((*link).direct, (*link).to) = (*record, ends.remote) };
    if join(ctx, sk, Short { id, side: SIDE_CLIENT, reader: Reader::App as u32 }) {
        // SAFETY: as above.
        unsafe { (*record).link = id };
    } else {
        let _ = SHORTCUTS.remove(id);
    }
}

/// TCP is about to send something for an end of a shortcut. If it is the client's data, and nothing was to go by TCP yet, it
/// has waited for the handshake or came with it: the rest must not overtake it. And if all goes by TCP, the socket leaves.
// In a debugging build one stack has no room for it beside the rest of sock_ops.
#[cfg_attr(feature = "log", inline(never))]
#[cfg_attr(not(feature = "log"), inline(always))]
pub fn by_tcp(ctx: &SockOpsContext, sk: *mut bpf_sock) {
    // SAFETY: fields of the context.
    let (size, state) = unsafe { ((*ctx.ops).skb_len, (*ctx.ops).state) };
    // From another state on there is only its end to send, or `run` has seen it.
    if state != TCP_ESTABLISHED {
        return;
    }
    let Some(short) = SHORT.find(sk) else { return };
    let Some(link) = SHORTCUTS.get_ptr_mut(short.id) else { return };
    let (own, other) = halves(link, short.side);
    // SAFETY: as in run. TCP holds the socket's lock.
    let half = unsafe { &mut *own };
    if half.fallen == 0 && short.side == SIDE_CLIENT && (ctx.arg(0) == TCP_CURRENT_MSS || size != 0) {
        // Another thread may be about to put something into the queue.
        if half.sent != 0 {
            swap_if(own, half.thread, SEVERAL);
        }
        half.fall(Fall::TcpFirst);
        count(Counter::ShortcutTcpFirst);
    }
    // SAFETY: fields of the map's entry, as in run: those of a direction that has changed stay as they are.
    let fallen = unsafe { ptr::read_volatile(&raw const (*other).fallen) };
    // Asked by the instruction that lets nothing be read before it.
    let thread = swap_if(other, 0, 0);
    // SAFETY: as above.
    let sent = unsafe { ptr::read_volatile(&raw const (*other).sent) };
    let sees = QUEUE.load() != 0;
    let leaving =
        shortcut::may_leave(half.fallen != 0, Incoming { fallen, sent, thread }, sees, || is_drained(link, short.side));
    if leaving == Leaving::Later {
        return;
    }
    let _ = ctx.set_cb_flags((ctx.cb_flags() & !HDR_OPT_FLAG) as i32);
    if leaving == Leaving::Now {
        leave(short);
    }
}

/// From now on the socket is as if it had never been an end. The agent has no more to tell.
#[inline(always)]
fn leave(short: &Short) {
    let end = End { id: short.id, side: short.side, zero: 0 };
    // SAFETY: the map's key is an `End`.
    let left =
        unsafe { bpf_map_delete_elem(ptr::from_ref(&SHORT_SOCKETS).cast_mut().cast(), ptr::from_ref(&end).cast()) };
    if left == 0 {
        count(Counter::ShortcutLeft);
    }
    if short.reader == Reader::App as u32 {
        let _ = SHORT_READ.remove(short.id);
    }
}

/// A socket was accepted. Returns the id of the shortcut that it is an end of from now on, or 0.
#[inline(always)]
pub fn accepted(ctx: &SockOpsContext, sk: *mut bpf_sock, ends: &Ends, reader: Reader) -> u64 {
    let key = ends.accepted(ctx);
    // SAFETY: an entry is written once, when the other socket was established, and copied here at once.
    let Some(id) = (unsafe { SHORT_WAY.get(key) }).copied() else { return 0 };
    let _ = SHORT_WAY.remove(key);
    if join(ctx, sk, Short { id, side: SIDE_SERVER, reader: reader as u32 }) { id } else { 0 }
}

/// A socket was accepted in a direct connection of a workload that may have shortcuts.
#[inline(always)]
pub fn accepted_directly(ctx: &SockOpsContext, sk: *mut bpf_sock, ends: &Ends) {
    let id = direct::link(ends);
    if id != 0 {
        join(ctx, sk, Short { id, side: SIDE_SERVER, reader: Reader::App as u32 });
    }
}

/// A socket with [`MARK`] is closed. `key` is its connection. False if the mark is not ours.
#[inline(always)]
pub fn closed(sk: *mut bpf_sock, key: &Tuple) -> bool {
    let Some(short) = SHORT.get(sk) else { return false };
    forget(short.id, key);
    true
}

/// What has gone by the shortcut of a socket that connected directly, if it has one.
#[inline(always)]
pub fn carried(ctx: &SockOpsContext, sk: *mut bpf_sock) -> Option<*mut Shortcut> {
    if ctx.cb_flags() & MARK == 0 {
        return None;
    }
    SHORTCUTS.get_ptr_mut(SHORT.get(sk)?.id)
}

/// A socket that connected directly is closed.
#[inline(always)]
pub fn closed_directly(ctx: &SockOpsContext, sk: *mut bpf_sock) {
    if ctx.cb_flags() & MARK != 0
        && let Some(short) = SHORT.get(sk)
    {
        // What is not there needs no removal.
        let _ = SHORTCUTS.remove(short.id);
    }
}

#[inline(always)]
fn forget(id: u64, key: &Tuple) {
    // What is not there needs no removal.
    let _ = SHORTCUTS.remove(id);
    let _ = SHORT_READ.remove(id);
    let _ = SHORT_WAY.remove(key);
}

#[inline(always)]
fn join(ctx: &SockOpsContext, sk: *mut bpf_sock, short: Short) -> bool {
    let end = End { id: short.id, side: short.side, zero: 0 };
    // SAFETY: the context of this run, which nobody else has.
    let ops = unsafe { &mut *ctx.ops };
    // The storage first: a socket that is in the map and does not know its shortcut would send by TCP all the same.
    let joined = SHORT.set(sk, short) && SHORT_SOCKETS.update(end, ops, BPF_NOEXIST).is_ok();
    if let Some(link) = SHORTCUTS.get_ptr_mut(short.id) {
        // SAFETY: this helper takes the context.
        let cookie = unsafe { bpf_get_socket_cookie(ctx.ops.cast()) };
        // SAFETY: the entry stays writable until this program has ended; nobody else writes this part of it.
        unsafe { *place(link, short.side) = Place { address: sk as u64, cookie } };
    }
    // TCP's sends are told from now on.
    let flags = if joined { HDR_OPT_FLAG } else { 0 };
    let _ = ctx.set_cb_flags((ctx.cb_flags() | flags) as i32);
    count(if joined { Counter::ShortcutJoined } else { Counter::ShortcutFull });
    joined
}

/// Not a constant: the stack has no room for it beside what a debugging build has there.
static NOTHING: Shortcut = Shortcut::NEW;
const NEW: &Shortcut = &NOTHING;
