//! What came of a suite's cases, and the rule that decides: no case that the reference passes may fail for us.
//!
//! In: outcomes. Out: an error that lists what fails; where `MESH_CONFORMANCE` names a directory, a file of JSON there, for the command that
//! writes `docs/conformance.md` of them.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// A directory for the results of every case; without it a share of them runs.
const VARIABLE: &str = "MESH_CONFORMANCE";

/// Whether every case is wanted.
pub fn everything() -> bool {
    directory().is_some()
}

fn directory() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).map(PathBuf::from)
}

/// One case.
pub struct Row {
    /// The rule that it is about, or the group that it belongs to.
    pub section: String,
    pub name: String,
    /// What each subject did, in the order of [`Suite::subjects`]: what was seen, or what was wrong with it.
    pub outcomes: Vec<Result<String, String>>,
}

/// A suite that has run.
pub struct Suite {
    /// Name of its file.
    pub name: &'static str,
    /// Whom the cases were tried on.
    pub subjects: Vec<&'static str>,
    /// So many of them, the first, are ours.
    pub ours: usize,
    /// What the last of them passes, ours must pass. Without a reference, ours must pass everything.
    pub reference: bool,
    /// Cases that ours do not pass, and why that is so; one that they do pass must not be here.
    pub known: &'static [(&'static str, &'static str)],
    pub rows: Vec<Row>,
}

impl Suite {
    /// Writes the results down where they are wanted, and judges them.
    ///
    /// # Errors
    /// Fewer cases than `least` have run, or one that the reference passes failed for another.
    pub fn judge(&self, least: usize) -> Result<()> {
        if let Some(dir) = directory() {
            std::fs::create_dir_all(&dir)?;
            let file = dir.join(format!("{}.json", self.name));
            let text = serde_json::to_vec_pretty(&self.json())?;
            std::fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
        }
        let ran = self.rows.len();
        ensure!(ran >= least, "{}: {ran} cases have run, {least} at least were expected", self.name);
        let mut worse = Vec::new();
        for row in &self.rows {
            let ours = &row.outcomes[..self.ours];
            let reference = row.outcomes.last().filter(|_| self.reference);
            let (section, name) = (&row.section, &row.name);
            if self.known(row).is_some() {
                if ours.iter().all(Result::is_ok) {
                    worse.push(format!("  {section}: {name}\n    all pass: it is no known fault any more"));
                }
                continue;
            }
            if let Some(Err(_)) = reference {
                continue;
            }
            for (subject, outcome) in self.subjects.iter().zip(ours) {
                if let Err(why) = outcome {
                    let reference = reference.and_then(|of| of.as_ref().ok()).map_or("none", String::as_str);
                    worse.push(format!("  {section}: {name}\n    {subject}: {why}\n    the reference: {reference}"));
                }
            }
        }
        for (name, _) in self.known {
            ensure!(self.rows.iter().any(|row| row.name == *name), "{}: no case is called `{name}`", self.name);
        }
        let known = self.subjects.join(", ");
        ensure!(worse.is_empty(), "{} of {} ({known}) fail:\n{}", worse.len(), self.name, worse.join("\n"));
        Ok(())
    }

    /// Why a case is not passed.
    fn known(&self, row: &Row) -> Option<&'static str> {
        self.known.iter().find(|(name, _)| *name == row.name).map(|(_, why)| *why)
    }

    fn json(&self) -> Value {
        let outcome = |outcome: &Result<String, String>| match outcome {
            Ok(seen) => json!({"passed": true, "seen": seen}),
            Err(why) => json!({"passed": false, "seen": why}),
        };
        let row = |row: &Row| {
            let outcomes: Vec<_> = row.outcomes.iter().map(outcome).collect();
            json!({"section": row.section, "name": row.name, "outcomes": outcomes, "why": self.known(row)})
        };
        let rows: Vec<_> = self.rows.iter().map(row).collect();
        json!({"suite": self.name, "subjects": self.subjects, "cases": rows})
    }
}
