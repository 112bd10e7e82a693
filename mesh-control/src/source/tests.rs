//! What stays in force when files change for the worse.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::*;

fn service(name: &str, port: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  ports: [{{port: {port}}}]\n")
}

fn names(loaded: &Loaded) -> Vec<String> {
    loaded.objects.keys().map(|key| key.name.to_string()).collect()
}

fn problems(loaded: &Loaded) -> Vec<String> {
    loaded.problems.iter().map(ToString::to_string).collect()
}

fn port(loaded: &Loaded, name: &str) -> u16 {
    let object = loaded.objects.values().find(|object| &*object.key.name == name).unwrap();
    let crate::config::Body::Service(service) = &object.body else { panic!() };
    service.ports[0].port.0
}

fn write(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

#[test]
fn the_last_good_version_stays_until_the_object_goes() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut loader = Loader::new(dir, |_| Ok(()));
    write(dir, "a.yaml", &format!("{}---\n{}", service("a", "1"), service("b", "1")));
    write(dir, "sub/deeper/c.yml", &service("c", "1"));
    write(dir, "notes.txt", "not: [yaml");
    write(dir, ".hidden.yaml", "not: [yaml");
    let first = loader.load();
    assert_eq!(names(&first), ["a", "b", "c"]);
    assert_eq!(problems(&first), [""; 0]);
    assert!(first.same(&loader.load()), "nothing changed");

    // One object goes bad: it stays as it was; the other one of the file follows.
    write(dir, "a.yaml", &format!("{}---\n{}", service("a", "many"), service("b", "2")));
    let loaded = loader.load();
    assert_eq!(names(&loaded), ["a", "b", "c"]);
    assert_eq!((port(&loaded, "a"), port(&loaded, "b")), (1, 2));
    assert_eq!(problems(&loaded).len(), 1);
    assert!(
        problems(&loaded)[0].starts_with("a.yaml:5: Service default/a: spec.ports[0].port: "),
        "{:?}",
        problems(&loaded)
    );

    // The document is no YAML at all any more: what it was is not known, so nothing of the file is dropped.
    write(dir, "a.yaml", &format!("apiVersion: v1\nkind: [\n---\n{}", service("b", "3")));
    let loaded = loader.load();
    assert_eq!(names(&loaded), ["a", "b", "c"]);
    assert_eq!((port(&loaded, "a"), port(&loaded, "b")), (1, 3));
    assert!(problems(&loaded)[0].starts_with("a.yaml:"), "{:?}", problems(&loaded));

    // Mended, without `a`: now it is gone on purpose.
    write(dir, "a.yaml", &service("b", "3"));
    assert_eq!(names(&loader.load()), ["b", "c"]);
    fs::remove_file(dir.join("sub/deeper/c.yml")).unwrap();
    let loaded = loader.load();
    assert_eq!(names(&loaded), ["b"]);
    assert_eq!(problems(&loaded), [""; 0]);

    // The directory itself goes away for a while.
    fs::rename(dir, dir.with_extension("away")).unwrap();
    let loaded = loader.load();
    assert_eq!(names(&loaded), ["b"]);
    assert!(problems(&loaded)[0].contains("cannot be read"));
    fs::rename(dir.with_extension("away"), dir).unwrap();
    assert_eq!(problems(&loader.load()), [""; 0]);
}

#[test]
fn a_broken_object_that_never_was_good_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut loader = Loader::new(dir.path(), |_| Ok(()));
    write(dir.path(), "a.yaml", &service("a", "many"));
    let loaded = loader.load();
    assert!(loaded.objects.is_empty());
    assert_eq!(loaded.problems.len(), 1);
}

#[test]
fn of_two_definitions_the_first_file_wins() {
    let dir = tempfile::tempdir().unwrap();
    let mut loader = Loader::new(dir.path(), |_| Ok(()));
    write(dir.path(), "b.yaml", &service("a", "2"));
    write(dir.path(), "a.yaml", &service("a", "1"));
    let loaded = loader.load();
    assert_eq!(port(&loaded, "a"), 1);
    assert_eq!(problems(&loaded), ["b.yaml:1: Service default/a: already defined at a.yaml:1, which is in force"]);
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    assert_eq!(port(&loader.load(), "a"), 2);
}

#[tokio::test]
async fn a_change_is_noticed_and_reading_is_none() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a.yaml", &service("a", "1"));
    let mut changes = watch(dir.path());
    let mut loader = Loader::new(dir.path(), |_| Ok(()));
    loader.load();
    assert!(tokio::time::timeout(3 * DEBOUNCE, changes.next()).await.is_err(), "reading must not look like a change");
    write(dir.path(), "new/b.yaml", &service("b", "1"));
    tokio::time::timeout(Duration::from_secs(10), changes.next()).await.unwrap();
    assert_eq!(names(&loader.load()), ["a", "b"]);
}
