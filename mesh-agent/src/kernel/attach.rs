//! Loads programs into the kernel and attaches them. In: a parsed object. Out: attached programs, whose links belong to
//! the object, or an error that names hook, helper and kernel version.

use std::fs::File;
use std::path::Path;

use aya::Ebpf;
use aya::programs::{
    CgroupAttachMode, CgroupSockAddr, Program, ProgramError, SchedClassifier, SkLookup, SockOps, TcAttachType, tc,
};
use aya::util::KernelVersion;

use super::hooks::Direction;
use super::{KernelError, chain, hooks, probe};
use crate::net::netns::NetNs;

const LOOKUP: &str = "mesh_lookup";
/// How often a program is offered to a kernel that was interrupted.
const LOAD_TRIES: u32 = 10;

/// Attaches every cgroup program, in the order of the list of hooks.
pub(super) fn attach_cgroup(object: &mut Ebpf, cgroup: &Path) -> Result<(), KernelError> {
    let directory = File::open(cgroup).map_err(|e| KernelError::Attach {
        program: "the cgroup programs",
        place: cgroup.display().to_string(),
        why: e.to_string(),
    })?;
    for name in hooks::cgroup().map(|hook| hook.program) {
        let failed = |e: ProgramError| KernelError::Attach {
            program: name,
            place: cgroup.display().to_string(),
            why: chain(&e),
        };
        // A link is always one of several; the kernel refuses the flag that says so.
        let mode = CgroupAttachMode::Single;
        match program(object, name)? {
            Program::SockOps(p) => {
                let p: &mut SockOps = p;
                load(name, || p.load())?;
                p.attach(&directory, mode).map_err(failed)?;
            }
            Program::CgroupSockAddr(p) => {
                let p: &mut CgroupSockAddr = p;
                load(name, || p.load())?;
                p.attach(&directory, mode).map_err(failed)?;
            }
            _ => return Err(refused_because(name, "it is of another kind than expected".into())),
        }
    }
    Ok(())
}

/// Loads this object's programs for interfaces and attaches them to every one of the namespace but loopback. Interfaces
/// that appear later are not covered.
pub(super) fn attach_interfaces(object: &mut Ebpf, ns: &NetNs, interfaces: &[String]) -> Result<(), KernelError> {
    for (name, direction) in hooks::interface() {
        let Program::SchedClassifier(p) = program(object, name)? else {
            return Err(refused_because(name, "it is of another kind than expected".into()));
        };
        load(name, || p.load())?;
        let direction = match direction {
            Direction::Ingress => TcAttachType::Ingress,
            Direction::Egress => TcAttachType::Egress,
        };
        for interface in interfaces {
            let failed = |why: String| KernelError::Attach { program: name, place: interface.clone(), why };
            ns.run(|| attach_one(p, interface, direction))
                .map_err(|e| failed(e.to_string()))?
                .map_err(|e| failed(chain(&e)))?;
        }
    }
    Ok(())
}

/// Loads this object's lookup program and attaches it to the namespace.
pub(super) fn attach_lookup(object: &mut Ebpf, ns: &NetNs) -> Result<(), KernelError> {
    let Program::SkLookup(p) = program(object, LOOKUP)? else {
        return Err(refused_because(LOOKUP, "it is of another kind than expected".into()));
    };
    let p: &mut SkLookup = p;
    load(LOOKUP, || p.load())?;
    p.attach(ns).map(|_| ()).map_err(|e| KernelError::Attach {
        program: LOOKUP,
        place: "the workload's network namespace".into(),
        why: chain(&e),
    })
}

fn attach_one(program: &mut SchedClassifier, interface: &str, direction: TcAttachType) -> Result<(), ProgramError> {
    // Before Linux 6.6 there is no tcx, and clsact has to be there first.
    if !KernelVersion::current().is_ok_and(|v| v >= KernelVersion::new(6, 6, 0)) {
        match tc::qdisc_add_clsact(interface) {
            Ok(()) | Err(tc::TcError::AlreadyAttached) => {}
            Err(e) => return Err(e.into()),
        }
    }
    program.attach(interface, direction).map(|_| ())
}

/// The verifier gives up with EAGAIN when a signal arrives; another try is all it takes.
fn load(name: &'static str, mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), KernelError> {
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

fn refused_because(program: &'static str, why: String) -> KernelError {
    KernelError::Refused { program, running: probe::kernel_release(), needed: hooks::needed(program), why }
}
