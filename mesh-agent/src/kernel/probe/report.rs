//! What was found, as lines for people. In: findings. Out: a table, or one line for a thing that is missing. Tries
//! nothing itself.

use std::fmt;

use super::checks::{Bench, Check, Need};
use super::kernel_release;
use crate::kernel::capabilities;

/// What a check found.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The hook, or the subsystem.
    pub hook: &'static str,
    /// The helper or feature.
    pub feature: &'static str,
    /// The oldest kernel that has it, with its configuration option if there is one.
    pub since: &'static str,
    /// Whether the mesh can do without.
    pub need: Need,
    /// What the mesh uses it for.
    pub used: &'static str,
    /// What happens without.
    pub without: &'static str,
    /// The kernel's words, if it is not there.
    pub missing: Option<Missing>,
}

/// Why something is not there.
#[derive(Clone, Debug)]
pub struct Missing {
    /// The kernel's words.
    pub why: String,
    /// Whether it was not allowed, and so may be there for another.
    pub denied: bool,
}

/// Everything that was tried.
#[derive(Clone, Debug)]
pub struct Report {
    /// The running kernel.
    pub release: String,
    /// In the order of the table.
    pub findings: Vec<Finding>,
    /// The object's programs, each with the kernel's words if it was refused.
    pub programs: Vec<(&'static str, Option<String>)>,
    /// What others have attached where the mesh works.
    pub others: Vec<String>,
}

impl Finding {
    pub(super) fn of(check: Check, bench: &Bench<'_>) -> Finding {
        let missing = (check.by)(bench).err().map(|e| Missing { why: e.to_string(), denied: super::denied(&e) });
        let Check { hook, feature, since, need, used, without, .. } = check;
        Finding { hook, feature, since, need, used, without, missing }
    }

    /// The one line about what is missing.
    pub fn lack(&self) -> Option<String> {
        let missing = self.missing.as_ref()?;
        let remedy = if missing.denied {
            capabilities::remedy()
        } else {
            "boot such a kernel (docs/kernels.md lists those that were tried)".to_owned()
        };
        Some(format!(
            "this kernel (Linux {}) lacks {} in {} (needed: Linux {}): {}; {remedy}",
            kernel_release(),
            self.feature,
            self.hook,
            self.since,
            missing.why
        ))
    }
}

impl Report {
    /// Whether the agent can run.
    pub fn fit(&self) -> bool {
        let programs = !self.programs.is_empty() && self.programs.iter().all(|(_, refused)| refused.is_none());
        programs && self.findings.iter().all(|f| f.need == Need::May || f.missing.is_none())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |finding: &Finding| {
            let here = finding.missing.as_ref().map_or_else(|| "yes".to_owned(), |m| format!("no: {}", m.why));
            let use_ = match (&finding.missing, finding.need) {
                (None, _) => finding.used.to_owned(),
                (Some(_), _) if finding.without == "-" => "-".to_owned(),
                (Some(_), Need::Must | Need::May) => format!("without: {}", finding.without),
            };
            [finding.hook.to_owned(), finding.feature.to_owned(), here, finding.since.to_owned(), use_]
        };
        let head = ["hook", "feature", "here", "since Linux", "the mesh"].map(str::to_owned);
        let rows: Vec<_> = std::iter::once(head).chain(self.findings.iter().map(row)).collect();
        let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or_default();
        let widths: [usize; 5] = std::array::from_fn(width);
        for (i, row) in rows.iter().enumerate() {
            for (cell, width) in row.iter().zip(widths) {
                write!(f, "| {cell:width$} ")?;
            }
            writeln!(f, "|")?;
            if i == 0 {
                writeln!(f, "{}|", widths.map(|w| format!("|{}", "-".repeat(w + 2))).concat())?;
            }
        }
        writeln!(f)?;
        for (program, refused) in &self.programs {
            match refused {
                None => writeln!(f, "program {program}: loads")?,
                Some(why) => writeln!(f, "program {program}: {why}")?,
            }
        }
        for other in &self.others {
            writeln!(f, "{other}")?;
        }
        let verdict = if self.fit() { "everything that the mesh needs is there" } else { "not fit for the mesh" };
        writeln!(f, "Linux {}: {verdict}", self.release)
    }
}
