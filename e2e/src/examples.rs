//! The manifests of `examples/shop`, which the tests use as they are, but for namespace and images.

use std::fs;

use anyhow::Context;
use serde_json::{Value, json};

use crate::{apply, environment};

/// The objects of a file of the example, for `namespace`.
pub fn shop(file: &str, namespace: &str) -> anyhow::Result<Vec<Value>> {
    let path = environment::root()?.join("examples/shop").join(file);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut objects = apply::documents(&text)?;
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
                _ => continue,
            };
            container["image"] = json!(environment::variable(variable)?);
            container["imagePullPolicy"] = json!("IfNotPresent");
        }
    }
    Ok(objects)
}
