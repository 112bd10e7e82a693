//! The layers of the crate, checked on its sources: a module uses only modules to its left.

use std::path::{Path, PathBuf};

/// Low to high.
const LAYERS: &[&str] = &[
    "settings",
    "errors",
    "random",
    "shutdown",
    "telemetry",
    "net",
    "workload",
    "tls",
    "identity",
    "kernel",
    "dns",
    "upstream",
    "live",
    "proxy",
    "xds",
    "apply",
    "admin",
    "handover",
    "app",
];

#[test]
fn modules_use_only_lower_layers() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&src, &mut files);
    let mut wrong = Vec::new();
    for file in &files {
        let relative = file.strip_prefix(&src).unwrap();
        let module = relative.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        if ["lib", "main", "tests"].contains(&module) {
            continue;
        }
        let Some(own) = LAYERS.iter().position(|layer| *layer == module) else {
            wrong.push(format!("{}: module {module} has no layer", relative.display()));
            continue;
        };
        let text = std::fs::read_to_string(file).unwrap();
        for used in uses(&text) {
            match LAYERS.iter().position(|layer| *layer == used) {
                Some(other) if other <= own => {}
                _ => wrong.push(format!("{}: {module} uses crate::{used}", relative.display())),
            }
        }
    }
    assert!(!files.is_empty());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The first path element after each `crate::` outside comments, braces included.
fn uses(text: &str) -> Vec<String> {
    let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut found = Vec::new();
    for (at, marker) in code.match_indices("crate::") {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[at + marker.len()..];
        match rest.strip_prefix('{') {
            Some(list) => {
                let mut depth = 0;
                let mut names = String::new();
                for c in list.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        c if depth == 0 => names.push(c),
                        _ => {}
                    }
                }
                found.extend(names.split(',').map(first_word).filter(|name| !name.is_empty()));
            }
            None => found.push(first_word(rest)),
        }
    }
    found
}

fn first_word(text: &str) -> String {
    text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

#[test]
fn finds_uses() {
    let text = "use crate::net::netns;\n// crate::app\nuse crate::{errors::{A, B}, telemetry};\nfn f() -> crate::live::X {}\nuse mycrate::x;";
    assert_eq!(uses(text), ["net", "errors", "telemetry", "live"]);
}
