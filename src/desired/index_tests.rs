//! Pure: tests of the index.

use super::*;
use crate::desired::lean::Process;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

const NAMESPACES: [&str; 2] = ["a", "b"];
const DEVICES: [&str; 3] = ["d0", "d1", "d2"];
const PROCESSES: [&str; 3] = ["dep-d0", "dep-d1", "x"];
const DEPLOYMENTS: [&str; 2] = ["dep", "dep-d"];

fn settings() -> Settings {
    Settings { heartbeat_interval_seconds: 15, allow_cross_namespace: false }
}

fn raw(value: &Value) -> Opened {
    serde_json::from_value(value.clone()).unwrap()
}

fn switch(namespace: &str, name: &str, revision: u64) -> Opened {
    raw(
        &json!({"metadata": {"namespace": namespace, "name": name, "uid": "s", "resourceVersion": revision.to_string()}}),
    )
}

fn process(namespace: &str, name: &str, device: &str, revision: u64) -> Opened {
    raw(&json!({
        "metadata": {"namespace": namespace, "name": name, "uid": format!("{namespace}/{name}"), "generation": 1, "resourceVersion": revision.to_string()},
        "spec": {"deviceRef": {"kind": "Server", "name": device}, "execution": {"backend": "initd"}},
    }))
}

fn items(index: &Index, device: &str) -> Vec<String> {
    let device = index.device(device).unwrap();
    desired(device, index.settings().allow_cross_namespace)
        .map(|process| format!("{}/{}", process.key.namespace, process.key.name))
        .collect()
}

#[test]
fn a_process_counts_unless_its_device_is_a_switch_of_another_namespace() {
    let mut index = Index::new(settings());
    index.apply(Kind::Process, process("a", "p", "d", 1));
    index.apply(Kind::Process, process("b", "p", "d", 2));
    assert_eq!(items(&index, "d"), ["a/p", "b/p"], "no switch of that name: both count");
    index.apply(Kind::Switch, switch("a", "d", 3));
    assert_eq!(items(&index, "d"), ["a/p"]);
    index.apply(Kind::Switch, switch("b", "d", 4));
    assert_eq!(items(&index, "d"), ["a/p", "b/p"], "two namespaces have a switch of that name: both count");
    index.delete(Kind::Switch, "a", "d", 5);
    assert_eq!(items(&index, "d"), ["b/p"]);
    index.delete(Kind::Switch, "b", "d", 6);
    assert_eq!(items(&index, "d"), ["a/p", "b/p"]);
}

#[test]
fn namespaces_do_not_matter_when_told_so() {
    let mut index = Index::new(Settings { allow_cross_namespace: true, ..settings() });
    index.apply(Kind::Switch, switch("a", "d", 1));
    index.apply(Kind::Process, process("b", "p", "d", 2));
    assert_eq!(items(&index, "d"), ["b/p"]);
}

#[test]
fn a_device_stays_known_with_nothing_to_run() {
    let mut index = Index::new(settings());
    let nothing = ETagBuilder::new(15).finish();
    index.apply(Kind::Process, process("a", "p", "d", 7));
    assert_ne!(index.device("d").unwrap().etag, nothing);
    let changes = index.delete(Kind::Process, "a", "p", 9);
    assert_eq!(changes.devices.len(), 1);
    let device = index.device("d").unwrap();
    assert_eq!((device.etag, device.revision), (nothing, 9));
    assert!(index.device("e").is_none());
}

#[test]
fn an_object_that_is_being_deleted_is_not_desired() {
    let mut index = Index::new(settings());
    index.apply(Kind::Process, process("a", "p", "d", 1));
    let mut deleting = process("a", "p", "d", 2);
    deleting.metadata.deletion_timestamp = serde_json::from_value(json!("2025-01-01T00:00:00Z")).unwrap();
    assert_eq!(index.apply(Kind::Process, deleting).devices.len(), 1);
    assert!(items(&index, "d").is_empty());
    assert!(index.process("a", "p").is_some(), "its status can still be written");
}

#[test]
fn a_list_that_is_under_way_takes_nothing_away() {
    let mut index = Index::new(settings());
    for (i, name) in (1..).zip(["p", "q", "r"]) {
        index.list_item(Kind::Process, process("a", name, "d", i), 3);
        assert!(!index.serves_devices());
    }
    let all = ["p", "q", "r"].map(|name| Key { namespace: "a".into(), name: name.into() });
    index.finish_list(Kind::Process, &all.iter().cloned().collect(), 3);
    assert!(!index.serves_devices(), "the other kind is still missing");
    index.finish_list(Kind::Switch, &HashSet::new(), 3);
    assert!(index.serves_devices() && !index.synced(Kind::Deployment));
    // The next list: q has gone, r was changed; pages come one by one.
    index.list_item(Kind::Process, process("a", "r", "d", 6), 8);
    assert_eq!(items(&index, "d"), ["a/p", "a/q", "a/r"]);
    index.list_item(Kind::Process, process("a", "p", "d", 1), 8);
    // Meanwhile somebody writes s, after the list was taken.
    index.adopt(Kind::Process, process("a", "s", "d", 9));
    index.finish_list(Kind::Process, &[all[0].clone(), all[2].clone()].into(), 8);
    assert_eq!(items(&index, "d"), ["a/p", "a/r", "a/s"]);
    assert_eq!(index.device("d").unwrap().revision, 9);
}

#[test]
fn a_late_answer_does_not_bring_back_the_deleted() {
    let mut index = Index::new(settings());
    index.apply(Kind::Process, process("a", "p", "d", 1));
    index.delete(Kind::Process, "a", "p", 5);
    assert!(index.adopt(Kind::Process, process("a", "p", "d", 4)).is_empty());
    assert!(items(&index, "d").is_empty());
    // A younger one of that name is another matter.
    index.adopt(Kind::Process, process("a", "p", "d", 6));
    index.delete(Kind::Process, "a", "p", 5);
    assert_eq!(items(&index, "d"), ["a/p"]);
}

#[test]
fn a_switch_counts_in_the_revision_when_it_changes_the_entity_tag() {
    let mut index = Index::new(settings());
    index.apply(Kind::Process, process("b", "p", "d", 4));
    index.apply(Kind::Switch, switch("b", "d", 7));
    assert_eq!(index.device("d").unwrap().revision, 4, "nothing changed for the device");
    index.delete(Kind::Switch, "b", "d", 8);
    index.apply(Kind::Switch, switch("a", "d", 9));
    assert_eq!((items(&index, "d").len(), index.device("d").unwrap().revision), (0, 9));
    index.delete(Kind::Switch, "a", "d", 12);
    assert_eq!((items(&index, "d").len(), index.device("d").unwrap().revision), (1, 12));
}

#[test]
fn a_watch_that_is_behind_a_list_brings_nothing_back() {
    let mut index = Index::new(settings());
    index.finish_list(Kind::Process, &HashSet::new(), 1);
    index.apply(Kind::Process, process("a", "p", "d", 3));
    // Meanwhile q came and went, and p went; somebody lists.
    index.finish_list(Kind::Process, &HashSet::new(), 10);
    assert!(index.apply(Kind::Process, process("a", "q", "d", 5)).is_empty());
    assert!(index.apply(Kind::Process, process("a", "p", "d", 6)).is_empty());
    assert!(index.delete(Kind::Process, "a", "q", 7).is_empty() && items(&index, "d").is_empty());
    assert_eq!(index.progress(Kind::Process), 10);
}

#[test]
fn a_list_of_a_cluster_that_was_restored_is_believed() {
    let mut index = Index::new(settings());
    index.apply(Kind::Process, process("a", "p", "d", 50));
    index.apply(Kind::Process, process("a", "q", "d", 60));
    // The copy was older; revisions went on from a higher number, as etcd's documentation demands.
    index.list_item(Kind::Process, process("a", "p", "d", 20), 1_000);
    index.list_item(Kind::Process, process("a", "r", "d", 30), 1_000);
    let key = |name: &str| Key { namespace: "a".into(), name: name.into() };
    index.finish_list(Kind::Process, &[key("p"), key("r")].into(), 1_000);
    assert_eq!(items(&index, "d"), ["a/p", "a/r"]);
    assert_eq!(index.process("a", "p").unwrap().revision, 20);
    // What was written since then is kept, however late a page comes.
    index.adopt(Kind::Process, process("a", "p", "d", 1_002));
    index.list_item(Kind::Process, process("a", "p", "d", 20), 1_001);
    assert_eq!(index.process("a", "p").unwrap().revision, 1_002);
}

#[test]
fn a_new_owner_of_a_child_wakes_no_poll() {
    let mut index = Index::new(settings());
    let mut child = process("a", "dep-d", "d", 1);
    index.apply(Kind::Process, child.clone());
    child.metadata.resource_version = Some("2".into());
    child.metadata.owner_references =
        serde_json::from_value(json!([{"apiVersion": "azure.com/v1alpha1", "kind": "DeviceProcessDeployment", "name": "dep", "uid": "o", "controller": true}])).unwrap();
    let changes = index.apply(Kind::Process, child);
    assert!(changes.devices.is_empty());
    assert_eq!(changes.deployments, [Key { namespace: "a".into(), name: "dep".into() }]);
    assert_eq!(index.owned_by("o").count(), 1);
}

#[test]
fn what_cannot_be_read_is_served_from_the_raw_spec() {
    let mut index = Index::new(settings());
    let odd = json!({"metadata": {"namespace": "a", "name": "p", "resourceVersion": "1"}, "spec": {"deviceRef": {"name": "d"}, "execution": [1]}, "status": 3});
    index.apply(Kind::Process, raw(&odd));
    assert_eq!(items(&index, "d"), ["a/p"]);
    for (revision, name) in (2..).zip([json!("UPPER"), json!(7), json!(""), json!(null), json!("-d")]) {
        let mut nameless = odd.clone();
        nameless["metadata"]["resourceVersion"] = json!(format!("{revision}"));
        nameless["metadata"]["name"] = json!(format!("q{name}"));
        nameless["spec"]["deviceRef"]["name"] = name;
        index.apply(Kind::Process, raw(&nameless));
    }
    assert_eq!((index.device_count(), index.count(Kind::Process)), (1, 6));
}

#[path = "index_model.rs"]
mod model;
