//! Objects as YAML or JSON, applied as `kubectl apply --server-side` does it.

use anyhow::{Context, bail, ensure};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, TypeMeta, ValidationDirective},
};
use serde::Deserialize;
use serde_json::Value;

/// The documents of a YAML text.
pub fn documents(yaml: &str) -> anyhow::Result<Vec<Value>> {
    serde_yaml::Deserializer::from_str(yaml)
        .map(|document| Value::deserialize(document).context("not YAML"))
        .filter(|document| !matches!(document, Ok(Value::Null)))
        .collect()
}

/// The API of an object's kind in a namespace.
pub fn api_of(client: &Client, namespace: &str, object: &Value) -> anyhow::Result<Api<DynamicObject>> {
    let types: TypeMeta = serde_json::from_value(object.clone()).context("no apiVersion and kind")?;
    let resource = ApiResource::from_gvk(&GroupVersionKind::try_from(&types)?);
    Ok(Api::namespaced_with(client.clone(), namespace, &resource))
}

/// Applies an object, with unknown fields refused, as kubectl refuses them.
pub async fn apply(client: &Client, namespace: &str, object: &Value) -> anyhow::Result<DynamicObject> {
    let name = object["metadata"]["name"].as_str().context("no metadata.name")?;
    let mut parameters = PatchParams::apply("larder-e2e").force();
    parameters.field_validation = Some(ValidationDirective::Strict);
    api_of(client, namespace, object)?
        .patch(name, &parameters, &Patch::Apply(object))
        .await
        .with_context(|| format!("apply {} {name}", object["kind"].as_str().unwrap_or_default()))
}

/// Asserts that the API server takes an object; it is not kept.
pub async fn accepts(client: &Client, namespace: &str, object: &Value) -> anyhow::Result<()> {
    dry_run(client, namespace, object).await.map(drop)
}

/// Asserts that the API server refuses an object with a message that contains `message`.
pub async fn rejects(client: &Client, namespace: &str, object: &Value, message: &str) -> anyhow::Result<()> {
    match dry_run(client, namespace, object).await {
        Ok(_) => bail!("accepted, though it should be refused with {message:?}: {object}"),
        Err(error) => {
            let said = format!("{error:#}");
            ensure!(said.contains(message), "refused with {said:?}, not with {message:?}: {object}");
            Ok(())
        }
    }
}

/// Returns the object that the API server, webhooks included, would create.
pub async fn dry_run(client: &Client, namespace: &str, object: &Value) -> anyhow::Result<DynamicObject> {
    let name = object["metadata"]["name"].as_str().context("no metadata.name")?;
    let mut parameters = PatchParams::apply("larder-e2e").force().dry_run();
    parameters.field_validation = Some(ValidationDirective::Strict);
    Ok(api_of(client, namespace, object)?.patch(name, &parameters, &Patch::Apply(object)).await?)
}
