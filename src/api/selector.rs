//! Pure: label selectors, as Kubernetes matches them.

use std::collections::{BTreeMap, BTreeSet};

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rules::{KEY_MESSAGE, VALUE_MESSAGE, key_rule, labels_schema, value_rule};

/// Which labels an object must have. All requirements must hold; without any, every object matches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LabelSelector {
    /// Labels that the object must have, with exactly these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "labels_schema")]
    pub match_labels: BTreeMap<String, String>,
    /// Requirements on single labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub match_expressions: Vec<Requirement>,
}

/// A requirement on one label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new(
    "self.operator in ['In', 'NotIn'] ? has(self.values) && self.values.size() > 0 : !has(self.values) || self.values.size() == 0")
    .field_path(".values")
    .message("values must have at least one element for the operators In and NotIn, and must be left out for Exists and DoesNotExist"))]
#[serde(rename_all = "camelCase")]
pub struct Requirement {
    /// Key of the label.
    #[schemars(length(min = 1, max = 317))]
    #[x_kube(validation = Rule::new(key_rule("self")).message(KEY_MESSAGE))]
    pub key: String,
    /// In and Exists want the label to be there; NotIn and DoesNotExist are content when it is absent.
    pub operator: Operator,
    /// Values for In and NotIn, at least one; none for Exists and DoesNotExist.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 63)))]
    #[x_kube(validation = Rule::new(format!("self.all(v, {})", value_rule("v"))).message(VALUE_MESSAGE))]
    pub values: Vec<String>,
}

/// How a label is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Operator {
    /// The label is there, with one of the values.
    In,
    /// The label is absent, or has none of the values.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is absent.
    DoesNotExist,
}

/// A selector that means nothing. The schema refuses these; an object may be older than the schema.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// In or NotIn without values.
    #[error("selector: operator {operator:?} on key {key:?} needs at least one value")]
    ValuesMissing {
        /// Key of the requirement.
        key: String,
        /// Its operator.
        operator: Operator,
    },
    /// Exists or DoesNotExist with values.
    #[error("selector: operator {operator:?} on key {key:?} takes no values")]
    ValuesForbidden {
        /// Key of the requirement.
        key: String,
        /// Its operator.
        operator: Operator,
    },
}

impl LabelSelector {
    /// Whether the selector means something.
    ///
    /// # Errors
    /// The first requirement whose values do not go with its operator.
    pub fn validate(&self) -> Result<(), SelectorError> {
        for Requirement { key, operator, values } in &self.match_expressions {
            let (key, operator) = (key.clone(), *operator);
            match (operator, values.is_empty()) {
                (Operator::In | Operator::NotIn, true) => return Err(SelectorError::ValuesMissing { key, operator }),
                (Operator::Exists | Operator::DoesNotExist, false) => {
                    return Err(SelectorError::ValuesForbidden { key, operator });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether labels match. Of a selector that does not [`validate`](Self::validate), a requirement without
    /// meaning matches nothing.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|requirement| requirement.matches(labels))
    }

    /// Every key that the selector mentions.
    #[must_use]
    pub fn mentioned_keys(&self) -> BTreeSet<&str> {
        let expressions = self.match_expressions.iter().map(|requirement| &requirement.key);
        self.match_labels.keys().chain(expressions).map(String::as_str).collect()
    }
}

impl Requirement {
    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            Operator::In => value.is_some_and(|value| self.values.contains(value)),
            Operator::NotIn => !self.values.is_empty() && value.is_none_or(|value| !self.values.contains(value)),
            Operator::Exists => self.values.is_empty() && value.is_some(),
            Operator::DoesNotExist => self.values.is_empty() && value.is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn read(json: serde_json::Value) -> LabelSelector {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn empty_matches_everything() {
        assert!(LabelSelector::default().matches(&labels(&[])));
        assert!(LabelSelector::default().matches(&labels(&[("a", "b")])));
    }

    #[test]
    fn the_four_operators() {
        let one = |operator: &str, values: &[&str]| {
            read(serde_json::json!({"matchExpressions": [{"key": "role", "operator": operator, "values": values}]}))
        };
        let (tor, spine, bare) = (labels(&[("role", "tor")]), labels(&[("role", "spine")]), labels(&[("site", "ams")]));
        let verdicts =
            |selector: &LabelSelector| [selector.matches(&tor), selector.matches(&spine), selector.matches(&bare)];
        assert_eq!(verdicts(&one("In", &["tor", "leaf"])), [true, false, false]);
        assert_eq!(verdicts(&one("NotIn", &["tor", "leaf"])), [false, true, true]);
        assert_eq!(verdicts(&one("Exists", &[])), [true, true, false]);
        assert_eq!(verdicts(&one("DoesNotExist", &[])), [false, false, true]);
        // Without meaning: refused, and until then nothing is touched.
        for senseless in [one("In", &[]), one("NotIn", &[]), one("Exists", &["x"]), one("DoesNotExist", &["x"])] {
            assert_eq!(verdicts(&senseless), [false; 3]);
            assert!(senseless.validate().is_err());
        }
        assert_eq!(
            one("In", &[]).validate().unwrap_err().to_string(),
            r#"selector: operator In on key "role" needs at least one value"#
        );
        assert_eq!(
            one("Exists", &["x"]).validate().unwrap_err().to_string(),
            r#"selector: operator Exists on key "role" takes no values"#
        );
        assert!(
            serde_json::from_value::<LabelSelector>(
                serde_json::json!({"matchExpressions": [{"key": "a", "operator": "Gt"}]})
            )
            .is_err()
        );
    }

    #[test]
    fn keys_are_mentioned_once() {
        let selector = read(serde_json::json!({
            "matchLabels": {"role": "tor", "site": "ams"},
            "matchExpressions": [{"key": "site", "operator": "Exists"}, {"key": "rack", "operator": "DoesNotExist"}],
        }));
        assert_eq!(selector.mentioned_keys().into_iter().collect::<Vec<_>>(), ["rack", "role", "site"]);
    }

    fn small_labels() -> impl Strategy<Value = BTreeMap<String, String>> {
        proptest::collection::btree_map("[a-c]", "[x-z]", 0..4)
    }

    fn selectors() -> impl Strategy<Value = LabelSelector> {
        let operator = prop_oneof![
            Just(Operator::In),
            Just(Operator::NotIn),
            Just(Operator::Exists),
            Just(Operator::DoesNotExist)
        ];
        let requirement = ("[a-c]", operator, proptest::collection::vec("[x-z]", 0..3))
            .prop_map(|(key, operator, values)| Requirement { key, operator, values });
        (proptest::collection::btree_map("[a-c]", "[x-z]", 0..2), proptest::collection::vec(requirement, 0..4))
            .prop_map(|(match_labels, match_expressions)| LabelSelector { match_labels, match_expressions })
    }

    /// The rules of Kubernetes, written as sets of the labels' (key, value) pairs.
    fn naive(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
        let pairs: BTreeSet<(&str, &str)> = labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        for (key, value) in &selector.match_labels {
            if !pairs.contains(&(key.as_str(), value.as_str())) {
                return false;
            }
        }
        for requirement in &selector.match_expressions {
            let present = pairs.iter().any(|(key, _)| *key == requirement.key);
            let hit =
                requirement.values.iter().any(|value| pairs.contains(&(requirement.key.as_str(), value.as_str())));
            let holds = match requirement.operator {
                Operator::In => hit,
                Operator::NotIn => !hit,
                Operator::Exists => present,
                Operator::DoesNotExist => !present,
            };
            if !holds {
                return false;
            }
        }
        true
    }

    proptest! {
        #[test]
        fn agrees_with_the_naive_model(selector in selectors(), labels in small_labels()) {
            if selector.validate().is_ok() {
                prop_assert_eq!(selector.matches(&labels), naive(&selector, &labels));
            }
            prop_assert_eq!(read(serde_json::to_value(&selector).unwrap()), selector);
        }

        #[test]
        fn only_mentioned_keys_matter(selector in selectors(), labels in small_labels()) {
            let keys = selector.mentioned_keys();
            let kept = labels.iter().filter(|(key, _)| keys.contains(key.as_str())).map(|(key, value)| (key.clone(), value.clone())).collect();
            prop_assert_eq!(selector.matches(&labels), selector.matches(&kept));
        }
    }
}
