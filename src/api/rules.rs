//! Pure: what the schema demands of labels and annotations: what the API server itself would accept on an object.

use schemars::{Schema, SchemaGenerator, json_schema};

/// A label or annotation key: an optional DNS subdomain and `/`, then at most 63 characters.
const QUALIFIED_NAME: &str =
    "([a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?";
/// A label value.
const LABEL_VALUE: &str = "([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?";

/// CEL: `variable` is a valid label key.
pub(super) fn key_rule(variable: &str) -> String {
    format!("size({variable}) <= 317 && {variable}.matches('^{QUALIFIED_NAME}$')")
}

/// CEL: `variable` is a valid label value.
pub(super) fn value_rule(variable: &str) -> String {
    format!("{variable}.matches('^{LABEL_VALUE}$')")
}

/// What [`key_rule`] wants.
pub(super) const KEY_MESSAGE: &str = "keys must be an optional lower-case DNS prefix and '/', then at most 63 letters, digits, '-', '_' and '.' that begin and end with a letter or digit, such as role or example.com/role";
/// What [`value_rule`] wants.
pub(super) const VALUE_MESSAGE: &str = "values must be empty or at most 63 letters, digits, '-', '_' and '.' that begin and end with a letter or digit, such as tor";

/// A map of labels.
pub(super) fn labels_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 64,
        "additionalProperties": { "type": "string", "maxLength": 63 },
        "x-kubernetes-validations": [
            { "rule": format!("self.all(k, {})", key_rule("k")), "message": KEY_MESSAGE },
            { "rule": format!("self.all(k, {})", value_rule("self[k]")), "message": VALUE_MESSAGE },
        ],
    })
}

/// A map of annotations.
pub(super) fn annotations_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 64,
        "additionalProperties": { "type": "string", "maxLength": 16384 },
        "x-kubernetes-validations": [
            { "rule": format!("self.all(k, {})", key_rule("k")), "message": KEY_MESSAGE },
            { "rule": "self.map(k, size(k) + size(self[k])).sum() <= 131072", "message": "annotations of a template may have at most 131072 characters altogether" },
        ],
    })
}
