//! Workloads of the host: cgroups that share its network namespace with each other and with everybody else. In: the cgroups
//! above a process, as a hook can ask for them; names. Out: which workload it is, and the number under which the maps have
//! that. Reads no map: what costs a lookup is an argument to be called when it matters.

/// Deepest place of a workload's cgroup below the hierarchy's root, which is level 0. systemd's units stand at 2 to 5, pods
/// of Kubernetes at 2 to 4.
pub const MAX_LEVEL: u32 = 16;

/// What no cookie of a network namespace has: the kernel counts them up from 1.
const HOST: u64 = 1 << 63;

/// The number that stands for a workload of the host where a pod has its namespace's cookie. `name` is `namespace/name`: the
/// number is the same in every agent, so what one has left the next one finds. Two names have one number once in 2³¹ or
/// so workloads; the second of them is refused (FNV-1a).
pub fn key(name: &str) -> u64 {
    let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    name.bytes().fold(0xcbf2_9ce4_8422_2325, hash) | HOST
}

/// Whether this number is a workload of the host's.
pub fn is_host(key: u64) -> bool {
    key & HOST != 0
}

/// The bit that a level has among those at which there are cgroups of workloads; none for what is no such level.
pub fn mark(level: u32) -> u32 {
    if level == 0 || level > MAX_LEVEL { 0 } else { 1 << level }
}

/// The workload that one of the cgroups above a process belongs to, or the process's own. `levels`: where to look, by
/// [`mark`]. `ancestor` tells the cgroup at a level, 0 if there is none, and `workload` whose it is.
#[inline(always)]
pub fn find(
    levels: u32,
    mut ancestor: impl FnMut(u32) -> u64,
    mut workload: impl FnMut(u64) -> Option<u64>,
) -> Option<u64> {
    let mut level = 1;
    while level <= MAX_LEVEL {
        if levels >> level & 1 != 0 {
            let cgroup = ancestor(level);
            // No cgroup here, and so none below.
            if cgroup == 0 {
                return None;
            }
            if let Some(key) = workload(cgroup) {
                return Some(key);
            }
        }
        level += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_of_names() {
        // FNV-1a of the empty text and of "a" (draft-eastlake-fnv), with the highest bit set.
        assert_eq!(key(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(key("a"), 0xaf63_dc4c_8601_ec8c);
        assert!(is_host(key("default/db")) && !is_host(1) && !is_host(u64::MAX >> 1));
        assert_ne!(key("default/db"), key("default/da"));
    }

    proptest! {
        /// A process is a workload's if and only if one of the cgroups above it is, wherever it stands.
        #[test]
        fn whoever_is_below_a_cgroup_is_its_workload(path in proptest::collection::vec(1_u64..9, 0..20), own in 1_u64..9, at in 1_u32..=MAX_LEVEL, more: u32) {
            let ancestor = |level: u32| path.get(level as usize - 1).copied().unwrap_or(0);
            let levels = mark(at) | more & 0x1_fffe;
            let found = find(levels, ancestor, |cgroup| (cgroup == own).then_some(key("a/b")));
            let marked = |level: u32| levels & mark(level) != 0;
            let below = (1..=MAX_LEVEL).any(|level| marked(level) && ancestor(level) == own);
            prop_assert_eq!(found.is_some(), below);
        }

        /// Where no workload's cgroup stands nobody looks, and below its own depth a process is asked for nothing.
        #[test]
        fn nobody_looks_where_nothing_is(depth in 0_u32..20, levels: u32) {
            let (mut asked, mut looked) = (0, 0);
            let found = find(
                levels,
                |level| { asked += 1; if level <= depth { u64::from(level) } else { 0 } },
                |_| { looked += 1; None },
            );
            prop_assert_eq!(found, None);
            let expected = (1..=MAX_LEVEL.min(depth)).filter(|level| levels & mark(*level) != 0).count();
            prop_assert_eq!(looked, expected);
            prop_assert!(asked <= expected + 1);
        }

        #[test]
        fn a_mark_is_one_level(level: u32) {
            prop_assert_eq!(mark(level).count_ones() == 1, (1..=MAX_LEVEL).contains(&level));
        }
    }
}
