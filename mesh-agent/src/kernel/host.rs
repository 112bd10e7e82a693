//! Workloads of the host: cgroups in the agent's own network namespace. In: where a cgroup stands in the hierarchy, ports.
//! Out: entries by which the programs know the processes below that cgroup and the ports, and the one lookup program of the
//! namespace. A cgroup that is made anew at the same path (a unit that was started again) is the same workload; one that is
//! not there has no processes and waits.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::maps::{Array, HashMap as BpfHashMap, MapData, MapError, SockHash};
use mesh_common::abi::{self, DoorKey, maps};
use mesh_common::host::{MAX_LEVEL, mark};

use super::cgroups::Cgroups;
use super::{KernelError, Listeners, bpf, chain, link, refused, take_out};
use crate::net::connections::Connection;
use crate::net::netns::NetNs;

/// The one program of the host's namespace.
pub(super) const PROGRAM: &str = "mesh_host_lookup";

/// Where one workload of the host is.
#[derive(Clone, Debug)]
pub(super) struct Host {
    /// Its cgroup's directory.
    directory: PathBuf,
    level: u32,
    pub(super) ports: BTreeSet<u16>,
    /// The cgroup that the programs know.
    cgroup: Option<u64>,
    /// The programs could not be told of the one that is there.
    failing: bool,
}

/// What has become of a workload's cgroup since it was last looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Followed {
    /// It is there: its processes are caught from now on.
    Came,
    /// It is another one at the same path: the unit was started again.
    Replaced,
    /// It is gone.
    Went,
}

impl Host {
    /// The place of a workload, or why it can be none. `path` is as in `/proc/PID/cgroup`. The cgroup need not be there.
    pub(super) fn find(cgroups: &Cgroups, path: &Path, ports: &[u16]) -> Result<Host, KernelError> {
        let wrong = |missing: String, remedy: &str| Err(KernelError::Environment { missing, remedy: remedy.into() });
        let at = path.display();
        let Some(root) = cgroups.root() else {
            return wrong(
                format!("cgroup {at} cannot be placed: the hierarchy that the agent sees is not the whole"),
                "mount the host's cgroup v2 hierarchy at /sys/fs/cgroup where the agent runs",
            );
        };
        let inside = path.strip_prefix("/").unwrap_or(path);
        let directory = root.join(inside);
        let level = inside.components().count();
        if level == 0 || level > MAX_LEVEL as usize {
            return wrong(format!("cgroup {at} stands {level} levels below the root"), "name one at 1 to 16 levels");
        }
        if cgroups.own.starts_with(&directory) {
            return wrong(
                format!("cgroup {at} is the agent's own, or one above it: the agent would catch itself"),
                "name the cgroup of the workload's unit, and run the agent in another one",
            );
        }
        if !directory.starts_with(&cgroups.attach) {
            return wrong(
                format!("cgroup {at} is not below {}, which the agent catches", cgroups.attach.display()),
                "leave kernel.cgroup out, or set it to a cgroup above both",
            );
        }
        Ok(Host {
            directory,
            level: level as u32,
            ports: ports.iter().copied().collect(),
            cgroup: None,
            failing: false,
        })
    }

    /// Whether its cgroup was there when it was last looked at.
    pub(super) fn is_there(&self) -> bool {
        self.cgroup.is_some()
    }

    /// Whether an outcome of following it is to be told: a failure is, once.
    pub(super) fn is_news(&mut self, failed: bool) -> bool {
        !(std::mem::replace(&mut self.failing, failed) && failed)
    }

    /// Whether a connection was opened to one of the workload's ports.
    pub(super) fn is_own(&self, connection: &Connection) -> bool {
        connection.inbound && self.ports.contains(&connection.local.port())
    }
}

/// The maps and the program of the host's namespace.
pub(super) struct Hosts {
    pub(super) netns: Arc<NetNs>,
    cgroups: BpfHashMap<MapData, u64, u64>,
    levels: Array<MapData, u32>,
    ports: BpfHashMap<MapData, u32, u64>,
    doors: SockHash<MapData, DoorKey>,
    program: OwnedFd,
}

impl Hosts {
    pub(super) fn new(
        netns: Arc<NetNs>,
        cgroups: BpfHashMap<MapData, u64, u64>,
        levels: Array<MapData, u32>,
        ports: BpfHashMap<MapData, u32, u64>,
        doors: SockHash<MapData, DoorKey>,
        program: OwnedFd,
    ) -> Hosts {
        Hosts { netns, cgroups, levels, ports, doors, program }
    }

    /// Steers what comes to the workload's ports to its listeners; ports that it had from an agent before this one and has
    /// no longer are let go.
    pub(super) fn open(
        &mut self,
        number: u64,
        host: &Host,
        listeners: &Listeners,
        pin: &Path,
    ) -> Result<(), KernelError> {
        for port in &host.ports {
            match self.ports.get(&u32::from(*port), 0) {
                Ok(other) if other != number => {
                    return Err(KernelError::Environment {
                        missing: format!("port {port} of the host is another workload's"),
                        remedy: "take it out of the settings of one of them".into(),
                    });
                }
                _ => {}
            }
            for (listener, v4) in listeners.inbound.iter().zip([1, 0]) {
                let key = DoorKey { port: u32::from(*port), v4 };
                let put = self.doors.insert(key, listener.as_raw_fd(), 0);
                put.map_err(|e| refused(maps::HOST_DOORS, &e))?;
            }
        }
        self.attach(pin)?;
        for port in &host.ports {
            self.ports.insert(u32::from(*port), number, 0).map_err(|e| refused(maps::HOST_PORTS, &e))?;
        }
        let kept = |port: &u32| u16::try_from(*port).is_ok_and(|port| host.ports.contains(&port));
        self.ports_of(number).iter().filter(|port| !kept(port)).try_for_each(|port| self.close_port(*port))
    }

    /// Looks where the workload's cgroup is, and lets the programs know.
    pub(super) fn follow(&mut self, number: u64, host: &mut Host) -> Result<Option<Followed>, KernelError> {
        let found = fs::metadata(&host.directory).ok().filter(fs::Metadata::is_dir).map(|directory| directory.ino());
        if found == host.cgroup {
            return Ok(None);
        }
        if let Some(cgroup) = found {
            let wrong = |e: MapError| KernelError::Map { map: maps::LEVELS, why: chain(&e) };
            let levels = self.levels.get(&0, 0).map_err(wrong)?;
            self.levels.set(0, levels | mark(host.level), 0).map_err(wrong)?;
            self.cgroups.insert(cgroup, number, 0).map_err(|e| refused(maps::CGROUPS, &e))?;
        }
        // After the new one is known, also what an agent before this one knew of it.
        self.forget_cgroups(number, found)?;
        let was = std::mem::replace(&mut host.cgroup, found);
        Ok(Some(match (was, found) {
            (_, None) => Followed::Went,
            (None, Some(_)) => Followed::Came,
            (Some(_), Some(_)) => Followed::Replaced,
        }))
    }

    /// Takes away all that there is of a workload. Its ports first.
    pub(super) fn close(&mut self, number: u64) -> Result<(), KernelError> {
        let ports = self.ports_of(number);
        let closed = ports.into_iter().try_for_each(|port| self.close_port(port));
        self.forget_cgroups(number, None).and(closed)
    }

    /// Nobody of the host is a workload any more.
    pub(super) fn detach(&mut self, pin: &Path) -> Result<(), KernelError> {
        // How deep the last ones stood is of no use to anybody.
        let _ = self.levels.set(0, 0, 0);
        match link::remove(pin) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(e.to_string())),
            _ => Ok(()),
        }
    }

    fn attach(&self, pin: &Path) -> Result<(), KernelError> {
        let place = link::Place::Netns(self.netns.inode().map_err(|e| failed(e.to_string()))?);
        let attach = |pin: &Path| {
            let link = bpf::link(self.program.as_fd(), bpf::Target::Fd(self.netns.as_fd()), bpf::SK_LOOKUP);
            link.and_then(|link| bpf::pin(link.as_fd(), pin)).map_err(|e| e.to_string())
        };
        link::put(pin, self.program.as_fd(), place, attach).map_err(failed)
    }

    fn ports_of(&self, number: u64) -> Vec<u32> {
        self.ports.iter().filter_map(Result::ok).filter(|(_, own)| *own == number).map(|(port, _)| port).collect()
    }

    fn close_port(&mut self, port: u32) -> Result<(), KernelError> {
        take_out(&mut self.ports, maps::HOST_PORTS, &port)?;
        for v4 in [0, 1] {
            // Gone with its listener, as a rule.
            let _ = self.doors.remove(&DoorKey { port, v4 });
        }
        Ok(())
    }

    fn forget_cgroups(&mut self, number: u64, but: Option<u64>) -> Result<(), KernelError> {
        let all = self.cgroups.iter().filter_map(Result::ok);
        let gone: Vec<u64> = all.filter(|(id, own)| *own == number && Some(*id) != but).map(|(id, _)| id).collect();
        gone.into_iter().try_for_each(|id| take_out(&mut self.cgroups, maps::CGROUPS, &id))
    }
}

fn failed(why: String) -> KernelError {
    KernelError::Attach { program: PROGRAM, place: "the host's network namespace".into(), why }
}

/// The number by which the maps have a workload: of the host, or of a namespace.
pub(super) fn number(host: Option<&Host>, key: &str, netns: &NetNs) -> u64 {
    if host.is_some() { mesh_common::host::key(key) } else { netns.cookie() }
}

/// How many workloads of the host there may be.
pub(super) const MOST: usize = abi::MAX_HOST_WORKLOADS as usize;
