//! The custom resource definitions, in their forms for the API server and the chart.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, ValidationRule,
};
use kube::CustomResourceExt;

use crate::{CacheInvalidation, CachePolicy};

/// Maximum length of a policy's name, so that names derived from it (`larder-<name>-peers`) and labels that carry it
/// stay within 63 characters.
pub const MAX_NAME: usize = 50;

/// Returns the definition of `CachePolicy`.
pub fn cache_policies() -> CustomResourceDefinition {
    let mut definition = CachePolicy::crd();
    for version in &mut definition.spec.versions {
        if let Some(schema) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) {
            tidy(schema);
            schema.x_kubernetes_validations.get_or_insert_default().push(ValidationRule {
                rule: format!("size(self.metadata.name.replace('.', '-dot-')) <= {MAX_NAME}"),
                message: Some(format!(
                    "shorten metadata.name to at most {MAX_NAME} characters, of which a '.' counts as five"
                )),
                ..ValidationRule::default()
            });
        }
    }
    definition
}

/// Returns the definition of `CacheInvalidation`.
pub fn cache_invalidations() -> CustomResourceDefinition {
    let mut definition = CacheInvalidation::crd();
    for version in &mut definition.spec.versions {
        if let Some(schema) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) {
            tidy(schema);
        }
    }
    definition
}

/// Returns every definition.
pub fn all() -> [CustomResourceDefinition; 2] {
    [cache_policies(), cache_invalidations()]
}

/// Removes parts of a schema that do not suit an API server. An explicit null then equals an absent field, where
/// `nullable` would disable the default; the formats of unsigned integers are unknown to it.
fn tidy(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    if schema.format.as_deref().is_some_and(|format| format.starts_with("uint")) {
        schema.format = None;
    }
    schema.properties.iter_mut().flat_map(|properties| properties.values_mut()).for_each(tidy);
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        tidy(items);
    }
}

/// Returns the definition as YAML, with a first line that names its source.
///
/// # Errors
/// None that this definition can cause; YAML's writer has the type.
pub fn to_yaml(definition: &CustomResourceDefinition) -> Result<String, serde_yaml::Error> {
    Ok(format!("# Made by `./dev generate`.\n{}", serde_yaml::to_string(definition)?))
}

/// Returns the definition as a template of the chart: Helm retains the resource when the chart is uninstalled, and
/// braces are escaped.
///
/// # Errors
/// None that this definition can cause; YAML's writer has the type.
pub fn to_chart_template(mut definition: CustomResourceDefinition) -> Result<String, serde_yaml::Error> {
    definition
        .metadata
        .annotations
        .get_or_insert_default()
        .insert("helm.sh/resource-policy".into(), "keep".into());
    Ok(to_yaml(&definition)?.replace("{{", "{{ \"{{\" }}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uninstalling_the_chart_keeps_the_definition() {
        for definition in all() {
            let template = to_chart_template(definition).unwrap();
            assert!(template.contains("helm.sh/resource-policy: keep"), "{template}");
        }
    }

    #[test]
    fn every_rule_has_a_message() {
        fn check(schema: &serde_json::Value) {
            for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
                assert!(rule["message"].as_str().is_some_and(|message| message.contains(' ')), "{rule}");
            }
            match schema {
                serde_json::Value::Object(members) => members.values().for_each(check),
                serde_json::Value::Array(items) => items.iter().for_each(check),
                _ => {}
            }
        }
        check(&serde_json::to_value(all()).unwrap());
    }
}
