//! Pure: what the children of a deployment should look like, and in what a child differs.

use crate::api::marks::{
    DEVICE_NAME_LABEL, MANAGED_MARKS_ANNOTATION, MAX_LABEL_BYTES, UPDATED_FROM_ANNOTATION, device_label,
};
use crate::api::selector::{LabelSelector, SelectorError};
use crate::desired::lean::{Deployment, Process, Switch, Text, mark};
use crate::wire::canonical::SpecHash;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeMap;
use thiserror::Error;

/// Labels or annotations of an object that is to be written.
pub type MarkMap = BTreeMap<String, String>;

/// A deployment that cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TemplateError {
    /// The selector cannot be read at all.
    #[error("spec.selector cannot be read: {0}")]
    UnreadableSelector(String),
    /// The selector can be read but means nothing.
    #[error(transparent)]
    Selector(#[from] SelectorError),
    /// There is no spec to give to children.
    #[error("spec.template.spec is not an object")]
    Spec,
}

/// Selector and template of a deployment, ready for comparing many children.
#[derive(Debug)]
pub struct Template {
    /// Hash of the spec that every child should have.
    pub hash: SpecHash,
    /// Whether a started process must also be reported healthy.
    pub health_check: bool,
    /// The members of the spec as they stand in the template, without `deviceRef`.
    body: Box<RawValue>,
    selector: LabelSelector,
    /// Keys that the selector mentions.
    mentioned: Vec<String>,
    labels: MarkMap,
    /// Annotations of every child, [`MANAGED_MARKS_ANNOTATION`] among them.
    annotations: MarkMap,
}

/// Value of [`MANAGED_MARKS_ANNOTATION`].
#[derive(Debug, Default, Serialize, Deserialize)]
struct Managed {
    #[serde(default)]
    annotations: Vec<String>,
    #[serde(default)]
    labels: Vec<String>,
}

// === impl Template ===

impl Template {
    /// Reads a deployment.
    ///
    /// # Errors
    /// When nothing can be decided from it; its children must then be left alone.
    pub fn read(deployment: &Deployment) -> Result<Self, TemplateError> {
        let selector = &deployment.spec["selector"];
        let selector = LabelSelector::deserialize(selector)
            .map_err(|error| TemplateError::UnreadableSelector(error.to_string()))?;
        selector.validate()?;
        let template = &deployment.spec["template"];
        let Value::Object(mut spec) = template["spec"].clone() else { return Err(TemplateError::Spec) };
        spec.remove("deviceRef");
        let hash = SpecHash::of_spec(&template["spec"]);
        let health_check =
            spec.get("healthCheck").is_some_and(|check| check.as_object().is_some_and(|check| !check.is_empty()));
        let body = serde_json::value::to_raw_value(&spec).map_err(|_| TemplateError::Spec)?;
        let labels = read_marks(&template["metadata"]["labels"], |key| key != DEVICE_NAME_LABEL);
        let ours = [MANAGED_MARKS_ANNOTATION, UPDATED_FROM_ANNOTATION];
        let mut annotations = read_marks(&template["metadata"]["annotations"], |key| !ours.contains(&key));
        let mentioned: Vec<String> =
            selector.mentioned_keys().into_iter().filter(|key| *key != DEVICE_NAME_LABEL).map(str::to_owned).collect();
        // Whether a device has a mentioned label or not, the list of managed keys is the same: one string for all.
        let mut managed =
            Managed { annotations: annotations.keys().cloned().collect(), labels: labels.keys().cloned().collect() };
        managed.labels.extend(mentioned.iter().cloned());
        managed.labels.sort();
        managed.labels.dedup();
        annotations.insert(MANAGED_MARKS_ANNOTATION.to_owned(), serde_json::to_string(&managed).unwrap_or_default());
        Ok(Self { hash, health_check, body, selector, mentioned, labels, annotations })
    }

    /// Whether a switch's labels match the selector.
    #[must_use]
    pub fn matches(&self, switch: &Switch) -> bool {
        // Only the keys that the selector mentions matter to it.
        let keys = self.selector.mentioned_keys();
        let labels = keys.into_iter().filter_map(|key| Some((key.to_owned(), mark(&switch.labels, key)?.to_string())));
        self.selector.matches(&labels.collect())
    }

    /// The spec of the child on a device, as JSON.
    #[must_use]
    pub fn spec(&self, device_kind: &str, device: &str, device_namespace: Option<&str>) -> Box<RawValue> {
        let mut reference = serde_json::json!({"kind": device_kind, "name": device});
        if let Some(namespace) = device_namespace {
            reference["namespace"] = namespace.into();
        }
        let rest = self.body.get().strip_prefix('{').unwrap_or("}");
        let comma = if rest == "}" { "" } else { "," };
        RawValue::from_string(format!("{{\"deviceRef\":{reference}{comma}{rest}")).unwrap_or_else(|_| self.body.clone())
    }

    /// Labels of the child on a switch.
    #[must_use]
    pub fn labels(&self, switch: &Switch) -> MarkMap {
        let mut labels = self.labels.clone();
        let values =
            self.mentioned.iter().filter_map(|key| Some((key.clone(), mark(&switch.labels, key)?.to_string())));
        labels.extend(values);
        labels.insert(DEVICE_NAME_LABEL.to_owned(), device_label(&switch.key.name));
        labels
    }

    /// Annotations of every child.
    #[must_use]
    pub fn annotations(&self) -> &MarkMap {
        &self.annotations
    }

    /// Whether labels and annotations of a child are right. Allocates nothing in the usual case.
    #[must_use]
    pub fn marks_are_right(&self, child: &Process, switch: &Switch) -> bool {
        let device = &*switch.key.name;
        let device =
            if device.len() <= MAX_LABEL_BYTES { Cow::Borrowed(device) } else { Cow::Owned(device_label(device)) };
        let have = |key: &str| mark(&child.labels, key).map(|value| &**value);
        let template = |key: &str| self.labels.get(key).map(String::as_str);
        have(DEVICE_NAME_LABEL) == Some(&*device)
            && self
                .mentioned
                .iter()
                .all(|key| have(key) == mark(&switch.labels, key).map(|value| &**value).or_else(|| template(key)))
            && self.labels.keys().all(|key| self.mentioned.contains(key) || have(key) == template(key))
            && self
                .annotations
                .iter()
                .all(|(key, value)| mark(&child.annotations, key).is_some_and(|have| **have == **value))
    }

    /// All labels and annotations that a child should have: its foreign ones stay, those that have left the
    /// template go.
    #[must_use]
    pub fn mended(&self, child: &Process, switch: &Switch) -> (MarkMap, MarkMap) {
        let before = mark(&child.annotations, MANAGED_MARKS_ANNOTATION);
        let before: Managed = before.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let mut labels = owned(&child.labels);
        labels.retain(|key, _| !before.labels.contains(key) && !self.mentioned.contains(key));
        labels.extend(self.labels(switch));
        let mut annotations = owned(&child.annotations);
        annotations.retain(|key, _| !before.annotations.contains(key));
        annotations.extend(self.annotations.clone());
        (labels, annotations)
    }
}

fn owned(marks: &[(Text, Text)]) -> MarkMap {
    marks.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

fn read_marks(marks: &Value, keep: impl Fn(&str) -> bool) -> MarkMap {
    let marks = marks.as_object().into_iter().flatten().filter(|(key, _)| keep(key));
    marks.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::lean::Pool;
    use crate::desired::object::Opened;
    use serde_json::json;

    fn raw(value: Value) -> Opened {
        serde_json::from_value(value).unwrap()
    }

    fn whole(value: Value) -> Deployment {
        Pool::default().deployment(raw(value))
    }

    fn deployment(selector: &Value, labels: &Value) -> Deployment {
        whole(json!({"metadata": {"name": "d", "namespace": "n"}, "spec": {
            "selector": selector,
            "template": {"metadata": {"labels": labels, "annotations": {"note": "1", MANAGED_MARKS_ANNOTATION: "lie"}}, "spec": {"a": 1}}}}))
    }

    #[test]
    fn the_devices_labels_win_over_the_templates() {
        let template = Template::read(&deployment(
            &json!({"matchLabels": {"role": "tor"}, "matchExpressions": [{"key": "rack", "operator": "DoesNotExist"}]}),
            &json!({"role": "fake", "rack": "r", "team": "net", DEVICE_NAME_LABEL: "fake"}),
        ))
        .unwrap();
        let switch = Pool::default().switch(&raw(
            json!({"metadata": {"name": "s", "namespace": "n", "labels": {"role": "tor", "other": "x"}}}),
        ));
        assert!(template.matches(&switch));
        let labels: Vec<_> = template.labels(&switch).into_iter().collect();
        let expected = [(DEVICE_NAME_LABEL, "s"), ("rack", "r"), ("role", "tor"), ("team", "net")];
        assert_eq!(labels, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
        assert_eq!(template.annotations()["note"], "1");
        assert_eq!(
            template.annotations()[MANAGED_MARKS_ANNOTATION],
            r#"{"annotations":["note"],"labels":["rack","role","team"]}"#
        );
    }

    #[test]
    fn foreign_marks_stay_and_former_ones_go() {
        let template = Template::read(&deployment(&json!({}), &json!({"new": "1"}))).unwrap();
        let mut pool = Pool::default();
        let switch = pool.switch(&raw(json!({"metadata": {"name": "s", "namespace": "n"}})));
        let child = pool.process(&raw(json!({"metadata": {"name": "d-s", "namespace": "n",
            "labels": {"old": "1", "foreign": "2"},
            "annotations": {"gone": "1", "foreign": "2", MANAGED_MARKS_ANNOTATION: r#"{"annotations":["gone"],"labels":["old"]}"#}}})));
        assert!(!template.marks_are_right(&child, &switch));
        let (labels, annotations) = template.mended(&child, &switch);
        assert_eq!(labels.keys().collect::<Vec<_>>(), [DEVICE_NAME_LABEL, "foreign", "new"]);
        assert_eq!(annotations.keys().collect::<Vec<_>>(), [MANAGED_MARKS_ANNOTATION, "foreign", "note"]);
        let child = pool.process(&raw(
            json!({"metadata": {"name": "d-s", "namespace": "n", "labels": labels, "annotations": annotations}}),
        ));
        assert!(template.marks_are_right(&child, &switch));
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for (selector, message) in [
            (json!({"matchExpressions": [{"key": "a", "operator": "In", "values": []}]}), "needs at least one value"),
            (json!({"matchExpressions": [{"key": "a", "operator": "Near"}]}), "spec.selector cannot be read"),
            (json!(null), "spec.selector cannot be read"),
        ] {
            let error = Template::read(&deployment(&selector, &json!({}))).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        assert_eq!(
            Template::read(&whole(json!({"spec": {"selector": {}, "template": {"spec": 3}}}))).unwrap_err(),
            TemplateError::Spec
        );
    }

    #[test]
    fn a_childs_spec_is_the_templates_with_the_device() {
        let template = Template::read(&deployment(&json!({}), &json!({}))).unwrap();
        let spec: Value = serde_json::from_str(template.spec("NetworkSwitch", "s", None).get()).unwrap();
        assert_eq!(spec, json!({"a": 1, "deviceRef": {"kind": "NetworkSwitch", "name": "s"}}));
        assert_eq!(SpecHash::of_spec(&spec), template.hash);
        let empty = whole(json!({"spec": {"selector": {}, "template": {"spec": {}}}}));
        let spec = Template::read(&empty).unwrap().spec("NetworkSwitch", "s", Some("n"));
        assert_eq!(spec.get(), r#"{"deviceRef":{"kind":"NetworkSwitch","name":"s","namespace":"n"}}"#);
    }
}
