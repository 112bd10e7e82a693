//! Loads programs into the kernel and puts them in force. In: a parsed object, where its links are pinned. Out: programs
//! in force, which stay so whatever happens to this process, or an error that names hook, helper and kernel version.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use aya::Ebpf;
use aya::maps::Map;
use aya::programs::links::FdLink;
use aya::programs::tc::{SchedClassifierLink, TcError, TcHandle};
use aya::programs::{LinkOrder, Program, ProgramError, ProgramFd, SchedClassifier, TcAttachType, tc};
use mesh_common::abi::maps;
use nix::net::if_::if_nametoindex;

use super::hooks::{Direction, Hook, Place};
use super::pins::Pins;
use super::{KernelError, bpf, chain, hooks, link, probe};
use crate::net::netns::NetNs;

/// How often a program is offered to a kernel that was interrupted.
const LOAD_TRIES: u32 = 10;
/// Where our filters are on an interface of a kernel without tcx: a preference and a handle that nobody else has.
const FILTER: (u16, u16) = (15006, 0x6d65);

/// Loads the programs of these hooks: the verifier looks at them, and nothing is in force yet.
pub(super) fn load(object: &mut Ebpf, hooks: impl Iterator<Item = &'static Hook>) -> Result<(), KernelError> {
    for hook in hooks {
        let name = hook.program;
        match program(object, name)? {
            Program::SockOps(p) => load_one(name, || p.load())?,
            Program::SkMsg(p) => load_one(name, || p.load())?,
            Program::CgroupSockAddr(p) => load_one(name, || p.load())?,
            Program::CgroupSock(p) => load_one(name, || p.load())?,
            Program::CgroupSockopt(p) => load_one(name, || p.load())?,
            Program::SchedClassifier(p) => load_one(name, || p.load())?,
            Program::SkLookup(p) => load_one(name, || p.load())?,
            _ => return Err(other_kind(name)),
        }
    }
    Ok(())
}

/// Puts the loaded programs of the cgroup in force, in the order of the list of hooks.
pub(super) fn attach_cgroup(object: &mut Ebpf, cgroup: &Path, pins: &Pins) -> Result<(), KernelError> {
    let failed =
        |program: &'static str, why: String| KernelError::Attach { program, place: cgroup.display().to_string(), why };
    let opened = File::open(cgroup).and_then(|directory| Ok((directory.metadata()?.ino(), directory)));
    let (id, directory) = opened.map_err(|e| failed("the cgroup programs", e.to_string()))?;
    for hook in hooks::cgroup() {
        let (name, Place::Cgroup(at)) = (hook.program, hook.place) else { continue };
        let fd = fd(program(object, name)?).map_err(|why| failed(name, why))?;
        let attach = |pin: &Path| {
            let link = bpf::link(fd.as_fd(), bpf::Target::Fd(directory.as_fd()), at as u32);
            link.and_then(|link| bpf::pin(link.as_fd(), pin)).map_err(text)
        };
        link::put(&pins.link(name), fd.as_fd(), link::Place::Cgroup(id), attach).map_err(|why| failed(name, why))?;
    }
    Ok(())
}

/// A loaded program's descriptor, for who attaches it later.
pub(super) fn descriptor(object: &mut Ebpf, name: &'static str) -> Result<OwnedFd, KernelError> {
    let failed = |why: String| KernelError::Attach { program: name, place: "anywhere".into(), why };
    let fd = fd(program(object, name)?).map_err(failed)?;
    fd.as_fd().try_clone_to_owned().map_err(|e| failed(e.to_string()))
}

/// Lets the loaded program for shortcuts decide about what their sockets send. Of those that are ends already the program
/// from before stays in force; it works with the same maps.
pub(super) fn attach_sockets(object: &mut Ebpf) -> Result<(), KernelError> {
    for hook in hooks::HOOKS.iter().filter(|hook| hook.place == Place::Sockets) {
        let name = hook.program;
        let failed = |why: String| KernelError::Attach { program: name, place: maps::SHORT_SOCKETS.into(), why };
        let fd = fd(program(object, name)?).map_err(failed)?;
        let Some(Map::SockHash(map)) = object.map(maps::SHORT_SOCKETS) else {
            return Err(failed("not in the object, or not a map of sockets".into()));
        };
        bpf::attach_to_map(fd.as_fd(), map.fd().as_fd()).map_err(|e| failed(e.to_string()))?;
    }
    Ok(())
}

/// Puts this object's loaded programs for one pod in force: in the namespace, and on each of these interfaces of it.
/// Interfaces that appear later are not covered. `pins` is the pod's directory; what it has for other interfaces goes.
pub(super) fn attach_pod(
    object: &mut Ebpf,
    ns: &NetNs,
    interfaces: &[String],
    pins: &Path,
    left: Vec<PathBuf>,
) -> Result<(), KernelError> {
    let mut old = left;
    for hook in hooks::pod() {
        let name = hook.program;
        let direction = match hook.place {
            Place::Interface(direction) => direction,
            Place::Lookup | Place::Cgroup(_) | Place::Sockets | Place::HostLookup => {
                let pin = pins.join(name);
                old.retain(|path| *path != pin);
                attach_lookup(program(object, name)?, ns, &pin).map_err(|why| KernelError::Attach {
                    program: name,
                    place: "the workload's network namespace".into(),
                    why,
                })?;
                continue;
            }
        };
        for interface in interfaces {
            let failed = |why: String| KernelError::Attach { program: name, place: interface.clone(), why };
            let Program::SchedClassifier(p) = program(object, name)? else { return Err(other_kind(name)) };
            let attached = ns.run(|| {
                let index = if_nametoindex(interface.as_str()).map_err(|e| e.to_string())?;
                let pin = pins.join(format!("{name}-{index}"));
                old.retain(|path| *path != pin);
                attach_interface(p, interface, index, direction, &pin)
            });
            attached.map_err(|e| failed(e.to_string()))?.map_err(failed)?;
        }
    }
    // Of interfaces that are gone.
    for path in old {
        let _ = link::remove(&path);
    }
    Ok(())
}

/// Takes our filters off the interfaces of a namespace, on a kernel without tcx: there they are no links and have no
/// pins.
pub(super) fn detach_filters(ns: &NetNs) {
    if has_tcx() {
        return;
    }
    let interfaces = ns.interfaces().unwrap_or_default();
    // What is not there needs no removal.
    let _ = ns.run(|| {
        for interface in interfaces {
            for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
                let _ = filter(&interface, direction).map(drop);
            }
        }
    });
}

fn attach_lookup(program: &Program, ns: &NetNs, pin: &Path) -> Result<(), String> {
    let fd = fd(program)?;
    let place = link::Place::Netns(ns.inode().map_err(|e| e.to_string())?);
    let attach = |pin: &Path| {
        let link = bpf::link(fd.as_fd(), bpf::Target::Fd(ns.as_fd()), bpf::SK_LOOKUP);
        link.and_then(|link| bpf::pin(link.as_fd(), pin)).map_err(text)
    };
    link::put(pin, fd.as_fd(), place, attach)
}

fn attach_interface(
    program: &mut SchedClassifier,
    interface: &str,
    index: u32,
    direction: Direction,
    pin: &Path,
) -> Result<(), String> {
    let direction = match direction {
        Direction::Ingress => TcAttachType::Ingress,
        Direction::Egress => TcAttachType::Egress,
    };
    if !has_tcx() {
        return attach_filter(program, interface, direction).map_err(text);
    }
    let fd = program.fd().map_err(text)?.try_clone().map_err(text)?;
    link::put(pin, fd.as_fd(), link::Place::Interface(index), |pin| {
        // First, so that nobody before us lets a packet pass that we would have caught.
        let first = tc::TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = program.attach_with_options(interface, direction, first).map_err(text)?;
        let link = FdLink::try_from(program.take_link(id).map_err(text)?).map_err(text)?;
        link.pin(pin).map(|_| ()).map_err(text)
    })
}

/// Before Linux 6.6 there is no tcx but only filters, which stay until they are removed; one at our place is replaced in
/// one step.
fn attach_filter(program: &mut SchedClassifier, interface: &str, direction: TcAttachType) -> Result<(), ProgramError> {
    match tc::qdisc_add_clsact(interface) {
        Err(TcError::NetlinkError(e)) if e.raw_os_error() == Some(libc::EEXIST) => {}
        done => done?,
    }
    let (priority, handle) = (FILTER.0, TcHandle::new(0, FILTER.1));
    let id = match program.attach_to_link(filter(interface, direction).map_err(TcError::IoError)?) {
        Ok(id) => id,
        Err(_) => {
            let options = tc::NlOptions { priority, handle, classid: None };
            program.attach_with_options(interface, direction, tc::TcAttachOptions::Netlink(options))?
        }
    };
    // It must not go with this value; it has no memory or descriptor of its own.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

/// Our filter on an interface, whether it is there or not. Dropping it removes the filter.
fn filter(interface: &str, direction: TcAttachType) -> std::io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(interface, direction, FILTER.0, TcHandle::new(0, FILTER.1), None)
}

/// Whether this kernel has tcx: one that does can say who is attached to loopback by it.
fn has_tcx() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| bpf::attached(bpf::Target::Interface(bpf::LOOPBACK), bpf::TCX_INGRESS).is_ok())
}

fn fd(program: &Program) -> Result<ProgramFd, String> {
    program.fd().map_err(text)?.try_clone().map_err(text)
}

fn text(error: impl std::error::Error) -> String {
    chain(&error)
}

/// The verifier gives up with EAGAIN when a signal arrives; another try is all it takes.
fn load_one(name: &'static str, mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), KernelError> {
    let mut tries = 1;
    loop {
        match load() {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.raw_os_error() == Some(libc::EAGAIN) && tries < LOAD_TRIES =>
            {
                tries += 1;
            }
            done => return done.map_err(|e| refused(name, &e)),
        }
    }
}

fn program<'a>(object: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Program, KernelError> {
    object.program_mut(name).ok_or_else(|| refused_because(name, "it is not in the object".into()))
}

fn refused(program: &'static str, error: &ProgramError) -> KernelError {
    let why = match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            format!("{io_error}: {}", complaint(&verifier_log.to_string()))
        }
        other => chain(other),
    };
    refused_because(program, why)
}

/// The verifier's complaint: the last line that is not statistics.
fn complaint(log: &str) -> &str {
    const STATISTICS: [&str; 3] = ["processed ", "stack depth ", "verification time "];
    let last = log.lines().map(str::trim).rfind(|l| !l.is_empty() && !STATISTICS.iter().any(|s| l.starts_with(s)));
    last.unwrap_or("no word from the verifier")
}

fn other_kind(program: &'static str) -> KernelError {
    refused_because(program, "it is of another kind than expected".into())
}

fn refused_because(program: &'static str, why: String) -> KernelError {
    KernelError::Refused { program, running: probe::kernel_release(), needed: hooks::needed(program), why }
}
