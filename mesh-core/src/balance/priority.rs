//! Chooses the pool of endpoints that a choice is made in: priority, health, panic, locality.
//!
//! In: an assignment, the cluster's settings, random numbers. Out: a pool that is not empty, or none.

use crate::resource::cluster::LbConfig;
use crate::resource::endpoint::{Level, LoadAssignment, Pool, Pools};

/// Loads are handed out in percent.
const FULL: u64 = 100;

/// Which endpoints of a level are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Healthy,
    Degraded,
    All,
}

pub(super) fn pool<'a>(
    assignment: &'a LoadAssignment,
    lb: &LbConfig,
    random: &mut impl FnMut() -> u64,
) -> Option<&'a Pool> {
    let factor = u64::from(assignment.overprovisioning);
    let (level, use_of) = match assignment.levels() {
        [] => return None,
        // By far the most common: one priority, all of it healthy.
        [only] if only.any.healthy.len() == only.any.all.len() => (only, Use::Healthy),
        levels => choose_level(levels, lb, factor, random)?,
    };
    let pools = if lb.locality_weighted {
        choose_locality(level, use_of, factor, random).unwrap_or(&level.any)
    } else {
        &level.any
    };
    let pool = of(pools, use_of);
    (!pool.is_empty()).then_some(pool)
}

fn of(pools: &Pools, use_of: Use) -> &Pool {
    match use_of {
        Use::Healthy => &pools.healthy,
        Use::Degraded => &pools.degraded,
        Use::All => &pools.all,
    }
}

fn count(pool: &Pool) -> u64 {
    u64::try_from(pool.len()).unwrap_or(u64::MAX)
}

/// Percent of a level that a part of its endpoints can carry, with overprovisioning, at most 100.
fn capacity(part: u64, all: u64, factor: u64) -> u64 {
    match part.saturating_mul(factor).checked_div(all) {
        Some(percent) => percent.min(FULL),
        None => 0,
    }
}

/// Spreads the load over levels: healthy endpoints first, from the first level on, then degraded
/// ones. If together they cannot carry all of it, what they carry is scaled up, and a level too
/// unhealthy for that uses all its endpoints (panic).
fn choose_level<'a>(
    levels: &'a [Level],
    lb: &LbConfig,
    factor: u64,
    random: &mut impl FnMut() -> u64,
) -> Option<(&'a Level, Use)> {
    let carried = |pool: fn(&Pools) -> &Pool| {
        levels.iter().map(move |level| capacity(count(pool(&level.any)), count(&level.any.all), factor))
    };
    let healthy = carried(|pools| &pools.healthy);
    let degraded = carried(|pools| &pools.degraded);
    let total = healthy.clone().chain(degraded.clone()).sum::<u64>().min(FULL);
    if total == 0 {
        return all_down(levels, lb, random);
    }
    let mut point = random() % total;
    let choices = levels
        .iter()
        .zip(healthy)
        .map(|(level, load)| (level, load, Use::Healthy))
        .chain(levels.iter().zip(degraded).map(|(level, load)| (level, load, Use::Degraded)));
    for (level, load, use_of) in choices {
        if point < load {
            let panic = total < FULL && in_panic(level, lb);
            return Some((level, if panic { Use::All } else { use_of }));
        }
        point -= load;
    }
    None
}

/// Nothing is healthy: every endpoint of every level is as good as any other, unless panic is off.
fn all_down<'a>(levels: &'a [Level], lb: &LbConfig, random: &mut impl FnMut() -> u64) -> Option<(&'a Level, Use)> {
    if lb.panic_threshold <= 0.0 {
        return None;
    }
    let total: u64 = levels.iter().map(|level| count(&level.any.all)).sum();
    let mut point = random().checked_rem(total)?;
    for level in levels {
        let here = count(&level.any.all);
        if point < here {
            return Some((level, Use::All));
        }
        point -= here;
    }
    None
}

fn in_panic(level: &Level, lb: &LbConfig) -> bool {
    let usable = count(&level.any.healthy) + count(&level.any.degraded);
    let all = count(&level.any.all);
    (usable as f64) * 100.0 < lb.panic_threshold * (all as f64)
}

/// A locality by its weight, lowered when too few of its endpoints can be used.
fn choose_locality<'a>(
    level: &'a Level,
    use_of: Use,
    factor: u64,
    random: &mut impl FnMut() -> u64,
) -> Option<&'a Pools> {
    let share = |(weight, pools): &(u32, Pools)| {
        let usable = count(of(pools, use_of));
        let all = count(&pools.all);
        u64::from(*weight) * capacity(usable, all, factor)
    };
    let total: u64 = level.localities.iter().map(share).sum();
    let mut point = random().checked_rem(total)?;
    for locality in &level.localities {
        let here = share(locality);
        if point < here {
            return Some(&locality.1);
        }
        point -= here;
    }
    None
}
