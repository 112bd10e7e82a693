//! A clean path stays as it is, begins as the other did, and keeps its query.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_http::path::{Cleaned, Cleaning, EscapedSlashes, clean};

fuzz_target!(|input: (bool, bool, u8, &str)| {
    let (dots, slashes, escaped, path) = input;
    let escaped = match escaped % 4 {
        0 => EscapedSlashes::Keep,
        1 => EscapedSlashes::Reject,
        2 => EscapedSlashes::Redirect,
        _ => EscapedSlashes::Unescape,
    };
    let (Cleaned::Other(now) | Cleaned::Redirect(now)) = clean(path, Cleaning { dots, slashes, escaped }) else {
        return;
    };
    assert!(now.starts_with('/') && now.len() <= path.len());
    let query = |path: &str| path.find('?').map(|at| path[at..].to_owned());
    assert_eq!(query(&now), query(path));
    let only = now.split('?').next().unwrap_or_default();
    if dots {
        assert!(!only.split('/').any(|segment| segment == "." || segment == ".."), "{now}");
    }
    if slashes {
        assert!(!only.contains("//"), "{now}");
    }
});
