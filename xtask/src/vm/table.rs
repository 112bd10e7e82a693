//! What held where, as a table. In: outcomes. Out: Markdown, and its place in `docs/kernels.md`.

use std::fmt::Write;

use anyhow::{Context, Result};

use super::machine::Outcome;
use crate::cargo;

const BEGIN: &str = "<!-- written by `cargo xtask vm --record` -->";
const END: &str = "<!-- end -->";

/// One line a kernel, and what failed below.
pub fn markdown(results: &[Outcome]) -> String {
    let mut text = String::from("| kernel | package | kernel tests | everything held |\n|---|---|---|---|\n");
    for result in results {
        let all = result.passed.len() + result.failed.len();
        let verdict = if result.good() { "yes" } else { "no, see below" };
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(
            text,
            "| {} | {} | {} of {all} passed | {verdict} |",
            result.release,
            result.package,
            result.passed.len()
        );
    }
    for result in results.iter().filter(|r| !r.good()) {
        let _ = writeln!(text, "\nOn {}:", result.package);
        for what in result.failed.iter().map(|f| format!("failed: {f}")).chain(result.trouble.iter().cloned()) {
            let _ = writeln!(text, "- {what}");
        }
        if !result.finished {
            let _ = writeln!(text, "- the machine did not come to the end");
        }
    }
    for result in results.iter().filter(|r| !r.probe.is_empty()) {
        let _ = writeln!(text, "\n`mesh-agent probe` on {}:\n\n{}", result.release, result.probe.join("\n"));
    }
    text
}

/// Puts the table between its marks in the document.
pub fn record(table: &str) -> Result<()> {
    let path = cargo::root().join("docs/kernels.md");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let new = replaced(&text, table).with_context(|| format!("{}: no marks `{BEGIN}` and `{END}`", path.display()))?;
    std::fs::write(&path, new).with_context(|| format!("writing {}", path.display()))
}

fn replaced(text: &str, table: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{table}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_takes_the_place_of_the_last() {
        let text = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        assert_eq!(replaced(&text, "new").as_deref(), Some(&*format!("a\n{BEGIN}\n\nnew\n{END}\nb\n")));
        assert_eq!(replaced("a", "new"), None);
    }

    #[test]
    fn what_failed_is_named() {
        let bad = Outcome { package: "p 1".into(), failed: vec!["x".into()], ..Outcome::default() };
        let text = markdown(&[bad]);
        assert!(text.contains("0 of 1 passed") && text.contains("- failed: x") && text.contains("not come to the end"));
    }
}
