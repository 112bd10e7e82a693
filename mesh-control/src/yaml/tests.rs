//! Positions, paths and bounds of the YAML reader.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;

use serde::Deserialize;

use super::*;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Outer {
    name: String,
    weight: Option<u32>,
    items: Vec<Item>,
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Item {
    port: u16,
    mode: Option<Mode>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Mode {
    Simple,
    Mutual,
}

fn one(text: &str) -> Node {
    documents(text).pop().unwrap().tree.unwrap()
}

fn fault_of(text: &str) -> (u32, String, String) {
    let fault = read::<Outer>(&one(text)).value.unwrap_err();
    (fault.line, fault.path.to_string(), fault.why)
}

#[test]
fn documents_stand_alone() {
    let text = "name: a\n---\nname: [b\n---\n# only a comment\n---\nname: c\nweight: 3\n";
    let found = documents(text);
    assert_eq!(found.len(), 3, "{found:?}");
    assert_eq!(found[0].line, 1);
    let fault = found[1].tree.as_ref().unwrap_err();
    assert!((3..=4).contains(&fault.line), "{fault:?}");
    assert!(fault.why.starts_with("malformed YAML"), "{fault:?}");
    assert_eq!(found[2].line, 7);
    assert_eq!(found[2].tree.as_ref().unwrap().line_of(&FieldPath::of("weight")), 8);
}

#[test]
fn wrong_types_name_line_and_path() {
    let (line, path, why) = fault_of("name: x\nitems:\n- port: 1\n- port: many\n");
    assert_eq!((line, path.as_str()), (4, "items[1].port"));
    assert!(why.contains("many"), "{why}");
    let (line, path, why) = fault_of("name: x\n\nlabels:\n  app.kubernetes.io/name: 1\n");
    assert_eq!((line, path.as_str()), (4, "labels[\"app.kubernetes.io/name\"]"));
    assert!(why.contains("expected a string"), "{why}");
    let (_, path, why) = fault_of("items: [{mode: OTHER}]");
    assert_eq!(path, "items[0].mode");
    assert!(why.contains("SIMPLE"), "{why}");
    let (_, path, _) = fault_of("items: [{port: 65536}]");
    assert_eq!(path, "items[0].port");
}

#[test]
fn unknown_fields_are_listed() {
    let node = one("name: x\nitems:\n- port: 1\n  prot: 2\nweigth: 1\n");
    let reading = read::<Outer>(&node);
    assert!(reading.value.is_ok());
    let unknown: Vec<_> =
        reading.unknown.iter().map(|path| (node.line_of(path), path.to_string(), path.pattern())).collect();
    assert_eq!(
        unknown,
        [(4, "items[0].prot".into(), "items[].prot".into()), (5, "weigth".to_owned(), "weigth".to_owned())]
    );
}

#[test]
fn null_is_empty_and_quotes_make_strings() {
    let value = read::<Outer>(&one("name: '1'\nweight:\nitems: null\nlabels: ~\n")).value.unwrap();
    assert_eq!(value.name, "1");
    assert_eq!(value.weight, None);
    assert!(value.items.is_empty() && value.labels.is_empty());
    assert_eq!(read::<Outer>(&one("name: !!str 1")).value.unwrap().name, "1");
    assert!(read::<Outer>(&one("name:")).value.is_err());
    assert!(read::<Outer>(&one("items: [[1]]")).value.is_err());
}

#[test]
fn aliases_work_but_do_not_explode() {
    let value = read::<Outer>(&one("labels: &l {a: b}\nitems: []\nname: &n q\nunknown: *l\n")).value.unwrap();
    assert_eq!(value.labels["a"], "b");
    let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for level in 1..12 {
        let below = format!("*a{},", level - 1).repeat(10);
        bomb.push_str(&format!("a{level}: &a{level} [{below}]\n"));
    }
    let found = documents(&bomb);
    assert!(found[0].tree.as_ref().unwrap_err().why.contains("values in one document"));
    let deep = format!("{}{}", "[".repeat(MAX_DEPTH + 1), "]".repeat(MAX_DEPTH + 1));
    assert!(documents(&deep)[0].tree.as_ref().unwrap_err().why.contains("deeper"));
}

#[test]
fn repeated_keys_are_refused() {
    let found = documents("name: a\nname: b\n");
    let fault = found[0].tree.as_ref().unwrap_err();
    assert_eq!(fault.line, 2);
    assert!(fault.why.contains("twice"));
}

proptest::proptest! {
    #[test]
    fn any_text_is_taken_without_panic(text in "[ -~\n\t]{0,200}") {
        for document in documents(&text) {
            if let Ok(node) = document.tree {
                let _ = read::<Outer>(&node);
            }
        }
    }
}
