//! Loads the object and makes the pins. In: settings. Out: a [`Kernel`] with nobody enrolled. A directory of pins has one
//! owner, by a lock that dies with its process; what a dead owner left is removed.

use std::fs::{self, DirBuilder, File, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aya::maps::{HashMap as BpfHashMap, MapData, PerCpuArray, RingBuf};
use aya::{Ebpf, EbpfLoader};
use mesh_common::abi::{self, maps};
use nix::fcntl::{Flock, FlockArg};
use tracing::info;

use super::{Events, Kernel, KernelError, attach, chain, probe, sockets::Sockets};
use crate::settings::KernelSettings;

/// Where pins go when the settings do not say.
const PINS: &str = "/sys/fs/bpf/mesh";

/// The directory with the pinned maps; goes away when dropped.
pub struct Pins {
    path: PathBuf,
    _lock: Flock<File>,
}

pub(super) fn load(settings: &KernelSettings, node: &str) -> Result<Kernel, KernelError> {
    probe::privileges()?;
    let cgroups = probe::cgroups(settings.cgroup.as_deref())?;
    let pin_path = settings.pin_path.clone().unwrap_or_else(|| default_pin_path(node));
    probe::bpffs(&pin_path)?;
    let object_path = settings.object.clone().unwrap_or_else(default_object);
    let object = read_object(&object_path)?;
    let pins = Pins::make(pin_path)?;

    let mut base = parse(&object, pins.path(), 0)
        .map_err(|e| KernelError::Object { path: object_path.clone(), why: chain(&e) })?;
    let sockets = Sockets::new(&base)?;
    let metrics = take(&mut base, maps::METRICS, PerCpuArray::try_from)?;
    let workloads = take(&mut base, maps::WORKLOADS, BpfHashMap::try_from)?;
    let port_modes = take(&mut base, maps::PORT_MODES, BpfHashMap::try_from)?;
    let kept = take(&mut base, maps::KEPT, BpfHashMap::try_from)?;
    let mut agents: BpfHashMap<MapData, u64, u32> = take(&mut base, maps::AGENTS, BpfHashMap::try_from)?;
    let events = Events(take(&mut base, maps::EVENTS, RingBuf::try_from)?);
    if let Some(id) = cgroups.agent {
        agents.insert(id, 1, 0).map_err(|e| KernelError::Map { map: maps::AGENTS, why: chain(&e) })?;
    }
    attach::attach_cgroup(&mut base, &cgroups.attach)?;
    info!(
        cgroup = %cgroups.attach.display(),
        pins = %pins.path().display(),
        object = %object_path.display(),
        "kernel programs are attached"
    );
    Ok(Kernel {
        pods: Default::default(),
        workloads,
        port_modes,
        kept,
        metrics,
        events: Some(events),
        sockets,
        object,
        _base: base,
        pins,
    })
}

/// Parses the object and makes its maps, or takes those that are pinned already. `netns` is the namespace for which its
/// ingress program is to work.
pub(super) fn parse(object: &[u8], pins: &Path, netns: u64) -> Result<Ebpf, aya::EbpfError> {
    let mut loader = EbpfLoader::new();
    loader.override_global(abi::INGRESS_NETNS, &netns, true);
    for name in maps::ALL {
        loader.map_pin_path(name, pins.join(name));
    }
    loader.load(object)
}

fn take<M>(
    base: &mut Ebpf,
    name: &'static str,
    convert: impl FnOnce(aya::maps::Map) -> Result<M, aya::maps::MapError>,
) -> Result<M, KernelError> {
    let missing = || KernelError::Map { map: name, why: "not in the object".into() };
    let map = base.take_map(name).ok_or_else(missing)?;
    convert(map).map_err(|e| KernelError::Map { map: name, why: chain(&e) })
}

fn default_pin_path(node: &str) -> PathBuf {
    Path::new(PINS).join(abi::ABI_VERSION.to_string()).join(node)
}

/// Beside the executable, or where `cargo xtask build-ebpf` puts it.
fn default_object() -> PathBuf {
    let directory =
        std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf)).unwrap_or_default();
    let beside = directory.join("mesh-ebpf.o");
    if beside.exists() { beside } else { directory.join("../bpf/mesh-ebpf.o") }
}

/// The object's bytes. Copied into a Vec by `read`, which aligns well enough for the parser.
fn read_object(path: &Path) -> Result<Vec<u8>, KernelError> {
    fs::read(path).map_err(|e| KernelError::Object { path: path.to_owned(), why: e.to_string() })
}

impl Pins {
    /// Makes the directory, or takes over one whose owner is dead.
    fn make(path: PathBuf) -> Result<Pins, KernelError> {
        let wrong = |why: String| KernelError::Pins { path: path.clone(), why };
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(|e| wrong(e.to_string()))?;
        fs::set_permissions(&path, Permissions::from_mode(0o700)).map_err(|e| wrong(e.to_string()))?;
        let directory = File::open(&path).map_err(|e| wrong(e.to_string()))?;
        let lock = Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| {
            let busy =
                "another agent of this node is running: stop it, or give this one another node name or kernel.pinPath";
            wrong(if e == nix::errno::Errno::EWOULDBLOCK { busy.into() } else { e.to_string() })
        })?;
        empty(&path).map_err(|e| wrong(format!("cannot remove what an earlier agent left: {e}")))?;
        Ok(Pins { path, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        // Nothing depends on it: the next agent removes what is left.
        let _ = empty(&self.path);
        for directory in self.path.ancestors().take_while(|p| p.starts_with(PINS) || *p == self.path) {
            if fs::remove_dir(directory).is_err() {
                break;
            }
        }
    }
}

/// Removes our maps from a directory, and nothing else.
fn empty(directory: &Path) -> std::io::Result<()> {
    for name in maps::ALL {
        match fs::remove_file(directory.join(name)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}
