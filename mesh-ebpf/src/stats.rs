//! What TCP connections come to where the agent does not see it. In: sockets at their handshake's end and when they close.
//! Out: DIRECT_STATS, TCP_STATS. A connection costs what two look-ups and some sums take; nothing is asked for a packet, and
//! nothing here changes what happens to one.

use core::ptr;

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::programs::SockOpsContext;
use mesh_common::abi::{Carried, Counter, Direct, Pair, Path, Stage};
use mesh_common::addr::Endpoint;
use mesh_common::tcp::{self, Counts, Figure, bucket, place};

use crate::maps::{DIRECT_STATS, TCP_STATS};
use crate::report::count;
use crate::sock_ops::add;
use crate::socket::{Ends, netns};
use crate::{far, shortcut};

const BPF_NOEXIST: u64 = 1;
/// In place of what a record notes at FIN_WAIT2, where there is no record: a number that no `u32` is. The verifier does not
/// want an `Option`, of which the compiler compares what is not there.
const NO_HALF: u64 = u64::MAX;
/// Not a constant: the stack has no room for it beside what a debugging build has there.
static NOTHING: Carried = Carried { server: 0, opened: 0, closed: 0, forward: 0, back: 0 };
const NONE: &Carried = &NOTHING;
/// As [`NOTHING`].
static NOBODY: Pair = Pair::NOBODY;

/// A client's socket gets into this state; `record` is its connection's, if that has not gone with the server's socket.
#[inline(always)]
pub fn of_client(ctx: &SockOpsContext, sk: *mut bpf_sock, ends: &Ends, state: u32, record: Option<*mut Direct>) {
    let before = ctx.arg(0);
    let (mut server, mut stage, mut half) = (0, Stage::Accepted as u32, NO_HALF);
    if let Some(record) = record {
        // SAFETY: the entry stays readable and writable until this program has ended.
        (server, stage, half) = unsafe { ((*record).server, (*record).stage, u64::from((*record).received)) };
    }
    // Nobody has answered, or somebody else has.
    if (state == tcp::CLOSE && before == tcp::SYN_SENT) || stage == Stage::Sent as u32 {
        return;
    }
    match (state, record) {
        (tcp::CLOSE, _) => {}
        (tcp::ESTABLISHED, Some(_)) => {}
        // The server has taken note of the client's end: what comes now may be its own. The kernel says this state once more
        // when the client itself closes the socket, so what has come since then is the server's end, or came before a reset.
        (tcp::FIN_WAIT2, Some(record)) => {
            // SAFETY: as above; nobody else reads or writes this field.
            unsafe { (*record).received = received(ctx) as u32 };
            return;
        }
        _ => return,
    }
    let pair = Pair { client: netns(ctx), to: dialled(ctx, sk, ends), endpoint: ends.remote };
    let Some(carried) = entry(&pair) else { return };
    // SAFETY: fields in the map's entry, which stays readable and writable until this program has ended; the agent only
    // removes whole entries.
    let (opened, closed, forward, back) = unsafe {
        let counts = (&raw mut (*carried).forward, &raw mut (*carried).back);
        (&raw mut (*carried).opened, &raw mut (*carried).closed, counts.0, counts.1)
    };
    if state == tcp::ESTABLISHED {
        if let Some(record) = record {
            // SAFETY: as above. Nobody but the agent reads `to`, who finds nothing for one that is half written.
            unsafe {
                (*record).to = pair.to;
                (&raw mut (*carried).server).write_volatile(server);
            }
        }
        add(opened.cast(), 1);
        return;
    }
    // SAFETY: fields of the context, read one by one as the verifier wants it.
    let (acked, sent, noted) = unsafe {
        let o = ctx.ops;
        let acked = ptr::read_volatile(&raw const (*o).bytes_acked);
        (acked, ptr::read_volatile(&raw const (*o).snd_nxt), ptr::read_volatile(&raw const (*o).snd_una))
    };
    let received = received(ctx);
    // Without a record the server's socket is gone, after its FIN. A reset in its place makes this one byte too little.
    let ended = half != u64::from(received as u32);
    let counts = Counts { state: before, acked, all_acked: sent == noted, received, ended };
    add(closed.cast(), 1);
    add(forward.cast(), counts.forward() as i64);
    add(back.cast(), counts.back() as i64);
    if let Some(link) = shortcut::carried(ctx, sk) {
        // SAFETY: single numbers in the map's entry, which stays readable until this program has ended.
        unsafe {
            add(forward.cast(), ptr::read_volatile(&raw const (*link).client.sent) as i64);
            add(back.cast(), ptr::read_volatile(&raw const (*link).server.sent) as i64);
        }
    }
}

/// A socket of this path closes.
#[inline(always)]
pub fn measured(ctx: &SockOpsContext, path: Path) {
    // SAFETY: fields of the context, read one by one as the verifier wants it.
    let (rtt, again) = unsafe {
        let o = ctx.ops;
        // The kernel keeps eight times the average.
        (ptr::read_volatile(&raw const (*o).srtt_us) >> 3, ptr::read_volatile(&raw const (*o).total_retrans))
    };
    if rtt != 0 {
        sum(place(path, Figure::Rtt(bucket(rtt))), 1);
        sum(place(path, Figure::RttSum), rtt);
    }
    if again != 0 {
        sum(place(path, Figure::Retransmitted), again);
    }
}

#[inline(always)]
fn sum(place: u32, n: u32) {
    if let Some(value) = TCP_STATS.get_ptr_mut(place) {
        // SAFETY: this CPU's own value, as in `count`.
        unsafe { *value += u64::from(n) };
    }
}

#[inline(always)]
fn received(ctx: &SockOpsContext) -> u64 {
    // SAFETY: a field of the context.
    unsafe { ptr::read_volatile(&raw const (*ctx.ops).bytes_received) }
}

/// Where a socket that connects directly wanted to go.
#[inline(always)]
fn dialled(ctx: &SockOpsContext, sk: *mut bpf_sock, ends: &Ends) -> Endpoint {
    match far::of(ctx, sk) {
        Some(far) => far.far.to,
        None => ends.remote,
    }
}

/// Where to count; nobody's entry if there is no place for one of its own.
#[inline(always)]
fn entry(pair: &Pair) -> Option<*mut Carried> {
    if let Some(carried) = DIRECT_STATS.get_ptr_mut(pair) {
        return Some(carried);
    }
    // Somebody else may just have made it.
    let _ = DIRECT_STATS.insert(pair, NONE, BPF_NOEXIST);
    if let Some(carried) = DIRECT_STATS.get_ptr_mut(pair) {
        return Some(carried);
    }
    count(Counter::DirectUnnamed);
    let nobody: &Pair = &NOBODY;
    DIRECT_STATS.get_ptr_mut(nobody)
}
