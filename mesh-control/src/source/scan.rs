//! Finds the YAML files of a directory.
//!
//! In: a directory. Out: files in order of their path, and what could not be listed. Hidden names are left out, so that a
//! mounted ConfigMap (`..data`) is seen once; links are followed to a bounded depth.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Deepest directory below the configuration directory.
pub(super) const MAX_DEPTH: usize = 16;
/// Most files read.
pub(super) const MAX_FILES: usize = 100_000;

/// What tells whether a file has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp {
    pub length: u64,
    pub modified: Option<SystemTime>,
    pub inode: u64,
}

/// A listing.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// Files with their stamps.
    pub files: Vec<(PathBuf, Stamp)>,
    /// Directories and files that could not be looked at; what was known of them stays.
    pub failed: Vec<(PathBuf, String)>,
}

/// Lists the YAML files below `dir`. Fails only when `dir` itself cannot be listed.
pub(super) fn scan(dir: &Path) -> io::Result<Listing> {
    let mut listing = Listing::default();
    list(dir, 0, &mut listing)?;
    listing.files.sort_by(|a, b| a.0.cmp(&b.0));
    if listing.files.len() > MAX_FILES {
        let why = format!(
            "more than {MAX_FILES} files; those after {} are not read",
            listing.files[MAX_FILES - 1].0.display()
        );
        listing.failed.push((dir.to_owned(), why));
        listing.files.truncate(MAX_FILES);
    }
    Ok(listing)
}

fn list(dir: &Path, depth: usize, listing: &mut Listing) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            // Gone since it was listed, or a link to nothing.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                listing.failed.push((path, error.to_string()));
                continue;
            }
        };
        if metadata.is_dir() {
            if depth >= MAX_DEPTH {
                listing.failed.push((path, format!("nested deeper than {MAX_DEPTH} directories")));
            } else if let Err(error) = list(&path, depth + 1, listing) {
                listing.failed.push((path, error.to_string()));
            }
        } else if metadata.is_file() && is_yaml(&path) {
            use std::os::unix::fs::MetadataExt;
            let stamp = Stamp { length: metadata.len(), modified: metadata.modified().ok(), inode: metadata.ino() };
            listing.files.push((path, stamp));
        }
    }
    Ok(())
}

fn is_yaml(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
}
