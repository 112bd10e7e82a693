//! Live tests of the kernel programs: real sockets in scratch network namespaces, caught by the real object through the
//! agent's kernel layer, accepted by a few lines that stand in for the proxy. They need root, a bpffs and
//! `target/bpf/mesh-ebpf.o`, and fail with a line that says so. One file per hook.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "bpf/bypass.rs"]
mod bypass;
#[path = "bpf/carried.rs"]
mod carried;
#[path = "bpf/connect.rs"]
mod connect;
#[path = "bpf/debug_log.rs"]
mod debug_log;
#[path = "bpf/direct.rs"]
mod direct;
#[path = "bpf/egress.rs"]
mod egress;
#[path = "bpf/egress_frames.rs"]
mod egress_frames;
#[path = "bpf/egress_udp.rs"]
mod egress_udp;
#[path = "bpf/far.rs"]
mod far;
#[path = "bpf/fast_open.rs"]
mod fast_open;
#[path = "bpf/fragments.rs"]
mod fragments;
#[path = "bpf/full.rs"]
mod full;
#[path = "bpf/getname.rs"]
mod getname;
#[path = "bpf/host.rs"]
mod host;
#[path = "bpf/ingress.rs"]
mod ingress;
#[path = "bpf/interfaces.rs"]
mod interfaces;
#[path = "bpf/lifecycle.rs"]
mod lifecycle;
#[path = "bpf/lookup.rs"]
mod lookup;
#[path = "bpf/loss.rs"]
mod loss;
#[path = "bpf/mptcp.rs"]
mod mptcp;
#[path = "bpf/outside.rs"]
mod outside;
#[path = "bpf/packets.rs"]
mod packets;
#[path = "bpf/probe.rs"]
mod probe;
#[path = "bpf/sendmsg.rs"]
mod sendmsg;
#[path = "bpf/services.rs"]
mod services;
#[path = "bpf/shortcut.rs"]
mod shortcut;
#[path = "bpf/sock_ops.rs"]
mod sock_ops;
#[path = "bpf/support.rs"]
mod support;
#[path = "bpf/survival.rs"]
mod survival;
#[path = "bpf/test_run.rs"]
mod test_run;
#[path = "bpf/udp_ways.rs"]
mod udp_ways;
#[path = "bpf/uring.rs"]
mod uring;
