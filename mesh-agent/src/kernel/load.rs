//! Loads the object: maps that are pinned are used again, once they have proved to be of the shape that the programs
//! expect. In: settings, the directory of pins. Out: a [`Kernel`] whose programs are verified and not yet in force. What
//! does not fit is refused and left as it is, never misread.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use aya::maps::{Array, HashMap as BpfHashMap, MapInfo, PerCpuArray, SockHash};
use aya::{Ebpf, EbpfLoader};
use mesh_common::abi::{HOST_NETNS, INGRESS_NETNS, QUEUE, maps};
use tracing::{debug, info, warn};

use super::cgroups::Cgroups;
use super::{
    Kernel, KernelError, TcpStats, agents, attach, chain, debug_log, direct, hooks, host, pins::Pins, probe, services,
    sockets::Sockets, workloads,
};
use crate::net::netns::NetNs;
use crate::settings::KernelSettings;

/// The object's bytes, and what makes programs of them again and again.
pub(super) struct Loader {
    loader: EbpfLoader<'static>,
    object: Vec<u8>,
    path: PathBuf,
    /// Cookie of the agent's own namespace.
    host: u64,
    /// What the programs know of the kernel's structures.
    queue: &'static u64,
}

/// No namespace has this cookie.
static NOBODY: u64 = 0;

/// Where the kernel has what a socket has not read yet, packed; 0 where that is not to be seen.
fn queue() -> &'static u64 {
    static FOUND: OnceLock<u64> = OnceLock::new();
    FOUND.get_or_init(|| match probe::queue() {
        Ok(offsets) => offsets.pack(),
        Err(error) => {
            debug!(%error, "what an application has not read cannot be seen: shortcuts to one have a total");
            0
        }
    })
}

impl Loader {
    fn new(path: PathBuf, maps_at: &Path, host: u64) -> Result<Loader, KernelError> {
        // Copied into a Vec by `read`, which aligns well enough for the parser.
        let object = fs::read(&path).map_err(|e| KernelError::Object { path: path.clone(), why: e.to_string() })?;
        let mut loader = EbpfLoader::new();
        // Our programs are not relocated to the kernel's structures. Parsing its types takes longer than all the rest.
        loader.btf(None);
        for name in maps::ALL.into_iter().chain([debug_log::MAP]) {
            loader.map_pin_path(name, maps_at.join(name));
        }
        Ok(Loader { loader, object, path, host, queue: queue() })
    }

    /// Parses the object and makes its maps, or takes those that are pinned already. `netns` is the cookie of the
    /// namespace for which its programs for one pod are to work.
    pub(super) fn load(&mut self, netns: u64) -> Result<Ebpf, KernelError> {
        let netns = &raw const netns;
        // SAFETY: the loader reads this only in `load`, and has another one before `netns` goes.
        let value: &'static u64 = unsafe { &*netns };
        self.loader.override_global(INGRESS_NETNS, value, true);
        let host = &raw const self.host;
        // SAFETY: as above.
        let value: &'static u64 = unsafe { &*host };
        self.loader.override_global(HOST_NETNS, value, true);
        self.loader.override_global(QUEUE, self.queue, true);
        let loaded = self.loader.load(&self.object);
        self.loader.override_global(INGRESS_NETNS, &NOBODY, true);
        self.loader.override_global(HOST_NETNS, &NOBODY, true);
        loaded.map_err(|e| self.wrong(chain(&e)))
    }

    /// Fails if a map is pinned that is not as the object wants it.
    fn check(&self, pins: &Pins) -> Result<(), KernelError> {
        let object = aya_obj::Object::parse(&self.object).map_err(|e| self.wrong(chain(&e)))?;
        for name in maps::ALL {
            let path = pins.maps().join(name);
            if !path.exists() {
                continue;
            }
            let wanted = object.maps.get(name).ok_or_else(|| self.wrong(format!("it has no map {name}")))?;
            let found = MapInfo::from_pin(&path).and_then(|found| {
                Ok([found.map_type()? as u32, found.key_size(), found.value_size(), found.max_entries()])
            });
            let wanted = [wanted.map_type(), wanted.key_size(), wanted.value_size(), wanted.max_entries()];
            let difference = match found {
                Ok(found) if found == wanted => continue,
                Ok(found) => difference(found, wanted),
                Err(e) => chain(&e),
            };
            let why = format!(
                "{}/{name} is not of this agent's making ({difference}); remove what is there with \
                 `mesh-agent detach --config FILE` and start again",
                pins.maps().display()
            );
            return Err(KernelError::Pins { path: pins.root().to_owned(), why });
        }
        Ok(())
    }

    fn wrong(&self, why: String) -> KernelError {
        KernelError::Object { path: self.path.clone(), why }
    }
}

fn difference(found: [u32; 4], wanted: [u32; 4]) -> String {
    let names = ["type", "bytes of a key", "bytes of a value", "entries"];
    let differing = names.iter().zip(found).zip(wanted).filter(|((_, found), wanted)| found != wanted);
    let lines = differing.map(|((name, found), wanted)| format!("{name}: {found} instead of {wanted}"));
    lines.collect::<Vec<_>>().join(", ")
}

/// Loads everything and puts nothing in force yet.
pub(super) fn load(
    settings: &KernelSettings,
    pins: impl FnOnce() -> Result<Pins, KernelError>,
) -> Result<Kernel, KernelError> {
    let cgroups = Cgroups::find(settings.cgroup.as_deref())?;
    let object = settings.object.clone().unwrap_or_else(default_object);
    if let Err(e) = fs::metadata(&object) {
        return Err(KernelError::Object { path: object, why: e.to_string() });
    }
    let bpffs = settings.pin_path.as_deref().and_then(probe::bpffs_of).unwrap_or(Path::new(probe::BPFFS));
    let tried = Instant::now();
    probe::require(&cgroups.own, bpffs)?;
    debug!(milliseconds = tried.elapsed().as_millis(), "the kernel can do what the mesh needs");
    let lack = probe::shortcut_lack(&cgroups.own)?;
    match &lack {
        None => info!("socket shortcuts: an application cannot tell them from TCP here; shortcuts: auto uses them"),
        Some((differs, why)) => info!(differs, why, "socket shortcuts differ from TCP here; shortcuts: auto uses none"),
    }
    for foreign in probe::foreign::on_cgroup(&cgroups.attach) {
        warn!("{foreign}");
    }
    let pins = pins()?;
    // Held on to, so that nobody gets it before what was begun is removed.
    let (fresh, path, lock) = (pins.fresh, pins.root().to_owned(), pins.lock());
    build(object, cgroups, pins, lack.map(|(name, _)| name)).inspect_err(|_| {
        if fresh
            && let Ok(lock) = lock
            && let Ok(pins) = Pins::take_over(path, lock)
        {
            // The first error is the one to tell.
            let _ = pins.remove();
        }
    })
}

/// Offers every program to the kernel, attaches none, and leaves nothing on the bpffs.
pub(super) fn offer(settings: &KernelSettings, bpffs: &Path) -> Vec<(&'static str, Result<(), KernelError>)> {
    let path = settings.object.clone().unwrap_or_else(default_object);
    let maps_at = bpffs.join(format!("mesh-probe-maps-{}-{:x}", std::process::id(), rand::random::<u32>()));
    let made = fs::create_dir(&maps_at).map_err(|e| KernelError::Pins { path: maps_at.clone(), why: e.to_string() });
    let loaded = made.and_then(|()| Loader::new(path, &maps_at, NOBODY)).and_then(|mut loader| loader.load(NOBODY));
    let offered = match loaded {
        Ok(mut object) => {
            let mut offer =
                |hook: &'static hooks::Hook| (hook.program, attach::load(&mut object, std::iter::once(hook)));
            hooks::HOOKS.iter().map(&mut offer).collect()
        }
        Err(e) => vec![("the object", Err(e))],
    };
    for name in maps::ALL.into_iter().chain([debug_log::MAP]) {
        // Not there if the object could not be loaded.
        let _ = fs::remove_file(maps_at.join(name));
    }
    let _ = fs::remove_dir(&maps_at);
    offered
}

fn build(
    object: PathBuf,
    cgroups: Cgroups,
    pins: Pins,
    shortcut_lack: Option<&'static str>,
) -> Result<Kernel, KernelError> {
    let netns = NetNs::current().map_err(|e| KernelError::Environment {
        missing: format!("the agent's own network namespace cannot be opened: {e}"),
        remedy: "mount /proc where the agent runs".into(),
    })?;
    let mut loader = Loader::new(object, pins.maps(), netns.cookie())?;
    loader.check(&pins)?;
    let mut base = loader.load(NOBODY)?;
    let sockets = Sockets::new(&base, shortcut_lack.is_none())?;
    let metrics = take(&mut base, maps::METRICS, PerCpuArray::try_from)?;
    let workloads = take(&mut base, maps::WORKLOADS, BpfHashMap::try_from)?;
    let unguarded = take(&mut base, maps::UNGUARDED, Array::try_from)?;
    let shares = take(&mut base, maps::SHARES, BpfHashMap::try_from)?;
    let outbound = take(&mut base, maps::OUTBOUND, SockHash::try_from)?;
    let port_modes = take(&mut base, maps::PORT_MODES, BpfHashMap::try_from)?;
    let probed = take(&mut base, maps::PROBED, BpfHashMap::try_from)?;
    let node = take(&mut base, maps::NODE, BpfHashMap::try_from)?;
    let kept = take(&mut base, maps::KEPT, BpfHashMap::try_from)?;
    let places = take(&mut base, maps::DNS, BpfHashMap::try_from)?;
    let allowed = take(&mut base, maps::ALLOWED, BpfHashMap::try_from)?;
    let records = take(&mut base, maps::DIRECT, BpfHashMap::try_from)?;
    let services = take(&mut base, maps::SERVICES, BpfHashMap::try_from)?;
    let slots = take(&mut base, maps::SLOTS, BpfHashMap::try_from)?;
    let agents = agents::Agents(take(&mut base, maps::AGENTS, Array::try_from)?);
    let known = take(&mut base, maps::CGROUPS, BpfHashMap::try_from)?;
    let levels = take(&mut base, maps::LEVELS, Array::try_from)?;
    let ports = take(&mut base, maps::HOST_PORTS, BpfHashMap::try_from)?;
    let doors = take(&mut base, maps::HOST_DOORS, SockHash::try_from)?;
    let events = take(&mut base, maps::EVENTS, Ok)?;
    let tcp_stats = take(&mut base, maps::TCP_STATS, PerCpuArray::try_from)?;
    let debug_log = debug_log::DebugLog::of(&mut base);
    attach::load(&mut base, hooks::shared())?;
    let program = attach::descriptor(&mut base, host::PROGRAM)?;
    Ok(Kernel {
        pods: Default::default(),
        workloads: workloads::Workloads::new(workloads, unguarded),
        shares,
        outbound,
        port_modes,
        probed,
        node,
        kept,
        places,
        ways: direct::Ways::new(allowed, records, services::Services::new(services, slots)),
        agents,
        hosts: host::Hosts::new(Arc::new(netns), known, levels, ports, doors, program),
        metrics,
        events: Some(events),
        debug_log,
        tcp_stats: Some(TcpStats::new(tcp_stats)),
        sockets,
        shortcut_lack,
        loader,
        base: Some(base),
        cgroups,
        pins,
    })
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

/// Beside the executable, or where `cargo xtask build-ebpf` puts it.
fn default_object() -> PathBuf {
    let directory =
        std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf)).unwrap_or_default();
    let beside = directory.join("mesh-ebpf.o");
    if beside.exists() { beside } else { directory.join("../bpf/mesh-ebpf.o") }
}
