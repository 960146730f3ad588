//! Watched lists of the objects in some namespaces.
//!
//! # Guarantees
//! - Of other namespaces nothing is kept.
//! - A namespace is covered when every object of it is in the list; from then on each change is reported to the readers. One whose list
//!   is refused may be covered as well, but is not ready ([`Scope::ready`]).
//! - A change of what the operator does not read is not reported.
//!
//! There is one watch of the whole cluster for each kind: the API server counts connections, and a cluster may have a
//! thousand namespaces with policies. A namespace that is added later is listed by itself. Changes that the watch reports
//! after that may be older than what was listed; the later ones follow, so that the list is right in the end.

use std::{fmt::Debug, sync::Arc, time::Duration};

use futures::{Stream, StreamExt, channel::mpsc};
use k8s_openapi::NamespaceResourceScope;
use kube::{Api, Client, Resource, api::ListParams, runtime::watcher};
use parking_lot::Mutex;
use tokio::sync::watch as channel;

use crate::{
    cluster::Cluster,
    error::{Error, Result},
    forbidden::Forbidden,
    list::{Change, List, Listed, Objects},
    metrics::Metrics,
    scope::Namespaces,
    watched::{PAGE_SIZE, events},
};

/// Delay before a namespace that could not be listed is listed again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Time within which the lists of a namespace should be complete.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// A watched list of the objects in some namespaces.
pub struct Scoped<K> {
    list: List<K>,
    covered: channel::Receiver<Namespaces>,
    readers: Readers,
}

type Readers = Arc<Mutex<Vec<mpsc::UnboundedSender<Change>>>>;

impl<K: Listed> Scoped<K> {
    /// Returns the list.
    pub fn list(&self) -> List<K> {
        self.list.clone()
    }

    /// Returns the namespaces that are in the list.
    pub fn covered(&self) -> channel::Receiver<Namespaces> {
        self.covered.clone()
    }

    /// Returns each later change in a namespace.
    pub fn subscribe(&self) -> impl Stream<Item = Change> + use<K> {
        let (sender, receiver) = mpsc::unbounded();
        self.readers.lock().push(sender);
        receiver
    }
}

/// Namespaces that are to be listed, and those that are in each of several lists.
#[derive(Clone, Debug)]
pub struct Scope {
    /// Namespaces that are to be listed.
    pub wanted: channel::Receiver<Option<Namespaces>>,
    /// Namespaces that are in each list.
    pub covered: Vec<channel::Receiver<Namespaces>>,
    /// Kinds that may not be listed.
    pub forbidden: Forbidden,
}

impl Scope {
    /// Waits until a namespace is in every list.
    ///
    /// # Errors
    /// If a list of the namespace is refused, if a watch has ended, or if it takes too long.
    pub async fn ready(&self, namespace: &str) -> Result<()> {
        self.forbidden.check(namespace)?;
        let ready = async {
            let is_wanted = |wanted: &Option<Namespaces>| {
                wanted.as_ref().is_some_and(|wanted| wanted.contains_key(namespace))
            };
            let mut wanted = self.wanted.clone();
            let wanted = wanted.wait_for(is_wanted).await.map_err(|_| Error::WatchEnded)?.clone();
            let number = wanted.and_then(|wanted| wanted.get(namespace).copied());
            for covered in &self.covered {
                let is_covered = |covered: &Namespaces| covered.get(namespace).copied() >= number;
                covered.clone().wait_for(is_covered).await.map_err(|_| Error::WatchEnded)?;
            }
            // A list that was refused meanwhile is complete without its objects.
            self.forbidden.check(namespace)
        };
        tokio::time::timeout(READY_TIMEOUT, ready)
            .await
            .unwrap_or_else(|_| Err(Error::Unlisted { namespace: namespace.to_owned() }))
    }
}

/// Watches the objects in the `wanted` namespaces: returns the list, and the work that keeps it current.
pub fn watch<K>(
    cluster: &Cluster,
    config: watcher::Config,
    metrics: &Metrics,
    mut wanted: channel::Receiver<Option<Namespaces>>,
) -> (Scoped<K>, impl Future<Output = ()> + use<K>)
where
    K: Listed + Resource<Scope = NamespaceResourceScope> + Debug,
{
    let (scoped, mut publisher) = publisher::<K>();
    let (client, forbidden) = (cluster.client.clone(), cluster.forbidden.clone());
    let params = ListParams { field_selector: config.field_selector.clone(), ..ListParams::default() };
    let events = events::<K>(cluster, config, metrics);
    let work = async move {
        match wanted.wait_for(Option::is_some).await {
            Ok(first) => publisher.wanted = first.clone().unwrap_or_default(),
            Err(_) => return,
        }
        let mut events = std::pin::pin!(events);
        loop {
            let is_behind = publisher.missing().next().is_some();
            tokio::select! {
                event = events.next() => match event {
                    Some(event) => publisher.publish(event),
                    None => return,
                },
                changed = wanted.changed() => match changed {
                    Ok(()) => publisher.restrict(wanted.borrow_and_update().clone().unwrap_or_default()),
                    Err(_) => return,
                },
                () = tokio::time::sleep(RETRY_INTERVAL), if is_behind => {}
            }
            let is_possible = |(namespace, _): &(String, u64)| forbidden.check(namespace).is_ok();
            let missing: Vec<_> = publisher.missing().filter(is_possible).collect();
            for (namespace, number) in missing {
                match list::<K>(&client, &namespace, &params).await {
                    Ok(objects) => publisher.cover(namespace, number, objects),
                    Err(error) => {
                        tracing::warn!(%error, kind = %K::kind(&()), namespace, "could not list a namespace; retrying");
                        // Another one need not wait for a right in this one.
                        if !matches!(&error, kube::Error::Api(status) if status.code == 403) {
                            break;
                        }
                    }
                }
            }
        }
    };
    (scoped, work)
}

/// Lists the objects of a namespace, page by page.
async fn list<K>(client: &Client, namespace: &str, params: &ListParams) -> kube::Result<Objects>
where
    K: Listed + Resource<Scope = NamespaceResourceScope> + Debug,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let mut params = params.clone().limit(PAGE_SIZE);
    let mut objects = Objects::default();
    loop {
        let page = api.list(&params).await?;
        for object in page.items {
            objects.insert(object);
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(objects),
        }
    }
}

/// The writing side of a [`Scoped`].
struct Publisher<K> {
    list: List<K>,
    wanted: Namespaces,
    covered: channel::Sender<Namespaces>,
    readers: Readers,
    is_listed: bool,
    /// A relist in progress: the objects so far, and the namespaces that were wanted when it began.
    relist: Option<(Objects, Namespaces)>,
}

fn publisher<K: Listed>() -> (Scoped<K>, Publisher<K>) {
    let (sender, covered) = channel::channel(Namespaces::default());
    let (list, readers) = (List::default(), Readers::default());
    let scoped = Scoped { list: list.clone(), covered, readers: readers.clone() };
    let wanted = Namespaces::default();
    (scoped, Publisher { list, wanted, covered: sender, readers, is_listed: false, relist: None })
}

impl<K: Listed> Publisher<K> {
    /// Applies an event to the list, then tells the readers.
    fn publish(&mut self, event: watcher::Event<K>) {
        let is_wanted = |object: &K| {
            object.meta().namespace.as_ref().is_some_and(|namespace| self.wanted.contains_key(namespace))
        };
        match event {
            watcher::Event::Apply(object) => {
                if is_wanted(&object) {
                    let change = self.list.write().insert(object);
                    self.tell(change);
                }
            }
            watcher::Event::Delete(object) => {
                let change = self.list.write().remove(&object);
                self.tell(change);
            }
            watcher::Event::Init => self.relist = Some((Objects::default(), self.wanted.clone())),
            watcher::Event::InitApply(object) => {
                if is_wanted(&object)
                    && let Some((objects, _)) = &mut self.relist
                {
                    objects.insert(object);
                }
            }
            watcher::Event::InitDone => {
                let Some((mut objects, began_with)) = self.relist.take() else { return };
                objects.retain(|namespace| self.wanted.contains_key(namespace));
                let changes = self.list.write().replace(objects);
                self.covered.send_replace(common(&began_with, &self.wanted));
                if self.is_listed {
                    self.tell(changes);
                }
                self.is_listed = true;
            }
        }
    }

    /// Replaces the namespaces that are to be listed, and forgets the objects of others.
    fn restrict(&mut self, wanted: Namespaces) {
        self.wanted = wanted;
        let covered = self.covered.borrow().clone();
        let left = common(&covered, &self.wanted);
        self.list.write().retain(|namespace| {
            left.contains_key(namespace)
                || self.wanted.contains_key(namespace) && !covered.contains_key(namespace)
        });
        self.covered.send_replace(left);
    }

    /// Returns the namespaces that have to be listed by themselves.
    fn missing(&self) -> impl Iterator<Item = (String, u64)> {
        let is_possible = self.is_listed && self.relist.is_none();
        let covered = self.covered.borrow().clone();
        let missing = self
            .wanted
            .iter()
            .filter(move |(namespace, number)| is_possible && covered.get(*namespace) != Some(number));
        missing.map(|(namespace, number)| (namespace.clone(), *number))
    }

    /// Adds a namespace that was listed. Readers wait for that and are not told.
    fn cover(&mut self, namespace: String, number: u64, objects: Objects) {
        self.list.write().adopt(objects);
        self.covered.send_modify(|covered| {
            Arc::make_mut(covered).insert(namespace, number);
        });
    }

    fn tell(&self, changes: impl IntoIterator<Item = Change>) {
        let mut changes = changes.into_iter().peekable();
        if changes.peek().is_none() {
            return;
        }
        let mut readers = self.readers.lock();
        readers.retain(|reader| !reader.is_closed());
        for change in changes {
            for reader in readers.iter() {
                // One that is gone is removed with the next change.
                let _ = reader.unbounded_send(change.clone());
            }
        }
    }
}

/// Returns the namespaces that are in both, and the same.
fn common(some: &Namespaces, others: &Namespaces) -> Namespaces {
    let common = some.iter().filter(|(namespace, number)| others.get(*namespace) == Some(number));
    Arc::new(common.map(|(namespace, number)| (namespace.clone(), *number)).collect())
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;
    use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};

    use super::*;

    fn pod(namespace: &str, name: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": namespace}})).unwrap()
    }

    fn wanted(namespaces: &[(&str, u64)]) -> Namespaces {
        Arc::new(namespaces.iter().map(|(namespace, number)| ((*namespace).to_owned(), *number)).collect())
    }

    fn listed(publisher: &mut Publisher<Pod>, pods: &[(&str, &str)]) {
        publisher.publish(Init);
        for (namespace, name) in pods {
            publisher.publish(InitApply(pod(namespace, name)));
        }
        publisher.publish(InitDone);
    }

    fn heard(reader: &mut (impl Stream<Item = Change> + Unpin)) -> Vec<String> {
        let mut heard = Vec::new();
        while let Some(Some(change)) = reader.next().now_or_never() {
            heard.push(change.namespace);
        }
        heard.sort();
        heard
    }

    #[test]
    fn nothing_of_namespaces_without_policies_is_kept() {
        let (scoped, mut publisher) = publisher::<Pod>();
        publisher.wanted = wanted(&[("shop", 1)]);
        let mut reader = scoped.subscribe();
        listed(&mut publisher, &[("shop", "a"), ("other", "b")]);
        assert!(heard(&mut reader).is_empty(), "readers wait for the first list");
        publisher.publish(Apply(pod("other", "c")));
        publisher.publish(Apply(pod("shop", "d")));
        assert_eq!(scoped.list().len(), 2);
        assert_eq!(heard(&mut reader), ["shop"]);
        publisher.publish(Apply(pod("shop", "d")));
        assert!(heard(&mut reader).is_empty(), "nothing has changed");

        publisher.restrict(wanted(&[("other", 2)]));
        assert!(scoped.list().is_empty());
        publisher.publish(Delete(pod("shop", "d")));
        assert!(heard(&mut reader).is_empty());
    }

    #[test]
    fn namespace_that_is_added_is_listed_once() {
        let (scoped, mut publisher) = publisher::<Pod>();
        publisher.wanted = wanted(&[("shop", 1)]);
        listed(&mut publisher, &[("shop", "a")]);
        assert_eq!(publisher.missing().count(), 0);
        publisher.restrict(wanted(&[("shop", 1), ("later", 2)]));
        assert_eq!(publisher.missing().collect::<Vec<_>>(), [("later".to_owned(), 2)]);
        let mut objects = Objects::default();
        objects.insert(pod("later", "b"));
        publisher.cover("later".into(), 2, objects);
        assert_eq!(publisher.missing().count(), 0);
        assert_eq!(*scoped.covered().borrow(), wanted(&[("shop", 1), ("later", 2)]));
        assert_eq!(scoped.list().len(), 2);
    }

    #[test]
    fn namespace_that_is_added_during_a_relist_is_not_covered_by_it() {
        let (scoped, mut publisher) = publisher::<Pod>();
        publisher.wanted = wanted(&[("shop", 1)]);
        publisher.publish(Init);
        publisher.publish(InitApply(pod("shop", "a")));
        publisher.restrict(wanted(&[("shop", 1), ("later", 2)]));
        assert_eq!(publisher.missing().count(), 0, "the relist is not done");
        publisher.publish(InitDone);
        assert_eq!(*scoped.covered().borrow(), wanted(&[("shop", 1)]));
        assert_eq!(publisher.missing().count(), 1);
    }

    #[test]
    fn namespace_that_returns_is_listed_again() {
        let (scoped, mut publisher) = publisher::<Pod>();
        publisher.wanted = wanted(&[("shop", 1)]);
        listed(&mut publisher, &[("shop", "a")]);
        publisher.restrict(wanted(&[("shop", 2)]));
        assert!(scoped.list().is_empty() && scoped.covered().borrow().is_empty());
        assert_eq!(publisher.missing().count(), 1);
    }

    #[tokio::test]
    async fn namespace_is_ready_when_every_list_covers_it() {
        let (want, wanted_by) = channel::channel(Some(wanted(&[("shop", 3)])));
        let (first, first_covers) = channel::channel(wanted(&[("shop", 3)]));
        let (second, second_covers) = channel::channel(wanted(&[("shop", 2)]));
        let covered = vec![first_covers, second_covers];
        let scope = Scope { wanted: wanted_by, covered, forbidden: Forbidden::default() };
        assert!(scope.ready("shop").now_or_never().is_none(), "the second list has an earlier one");
        second.send_replace(wanted(&[("shop", 3)]));
        assert!(scope.ready("shop").now_or_never().unwrap().is_ok());
        scope.forbidden.insert("shop", "Pod", "no Role".into());
        let refused = scope.ready("shop").now_or_never().unwrap();
        assert!(matches!(refused, Err(Error::Forbidden { .. })), "its list is not one without pods");
        scope.forbidden.remove("shop", "Pod");
        assert!(scope.ready("shop").now_or_never().unwrap().is_ok());
        assert!(scope.ready("other").now_or_never().is_none());
        drop((want, first));
        assert!(scope.ready("other").await.is_err());
    }
}
