//! Edge: tests of the definitions; one reads, and with `UPDATE=1` writes, the files in `crd/`.

use std::path::Path;

use super::*;

fn schema(crd: &CustomResourceDefinition) -> Value {
    serde_json::to_value(crd.spec.versions[0].schema.as_ref().unwrap()).unwrap()["openAPIV3Schema"].clone()
}

/// Every schema below `at`, with its path.
fn walk(path: String, at: &Value, visit: &mut dyn FnMut(&str, &Value)) {
    visit(&path, at);
    for (name, property) in at["properties"].as_object().into_iter().flatten() {
        walk(format!("{path}.{name}"), property, visit);
    }
    for (part, mark) in [("items", "[]"), ("additionalProperties", "{}")] {
        if at[part].is_object() {
            walk(format!("{path}{mark}"), &at[part], visit);
        }
    }
}

#[test]
fn every_field_is_described() {
    let mut seen = 0;
    for crd in crds() {
        walk(crd.spec.names.kind.clone(), &schema(&crd), &mut |path, at| {
            seen += 1;
            let is_field = !path.ends_with("[]") && !path.ends_with("{}");
            let description = at["description"].as_str().unwrap_or_default();
            assert!(!is_field || description.len() > 10, "{path} has no description");
            assert!(
                !description.contains("Auto-generated")
                    && !description.contains("(http")
                    && !description.contains("[`"),
                "{path}: {description}"
            );
        });
    }
    assert!(seen > 100, "only {seen} fields");
}

#[test]
fn schemas_are_plain() {
    for crd in crds() {
        walk(crd.spec.names.kind.clone(), &schema(&crd), &mut |path, at| {
            assert!(at["type"].is_string() || at["x-kubernetes-int-or-string"] == true, "{path} has no type: {at}");
            for unwanted in ["anyOf", "oneOf", "allOf", "nullable", "title", "$ref"] {
                assert!(at[unwanted].is_null(), "{path} has {unwanted}: {at}");
            }
            if let Some(format) = at["format"].as_str() {
                assert!(["int32", "int64", "date-time"].contains(&format), "{path}: format {format}");
            }
        });
        assert!(crd.spec.versions[0].subresources.as_ref().unwrap().status.is_some());
    }
}

#[test]
fn every_rule_has_a_message() {
    let mut rules = 0;
    for crd in crds() {
        walk(crd.spec.names.kind.clone(), &schema(&crd), &mut |path, at| {
            for rule in at["x-kubernetes-validations"].as_array().into_iter().flatten() {
                rules += 1;
                assert!(rule["message"].as_str().is_some_and(|message| message.len() > 20), "{path}: {rule}");
            }
            assert!(at["pattern"].is_null(), "{path}: a pattern refuses without saying what is right");
        });
    }
    assert!(rules > 20, "only {rules} rules");
}

#[test]
fn defaults() {
    let mut found = std::collections::BTreeMap::new();
    for crd in crds() {
        walk(crd.spec.names.kind.clone(), &schema(&crd), &mut |path, at| {
            if !at["default"].is_null() {
                found.insert(path.to_owned(), at["default"].clone());
            }
        });
    }
    let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%"}});
    let mut expected = std::collections::BTreeMap::from([
        ("NetworkSwitch.spec".to_owned(), json!({})),
        ("DeviceProcess.status".to_owned(), json!({"phase": "Pending"})),
        ("DeviceProcess.status.phase".to_owned(), json!("Pending")),
        ("DeviceProcessDeployment.spec.updateStrategy".to_owned(), strategy.clone()),
        ("DeviceProcessDeployment.spec.updateStrategy.type".to_owned(), json!("RollingUpdate")),
        ("DeviceProcessDeployment.spec.updateStrategy.rollingUpdate".to_owned(), strategy["rollingUpdate"].clone()),
        ("DeviceProcessDeployment.spec.updateStrategy.rollingUpdate.maxUnavailable".to_owned(), json!("10%")),
    ]);
    for spec in ["DeviceProcess.spec", "DeviceProcessDeployment.spec.template.spec"] {
        expected.insert(format!("{spec}.restartPolicy"), json!("Always"));
        for (field, value) in
            [("periodSeconds", 30), ("timeoutSeconds", 5), ("successThreshold", 1), ("failureThreshold", 3)]
        {
            expected.insert(format!("{spec}.healthCheck.{field}"), json!(value));
        }
    }
    assert_eq!(found, expected);
}

#[test]
fn yaml_reads_back() {
    for ((file, yaml), crd) in render().unwrap().iter().zip(crds()) {
        let read: Value = serde_saphyr::from_str(yaml).unwrap();
        assert_eq!(read, whole_numbers(serde_json::to_value(&crd).unwrap()), "{file}");
        let typed: CustomResourceDefinition = serde_json::from_value(read).unwrap();
        assert_eq!(typed, crd, "{file}");
    }
}

/// `UPDATE=1 cargo test` writes the files, as `make manifests` does.
#[test]
fn files_are_up_to_date() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("crd");
    let mut files = vec!["kustomization.yaml".to_owned()];
    for (file, yaml) in render().unwrap() {
        let path = folder.join(&file);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &yaml).unwrap();
        }
        let on_disk = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(on_disk == yaml, "crd/{file} differs from src/api: run `make manifests`");
        files.push(file);
    }
    for entry in std::fs::read_dir(&folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(files.contains(&name), "crd/{name} is not generated by src/api");
    }
    let kustomization = std::fs::read_to_string(folder.join("kustomization.yaml")).unwrap();
    for file in files.iter().filter(|file| *file != "kustomization.yaml") {
        assert!(kustomization.contains(file), "crd/kustomization.yaml lacks {file}");
    }
}
