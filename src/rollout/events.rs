//! Pure: events on deployments.
//!
//! Names are hashes of what happened, so that a repeat, of whichever manager, is no second event.

use super::plan::{Notice, OWNER_KIND};
use crate::api::API_VERSION;
use crate::desired::lean::Deployment;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::ObjectMeta;
use sha2::{Digest, Sha256};

/// `reportingController` of every event.
pub const REPORTING_CONTROLLER: &str = "azure.com/praetor-manager";
/// Longest note that the apiserver takes, bytes.
const MAX_NOTE_BYTES: usize = 1024;
/// So many names stand in a note.
const NAMES_IN_NOTE: usize = 10;

/// The object that events are about; it may be gone.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its generation, 0 when it is gone.
    pub generation: i64,
}

/// Something that people should hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happening {
    /// One word.
    pub reason: &'static str,
    /// Whether somebody must act.
    pub warning: bool,
    /// What was done, one word.
    pub action: &'static str,
    /// For people.
    pub note: String,
    /// What tells it from others of the same reason on the same object.
    pub distinct: String,
}

// === impl Subject ===

impl From<&Deployment> for Subject {
    fn from(deployment: &Deployment) -> Self {
        Self {
            namespace: deployment.key.namespace.to_string(),
            name: deployment.key.name.to_string(),
            uid: deployment.uid.to_string(),
            generation: deployment.metadata.generation.unwrap_or(0),
        }
    }
}

// === impl Happening ===

impl Happening {
    /// Children that were created (`"CreatedDeviceProcess"`, `"created"`) or deleted.
    #[must_use]
    pub fn children(reason: &'static str, done: &str, mut names: Vec<String>, revision: u64) -> Self {
        names.sort_unstable();
        let (count, plural) = (names.len(), if names.len() == 1 { "" } else { "es" });
        let more = if count > NAMES_IN_NOTE { ", …" } else { "" };
        let distinct = format!("{revision}\0{}", names.join("\0"));
        names.truncate(NAMES_IN_NOTE);
        let note = format!("{count} DeviceProcess{plural} {done}: {}{more}", names.join(", "));
        Self { reason, warning: false, action: if done == "created" { "Create" } else { "Delete" }, note, distinct }
    }

    /// What a plan says.
    #[must_use]
    pub fn notice(notice: &Notice, generation: i64) -> Self {
        match notice {
            Notice::Started { hash } => Self {
                reason: "RolloutStarted",
                warning: false,
                action: "Rollout",
                note: format!("rolling out {hash}"),
                distinct: format!("{generation}\0{hash}"),
            },
            Notice::Completed { hash } => Self {
                reason: "RolloutComplete",
                warning: false,
                action: "Rollout",
                note: format!("every matching device runs {hash}"),
                distinct: format!("{generation}\0{hash}"),
            },
            Notice::NameTaken { device, name, instead } => Self {
                reason: "NameTaken",
                warning: true,
                action: "Create",
                note: match instead {
                    Some(instead) => format!("{name}, for device {device}, belongs to something else; using {instead}"),
                    None => format!(
                        "device {device} gets no DeviceProcess: {name} and the name with a hash belong to something else"
                    ),
                },
                distinct: format!("{generation}\0{device}"),
            },
        }
    }

    /// As the apiserver takes it. The replica's name counts for nothing but itself.
    #[must_use]
    pub fn event(&self, subject: &Subject, instance: &str, now: Timestamp) -> Event {
        let digest = Sha256::digest(format!("{}\0{}\0{}", subject.uid, self.reason, self.distinct).as_bytes());
        let mut hash = hex::encode(digest);
        hash.truncate(16);
        let mut note = self.note.clone();
        if note.len() > MAX_NOTE_BYTES {
            let end = (0..=MAX_NOTE_BYTES - '…'.len_utf8()).rev().find(|end| note.is_char_boundary(*end)).unwrap_or(0);
            note.truncate(end);
            note.push('…');
        }
        let stem = subject.name.get(..200).unwrap_or(&subject.name).trim_end_matches(['-', '.']);
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{stem}.{hash}")),
                namespace: Some(subject.namespace.clone()),
                ..ObjectMeta::default()
            },
            action: Some(self.action.to_owned()),
            event_time: Some(MicroTime(now)),
            note: Some(note),
            reason: Some(self.reason.to_owned()),
            regarding: Some(ObjectReference {
                api_version: Some(API_VERSION.to_owned()),
                kind: Some(OWNER_KIND.to_owned()),
                name: Some(subject.name.clone()),
                namespace: Some(subject.namespace.clone()),
                uid: Some(subject.uid.clone()),
                ..ObjectReference::default()
            }),
            reporting_controller: Some(REPORTING_CONTROLLER.to_owned()),
            reporting_instance: Some(instance.get(..128).unwrap_or(instance).to_owned()),
            type_: Some(if self.warning { "Warning" } else { "Normal" }.to_owned()),
            ..Event::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(name: &str) -> Subject {
        Subject { namespace: "n".into(), name: name.into(), uid: "u".into(), generation: 3 }
    }

    #[test]
    fn notes_begin_with_the_count() {
        let names = |count: usize| (0..count).map(|i| format!("d-{i:02}")).collect();
        assert_eq!(
            Happening::children("CreatedDeviceProcess", "created", names(1), 1).note,
            "1 DeviceProcess created: d-00"
        );
        let many = Happening::children("DeletedDeviceProcess", "deleted", names(12), 1);
        assert!(
            many.note.starts_with("12 DeviceProcesses deleted: d-00, d-01") && many.note.ends_with("d-09, …"),
            "{}",
            many.note
        );
    }

    #[test]
    fn the_same_has_the_same_name_and_fits() {
        let notice = Notice::NameTaken {
            device: "x".repeat(253).as_str().into(),
            name: "y".repeat(253),
            instead: Some("ü".repeat(400)),
        };
        let happening = Happening::notice(&notice, 3);
        let subject = subject(&"d".repeat(250));
        let event = happening.event(&subject, &"i".repeat(200), Timestamp::UNIX_EPOCH);
        assert_eq!(event.metadata.name, happening.event(&subject, "other", Timestamp::MAX).metadata.name);
        assert_ne!(
            event.metadata.name,
            Happening::notice(&notice, 4).event(&subject, "", Timestamp::UNIX_EPOCH).metadata.name
        );
        assert!(event.metadata.name.unwrap().len() <= 253);
        assert!(event.note.unwrap().len() <= MAX_NOTE_BYTES);
        assert!(event.reporting_instance.unwrap().len() <= 128);
    }
}
