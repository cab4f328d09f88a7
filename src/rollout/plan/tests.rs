//! Pure: plans over small worlds: each is planned, applied and planned again.

use super::*;
use crate::api::condition::{Status, find, is, types};
use crate::api::marks::DEVICE_NAME_LABEL;
use crate::desired::lean::Pool;
use crate::desired::object::Opened;
use crate::wire::canonical::SpecHash;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const UID: &str = "uid-now";

/// What an apiserver would hold of one namespace.
#[derive(Debug, Clone)]
struct World {
    deployment: Value,
    switches: BTreeMap<String, Value>,
    objects: BTreeMap<String, Value>,
    revision: u64,
    reversed: bool,
}

impl World {
    fn new(selector: &Value, template: &Value) -> Self {
        let deployment = json!({
            "metadata": {"name": "d", "namespace": "n", "uid": UID, "resourceVersion": "1", "generation": 1},
            "spec": {"selector": selector, "template": template}});
        Self { deployment, switches: BTreeMap::new(), objects: BTreeMap::new(), revision: 1, reversed: false }
    }

    fn simple(switches: usize) -> Self {
        let mut world = Self::new(&json!({}), &json!({"spec": {"v": 1}}));
        (0..switches).for_each(|i| world.switch(&format!("s{i}"), &json!({})));
        world
    }

    fn switch(&mut self, name: &str, labels: &Value) {
        let switch = json!({"metadata": {"name": name, "namespace": "n", "uid": name, "resourceVersion": "1", "labels": labels}});
        self.switches.insert(name.to_owned(), switch);
    }

    fn object(&mut self, name: &str, device: &str, owner: &Value, spec: &Value) -> &mut Value {
        self.revision += 1;
        let mut spec = spec.clone();
        spec["deviceRef"] = json!({"kind": "NetworkSwitch", "name": device});
        let object = json!({
            "metadata": {"name": name, "namespace": "n", "uid": format!("uid-{}", self.revision), "resourceVersion": self.revision.to_string()},
            "spec": spec, "status": {}});
        self.objects.insert(name.to_owned(), object);
        let object = self.objects.get_mut(name).unwrap();
        if !owner.is_null() {
            object["metadata"]["ownerReferences"] = json!([owner]);
        }
        object
    }

    fn template_hash(&self) -> String {
        SpecHash::of_spec(&self.deployment["spec"]["template"]["spec"]).to_string()
    }

    fn lean(&self) -> (Deployment, Vec<Arc<Switch>>, BTreeMap<String, Arc<Process>>) {
        let raw = |value: &Value| serde_json::from_value::<Opened>(value.clone()).unwrap();
        let mut pool = Pool::default();
        let mut switches: Vec<_> = self.switches.values().map(|value| Arc::new(pool.switch(&raw(value)))).collect();
        if self.reversed {
            switches.reverse();
        }
        let objects =
            self.objects.iter().map(|(name, value)| (name.clone(), Arc::new(pool.process(&raw(value))))).collect();
        (pool.deployment(raw(&self.deployment)), switches, objects)
    }

    fn plan(&self) -> Plan {
        self.plan_knowing(&HashSet::new(), None)
    }

    fn plan_knowing(&self, going: &HashSet<Box<str>>, refused: Option<&Obstacle>) -> Plan {
        let (deployment, switches, objects) = self.lean();
        let ours = |object: &&Arc<Process>| object.owner.as_ref().is_some_and(|owner| &*owner.uid == UID);
        let mut children: Vec<_> = objects.values().filter(ours).cloned().collect();
        if self.reversed {
            children.reverse();
        }
        let standing = |name: &str| objects.get(name).cloned();
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        plan(&View {
            deployment: &deployment,
            switches: &switches,
            children: &children,
            standing: &standing,
            going,
            refused,
            now,
        })
    }

    /// Does what a plan says, as the apiserver would; panics when it touches what it must not.
    fn apply(&mut self, plan: &Plan) {
        for step in &plan.steps {
            self.revision += 1;
            let revision = json!(self.revision.to_string());
            let template = plan.template.as_ref();
            match &step.action {
                Action::Create { name, labels } => {
                    let spec: Value =
                        serde_json::from_str(template.unwrap().spec(DEVICE_KIND, &step.device, None).get()).unwrap();
                    assert!(!self.objects.contains_key(name), "{name} exists");
                    let object = self.object(name, &step.device, &ours(), &spec);
                    object["metadata"]["labels"] = json!(labels);
                    object["metadata"]["annotations"] = json!(template.unwrap().annotations());
                }
                Action::Adopt { object, spec, marks } => {
                    assert!(object.owner.is_none() && !object.deleting);
                    let live = self.objects.get_mut(&*object.key.name).unwrap();
                    live["metadata"]["ownerReferences"] = json!([ours()]);
                    change(live, template.unwrap(), object, *spec, Some(marks), revision);
                }
                Action::Update { child, spec, marks } => {
                    assert_eq!(&*child.owner.as_ref().unwrap().uid, UID);
                    assert!(*spec || marks.is_some());
                    let live = self.objects.get_mut(&*child.key.name).unwrap();
                    change(live, template.unwrap(), child, *spec, marks.as_ref(), revision);
                }
                Action::Delete { child } => {
                    assert_eq!(&*child.owner.as_ref().unwrap().uid, UID);
                    assert!(!child.deleting);
                    self.objects.remove(&*child.key.name).unwrap();
                }
                Action::Wait => {}
            }
        }
        if let Some(status) = &plan.status {
            self.deployment["status"] = serde_json::to_value(status).unwrap();
        }
    }

    fn owned(&self) -> Vec<Arc<Process>> {
        let objects = self.lean().2;
        objects.into_values().filter(|object| object.owner.as_ref().is_some_and(|owner| &*owner.uid == UID)).collect()
    }
}

fn change(
    live: &mut Value,
    template: &Template,
    seen: &Process,
    spec: bool,
    marks: Option<&(MarkMap, MarkMap)>,
    revision: Value,
) {
    if spec {
        let device_namespace = seen.device_namespace.as_deref();
        live["spec"] =
            serde_json::from_str(template.spec(&seen.device_kind, &seen.device, device_namespace).get()).unwrap();
    }
    if let Some((labels, annotations)) = marks {
        live["metadata"]["labels"] = json!(labels);
        live["metadata"]["annotations"] = json!(annotations);
    }
    live["metadata"]["resourceVersion"] = revision;
}

fn owner(uid: &str, name: &str) -> Value {
    json!({"apiVersion": "azure.com/v1alpha1", "kind": "DeviceProcessDeployment", "name": name, "uid": uid, "controller": true})
}

fn ours() -> Value {
    owner(UID, "d")
}

fn acts(plan: &Plan) -> Vec<String> {
    let action = |step: &Step| match &step.action {
        Action::Create { name, .. } => format!("create {name}"),
        Action::Adopt { object, .. } => format!("adopt {}", object.key.name),
        Action::Update { child, spec, marks } => format!("update {} {spec} {}", child.key.name, marks.is_some()),
        Action::Delete { child } => format!("delete {}", child.key.name),
        Action::Wait => format!("wait {} {:?}", step.device, step.why),
    };
    plan.steps.iter().map(action).collect()
}

fn running(object: &mut Value, hash: &str, connected: &str) {
    object["status"] = json!({"phase": "Running", "runningSpecHash": hash, "conditions": [
        {"type": "AgentConnected", "status": connected}, {"type": "ProcessStarted", "status": "True"}, {"type": "Healthy", "status": "True"}]});
}

fn progressing(status: &DeviceProcessDeploymentStatus) -> (&str, &str) {
    let condition = find(&status.conditions, types::PROGRESSING).unwrap();
    (&condition.status, &condition.reason)
}

#[test]
fn from_nothing_to_complete() {
    let mut world = World::simple(2);
    let plan = world.plan();
    assert_eq!(acts(&plan), ["create d-s0", "create d-s1"]);
    let hash = world.template_hash();
    assert_eq!(plan.notices, [Notice::Started { hash: hash.clone() }]);
    world.apply(&plan);
    assert_eq!(world.objects["d-s0"]["metadata"]["labels"], json!({DEVICE_NAME_LABEL: "s0"}));
    let plan = world.plan();
    assert!(acts(&plan).is_empty() && plan.template.is_none());
    // Children are there, devices were never seen: they have the spec, nothing can be done before they report.
    assert_eq!(progressing(plan.status.as_ref().unwrap()), ("True", reasons::WAITING_FOR_DEVICES));
    world.apply(&plan);
    running(world.objects.get_mut("d-s0").unwrap(), &hash, "True");
    running(world.objects.get_mut("d-s1").unwrap(), &hash, "True");
    let plan = world.plan();
    let status = plan.status.as_ref().unwrap();
    assert_eq!(progressing(status), ("True", reasons::ROLLOUT_COMPLETE));
    assert_eq!((status.desired_number_scheduled, status.number_ready, status.number_unavailable), (2, 2, 0));
    assert_eq!(plan.notices, [Notice::Completed { hash: hash.clone() }]);
    world.apply(&plan);
    assert!(world.plan().status.is_none() && world.plan().notices.is_empty());
    // A device falls silent and comes back: the rollout is not complete a second time.
    running(world.objects.get_mut("d-s1").unwrap(), &hash, "False");
    let plan = world.plan();
    assert_eq!(progressing(plan.status.as_ref().unwrap()), ("True", reasons::WAITING_FOR_DEVICES));
    assert!(
        is(&plan.status.as_ref().unwrap().conditions, types::AVAILABLE, Status::True),
        "1 of 2 is 10 %, rounded up"
    );
    world.apply(&plan);
    running(world.objects.get_mut("d-s1").unwrap(), &hash, "True");
    assert!(world.plan().notices.is_empty());
}

#[test]
fn a_new_template_reaches_all_but_the_absent() {
    let mut world = World::simple(3);
    world.apply(&world.plan());
    let old = world.template_hash();
    running(world.objects.get_mut("d-s0").unwrap(), &old, "True");
    running(world.objects.get_mut("d-s1").unwrap(), &old, "False");
    world.deployment["spec"]["template"]["spec"] = json!({"v": 2});
    let plan = world.plan();
    assert_eq!(acts(&plan), ["update d-s0 true false", "wait s1 Disconnected", "update d-s2 true false"]);
    assert_eq!(progressing(plan.status.as_ref().unwrap()), ("True", reasons::ROLLOUT_IN_PROGRESS));
    world.apply(&plan);
    // Marks go to the absent, too.
    world.deployment["spec"]["template"]["metadata"] = json!({"labels": {"team": "net"}});
    assert_eq!(
        acts(&world.plan()),
        ["update d-s0 false true", "wait s1 Disconnected", "update d-s1 false true", "update d-s2 false true"]
    );
    world.apply(&world.plan());
    running(world.objects.get_mut("d-s1").unwrap(), &old, "True");
    assert_eq!(acts(&world.plan()), ["update d-s1 true false"]);
}

#[test]
fn names_that_are_taken() {
    let hashed = |device: &str| child_name_with_hash("d", UID, device);
    let world = |owner: &Value, device: &str| {
        let mut world = World::simple(1);
        world.object("d-s0", device, owner, &json!({"v": 1}));
        world
    };
    let case = |world: &World| (acts(&world.plan()), world.plan().notices.len());
    // 1: the notice that the rollout starts; 2: NameTaken, too.
    assert_eq!(case(&world(&json!(null), "s0")), (vec!["adopt d-s0".into()], 1));
    assert_eq!(case(&world(&json!(null), "s1")), (vec![format!("create {}", hashed("s0"))], 2));
    assert_eq!(case(&world(&owner("before", "d"), "s0")), (vec!["wait s0 FormerOwner".into()], 1));
    assert_eq!(case(&world(&owner("other", "e"), "s0")), (vec![format!("create {}", hashed("s0"))], 2));
    let mut foreign = owner("before", "d");
    foreign["apiVersion"] = json!("other.io/v1");
    assert_eq!(case(&world(&foreign, "s0")), (vec![format!("create {}", hashed("s0"))], 2));
    let mut deleting = world(&owner("other", "e"), "s0");
    deleting.objects.get_mut("d-s0").unwrap()["metadata"]["deletionTimestamp"] = json!("2025-01-01T00:00:00Z");
    assert_eq!(case(&deleting), (vec!["wait s0 BeingDeleted".into()], 1));
    let mut both = world(&owner("other", "e"), "s0");
    both.object(&hashed("s0"), "s1", &json!(null), &json!({}));
    assert_eq!(case(&both), (vec!["wait s0 NameTaken".into()], 2));
    // Once there, the child with the hash is the child, and nothing is said again.
    let mut settled = world(&owner("other", "e"), "s0");
    settled.apply(&settled.plan());
    assert!(acts(&settled.plan()).is_empty());
    settled.apply(&settled.plan());
    assert!(settled.plan().notices.is_empty() && settled.plan().status.is_none());
}

#[test]
fn what_cannot_be_repaired_is_replaced() {
    let mut world = World::simple(1);
    world.object("d-s0", "s0", &ours(), &json!({"v": 1}))["spec"]["deviceRef"]["kind"] = json!("Server");
    assert_eq!(acts(&world.plan()), ["delete d-s0", "wait s0 BeingDeleted"]);
    world.apply(&world.plan());
    assert_eq!(acts(&world.plan()), ["create d-s0"]);
    // Of two the one with the usual name stays.
    world.apply(&world.plan());
    world.object("a", "s0", &ours(), &json!({"v": 1}));
    assert_eq!(acts(&world.plan()), ["delete a"]);
    // One whose deletion was accepted is not deleted again, nor replaced before it has gone.
    let uid: Box<str> = world.objects["a"]["metadata"]["uid"].as_str().unwrap().into();
    assert!(acts(&world.plan_knowing(&HashSet::from([uid]), None)).is_empty());
    let uid: Box<str> = world.objects["d-s0"]["metadata"]["uid"].as_str().unwrap().into();
    world.objects.remove("a");
    assert_eq!(acts(&world.plan_knowing(&HashSet::from([uid]), None)), ["wait s0 BeingDeleted"]);
}

#[test]
fn the_brake() {
    let mut world = World::simple(100);
    world.apply(&world.plan());
    let switches = world.switches.clone();
    world.switches = switches.clone().into_iter().take(80).collect();
    assert_eq!(acts(&world.plan()).len(), 20);
    world.switches = switches.into_iter().take(79).collect();
    let plan = world.plan();
    assert!(plan.steps.iter().all(|step| matches!(step.action, Action::Wait) && step.why == Why::MassDeletion));
    assert_eq!(progressing(plan.status.as_ref().unwrap()), ("False", reasons::MASS_DELETION_HELD));
    let status = plan.status.unwrap();
    let message = &find(&status.conditions, types::PROGRESSING).unwrap().message;
    assert!(
        message.starts_with("21 of 100 DeviceProcesses") && message.ends_with("apollo.azure.com/allow-mass-deletion=1"),
        "{message}"
    );
    // The annotation counts for the generation it names.
    world.deployment["metadata"]["annotations"] = json!({ALLOW_MASS_DELETION_ANNOTATION: "0"});
    assert_eq!(world.plan().steps.iter().filter(|step| matches!(step.action, Action::Delete { .. })).count(), 0);
    world.deployment["metadata"]["annotations"] = json!({ALLOW_MASS_DELETION_ANNOTATION: "1"});
    world.apply(&world.plan());
    assert_eq!(world.owned().len(), 79);
    // Ten may always go.
    let mut world = World::simple(10);
    world.apply(&world.plan());
    world.switches.clear();
    world.apply(&world.plan());
    assert!(world.owned().is_empty());
}

#[test]
fn what_cannot_be_followed_changes_nothing() {
    let mut world = World::simple(2);
    world.apply(&world.plan());
    world.deployment["spec"]["selector"] = json!({"matchExpressions": [{"key": "a", "operator": "In", "values": []}]});
    let plan = world.plan();
    assert!(plan.steps.is_empty());
    let status = plan.status.as_ref().unwrap();
    assert_eq!(progressing(status), ("False", reasons::INVALID_SELECTOR));
    assert_eq!(status.desired_number_scheduled, 2);
    world.apply(&plan);
    assert!(world.plan().status.is_none());
    world.deployment["spec"]["selector"] = json!({});
    assert_ne!(progressing(world.plan().status.as_ref().unwrap()).0, "False");
    // A refusal shows as long as there is something that was refused.
    let refused = Obstacle { reason: reasons::DEVICE_PROCESS_REFUSED, message: "quota".into() };
    assert_ne!(progressing(world.plan_knowing(&HashSet::new(), Some(&refused)).status.as_ref().unwrap()).0, "False");
    world.switch("s9", &json!({}));
    let plan = world.plan_knowing(&HashSet::new(), Some(&refused));
    assert_eq!(progressing(plan.status.as_ref().unwrap()), ("False", reasons::DEVICE_PROCESS_REFUSED));
    // Nothing is begun for one that is being deleted.
    world.deployment["metadata"]["deletionTimestamp"] = json!("2025-01-01T00:00:00Z");
    let plan = world.plan();
    assert!(plan.steps.is_empty() && plan.status.is_none());
}

#[test]
fn no_device_is_complete_and_a_leaving_one_does_not_match() {
    let mut world = World::simple(0);
    let plan = world.plan();
    let status = plan.status.as_ref().unwrap();
    assert_eq!(progressing(status), ("True", reasons::ROLLOUT_COMPLETE));
    assert!(
        is(&status.conditions, types::AVAILABLE, Status::True) && plan.notices.is_empty() && status.rollout.is_none()
    );
    world.switch("s0", &json!({}));
    world.apply(&world.plan());
    world.switches.get_mut("s0").unwrap()["metadata"]["deletionTimestamp"] = json!("2025-01-01T00:00:00Z");
    assert_eq!(acts(&world.plan()), ["delete d-s0"]);
}

fn selectors() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({})),
        Just(json!({"matchLabels": {"role": "tor"}})),
        Just(
            json!({"matchExpressions": [{"key": "role", "operator": "In", "values": ["tor", "leaf"]}, {"key": "rack", "operator": "Exists"}]})
        ),
        Just(json!({"matchExpressions": [{"key": "role", "operator": "NotIn", "values": ["tor"]}]})),
        Just(json!({"matchExpressions": [{"key": "rack", "operator": "DoesNotExist"}]})),
    ]
}

fn labels() -> impl Strategy<Value = Value> {
    (prop::option::of("tor|leaf|spine"), prop::option::of("1|2")).prop_map(|(role, rack)| {
        let mut labels = json!({});
        role.into_iter().for_each(|role| labels["role"] = json!(role));
        rack.into_iter().for_each(|rack| labels["rack"] = json!(rack));
        labels
    })
}

/// Name, device, owner, spec, labels, whether it is deleted, connected, running.
fn objects() -> impl Strategy<Value = (u8, u8, u8, u8, Value, bool, u8, u8)> {
    (0..4u8, 0..6u8, 0..5u8, 0..2u8, labels(), prop::bool::weighted(0.1), 0..3u8, 0..3u8)
}

fn worlds() -> impl Strategy<Value = World> {
    let switches = prop::collection::vec((labels(), prop::bool::weighted(0.1)), 0..6);
    (selectors(), labels(), switches, prop::collection::vec(objects(), 0..10)).prop_map(
        |(selector, template_labels, switches, objects)| {
            let mut world = World::new(
                &selector,
                &json!({"metadata": {"labels": template_labels, "annotations": {"a": "1"}}, "spec": {"v": 1}}),
            );
            for (i, (labels, deleting)) in switches.iter().enumerate() {
                world.switch(&format!("s{i}"), labels);
                if *deleting {
                    world.switches.get_mut(&format!("s{i}")).unwrap()["metadata"]["deletionTimestamp"] =
                        json!("2025-01-01T00:00:00Z");
                }
            }
            for (name, device, who, spec, labels, deleting, connected, run) in objects {
                let device = format!("s{device}");
                let name = match name {
                    0 => child_name("d", &device),
                    1 => child_name_with_hash("d", UID, &device),
                    2 => format!("x-{device}"),
                    _ => "d-s0".to_owned(),
                };
                let owner =
                    [ours(), ours(), owner("before", "d"), owner("other", "e"), json!(null)][usize::from(who)].clone();
                let object = world.object(&name, &device, &owner, &json!({"v": spec}));
                object["metadata"]["labels"] = labels;
                object["metadata"]["labels"]["foreign"] = json!("stays");
                if deleting {
                    object["metadata"]["deletionTimestamp"] = json!("2025-01-01T00:00:00Z");
                }
                let hash = SpecHash::of_spec(&json!({"v": run})).to_string();
                match connected {
                    0 => running(object, &hash, "True"),
                    1 => running(object, &hash, "False"),
                    _ => {}
                }
            }
            world
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn worlds_settle(mut world in worlds()) {
        let foreign: Vec<_> = world.objects.values().filter(|object| !object["metadata"]["ownerReferences"].is_null()
            && object["metadata"]["ownerReferences"][0]["uid"] != UID).cloned().collect();
        // A name is free only after what had it is gone, so it takes a few rounds.
        for _ in 0..3 {
            world.apply(&world.plan());
        }
        let plan = world.plan();
        prop_assert!(plan.steps.iter().all(|step| matches!(step.action, Action::Wait)), "{:?}", acts(&plan));
        prop_assert!(plan.status.is_none());
        for object in foreign {
            prop_assert_eq!(&world.objects[object["metadata"]["name"].as_str().unwrap()], &object);
        }
        let waiting: HashSet<&str> = plan.steps.iter().map(|step| &*step.device).collect();
        let owned: Vec<_> = world.owned().into_iter().filter(|child| !child.deleting).collect();
        let (deployment, switches, _) = world.lean();
        let template = Template::read(&deployment).unwrap();
        for switch in &switches {
            let device = &*switch.key.name;
            let mine: Vec<_> = owned.iter().filter(|child| &*child.device == device).collect();
            let wanted = !switch.deleting && template.matches(switch);
            prop_assert!(mine.len() <= 1);
            if wanted && !waiting.contains(device) {
                prop_assert_eq!(mine.len(), 1);
                prop_assert_eq!(mine[0].spec.hash, template.hash);
                prop_assert!(template.marks_are_right(mine[0], switch));
            }
            prop_assert!(wanted || mine.is_empty());
        }
        for object in world.objects.values().filter(|object| object["metadata"]["labels"]["foreign"] != json!(null)) {
            prop_assert_eq!(&object["metadata"]["labels"]["foreign"], "stays");
        }
    }

    #[test]
    fn the_order_of_what_is_seen_does_not_matter(mut world in worlds()) {
        let one = format!("{:?}", world.plan());
        world.reversed = true;
        prop_assert_eq!(one, format!("{:?}", world.plan()));
    }

    #[test]
    fn counters_agree_with_a_naive_count(mut world in worlds()) {
        for _ in 0..3 {
            world.apply(&world.plan());
        }
        let (deployment, switches, _) = world.lean();
        let template = Template::read(&deployment).unwrap();
        let status = tally::written(&deployment);
        let (mut desired, mut current, mut updated, mut ready) = (0, 0, 0, 0);
        for switch in switches.iter().filter(|switch| !switch.deleting && template.matches(switch)) {
            desired += 1;
            let child = world.owned().into_iter().find(|child| child.device == switch.key.name && !child.deleting);
            let Some(child) = child else { continue };
            current += 1;
            if child.status.running == Some(template.hash) {
                updated += 1;
                ready += i64::from(child.status.is(ConditionType::AgentConnected) == Some(true));
            }
        }
        prop_assert_eq!(
            (status.desired_number_scheduled, status.current_number_scheduled, status.updated_number_scheduled, status.number_ready),
            (desired, current, updated, ready)
        );
        prop_assert_eq!((status.number_available, status.number_unavailable), (ready, desired - ready));
    }
}
