//! What the agent must be allowed to do: the one list that the lab's agents run with and that `deploy/` and
//! docs/security.md repeat (tested). In: /proc. Out: what is missing, in words. Drops and takes nothing itself.

use std::fs;

/// A capability (capabilities(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// As people write it.
    pub name: &'static str,
    /// As the kernel counts it (linux/capability.h), 0 to 63.
    pub number: u32,
}

/// All that the agent needs, run as root. CAP_SYS_ADMIN is there to enter namespaces; the kernel lets whoever has it load
/// programs and read their state, so CAP_BPF and CAP_PERFMON would add nothing.
pub const CAPABILITIES: [Capability; 3] = [
    Capability { name: "CAP_NET_ADMIN", number: 12 },
    Capability { name: "CAP_NET_RAW", number: 13 },
    Capability { name: "CAP_SYS_ADMIN", number: 21 },
];

/// What to do about a refusal: names those of [`CAPABILITIES`] that this process has not.
pub fn remedy() -> String {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    match missing(&status).as_slice() {
        [] => "the agent has the capabilities that it needs, so something else forbids it: see seccomp, AppArmor, SELinux \
               (docs/security.md)"
            .into(),
        missing => format!("give the agent {} (docs/security.md)", missing.join(" and ")),
    }
}

/// Reads the `CapEff` line of proc_pid_status(5). Without one nothing is missing.
fn missing(status: &str) -> Vec<&'static str> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let held = line.and_then(|line| u64::from_str_radix(line.trim(), 16).ok()).unwrap_or(u64::MAX);
    CAPABILITIES.iter().filter(|c| held & (1 << c.number) == 0).map(|c| c.name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_what_is_missing() {
        assert_eq!(missing("Name:\tx\nCapPrm:\t0\nCapEff:\t0000000000203000\n"), Vec::<&str>::new());
        assert_eq!(missing("CapEff:\t0000000000202000\n"), ["CAP_NET_ADMIN"]);
        assert_eq!(missing("CapEff:\t000001ffffffefff\n"), ["CAP_NET_ADMIN"]);
        assert_eq!(missing("CapEff:\t0\n"), ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_ADMIN"]);
        assert_eq!(missing(""), Vec::<&str>::new());
    }
}
