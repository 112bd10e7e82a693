//! Who else is at our hooks: programs of others on the cgroup and on a pod's interfaces, and interfaces on which ours
//! cannot work. In: a cgroup, a namespace. Out: what was found, each with what to do. Only looks; what cannot be looked
//! at counts as not there.

use std::fmt;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use crate::kernel::bpf::{self, Target};
use crate::kernel::hooks::{self, Place};
use crate::net::netlink;
use crate::net::netns::NetNs;

/// How our own programs' names begin.
const OURS: &str = "mesh_";
/// How the names of Cilium's socket hooks begin.
const CILIUM: &str = "cil_sock";
/// The interface kind that hands packets over in a way in which bpf_sk_assign does not hold.
const NETKIT: &str = "netkit";

/// A program of somebody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// Its name, as far as the kernel keeps it.
    pub program: String,
    /// Its id, for `bpftool prog show id`.
    pub id: u32,
    /// The hook.
    pub hook: &'static str,
    /// The cgroup or interface.
    pub place: String,
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Foreign { program, id, hook, place } = self;
        write!(f, "foreign program {program} (id {id}) on {hook} of {place}: ")?;
        if program.starts_with(CILIUM) {
            write!(
                f,
                "Cilium's socket load balancing; in a pod it would change destinations before or after the mesh: \
                 set socketLB.hostNamespaceOnly=true in Cilium"
            )
        } else if hook.starts_with("tc") {
            write!(f, "it runs after the mesh's program there and may still drop or redirect what the mesh lets pass")
        } else {
            write!(f, "it may change or refuse what the mesh decides; see `bpftool prog show id {id}`")
        }
    }
}

/// The programs of others that run for sockets of a cgroup.
pub fn on_cgroup(cgroup: &Path) -> Vec<Foreign> {
    let Ok(directory) = File::open(cgroup) else { return Vec::new() };
    let place = format!("cgroup {}", cgroup.display());
    let mut found = Vec::new();
    for hook in hooks::cgroup() {
        if let Place::Cgroup(at) = hook.place {
            found.extend(at_hook(Target::Fd(directory.as_fd()), at as u32, hook.place.name(), &place));
        }
    }
    found
}

/// The programs of others that tcx runs on a namespace's interfaces but loopback, in both directions. Those of clsact
/// are not seen.
pub fn in_namespace(netns: &NetNs) -> Vec<Foreign> {
    let look = || {
        let mut found = Vec::new();
        for interface in netlink::interfaces().unwrap_or_default().iter().filter(|i| i.name != "lo") {
            let place = format!("interface {}", interface.name);
            for (attach, hook) in [(bpf::TCX_INGRESS, "tc ingress"), (bpf::TCX_EGRESS, "tc egress")] {
                found.extend(at_hook(Target::Interface(interface.index), attach, hook, &place));
            }
        }
        found
    };
    netns.run(look).unwrap_or_default()
}

fn at_hook(target: Target<'_>, attach: u32, hook: &'static str, place: &str) -> Vec<Foreign> {
    let ids = bpf::attached(target, attach).unwrap_or_default();
    let named = ids.into_iter().filter_map(|id| Some((id, bpf::name(id).ok()?)));
    let foreign = named.filter(|(_, name)| !name.starts_with(OURS));
    foreign.map(|(id, program)| Foreign { program, id, hook, place: place.to_owned() }).collect()
}

/// The first interface of a namespace on which the mesh cannot catch what comes in.
pub fn unfit_interface(netns: &NetNs) -> Option<String> {
    let all = netns.run(netlink::interfaces).ok()?.ok()?;
    all.into_iter().find(|interface| interface.kind == NETKIT).map(|interface| interface.name)
}
