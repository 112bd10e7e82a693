//! The list of what the demo proves.

/// Statements and whether they hold.
#[derive(Default)]
pub struct Proofs(Vec<(bool, String)>);

impl Proofs {
    /// Adds a statement.
    pub fn add(&mut self, holds: bool, statement: impl Into<String>) {
        self.0.push((holds, statement.into()));
    }

    /// One line each.
    pub fn print(&self) {
        for (holds, statement) in &self.0 {
            println!("  {} {statement}", if *holds { "✓" } else { "✗ FAILED:" });
        }
    }

    /// Whether there are any, and all hold.
    pub fn all_hold(&self) -> bool {
        !self.0.is_empty() && self.0.iter().all(|(holds, _)| *holds)
    }
}
