//! Turns the directory into the objects in force.
//!
//! In: the directory, and what it held before. Out: [`Loaded`]. Files that did not change are not read again.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::scan::{self, Stamp};
use super::{Loaded, Objects};
use crate::config::{Key, Object, decode};
use crate::problem::{Problem, Severity};
use crate::yaml::{self, FieldPath};

/// Largest file read, in bytes.
const MAX_FILE: u64 = 16 << 20;
/// A file changed so shortly before it was read may change again without a new time stamp.
const STAMP_GRAIN: Duration = Duration::from_secs(2);

/// Says what is wrong with an object that is well formed; the error is a field and a reason.
pub type Vet = fn(&Object) -> Result<(), (FieldPath, String)>;

/// Reads one directory again and again.
pub struct Loader {
    dir: PathBuf,
    vet: Vet,
    files: HashMap<PathBuf, File>,
    in_force: Objects,
}

/// What one file gave.
struct File {
    stamp: Stamp,
    read_at: SystemTime,
    content: Content,
    /// Keys whose object this file gave when it was last right, as long as it is not known to have dropped them.
    gave: HashSet<Key>,
}

#[derive(Default)]
struct Content {
    objects: Vec<Arc<Object>>,
    broken: Vec<Key>,
    /// A part of the file could not be parsed at all, so what it dropped is not known.
    unreadable: bool,
    problems: Vec<Problem>,
}

impl Loader {
    /// For a directory; nothing is read yet. `vet` has the last word on an object that is well formed.
    pub fn new(dir: &Path, vet: Vet) -> Loader {
        Loader { dir: dir.to_owned(), vet, files: HashMap::new(), in_force: Objects::new() }
    }

    /// Reads what changed and puts everything together.
    pub fn load(&mut self) -> Loaded {
        let mut problems = Vec::new();
        match scan::scan(&self.dir) {
            Ok(listing) => {
                let failed: Vec<PathBuf> = listing.failed.iter().map(|(path, _)| path.clone()).collect();
                for (path, why) in listing.failed {
                    problems.push(Problem::of_file(&self.relative(&path), format!("cannot be read: {why}")));
                }
                let present: HashSet<&PathBuf> = listing.files.iter().map(|(path, _)| path).collect();
                self.files.retain(|path, _| present.contains(path) || failed.iter().any(|dir| path.starts_with(dir)));
                for (path, stamp) in listing.files {
                    self.refresh(path, stamp);
                }
            }
            Err(error) => {
                let why = format!("the configuration directory cannot be read: {error}; what it held stays in force");
                problems.push(Problem::of_file(&self.dir.display().to_string().into(), why));
            }
        }
        let objects = self.assemble(&mut problems);
        self.in_force = objects.clone();
        problems.sort();
        Loaded { objects, problems }
    }

    fn relative(&self, path: &Path) -> Arc<str> {
        path.strip_prefix(&self.dir).unwrap_or(path).display().to_string().into()
    }

    fn refresh(&mut self, path: PathBuf, stamp: Stamp) {
        let read_at = SystemTime::now();
        if let Some(known) = self.files.get(&path)
            && known.stamp == stamp
            && stamp.modified.is_some_and(|at| known.read_at.duration_since(at).is_ok_and(|age| age > STAMP_GRAIN))
        {
            return;
        }
        let content = read(&path, &self.relative(&path), &stamp, self.vet);
        match self.files.entry(path) {
            Entry::Vacant(entry) => {
                let gave = content.objects.iter().map(|object| object.key.clone()).collect();
                entry.insert(File { stamp, read_at, content, gave });
            }
            Entry::Occupied(mut entry) => {
                let file = entry.get_mut();
                // The same content read again keeps its objects, so that nothing looks changed.
                let content = keep_equal(content, &file.content);
                let keys = content.objects.iter().map(|object| &object.key).chain(&content.broken);
                if content.unreadable {
                    file.gave.extend(keys.cloned());
                } else {
                    file.gave = keys.cloned().collect();
                }
                (file.stamp, file.read_at, file.content) = (stamp, read_at, content);
            }
        }
    }

    /// The first file by path that defines an object wins; a broken or lost object stays as it was.
    fn assemble(&self, problems: &mut Vec<Problem>) -> Objects {
        let files: BTreeMap<&PathBuf, &File> = self.files.iter().collect();
        let mut objects = Objects::new();
        for file in files.values() {
            problems.extend(file.content.problems.iter().cloned());
            for object in &file.content.objects {
                match objects.get(&object.key) {
                    None => {
                        objects.insert(object.key.clone(), object.clone());
                    }
                    Some(first) => {
                        let origin = &first.origin;
                        let why = format!("already defined at {}:{}, which is in force", origin.file, origin.line);
                        problems.push(object.problem(Severity::Error, &FieldPath::default(), why));
                    }
                }
            }
        }
        for file in files.values() {
            let kept: Box<dyn Iterator<Item = &Key>> = if file.content.unreadable {
                Box::new(file.gave.iter())
            } else {
                Box::new(file.content.broken.iter().filter(|key| file.gave.contains(key)))
            };
            for key in kept {
                if let Some(object) = self.in_force.get(key) {
                    objects.entry(key.clone()).or_insert_with(|| object.clone());
                }
            }
        }
        objects
    }
}

fn read(path: &Path, name: &Arc<str>, stamp: &Stamp, vet: Vet) -> Content {
    let mut content = Content::default();
    let text = if stamp.length > MAX_FILE {
        Err(format!("the file has {} bytes, at most {MAX_FILE} are read", stamp.length))
    } else {
        fs::read_to_string(path).map_err(|error| format!("cannot be read: {error}"))
    };
    let text = match text {
        Ok(text) => text,
        Err(why) => {
            content.problems.push(Problem::of_file(name, why));
            content.unreadable = true;
            return content;
        }
    };
    for document in yaml::documents(&text) {
        match document.tree {
            Ok(node) => {
                let decoded = decode(node, name);
                for object in decoded.objects {
                    match vet(&object) {
                        Ok(()) => content.objects.push(Arc::new(object)),
                        Err((path, why)) => {
                            content.problems.push(object.problem(Severity::Error, &path, why));
                            content.broken.push(object.key);
                        }
                    }
                }
                content.broken.extend(decoded.broken);
                content.problems.extend(decoded.problems);
            }
            Err(fault) => {
                content.unreadable = true;
                content.problems.push(Problem { line: fault.line, ..Problem::of_file(name, fault.why) });
            }
        }
    }
    content
}

fn keep_equal(mut content: Content, before: &Content) -> Content {
    let known: HashMap<&Key, &Arc<Object>> = before.objects.iter().map(|object| (&object.key, object)).collect();
    for object in &mut content.objects {
        if let Some(old) = known.get(&object.key)
            && old.same(object)
        {
            *object = Arc::clone(old);
        }
    }
    content
}
