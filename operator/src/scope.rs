//! The namespaces whose pods, workloads and Services the operator lists: those with policies, with leftovers of deleted
//! policies, and its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use tokio::sync::watch;

use crate::{policies::Guarded, watched::Watched};

/// Namespaces, each with a number that tells it from an earlier presence of the same namespace.
pub type Namespaces = Arc<BTreeMap<String, u64>>;

/// Follows the namespaces; there are none until the lists of policies and ConfigMaps are complete.
pub fn follow(
    policies: &Watched<Guarded>,
    config_maps: &Watched<ConfigMap>,
    own: &str,
) -> (watch::Receiver<Option<Namespaces>>, impl Future<Output = ()> + use<>) {
    let (sender, receiver) = watch::channel(None);
    let (policies, config_maps, own) = (policies.clone(), config_maps.clone(), own.to_owned());
    let work = async move {
        let changes =
            stream::select(policies.subscribe().map(drop).boxed(), config_maps.subscribe().map(drop).boxed());
        // Changes that came together are looked at together.
        let mut changes = changes.ready_chunks(10_000);
        let (policies, config_maps) = (policies.store(), config_maps.store());
        if policies.wait_until_ready().await.is_err() || config_maps.wait_until_ready().await.is_err() {
            return;
        }
        let mut last = 0;
        loop {
            let mut namespaces = BTreeSet::from([own.clone()]);
            namespaces.extend(policies.state().iter().filter_map(|policy| policy.namespace()));
            namespaces.extend(config_maps.state().iter().filter_map(|map| map.namespace()));
            sender.send_if_modified(|current| renew(current, namespaces, &mut last));
            if changes.next().await.is_none() {
                return;
            }
        }
    };
    (receiver, work)
}

/// Replaces the namespaces; returns true if they changed.
fn renew(current: &mut Option<Namespaces>, next: BTreeSet<String>, last: &mut u64) -> bool {
    let before = current.clone().unwrap_or_default();
    if current.is_some() && before.keys().eq(&next) {
        return false;
    }
    let numbered = next.into_iter().map(|namespace| {
        let number = before.get(&namespace).copied().unwrap_or_else(|| {
            *last += 1;
            *last
        });
        (namespace, number)
    });
    *current = Some(Arc::new(numbered.collect()));
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespace_that_left_and_returns_is_another() {
        let mut current = None;
        let mut last = 0;
        let mut renew = |names: &[&str]| {
            let changed = renew(&mut current, names.iter().map(|&name| name.to_owned()).collect(), &mut last);
            (changed, current.clone().unwrap())
        };
        let (changed, first) = renew(&["a", "b"]);
        assert!(changed);
        assert!(!renew(&["a", "b"]).0);
        let (changed, without) = renew(&["b"]);
        assert!(changed);
        assert_eq!(without.get("b"), first.get("b"));
        assert_ne!(renew(&["a", "b"]).1.get("a"), first.get("a"));
    }
}
