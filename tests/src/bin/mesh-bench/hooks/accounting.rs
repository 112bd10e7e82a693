//! The kernel's own account of its programs: how often each ran, and for how long (`BPF_ENABLE_STATS`). In: a lab's pins.
//! Out: the account between two moments. The kernel keeps it only while somebody holds a descriptor, so it ends with this
//! process, however that ends.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Sub;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use aya::maps::MapInfo;
use aya::programs::{SchedClassifier, TestRun, TestRunOptions, loaded_programs};
use aya::sys::{Stats, enable_stats};
use mesh_agent::kernel::{bpf, hooks};
use mesh_common::abi;

/// Runs of a program, and their time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Runs {
    pub count: u64,
    pub nanos: u64,
}

impl Runs {
    /// Nanoseconds a run.
    pub fn each(self) -> Option<f64> {
        (self.count > 0).then(|| self.nanos as f64 / self.count as f64)
    }
}

impl Sub for Runs {
    type Output = Runs;

    fn sub(self, earlier: Runs) -> Runs {
        Runs { count: self.count.saturating_sub(earlier.count), nanos: self.nanos.saturating_sub(earlier.nanos) }
    }
}

/// By the program's name ([`name`]): all of one node's instances together.
pub type Account = BTreeMap<&'static str, Runs>;

/// What happened between two moments.
pub fn between(earlier: &Account, later: &Account) -> Account {
    later.iter().map(|(name, runs)| (*name, *runs - earlier.get(name).copied().unwrap_or_default())).collect()
}

/// Lets the kernel keep account until the value is dropped.
pub struct Accounting(#[allow(dead_code, reason = "held, not used")] OwnedFd);

impl Accounting {
    /// Begins.
    pub fn begin() -> Result<Accounting> {
        Ok(Accounting(enable_stats(Stats::RunTime).context("BPF_ENABLE_STATS")?))
    }
}

/// The programs of one node's agent.
pub struct Node {
    ids: BTreeMap<u32, &'static str>,
}

impl Node {
    /// Those that use a map that is pinned below `pins`: the lab's own, whoever else has such programs on this machine.
    pub fn find(pins: &Path) -> Result<Node> {
        let maps = pins.join(format!("v{}", abi::ABI_VERSION));
        let ids = abi::maps::ALL.iter().map(|name| {
            let pin = maps.join(name);
            MapInfo::from_pin(&pin).map(|info| info.id()).with_context(|| format!("map {}", pin.display()))
        });
        let maps: BTreeSet<u32> = ids.collect::<Result<_>>()?;
        let mut ids = BTreeMap::new();
        for program in loaded_programs().flatten() {
            // Somebody else's may be gone by now.
            let Some(name) = name(program.name()) else { continue };
            if program.map_ids().ok().flatten().is_some_and(|used| used.iter().any(|id| maps.contains(id))) {
                ids.insert(program.id(), name);
            }
        }
        Ok(Node { ids })
    }

    /// The account so far.
    pub fn account(&self) -> Account {
        let mut account = Account::new();
        for program in loaded_programs().flatten() {
            if let Some(name) = self.ids.get(&program.id()) {
                let runs = account.entry(name).or_default();
                runs.count += program.run_count();
                runs.nanos += u64::try_from(program.run_time().as_nanos()).unwrap_or(u64::MAX);
            }
        }
        account
    }
}

/// A program of ours, by what the kernel keeps of its name: 15 letters, so that two programs may share one.
fn name(kept: &[u8]) -> Option<&'static str> {
    const KEPT: usize = 15;
    let hook = hooks::HOOKS.iter().find(|hook| hook.program.bytes().take(KEPT).eq(kept.iter().copied()))?;
    let name = hook.program.trim_start_matches("mesh_");
    Some(if hook.program.len() > KEPT { name.trim_end_matches(['4', '6']) } else { name })
}

/// What keeping account costs, in nanoseconds a run: what is put down for a program that does nothing, and by how much
/// longer a run of it takes. To be called while nobody keeps account.
pub fn overhead(pins: &Path) -> Result<(f64, f64)> {
    /// Runs of one measurement.
    const REPEAT: u32 = 1_000_000;
    // r0 = 0; exit.
    let nothing = bpf::load(bpf::Kind::SchedCls, 0, "mesh_nothing", &[0xb7, 0x95]).context("loading a program")?;
    let pin = pins.join("bench-nothing");
    bpf::pin(nothing.as_fd(), &pin).with_context(|| format!("pinning {}", pin.display()))?;
    let program = SchedClassifier::from_pin(&pin);
    std::fs::remove_file(&pin).with_context(|| format!("removing {}", pin.display()))?;
    let program = program?;
    let run = || -> Result<f64> {
        let options = TestRunOptions { data_in: Some(&[0; 64]), repeat: REPEAT, ..TestRunOptions::default() };
        Ok(program.test_run(options).context("BPF_PROG_TEST_RUN")?.duration.as_nanos() as f64)
    };
    // Once for the caches.
    run()?;
    let without = run()?;
    let accounting = Accounting::begin()?;
    let with = run()?;
    drop(accounting);
    let info = program.info()?;
    let accounted = Runs { count: info.run_count(), nanos: info.run_time().as_nanos() as u64 };
    Ok((accounted.each().context("the kernel keeps no account of BPF_PROG_TEST_RUN")?, with - without))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_whose_names_the_kernel_cannot_tell_apart_are_one() {
        assert_eq!(name(b"mesh_connect4"), Some("connect4"));
        assert_eq!(name(b"mesh_getpeernam"), Some("getpeername"));
        assert_eq!(name(b"mesh_setsockopt"), Some("setsockopt"));
        assert_eq!(name(b"mesh_other"), None);
    }

    #[test]
    fn an_account_is_what_came_since() {
        let earlier = Account::from([("a", Runs { count: 1, nanos: 100 })]);
        let later = Account::from([("a", Runs { count: 3, nanos: 400 }), ("b", Runs { count: 0, nanos: 0 })]);
        let since = between(&earlier, &later);
        assert_eq!(since["a"].each(), Some(150.0));
        assert_eq!(since["b"].each(), None);
    }
}
