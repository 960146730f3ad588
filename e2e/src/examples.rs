//! The manifests of `examples`, which the tests use as they are, but for namespace and images.

use std::fs;

use anyhow::{Context, ensure};
use larder_crds::ConditionType;
use serde_json::{Value, json};

use crate::{Agent, Sandbox, apply, cluster, environment, policy::Policy};

/// The objects of a file of `examples/shop`, for `namespace`.
pub fn shop(file: &str, namespace: &str) -> anyhow::Result<Vec<Value>> {
    let path = environment::root()?.join("examples/shop").join(file);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    for_namespace(&text, namespace)
}

/// Returns the objects of `kubectl apply -k examples/<name>`, for `namespace`, without the namespace itself.
async fn kustomized(name: &str, namespace: &str) -> anyhow::Result<Vec<Value>> {
    let text = cluster::tool("LARDER_KUBECTL", &["kustomize", &format!("examples/{name}")]).await?;
    let mut objects = for_namespace(&text, namespace)?;
    objects.retain(|object| object["kind"] != "Namespace");
    Ok(objects)
}

/// Applies `examples/<name>`, whose policy is of that name and selects `pods` pods of the Deployment `app`, and waits until
/// all of it serves.
pub async fn deploy<'s>(sandbox: &'s Sandbox, name: &str, pods: i32) -> anyhow::Result<(Policy<'s>, Agent)> {
    let objects = kustomized(name, &sandbox.name).await?;
    let (policies, others): (Vec<_>, Vec<_>) =
        objects.into_iter().partition(|object| object["kind"] == "CachePolicy");
    ensure!(policies.len() == 1, "examples/{name} has not one policy: {policies:?}");
    sandbox.apply(&policies).await?;
    let policy = Policy::of(sandbox, name);
    let deployments = || others.iter().filter(|object| object["kind"] == "Deployment");
    let app =
        deployments().find(|object| object["metadata"]["name"] == "app").context("no Deployment app")?;
    policy.injects(&app["spec"]["template"]).await?;
    sandbox.apply(&others).await?;
    let agent = sandbox.agent().await?;
    policy.serves(pods).await?;
    for deployment in deployments() {
        sandbox.rolled_out(deployment["metadata"]["name"].as_str().context("no name")?).await?;
    }
    policy.condition(ConditionType::TiersHealthy, "True").await?;
    agent.reaches("app").await?;
    Ok((policy, agent))
}

fn for_namespace(text: &str, namespace: &str) -> anyhow::Result<Vec<Value>> {
    let mut objects = apply::documents(text)?;
    for object in &mut objects {
        object["metadata"]["namespace"] = json!(namespace);
        let Some(pod) = object.pointer_mut("/spec/template/spec") else { continue };
        // They hold nothing that a test would miss.
        pod["terminationGracePeriodSeconds"] = json!(2);
        for container in pod["containers"].as_array_mut().into_iter().flatten() {
            let image = container["image"].as_str().unwrap_or_default();
            let variable = match image.split(':').next().unwrap_or_default() {
                "redis" => "LARDER_REDIS_IMAGE",
                "postgres" => "LARDER_POSTGRES_IMAGE",
                "larder/example-shop" => "LARDER_SHOP_IMAGE",
                "larder/example-origin" => "LARDER_EXAMPLE_ORIGIN_IMAGE",
                _ => continue,
            };
            container["image"] = json!(environment::variable(variable)?);
            container["imagePullPolicy"] = json!("IfNotPresent");
        }
    }
    Ok(objects)
}
