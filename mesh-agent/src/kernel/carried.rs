//! What direct connections carry, from the maps. In: DIRECT_STATS, to which a connection is added when it is over; the
//! counts of the sockets of those that are open. Out: what is new since it was last told. What was told stands in
//! DIRECT_TOLD, so whoever asks next goes on from there, be it another agent: nothing is told twice, and nothing gets lost
//! while nobody is there. A number that is known later than it was told makes no counter go back.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::Path as Place;
use std::time::Duration;

use aya::maps::{HashMap as BpfHashMap, Map, MapData, MapError, PerCpuArray};
use mesh_common::abi::{Carried, Direct, Pair, Path, Shortcut, Tuple, maps};
use mesh_common::direct::key;
use mesh_common::tcp::{Figure, place};
use tracing::warn;

use super::{KernelError, bpf, chain, refused, take_out};
use crate::net::netns::NetNs;
use crate::net::tcp_info::{Counted, counted};

/// A connection that is over is gone from the list of sockets this much after it is in DIRECT_STATS: it must not be
/// counted in both.
const GONE: Duration = Duration::from_millis(10);
/// An entry of which nothing is new so many times makes room.
const MAX_RESTS: u32 = 12;
/// linux/bpf.h.
const BPF_NOEXIST: u64 = 1;

/// Tells what direct connections carry. One agent at a time may.
pub struct DirectStats {
    stats: BpfHashMap<MapData, Pair, Carried>,
    /// Once more, to take entries out.
    taken: MapData,
    told: BpfHashMap<MapData, Pair, Carried>,
    records: BpfHashMap<MapData, Tuple, Direct>,
    shortcuts: BpfHashMap<MapData, u64, Shortcut>,
    /// What stands in DIRECT_TOLD; read once.
    known: Option<HashMap<Pair, Known>>,
}

/// What was not told before.
#[derive(Debug, Default)]
pub struct News {
    /// By who connects to whom.
    pub told: Vec<(Pair, Carried)>,
    /// Why some of it is put off.
    pub failure: Option<KernelError>,
}

#[derive(Clone, Copy, Default)]
struct Known {
    told: Carried,
    /// How many times nothing was new.
    rests: u32,
}

/// Bytes of open connections, by whom they are of: forward, back.
type Open = HashMap<Pair, (u64, u64)>;

impl DirectStats {
    /// The maps below `pins`.
    pub(super) fn open(pins: &Place) -> Result<DirectStats, KernelError> {
        let wrong = |map: &'static str| move |e: MapError| KernelError::Map { map, why: chain(&e) };
        let data = |name: &'static str| MapData::from_pin(pins.join(name)).map_err(wrong(name));
        let map = |name: &'static str| Map::from_map_data(data(name)?).map_err(wrong(name));
        let mut stats: BpfHashMap<_, _, _> = map(maps::DIRECT_STATS)?.try_into().map_err(wrong(maps::DIRECT_STATS))?;
        nobody(&mut stats)?;
        Ok(DirectStats {
            stats,
            taken: data(maps::DIRECT_STATS)?,
            told: map(maps::DIRECT_TOLD)?.try_into().map_err(wrong(maps::DIRECT_TOLD))?,
            records: map(maps::DIRECT)?.try_into().map_err(wrong(maps::DIRECT))?,
            shortcuts: map(maps::SHORTCUTS)?.try_into().map_err(wrong(maps::SHORTCUTS))?,
            known: None,
        })
    }

    /// What is new, by who connects to whom. `netns` finds a namespace by its cookie; of connections from one that it does not
    /// find bytes are told when they are over. What `known` says no to is put off. Takes long where there are many: not for a
    /// thread that others wait for.
    pub fn news<'n>(
        &mut self,
        netns: impl Fn(u64) -> Option<&'n NetNs>,
        known: impl Fn(&Pair, &Carried) -> bool,
    ) -> News {
        let stats: HashMap<Pair, Carried> = self.stats.iter().filter_map(Result::ok).collect();
        let open = self.open_bytes(&stats, &netns);
        self.forget(&stats);
        let mut all = News::default();
        for (pair, carried) in stats.iter().filter(|(pair, carried)| known(pair, carried)) {
            let told = self.known().get(pair).map(|known| known.told).unwrap_or_default();
            let open = open.get(pair).copied().unwrap_or_default();
            if let Some(news) = news(carried, open, &told) {
                let told = sum(&told, &news);
                match self.told.insert(*pair, told, 0) {
                    Ok(()) => {
                        self.known().insert(*pair, Known { told, rests: 0 });
                        all.told.push((*pair, news));
                    }
                    // Who cannot note it must not tell it: it would be told again.
                    Err(error) => all.failure = Some(refused(maps::DIRECT_TOLD, &error)),
                }
                continue;
            }
            let known = self.known().entry(*pair).or_default();
            known.rests += 1;
            let over = carried.opened == carried.closed && carried.forward >= told.forward && carried.back >= told.back;
            let rests = known.rests >= MAX_RESTS && (over || netns(pair.client).is_none());
            if rests && *pair != Pair::NOBODY {
                match self.take(pair, &told) {
                    Ok(news) => all.told.extend(news.map(|news| (*pair, news))),
                    Err(error) => all.failure = Some(error),
                }
            }
        }
        all
    }

    /// The bytes of connections that are open, of entries that are there: others are counted for nobody at their end.
    fn open_bytes<'n>(&self, stats: &HashMap<Pair, Carried>, netns: &impl Fn(u64) -> Option<&'n NetNs>) -> Open {
        let live = stats.iter().filter(|(_, carried)| carried.opened != carried.closed).map(|(pair, _)| *pair);
        let mut wanted: HashMap<u64, HashSet<SocketAddr>> = HashMap::new();
        for pair in live {
            wanted.entry(pair.client).or_default().insert(pair.endpoint.into());
        }
        let mut open = Open::new();
        if wanted.is_empty() {
            return open;
        }
        std::thread::sleep(GONE);
        for (client, endpoints) in wanted {
            let Some(netns) = netns(client) else { continue };
            let sockets = match counted(netns) {
                Ok(sockets) => sockets,
                Err(error) => {
                    warn!(netns = client, %error, "what open direct connections carry is told when they are over");
                    continue;
                }
            };
            for Counted { local, remote, counts } in sockets.iter().filter(|socket| endpoints.contains(&socket.remote))
            {
                let endpoint = (*remote).into();
                let Ok(record) = self.records.get(&key(&(*local).into(), &endpoint), 0) else { continue };
                let pair = Pair { client, to: record.to, endpoint };
                if record.client == client && stats.contains_key(&pair) {
                    let (forward, back) = open.entry(pair).or_default();
                    // What goes by a shortcut TCP does not count.
                    let link = (record.link != 0).then(|| self.shortcuts.get(&record.link, 0).ok()).flatten();
                    let (short, short_back) = link.map_or((0, 0), |link| (link.client.sent, link.server.sent));
                    *forward += counts.forward() + short;
                    *back += counts.back() + short_back;
                }
            }
        }
        open
    }

    /// Forgets what was told of entries that are gone: one that is there again begins at 0.
    fn forget(&mut self, stats: &HashMap<Pair, Carried>) {
        let gone: Vec<Pair> = self.known().keys().filter(|pair| !stats.contains_key(pair)).copied().collect();
        for pair in gone {
            if let Err(error) = take_out(&mut self.told, maps::DIRECT_TOLD, &pair) {
                warn!(%error, "what was told of direct connections is not forgotten");
                continue;
            }
            self.known().remove(&pair);
        }
    }

    /// Takes an entry out; what has come to it meanwhile.
    fn take(&mut self, pair: &Pair, told: &Carried) -> Result<Option<Carried>, KernelError> {
        let taken = bpf::take(self.taken.fd().as_fd(), pair);
        let wrong = |e: std::io::Error| KernelError::Map { map: maps::DIRECT_STATS, why: e.to_string() };
        let carried: Option<Carried> = taken.map_err(wrong)?;
        take_out(&mut self.told, maps::DIRECT_TOLD, pair)?;
        self.known().remove(pair);
        Ok(carried.and_then(|carried| news(&carried, (0, 0), told)))
    }

    fn known(&mut self) -> &mut HashMap<Pair, Known> {
        let Self { told, known, .. } = self;
        known.get_or_insert_with(|| {
            let all = told.iter().filter_map(Result::ok);
            all.map(|(pair, told)| (pair, Known { told, rests: 0 })).collect()
        })
    }
}

/// The entry for all that have none.
fn nobody(stats: &mut BpfHashMap<MapData, Pair, Carried>) -> Result<(), KernelError> {
    match stats.insert(Pair::NOBODY, Carried::default(), BPF_NOEXIST) {
        Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        done => done.map_err(|e| refused(maps::DIRECT_STATS, &e)),
    }
}

/// What is known now and was not told yet, if anything. `open`: bytes of connections that are not over. One may have ended
/// between the two looks, and is in neither: then more was told already, and nothing is new.
fn news(carried: &Carried, open: (u64, u64), told: &Carried) -> Option<Carried> {
    let news = Carried {
        server: carried.server,
        opened: carried.opened.saturating_sub(told.opened),
        closed: carried.closed.saturating_sub(told.closed),
        forward: carried.forward.saturating_add(open.0).saturating_sub(told.forward),
        back: carried.back.saturating_add(open.1).saturating_sub(told.back),
    };
    (news.opened | news.closed | news.forward | news.back != 0).then_some(news)
}

fn sum(told: &Carried, news: &Carried) -> Carried {
    Carried {
        server: news.server,
        opened: told.opened.saturating_add(news.opened),
        closed: told.closed.saturating_add(news.closed),
        forward: told.forward.saturating_add(news.forward),
        back: told.back.saturating_add(news.back),
    }
}

/// Figures of TCP sockets that have closed, by path.
pub struct TcpStats(PerCpuArray<MapData, u64>);

impl TcpStats {
    pub(super) fn new(map: PerCpuArray<MapData, u64>) -> TcpStats {
        TcpStats(map)
    }

    /// A figure since the maps were made, summed over the CPUs.
    pub fn figure(&self, path: Path, figure: Figure) -> Result<u64, KernelError> {
        let values = self.0.get(&place(path, figure), 0);
        let values = values.map_err(|e| KernelError::Map { map: maps::TCP_STATS, why: chain(&e) })?;
        Ok(values.iter().sum())
    }
}

#[cfg(test)]
mod tests;
