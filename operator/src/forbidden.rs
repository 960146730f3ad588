//! The lists that the API server refuses in some of the watched namespaces.
//!
//! # Guarantees
//! - A refused list is not taken for an empty one: nothing is written, deleted or injected in a namespace as long as a list that this depends
//!   on is refused.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Resource;
use parking_lot::RwLock;

use crate::error::{Error, Result};

/// The kinds that may not be listed, by namespace, each with the API server's words.
#[derive(Clone, Debug, Default)]
pub struct Forbidden(Arc<RwLock<Namespaces>>);

type Namespaces = BTreeMap<String, BTreeMap<String, String>>;

impl Forbidden {
    /// Notes that a kind may not be listed in a namespace, with the API server's words.
    pub fn insert(&self, namespace: &str, kind: &str, words: String) {
        let mut namespaces = self.0.write();
        let kinds = namespaces.entry(namespace.to_owned()).or_default();
        if kinds.insert(kind.to_owned(), words).is_none() {
            tracing::warn!(
                namespace,
                kind,
                "may not list a kind in a watched namespace, which was deleted or lacks the operator's Role: nothing is \
                 done there until that is possible"
            );
        }
    }

    /// Notes that a kind may be listed in a namespace.
    pub fn remove(&self, namespace: &str, kind: &str) {
        let mut namespaces = self.0.write();
        let Some(kinds) = namespaces.get_mut(namespace) else { return };
        if kinds.remove(kind).is_some() {
            tracing::info!(namespace, kind, "may list a kind in a watched namespace again");
        }
        if kinds.is_empty() {
            namespaces.remove(namespace);
        }
    }

    /// Checks that everything in a namespace may be listed.
    ///
    /// # Errors
    /// With the API server's words about one of the kinds.
    pub fn check(&self, namespace: &str) -> Result<()> {
        self.check_kinds(namespace, |_| true)
    }

    /// Checks that everything in a namespace may be listed that the admission of a pod depends on.
    ///
    /// # Errors
    /// With the API server's words about one of the kinds.
    pub fn check_admission(&self, namespace: &str) -> Result<()> {
        self.check_kinds(namespace, |kind| kind == NetworkPolicy::kind(&()))
    }

    fn check_kinds(&self, namespace: &str, matters: impl Fn(&str) -> bool) -> Result<()> {
        let namespaces = self.0.read();
        let mut kinds = namespaces.get(namespace).into_iter().flatten();
        match kinds.find(|(kind, _)| matters(kind)) {
            Some((_, words)) => {
                Err(Error::Forbidden { namespace: namespace.to_owned(), words: words.clone() })
            }
            None => Ok(()),
        }
    }
}

/// Returns the name of a kind.
pub fn kind_of<K: Resource<DynamicType: Default>>() -> String {
    K::kind(&K::DynamicType::default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespace_is_left_alone_until_every_kind_may_be_listed() {
        let forbidden = Forbidden::default();
        forbidden.insert("shop", "Service", "cannot list services".into());
        forbidden.insert("shop", "Pod", "cannot list pods".into());
        let told = forbidden.check("shop").unwrap_err().to_string();
        assert!(told.contains("namespace shop") && told.contains("cannot list pods"), "{told}");
        assert!(forbidden.check("web").is_ok());
        forbidden.remove("shop", "Pod");
        assert!(forbidden.check("shop").unwrap_err().to_string().contains("cannot list services"));
        forbidden.remove("shop", "Service");
        forbidden.remove("shop", "Service");
        assert!(forbidden.check("shop").is_ok());
    }

    #[test]
    fn admission_needs_the_network_policies_alone() {
        let forbidden = Forbidden::default();
        forbidden.insert("shop", "Pod", "cannot list pods".into());
        assert!(forbidden.check_admission("shop").is_ok());
        forbidden.insert("shop", "NetworkPolicy", "cannot list networkpolicies".into());
        assert!(forbidden.check_admission("shop").is_err());
    }
}
