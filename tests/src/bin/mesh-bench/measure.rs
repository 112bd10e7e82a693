//! What one round measures and how rounds become figures.
//!
//! Rounds of all paths are interleaved, so that the machine's drift hits all alike; the figure of a path is the median
//! over rounds, and its ratio the median of the rounds' ratios to the direct path of the same round.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, anyhow};
use serde_json::Value;

/// One measurement of one path.
#[derive(Clone, Default)]
pub struct Round {
    /// Named values as the load generator printed them.
    pub values: BTreeMap<String, f64>,
    /// CPU time that was used.
    pub cpu: Cpu,
}

/// CPU time of a run, with its warm-up.
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub struct Cpu {
    /// Of the proxies of the path, as they are accounted for it.
    pub proxies: Duration,
    /// Of the whole machine, all that was not idle: what the kernel does for a packet is often put down to nobody, or to
    /// whoever happened to run.
    pub machine: Duration,
}

impl Cpu {
    /// What was used until now.
    pub fn now(proxies: &[u32]) -> anyhow::Result<Cpu> {
        let text = std::fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
        let machine = busy(&text).context("/proc/stat has no line `cpu`")?;
        Ok(Cpu { proxies: cpu_of(proxies)?, machine })
    }

    /// What was used since.
    pub fn since(self, earlier: Cpu) -> Cpu {
        Cpu {
            proxies: self.proxies.saturating_sub(earlier.proxies),
            machine: self.machine.saturating_sub(earlier.machine),
        }
    }
}

/// The time that the processors were not idle (proc_stat(5), in hundredths of a second; nobody steals from idle ones).
fn busy(stat: &str) -> Option<Duration> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq; guests are in user already.
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = fields.as_slice() else { return None };
    Some(Duration::from_millis((user + nice + system + irq + softirq) * 10))
}

impl Round {
    /// Reads the load generator's line.
    pub fn parse(output: &str, cpu: Cpu) -> anyhow::Result<Self> {
        let line = output.lines().last().context("the load generator printed nothing")?;
        let value: Value =
            serde_json::from_str(line).with_context(|| format!("the load generator printed {line:?}"))?;
        let object = value.as_object().ok_or_else(|| anyhow!("the load generator printed {line:?}"))?;
        let values = object.iter().filter_map(|(key, value)| Some((key.clone(), value.as_f64()?))).collect();
        let round = Self { values, cpu };
        match round.values.get("errors") {
            Some(errors) if *errors > 0.0 => Err(anyhow!("{errors} operations failed: {line}")),
            _ => Ok(round),
        }
    }

    /// A value by name; `cpu_us` and `machine_us` are the proxies' and the machine's CPU time in microseconds an operation.
    pub fn get(&self, name: &str) -> Option<f64> {
        let share = |cpu: Duration, of: &str, unit: f64| {
            let count = self.values.get(of)?;
            (cpu > Duration::ZERO && *count > 0.0).then(|| cpu.as_secs_f64() * unit / count)
        };
        match name {
            "cpu_us" => share(self.cpu.proxies, "with_warm_up", 1e6),
            "machine_us" => share(self.cpu.machine, "with_warm_up", 1e6),
            "cpu_s_per_gb" => share(self.cpu.proxies, "bytes", 1e9),
            _ => self.values.get(name).copied(),
        }
    }
}

/// The median; `None` of nothing.
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// CPU time of a process and its threads, from `/proc/PID/task/*/schedstat` (nanoseconds).
pub fn cpu_of(pids: &[u32]) -> anyhow::Result<Duration> {
    let mut nanos = 0u64;
    for pid in pids {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid} is gone"))?;
        for task in tasks {
            // A thread may end between the listing and the reading.
            if let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) {
                nanos += text.split_whitespace().next().and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
            }
        }
    }
    Ok(Duration::from_nanos(nanos))
}

/// A process and all its descendants.
pub fn family(root: u32) -> Vec<u32> {
    let mut all = vec![root];
    let mut next = 0;
    while let Some(pid) = all.get(next).copied() {
        next += 1;
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        all.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_value() {
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([]), None);
        assert_eq!(median([f64::NAN, 5.0]), Some(5.0));
    }

    #[test]
    fn a_run_with_errors_is_refused() {
        assert!(Round::parse(r#"{"operations": 5, "errors": 1}"#, Cpu::default()).is_err());
        assert!(Round::parse("", Cpu::default()).is_err());
    }

    #[test]
    fn cpu_is_shared_among_operations() {
        let cpu = Cpu { proxies: Duration::from_micros(50), machine: Duration::from_micros(100) };
        let round = Round::parse(r#"{"operations": 4, "with_warm_up": 5, "errors": 0}"#, cpu).unwrap();
        assert_eq!((round.get("cpu_us"), round.get("machine_us")), (Some(10.0), Some(20.0)));
        assert_eq!(round.get("cpu_s_per_gb"), None);
    }

    #[test]
    fn the_machine_is_busy_when_it_is_not_idle() {
        let text = "cpu  1 2 3 1000 2000 4 5 7 0 0\ncpu0 9 9 9 9 9 9 9 9 9 9\n";
        assert_eq!(busy(text), Some(Duration::from_millis(150)));
        assert_eq!(busy("intr 1"), None);
    }

    #[test]
    fn the_own_process_uses_cpu_time() {
        let mut spin = 0u64;
        for value in 0..5_000_000u64 {
            spin = std::hint::black_box(spin.wrapping_add(value));
        }
        assert!(cpu_of(&[std::process::id()]).unwrap() > Duration::ZERO);
        assert!(family(std::process::id()).contains(&std::process::id()));
    }
}
