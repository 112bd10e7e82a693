//! What is wrong with the configuration, told so that a person finds the place: file, line, object, field, reason.
//!
//! In: problems of one load. Out: log lines for what is new, and the current list for `/debug/problems`.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use serde::{Serialize, Serializer};

use crate::yaml::FieldPath;

/// Most problems that are kept and shown; the count of the others is kept.
pub const MAX_PROBLEMS: usize = 10_000;

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The object or document is not in force as written.
    Error,
    /// The object is in force, a part of it has no effect or points nowhere.
    Warning,
    /// Worth knowing, nothing is lost.
    Info,
}

/// Something wrong in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Problem {
    /// How bad.
    pub severity: Severity,
    /// File, relative to the configuration directory.
    #[serde(serialize_with = "shared_text")]
    pub file: Arc<str>,
    /// 1-based line; 0 when the file as a whole is meant.
    pub line: u32,
    /// `Kind namespace/name`, empty when not known.
    pub object: String,
    /// Field path in the object, empty for the whole.
    pub path: String,
    /// What is wrong.
    pub message: String,
}

fn shared_text<S: Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.file, self.line)?;
        if !self.object.is_empty() {
            write!(f, "{}: ", self.object)?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

impl Problem {
    /// A problem of a file as a whole.
    pub fn of_file(file: &Arc<str>, message: impl Into<String>) -> Problem {
        Problem {
            severity: Severity::Error,
            file: file.clone(),
            line: 0,
            object: String::new(),
            path: String::new(),
            message: message.into(),
        }
    }

    /// The same problem with a field path.
    pub fn at(mut self, path: &FieldPath) -> Problem {
        self.path = path.to_string();
        self
    }
}

/// The problems in force. Cheap to clone and share.
#[derive(Debug, Clone, Default)]
pub struct Problems(Arc<RwLock<Current>>);

#[derive(Debug, Default)]
struct Current {
    list: Vec<Problem>,
    left_off: usize,
}

impl Problems {
    /// Replaces the list and logs what was not in the list before.
    pub fn replace(&self, mut list: Vec<Problem>) {
        list.sort();
        list.dedup();
        let left_off = list.len().saturating_sub(MAX_PROBLEMS);
        list.truncate(MAX_PROBLEMS);
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let known: HashSet<&Problem> = current.list.iter().collect();
        for problem in list.iter().filter(|problem| !known.contains(problem)) {
            log(problem);
        }
        let fixed = current.list.iter().filter(|problem| list.binary_search(problem).is_err()).count();
        if fixed > 0 {
            tracing::info!(fixed, remaining = list.len(), "configuration problems were fixed");
        }
        *current = Current { list, left_off };
    }

    /// The problems in force and how many more there are.
    pub fn list(&self) -> (Vec<Problem>, usize) {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        (current.list.clone(), current.left_off)
    }

    /// How many problems of a severity are in force.
    pub fn count(&self, severity: Severity) -> usize {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        current.list.iter().filter(|problem| problem.severity == severity).count()
    }
}

/// The place stands first, as compilers write it, so that editors and people find it.
fn log(problem: &Problem) {
    match problem.severity {
        Severity::Error => tracing::error!("{problem}"),
        Severity::Warning => tracing::warn!("{problem}"),
        Severity::Info => tracing::debug!("{problem}"),
    }
}
