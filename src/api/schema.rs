//! Pure: the CustomResourceDefinitions and their YAML.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;
use serde_json::{Value, json};

use super::{DeviceProcess, DeviceProcessDeployment, NetworkSwitch};

/// First line of every generated file.
const HEADER: &str = "# Generated from src/api by `make manifests`; do not edit.\n";

/// A definition that cannot be written as YAML.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {name} as YAML")]
pub struct RenderError {
    /// Name of the definition.
    name: String,
    /// Why.
    source: RenderCause,
}

/// Why a definition cannot be written.
#[derive(Debug, thiserror::Error)]
enum RenderCause {
    /// It is no JSON.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// It is no YAML.
    #[error(transparent)]
    Yaml(#[from] serde_saphyr::ser::Error),
}

/// The definitions of all kinds, as they are to be applied.
#[must_use]
pub fn crds() -> Vec<CustomResourceDefinition> {
    let mut all = vec![NetworkSwitch::crd(), DeviceProcess::crd(), DeviceProcessDeployment::crd()];
    for crd in &mut all {
        let kind = crd.spec.names.kind.as_str();
        let schemas =
            crd.spec.versions.iter_mut().filter_map(|version| version.schema.as_mut()?.open_api_v3_schema.as_mut());
        for schema in schemas {
            each(schema, &mut tidy);
            if let Some(status) = property(schema, "status") {
                // What a type reads an absent member as is no value that anybody wrote.
                each(status, &mut |part| part.default = None);
            }
            match kind {
                "NetworkSwitch" => open_spec(schema),
                "DeviceProcess" => pending_from_the_start(schema),
                _ => {}
            }
        }
    }
    all
}

/// The spec of a switch is open, and optional: a switch is an inventory entry already when it has a name.
fn open_spec(schema: &mut JSONSchemaProps) {
    if let Some(spec) = property(schema, "spec") {
        spec.type_ = Some("object".to_owned());
        spec.additional_properties = None;
        spec.x_kubernetes_preserve_unknown_fields = Some(true);
        spec.default = Some(JSON(json!({})));
    }
    schema.required = None;
}

/// A new process shows its phase without anybody writing it.
fn pending_from_the_start(schema: &mut JSONSchemaProps) {
    if let Some(status) = property(schema, "status") {
        status.default = Some(JSON(json!({ "phase": "Pending" })));
        if let Some(phase) = property(status, "phase") {
            phase.default = Some(JSON(json!("Pending")));
        }
    }
}

/// The files of `crd/`: name and content. The content is the definition with a line that says where it comes from.
///
/// # Errors
/// When a definition cannot be written as YAML, which would be a fault of this program.
pub fn render() -> Result<Vec<(String, String)>, RenderError> {
    crds()
        .iter()
        .map(|crd| {
            let file = format!("{}_{}.yaml", crd.spec.group, crd.spec.names.plural);
            match serde_json::to_value(crd)
                .map(whole_numbers)
                .map_err(RenderCause::from)
                .and_then(|crd| Ok(serde_saphyr::to_string(&crd)?))
            {
                Ok(yaml) => Ok((file, format!("{HEADER}{}\n", yaml.trim_end()))),
                Err(source) => Err(RenderError { name: file, source }),
            }
        })
        .collect()
}

/// The same value with `1.0` written as `1`: bounds of a schema are floating-point numbers in its type, and the API
/// server gives them back as whole ones.
fn whole_numbers(value: Value) -> Value {
    match value {
        Value::Number(number) => match number.as_f64() {
            // Within what an f64 holds exactly.
            Some(float) if float.fract() == 0.0 && float.abs() < 9e15 => json!(float as i64),
            _ => Value::Number(number),
        },
        Value::Array(items) => items.into_iter().map(whole_numbers).collect(),
        Value::Object(members) => members.into_iter().map(|(name, member)| (name, whole_numbers(member))).collect(),
        other => other,
    }
}

/// A property of a schema.
fn property<'a>(schema: &'a mut JSONSchemaProps, name: &str) -> Option<&'a mut JSONSchemaProps> {
    schema.properties.as_mut()?.get_mut(name)
}

/// Does something to a schema and to every schema in it.
fn each(schema: &mut JSONSchemaProps, change: &mut dyn FnMut(&mut JSONSchemaProps)) {
    change(schema);
    for property in schema.properties.iter_mut().flatten().map(|(_, property)| property) {
        each(property, change);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        each(items, change);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        each(values, change);
    }
}

/// Takes out what the derive adds and Kubernetes does not want.
fn tidy(schema: &mut JSONSchemaProps) {
    // An explicit null then counts as absent: it is dropped before defaults are set.
    schema.nullable = None;
    schema.title = None;
    // Line breaks of a doc comment are those of its source; only paragraphs mean something.
    if let Some(description) = &mut schema.description {
        let paragraphs: Vec<_> = description.split("\n\n").map(|paragraph| paragraph.replace('\n', " ")).collect();
        *description = paragraphs.join("\n\n");
    }
    // The API server knows int32 and int64 only, and warns of others.
    schema.format.take_if(|format| format.starts_with("uint") || format == "double");
}

#[cfg(test)]
mod tests;
