//! The Pod Security levels that namespaces enforce by their labels.
//!
//! # Assumptions
//! A namespace without the label has the cluster's default, which only the API server knows: it is asked by a dry run before a
//! restart.

use k8s_openapi::api::core::v1::Namespace;
use kube::{
    ResourceExt,
    core::PartialObjectMeta,
    runtime::reflector::{ObjectRef, Store},
};

use crate::error::{Error, Result};

/// The label with the level that a namespace enforces.
const ENFORCE: &str = "pod-security.kubernetes.io/enforce";
/// The level that forbids nothing.
const PRIVILEGED: &str = "privileged";

/// The levels of all namespaces, or nothing where no capture mode needs them.
#[derive(Clone, Default)]
pub struct PodSecurity(Option<Store<PartialObjectMeta<Namespace>>>);

impl PodSecurity {
    /// Wraps the namespaces in `store`.
    pub const fn new(store: Store<PartialObjectMeta<Namespace>>) -> Self {
        Self(Some(store))
    }

    /// Waits until every namespace is known.
    ///
    /// # Errors
    /// If the watch has ended.
    pub async fn ready(&self) -> Result<()> {
        match &self.0 {
            Some(store) => store.wait_until_ready().await.map_err(|_| Error::WatchEnded),
            None => Ok(()),
        }
    }

    /// Returns the level that a namespace enforces, if it forbids capabilities.
    pub fn confined(&self, namespace: &str) -> Option<String> {
        let namespace = self.0.as_ref()?.get(&ObjectRef::new(namespace))?;
        namespace.labels().get(ENFORCE).filter(|level| *level != PRIVILEGED).cloned()
    }
}

#[cfg(test)]
mod tests {
    use kube::runtime::{reflector, watcher};
    use serde_json::{Value, json};

    use super::*;

    fn store(namespaces: Vec<Value>) -> Store<PartialObjectMeta<Namespace>> {
        let (store, mut writer) = reflector::store();
        for namespace in namespaces {
            writer.apply_watcher_event(&watcher::Event::Apply(serde_json::from_value(namespace).unwrap()));
        }
        store
    }

    #[test]
    fn levels_below_privileged_forbid_capabilities() {
        let namespace = |name: &str, labels| json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {"name": name, "labels": labels}});
        let levels = PodSecurity::new(store(vec![
            namespace("plain", json!({})),
            namespace("privileged", json!({ENFORCE: "privileged"})),
            namespace("baseline", json!({ENFORCE: "baseline"})),
            namespace("restricted", json!({ENFORCE: "restricted"})),
        ]));
        let confined = |name| levels.confined(name);
        assert_eq!(["plain", "privileged", "unknown"].map(confined), [None, None, None]);
        assert_eq!(confined("baseline").as_deref(), Some("baseline"));
        assert_eq!(confined("restricted").as_deref(), Some("restricted"));
        assert_eq!(PodSecurity::default().confined("restricted"), None);
    }
}
