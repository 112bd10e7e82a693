//! Which helpers, hooks, maps and system calls this kernel has, each tried by loading or doing the least that needs it.
//! In: a scratch place. Out: for every check, yes or the kernel's words. Nothing stays.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use socket2::{Domain, Protocol, Socket, Type};

use super::asm::{Asm, FP, R1, R2, R3, R4, R5, R6, helper};
use super::live;
use super::scratch::{Scratch, in_child};
use super::shortcut;
use crate::kernel::bpf::{self, Kind, Target};
use crate::kernel::hooks::{AttachType, HOOKS, Place};

/// Whether the mesh can do without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// No: the agent does not start.
    Must,
    /// Yes, in another way or with less.
    May,
}

/// Fails with the kernel's words.
pub type Try = Box<dyn Fn(&Bench<'_>) -> io::Result<()>>;

/// One thing that a kernel has or has not.
pub struct Check {
    /// The hook, or the subsystem.
    pub hook: &'static str,
    /// The helper or feature.
    pub feature: &'static str,
    /// The oldest kernel that has it, with its configuration option if there is one.
    pub since: &'static str,
    /// Whether the mesh can do without.
    pub need: Need,
    /// What the mesh uses it for.
    pub used: &'static str,
    /// What happens without.
    pub without: &'static str,
    /// Tries it.
    pub by: Try,
}

/// What checks work with.
pub struct Bench<'a> {
    /// Cgroup and namespace.
    pub scratch: &'a Scratch,
    /// A directory on a bpffs, if there is one.
    pub pins: Option<&'a Path>,
    /// A socket storage, if this kernel has them.
    pub storage: io::Result<OwnedFd>,
}

/// Offsets of `sk` in the contexts (linux/bpf.h).
const SOCK_ADDR_SK: i16 = 64;
const SOCK_OPS_SK: i16 = 184;
const SKB_SK: i16 = 168;

const KERNEL: &str = "the agent does not start";

/// Every check, in the order of the table.
pub fn all() -> Vec<Check> {
    let mut checks = basics();
    for hook in HOOKS {
        if let Place::Cgroup(at) = hook.place {
            checks.push(must(
                at.name(),
                "attach and replace",
                "5.14",
                "catches or answers for applications",
                move |b| attach_and_replace(b, at),
            ));
        }
    }
    checks.extend(helpers());
    checks.extend(packets());
    checks.extend(live::checks());
    checks.extend(shortcut::checks());
    checks
}

/// A check that the agent starts without only to fail later.
pub fn must(
    hook: &'static str,
    feature: &'static str,
    since: &'static str,
    used: &'static str,
    by: impl Fn(&Bench<'_>) -> io::Result<()> + 'static,
) -> Check {
    Check { hook, feature, since, need: Need::Must, used, without: KERNEL, by: Box::new(by) }
}

/// A check that the agent starts without.
pub fn may(
    hook: &'static str,
    feature: &'static str,
    since: &'static str,
    used: &'static str,
    without: &'static str,
    by: impl Fn(&Bench<'_>) -> io::Result<()> + 'static,
) -> Check {
    Check { hook, feature, since, need: Need::May, used, without, by: Box::new(by) }
}

fn basics() -> Vec<Check> {
    vec![
        must("bpf", "load a program", "6.1", "everything", |_| {
            bpf::load(Kind::SocketFilter, 0, "mesh_probe", &Asm::new().end(0)).map(|_| ())
        }),
        may("bpf", "memory by cgroup, not memlock", "5.11", "maps of any size", "raise the memlock limit", |_| {
            memlock()
        }),
        must("bpf", "BTF of our own", "4.18", "socket storages", |_| bpf::btf().map(|_| ())),
        may(
            "bpf",
            "sees a socket's queue",
            "6.0, CONFIG_DEBUG_INFO_BTF",
            "an application that reads is spoken to by shortcut for ever",
            "a mebibyte by shortcut for each application's socket",
            |_| super::queue::offsets().map(|_| ()),
        ),
        must("map", "socket storage", "5.8", "original destinations, real clients, the agent's mark", |b| {
            b.storage.as_ref().map(|_| ()).map_err(copy)
        }),
        must("map", "ring buffer", "5.8", "events", |_| bpf::map(bpf::MAP_RINGBUF, 4096).map(|_| ())),
        must("bpffs", "pin", "4.4", "maps shared between programs", pin),
        may(
            "mptcp",
            "socket",
            "5.6, CONFIG_MPTCP, net.mptcp.enabled",
            "captured like TCP",
            "applications use TCP",
            |b| {
                let open = || Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::from(libc::IPPROTO_MPTCP)));
                b.scratch.netns.run(open)?.map(|_| ())
            },
        ),
    ]
}

fn helpers() -> Vec<Check> {
    let connect = "cgroup/connect4";
    let addr = |at: AttachType, body: fn(Asm) -> Asm| {
        move |_: &Bench<'_>| loads(Kind::SockAddr, at as u32, &body(Asm::new()).end(1))
    };
    vec![
        must(
            connect,
            "bpf_get_netns_cookie",
            "5.7",
            "knows a pod by its namespace",
            addr(AttachType::Connect4, |a| a.call(helper::GET_NETNS_COOKIE)),
        ),
        must(
            connect,
            "bpf_get_current_cgroup_id",
            "5.7",
            "knows the agent",
            addr(AttachType::Connect4, |a| a.call(helper::GET_CURRENT_CGROUP_ID)),
        ),
        must(
            connect,
            "bpf_set_retval",
            "5.18",
            "refuses with the right error",
            addr(AttachType::Connect4, |a| a.set(R1, 0).call(helper::SET_RETVAL)),
        ),
        must(connect, "bpf_sk_storage_get", "5.12", "what a socket may", |b| {
            storage(b, Kind::SockAddr, AttachType::Connect4 as u32, SOCK_ADDR_SK, false)
        }),
        must(connect, "a sockhash is looked into", "5.10", "finds the agent's listener", |_| listener()),
        must("cgroup/sock_release", "bpf_get_socket_cookie", "5.7", "forgets original destinations", |_| {
            let body = Asm::new().call(helper::GET_SOCKET_COOKIE);
            loads(Kind::Sock, AttachType::SockRelease as u32, &body.end(1))
        }),
        must("cgroup/getpeername4", "bpf_sk_storage_get", "5.12", "shows real addresses", |b| {
            storage(b, Kind::SockAddr, AttachType::GetPeerName4 as u32, SOCK_ADDR_SK, false)
        }),
        must("cgroup/sendmsg4", "bpf_sk_storage_get", "5.12", "knows the agent's UDP sockets", |b| {
            storage(b, Kind::SockAddr, AttachType::SendMsg4 as u32, SOCK_ADDR_SK, false)
        }),
        must("cgroup/sendmsg4", "bpf_sk_lookup_udp", "4.20", "finds the agent's DNS listener", |_| {
            let found = looked_up(helper::SK_LOOKUP_UDP).end(1);
            loads(Kind::SockAddr, AttachType::SendMsg4 as u32, &found)
        }),
        must("cgroup/setsockopt", "bpf_get_netns_cookie", "5.15", "refuses ways around tc egress", |_| {
            let body = Asm::new().call(helper::GET_NETNS_COOKIE);
            loads(Kind::Sockopt, AttachType::SetSockOpt as u32, &body.end(1))
        }),
        must("sockops", "bpf_get_netns_cookie", "6.1", "hands destinations over", |_| {
            loads(Kind::SockOps, AttachType::SockOps as u32, &Asm::new().call(helper::GET_NETNS_COOKIE).end(1))
        }),
        must("sockops", "bpf_sk_storage_get", "5.8", "hands destinations over", |b| {
            storage(b, Kind::SockOps, AttachType::SockOps as u32, SOCK_OPS_SK, false)
        }),
        must("tc", "bpf_skc_lookup_tcp", "5.2", "live connections stay", |_| {
            loads(Kind::SchedCls, 0, &looked_up(helper::SKC_LOOKUP_TCP).end(0))
        }),
        must("tc", "bpf_sk_storage_get", "5.2", "what a packet's socket may", |b| {
            storage(b, Kind::SchedCls, 0, SKB_SK, true)
        }),
        may("tc", "bpf_get_netns_cookie", "6.13", "nothing: a number set at load takes its place", "-", |_| {
            loads(Kind::SchedCls, 0, &Asm::new().call(helper::GET_NETNS_COOKIE).end(0))
        }),
    ]
}

fn packets() -> Vec<Check> {
    vec![
        may("tcx", "attach", "6.6, CONFIG_NET_XGRESS", "programs on a pod's interface", "clsact", |b| {
            let program = bpf::load(Kind::SchedCls, 0, "mesh_probe", &Asm::new().end(-1))?;
            for attach in [bpf::TCX_INGRESS, bpf::TCX_EGRESS] {
                b.scratch.netns.run(|| bpf::link(program.as_fd(), Target::Interface(bpf::LOOPBACK), attach))??;
            }
            Ok(())
        }),
        may(
            "clsact",
            "attach",
            "4.5, sch_ingress and cls_bpf",
            "programs on a pod's interface without tcx",
            "tcx",
            |b| live::clsact(&b.scratch.netns, b.pins, &Asm::new().end(0)).map(|_| ()),
        ),
    ]
}

fn loads(kind: Kind, attach: u32, instructions: &[u64]) -> io::Result<()> {
    bpf::load(kind, attach, "mesh_probe", instructions).map(|_| ())
}

/// Looks a socket up by an IPv4 pair of ends, and lets it go.
fn looked_up(helper: i32) -> Asm {
    let tuple = Asm::new().put64(FP, -16, 0).put64(FP, -8, 0).copy(R2, FP).add(R2, -16);
    let call = tuple.set(R3, 12).set(R4, -1).set(R5, 0).call(helper);
    call.leave_if(0, 0).copy(R1, 0).call(helper::SK_RELEASE)
}

/// Loads a program that looks for a socket in a map, and lets it go.
fn listener() -> io::Result<()> {
    let map = bpf::map(bpf::MAP_SOCKHASH, 1)?;
    let key = Asm::new().put64(FP, -8, 0).map(R1, map.as_fd()).copy(R2, FP).add(R2, -8);
    let call = key.call(helper::MAP_LOOKUP_ELEM).leave_if(0, 0).copy(R1, 0).call(helper::SK_RELEASE);
    loads(Kind::SockAddr, AttachType::Connect4 as u32, &call.end(1))
}

/// Loads a program that asks for a value in the storage of its socket.
fn storage(b: &Bench<'_>, kind: Kind, attach: u32, sk: i16, full: bool) -> io::Result<()> {
    let map = b.storage.as_ref().map_err(copy)?;
    let mut asm = Asm::new().load64(R6, R1, sk).leave_if(R6, 0);
    if full {
        asm = asm.copy(R1, R6).call(helper::SK_FULLSOCK).leave_if(0, 0).copy(R6, 0);
    }
    let asm = asm.map(R1, map.as_fd()).copy(R2, R6).set(R3, 0).set(R4, 0).call(helper::SK_STORAGE_GET);
    loads(kind, attach, &asm.end(1))
}

fn attach_and_replace(b: &Bench<'_>, at: AttachType) -> io::Result<()> {
    let kind = match at {
        AttachType::SockOps => Kind::SockOps,
        AttachType::SockRelease => Kind::Sock,
        AttachType::SetSockOpt => Kind::Sockopt,
        _ => Kind::SockAddr,
    };
    let load = || bpf::load(kind, at as u32, "mesh_probe", &Asm::new().end(1));
    let link = bpf::link(load()?.as_fd(), Target::Fd(b.scratch.cgroup()), at as u32)?;
    bpf::replace(link.as_fd(), load()?.as_fd())
}

fn pin(b: &Bench<'_>) -> io::Result<()> {
    let directory = b.pins.ok_or_else(|| io::Error::other("no bpffs is mounted"))?;
    let path = directory.join(format!("mesh-probe-{}-{}", std::process::id(), b.scratch.netns.cookie()));
    let map = bpf::map(bpf::MAP_ARRAY, 1)?;
    bpf::pin(map.as_fd(), &path)?;
    let opened = bpf::pinned(&path).map(|_| ());
    std::fs::remove_file(&path)?;
    opened
}

/// A map of a megabyte with a memlock limit of none.
fn memlock() -> io::Result<()> {
    in_child(|| {
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a live value of the type that this call reads.
        if unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const none) } != 0 {
            return Err(io::Error::last_os_error());
        }
        bpf::map(bpf::MAP_ARRAY, 1 << 18).map(|_| ())
    })
}

/// An error once more: it belongs to the bench.
fn copy(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}
