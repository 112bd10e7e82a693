//! Tidiness of the whole tree: what no compiler checks. In: the sources. Out: a list of what is not as it should be.
#![allow(clippy::expect_used)]

use std::path::{Path, PathBuf};

/// Files longer than this want to be two.
const LONGEST: usize = 700;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a readable tree").flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&path, found);
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
}

fn complaints(judge: impl Fn(&str, &Path) -> Option<String>) -> Vec<String> {
    let mut found = Vec::new();
    sources(&root(), &mut found);
    assert!(found.len() > 50, "only {} sources found", found.len());
    let judge = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).expect("a readable source");
        let short = path.strip_prefix(root()).unwrap_or(path).to_owned();
        judge(&text, &short).map(|why| format!("{}: {why}", short.display()))
    };
    found.iter().filter_map(judge).collect()
}

#[test]
fn every_file_says_what_it_is_for() {
    let bad = complaints(|text, path| {
        let build_script = path.file_name().is_some_and(|n| n == "build.rs");
        (!text.starts_with("//! ") && !build_script).then(|| "does not start with `//!`".to_owned())
    });
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

#[test]
fn files_stay_short() {
    let bad = complaints(|text, _| {
        let lines = text.lines().count();
        (lines > LONGEST).then(|| format!("{lines} lines"))
    });
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

#[test]
fn modules_are_files_beside_their_directory() {
    let bad = complaints(|_, path| path.ends_with("mod.rs").then(|| "`foo.rs` and `foo/`, not `mod.rs`".to_owned()));
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

#[test]
fn no_test_is_left_out() {
    let mark = concat!("#[", "ignore");
    let bad = complaints(|text, _| text.contains(mark).then(|| "an ignored test".to_owned()));
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}
