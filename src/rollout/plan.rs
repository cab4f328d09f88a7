//! Pure: what is to be done for a deployment, and why. Nothing else decides.
//!
//! A plan is derived anew from what is there each time; applied completely, the next one is empty.

use super::tally::{self, Obstacle, Tally};
use super::template::{MarkMap, Template, TemplateError};
use crate::api::condition::reasons;
use crate::api::marks::{ALLOW_MASS_DELETION_ANNOTATION, child_name, child_name_with_hash};
use crate::api::{DeviceProcessDeploymentStatus, GROUP};
use crate::desired::lean::{Deployment, Owner, Process, Switch, Text};
use crate::desired::record::ConditionType;
use jiff::Timestamp;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

/// Kind of the devices that deployments select.
pub const DEVICE_KIND: &str = "NetworkSwitch";
/// Kind of the owner of a child.
pub const OWNER_KIND: &str = "DeviceProcessDeployment";
/// So many children may always be deleted in one pass.
const DELETIONS_ALWAYS_ALLOWED: usize = 10;
/// Beyond that, one in so many (20 %).
const DELETIONS_ALLOWED_SHARE: usize = 5;

/// What a plan is made from.
pub struct View<'a> {
    /// The deployment.
    pub deployment: &'a Deployment,
    /// Every NetworkSwitch of its namespace, in any order.
    pub switches: &'a [Arc<Switch>],
    /// Every DeviceProcess of its namespace whose controller has its uid, in any order.
    pub children: &'a [Arc<Process>],
    /// The DeviceProcess of a name in its namespace.
    pub standing: &'a dyn Fn(&str) -> Option<Arc<Process>>,
    /// uids of children whose deletion has been accepted, although they still show.
    pub going: &'a HashSet<Box<str>>,
    /// What the apiserver did not accept the last time.
    pub refused: Option<&'a Obstacle>,
    /// Wall time, for conditions.
    pub now: Timestamp,
}

/// What is to be done.
#[derive(Debug, Default)]
pub struct Plan {
    /// Deletions first, then by device.
    pub steps: Vec<Step>,
    /// What the steps write; `None` when there are no steps.
    pub template: Option<Template>,
    /// The status, when it is not what it should be.
    pub status: Option<DeviceProcessDeploymentStatus>,
    /// Events that come with it.
    pub notices: Vec<Notice>,
}

/// One thing to do on one device.
#[derive(Debug)]
pub struct Step {
    /// The device.
    pub device: Text,
    /// Why.
    pub why: Why,
    /// What.
    pub action: Action,
}

/// What a step does.
#[derive(Debug)]
pub enum Action {
    /// Creates a child with the template's spec and annotations.
    Create {
        /// Its name.
        name: String,
        /// Its labels.
        labels: MarkMap,
    },
    /// Makes an object without a controller a child.
    Adopt {
        /// The object as it stands.
        object: Arc<Process>,
        /// Whether it gets the template's spec.
        spec: bool,
        /// All its labels and annotations.
        marks: (MarkMap, MarkMap),
    },
    /// Changes a child.
    Update {
        /// The child as it stands.
        child: Arc<Process>,
        /// Whether it gets the template's spec.
        spec: bool,
        /// All its labels and annotations, when they change.
        marks: Option<(MarkMap, MarkMap)>,
    },
    /// Deletes a child.
    Delete {
        /// The child as it stands.
        child: Arc<Process>,
    },
    /// Nothing, for now.
    Wait,
}

/// Why a step is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// The device matches and has no child.
    NoChild,
    /// An object of the child's name, for the same device, belongs to nobody.
    Orphan,
    /// The spec is not the template's: one of the two was edited.
    SpecDiffers,
    /// Labels or annotations are not what they should be.
    MarksDiffer,
    /// The device does not match, or no longer.
    NotMatching,
    /// The deviceRef, which cannot be changed, names no device of ours.
    WrongDevice,
    /// Another child is there for the device.
    Duplicate,
    /// Waits: the device does not report, so it keeps what it has.
    Disconnected,
    /// Waits: the child's name belongs to a former deployment of the same name.
    FormerOwner,
    /// Waits: what has the child's name, or the child itself, is being deleted.
    BeingDeleted,
    /// Waits: every name that the child could have is taken.
    NameTaken,
    /// Waits: too many would be deleted at once.
    MassDeletion,
}

/// An event on the deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A new template begins to be rolled out.
    Started {
        /// Its hash.
        hash: String,
    },
    /// It is available on every matching device, for the first time.
    Completed {
        /// Its hash.
        hash: String,
    },
    /// The name of a child belongs to something else.
    NameTaken {
        /// The device.
        device: Text,
        /// The name.
        name: String,
        /// The name that the child gets instead, if there is one.
        instead: Option<String>,
    },
}

/// Makes the plan.
#[must_use]
pub fn plan(view: &View<'_>) -> Plan {
    let deployment = view.deployment;
    if deployment.metadata.deletion_timestamp.is_some() {
        // Whoever deletes it decides what becomes of the children (cascade=orphan keeps them): they are cleaned up
        // when it is gone.
        return Plan::default();
    }
    let before = tally::written(deployment);
    let template = match Template::read(deployment) {
        Ok(template) => template,
        Err(error) => {
            let reason = match error {
                TemplateError::Spec => reasons::INVALID_TEMPLATE,
                TemplateError::UnreadableSelector(_) | TemplateError::Selector(_) => reasons::INVALID_SELECTOR,
            };
            let obstacle = Obstacle { reason, message: format!("{error}; nothing is changed until it is corrected") };
            let status = tally::status(deployment, &before, None, Some(&obstacle), view.now);
            return Plan { status: (status != before).then_some(status), ..Plan::default() };
        }
    };

    let mut wanted: Vec<&Arc<Switch>> =
        view.switches.iter().filter(|switch| !switch.deleting && template.matches(switch)).collect();
    wanted.sort_unstable_by(|a, b| a.key.name.cmp(&b.key.name));
    let Sorted { kept, leaving, doomed } = sort(view, &wanted);

    let mut work = Work {
        view,
        template: &template,
        doomed: doomed.iter().map(|(child, _)| &*child.uid).collect(),
        steps: Vec::new(),
        notices: Vec::new(),
    };
    let held = work.delete(&doomed, kept.len() + doomed.len());
    let mut tally = Tally::default();
    for switch in wanted {
        let device = &*switch.key.name;
        let child = kept.get(device).copied();
        tally.count(child.map(|child| &**child), &template);
        match child {
            Some(child) => work.mend(switch, child),
            None if leaving.contains(device) => work.wait(&switch.key.name, Why::BeingDeleted),
            None => work.place(switch),
        }
    }
    let Work { steps, mut notices, .. } = work;

    let obstacle =
        held.as_ref().or(view.refused.filter(|_| steps.iter().any(|step| !matches!(step.action, Action::Wait))));
    let status = tally::status(deployment, &before, Some((tally, &template)), obstacle, view.now);
    if let Some(rollout) = &status.rollout {
        let known = before.rollout.as_ref().filter(|known| known.spec_hash == rollout.spec_hash);
        if known.is_none() {
            notices.push(Notice::Started { hash: rollout.spec_hash.clone() });
        }
        if rollout.complete && known.is_none_or(|known| !known.complete) {
            notices.push(Notice::Completed { hash: rollout.spec_hash.clone() });
        }
    }
    let status = (status != before).then_some(status);
    Plan { template: (!steps.is_empty()).then_some(template), steps, status, notices }
}

/// The children, told apart.
struct Sorted<'a> {
    /// The one of each device that stays.
    kept: HashMap<&'a str, &'a Arc<Process>>,
    /// Devices of those that are being deleted.
    leaving: HashSet<&'a str>,
    /// Those that must go.
    doomed: Vec<(&'a Arc<Process>, Why)>,
}

fn sort<'a>(view: &View<'a>, wanted: &[&'a Arc<Switch>]) -> Sorted<'a> {
    let deployment = view.deployment;
    let devices: HashSet<&str> = wanted.iter().map(|switch| &*switch.key.name).collect();
    let mut sorted =
        Sorted { kept: HashMap::with_capacity(devices.len()), leaving: HashSet::new(), doomed: Vec::new() };
    for child in view.children {
        let device = &*child.device;
        if child.deleting || view.going.contains(&child.uid) {
            sorted.leaving.insert(device);
        } else if !is_for(child, &deployment.key.namespace, device) {
            sorted.doomed.push((child, Why::WrongDevice));
        } else if !devices.contains(device) {
            sorted.doomed.push((child, Why::NotMatching));
        } else if let Some(known) = sorted.kept.get_mut(device) {
            let better = rank(child, deployment) < rank(known, deployment);
            let other = if better { std::mem::replace(known, child) } else { child };
            sorted.doomed.push((other, Why::Duplicate));
        } else {
            sorted.kept.insert(device, child);
        }
    }
    sorted.doomed.sort_unstable_by(|a, b| a.0.key.cmp(&b.0.key));
    sorted
}

/// Of two children of one device the lower one stays: that with the usual name, else with the next usual one, else
/// the one that has run; then by name.
fn rank<'a>(child: &'a Process, deployment: &Deployment) -> (u8, bool, &'a str) {
    let name = &*child.key.name;
    let usual = if name == child_name(&deployment.key.name, &child.device) {
        0
    } else if name == child_name_with_hash(&deployment.key.name, &deployment.uid, &child.device) {
        1
    } else {
        2
    };
    (usual, child.status.running.is_none(), name)
}

/// Whether the deviceRef of an object names the switch of a name in a namespace.
fn is_for(object: &Process, namespace: &str, device: &str) -> bool {
    !device.is_empty()
        && *object.device == *device
        && &*object.device_kind == DEVICE_KIND
        && object.device_namespace.as_ref().is_none_or(|named| **named == *namespace)
}

/// Whether an owner is a deployment, by kind alone.
#[must_use]
pub fn is_deployment(owner: &Owner) -> bool {
    &*owner.group == GROUP && &*owner.kind == OWNER_KIND
}

/// A plan in the making.
struct Work<'a> {
    view: &'a View<'a>,
    template: &'a Template,
    doomed: HashSet<&'a str>,
    steps: Vec<Step>,
    notices: Vec<Notice>,
}

// === impl Work ===

impl Work<'_> {
    /// Deletes, unless that would be suspiciously many of all.
    fn delete(&mut self, doomed: &[(&Arc<Process>, Why)], all: usize) -> Option<Obstacle> {
        let limit = DELETIONS_ALWAYS_ALLOWED.max(all / DELETIONS_ALLOWED_SHARE);
        let deployment = self.view.deployment;
        let metadata = &deployment.metadata;
        let generation = metadata.generation.unwrap_or(0).to_string();
        let allowed = metadata.annotations.as_ref().and_then(|marks| marks.get(ALLOW_MASS_DELETION_ANNOTATION));
        let held = doomed.len() > limit && allowed != Some(&generation);
        for (child, why) in doomed {
            let device = child.device.clone();
            self.steps.push(if held {
                Step { device, why: Why::MassDeletion, action: Action::Wait }
            } else {
                Step { device, why: *why, action: Action::Delete { child: (*child).clone() } }
            });
        }
        held.then(|| Obstacle {
            reason: reasons::MASS_DELETION_HELD,
            message: format!(
                "{} of {all} DeviceProcesses would be deleted, more than {limit} at once, because their devices no longer match; if that is \
                 right: kubectl annotate -n {} dpd {} --overwrite {ALLOW_MASS_DELETION_ANNOTATION}={generation}",
                doomed.len(),
                deployment.key.namespace,
                deployment.key.name,
            ),
        })
    }

    fn wait(&mut self, device: &Text, why: Why) {
        self.steps.push(Step { device: device.clone(), why, action: Action::Wait });
    }

    /// Puts a child right.
    fn mend(&mut self, switch: &Switch, child: &Arc<Process>) {
        let device = &switch.key.name;
        let differs = child.spec.hash != self.template.hash;
        let spec = differs && takes_specs(child);
        let marks = (!self.template.marks_are_right(child, switch)).then(|| self.template.mended(child, switch));
        if differs && !spec {
            self.wait(device, Why::Disconnected);
        }
        if spec || marks.is_some() {
            let why = if spec { Why::SpecDiffers } else { Why::MarksDiffer };
            self.steps.push(Step {
                device: device.clone(),
                why,
                action: Action::Update { child: child.clone(), spec, marks },
            });
        }
    }

    /// Gives a device its child.
    fn place(&mut self, switch: &Switch) {
        let deployment = self.view.deployment;
        let device = &switch.key.name;
        let usual = child_name(&deployment.key.name, device);
        if self.claim(switch, &usual) {
            return;
        }
        let other = child_name_with_hash(&deployment.key.name, &deployment.uid, device);
        let claimed = self.claim(switch, &other);
        if !claimed {
            self.wait(device, Why::NameTaken);
        }
        self.notices.push(Notice::NameTaken { device: device.clone(), name: usual, instead: claimed.then_some(other) });
    }

    /// Says what to do about a child of a name; false when the name belongs to something else.
    fn claim(&mut self, switch: &Switch, name: &str) -> bool {
        let deployment = self.view.deployment;
        let device = &switch.key.name;
        let Some(standing) = (self.view.standing)(name) else {
            let action = Action::Create { name: name.to_owned(), labels: self.template.labels(switch) };
            self.steps.push(Step { device: device.clone(), why: Why::NoChild, action });
            return true;
        };
        if standing.deleting || self.doomed.contains(&*standing.uid) || self.view.going.contains(&standing.uid) {
            self.wait(device, Why::BeingDeleted);
            return true;
        }
        match &standing.owner {
            Some(owner) if is_deployment(owner) && owner.name == deployment.key.name && owner.uid != deployment.uid => {
                self.wait(device, Why::FormerOwner);
                true
            }
            None if is_for(&standing, &deployment.key.namespace, device) => {
                let spec = standing.spec.hash != self.template.hash && takes_specs(&standing);
                let marks = self.template.mended(&standing, switch);
                self.steps.push(Step {
                    device: device.clone(),
                    why: Why::Orphan,
                    action: Action::Adopt { object: standing, spec, marks },
                });
                true
            }
            _ => false,
        }
    }
}

/// Whether a device may get a new spec: not while it is away. One that was never seen has nothing to lose.
fn takes_specs(child: &Process) -> bool {
    child.status.is(ConditionType::AgentConnected) != Some(false)
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoChild => "the device matches and has none",
            Self::Orphan => "it belongs to nobody and is for the device",
            Self::SpecDiffers => "the spec is not the template's",
            Self::MarksDiffer => "labels or annotations are not what they should be",
            Self::NotMatching => "the device does not match",
            Self::WrongDevice => "the deviceRef names no device of the deployment",
            Self::Duplicate => "the device has another one",
            Self::Disconnected => "the device does not report and keeps its spec until it does",
            Self::FormerOwner => "the name still belongs to a former deployment of the same name",
            Self::BeingDeleted => "the former one is still being deleted",
            Self::NameTaken => "every possible name is taken",
            Self::MassDeletion => "too many would be deleted at once",
        })
    }
}

#[cfg(test)]
mod tests;
