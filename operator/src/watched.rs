//! Watched lists that several readers share, so that each kind of object is watched once.
//!
//! # Guarantees
//! - A reader gets every object of the list at its beginning and after each relist, and every object that is created, changed
//!   or deleted. The list has the change by then.
//! - Objects that were deleted while a watch was interrupted are among them.
//! - While the cluster does not define the kind, the list is empty, and complete.
//! - A slow reader delays neither the list nor other readers.
//!
//! `docs/decisions/0027-watches-are-shared-without-kubes-dispatcher.md` says why this is not kube's own sharing.

use std::{
    collections::HashSet,
    fmt::Debug,
    hash::Hash,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt, channel::mpsc, stream, stream::BoxStream};
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Resource,
    runtime::{
        WatchStreamExt,
        reflector::{self, ObjectRef, Store, store::Writer},
        watcher,
    },
};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;

use crate::{cluster::Cluster, metrics::Metrics};

/// Time after which a kind that the API server does not know is regarded as deleted, with all its objects.
const ABSENCE_LIMIT: Duration = Duration::from_secs(20);

/// Number of objects that are listed at a time: a page is in memory whole, before its objects are reduced to what is read.
pub(crate) const PAGE_SIZE: u32 = 100;

/// A watched list.
pub struct Watched<K>
where
    K: Resource + 'static,
    K::DynamicType: Eq + Hash,
{
    store: Store<K>,
    readers: Readers<K>,
}

type Readers<K> = Arc<Mutex<Vec<mpsc::UnboundedSender<Arc<K>>>>>;

/// The writing side of a [`Watched`].
struct Publisher<K>
where
    K: Resource + Clone + 'static,
    K::DynamicType: Eq + Hash + Clone,
{
    writer: Writer<K>,
    readers: Readers<K>,
}

/// Watches objects: returns the list, and the work that keeps it current.
pub fn watch<K>(
    cluster: &Cluster,
    config: watcher::Config,
    metrics: &Metrics,
) -> (Watched<K>, impl Future<Output = ()> + use<K>)
where
    K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Default + Eq + Hash + Clone + Debug,
{
    let events = events(cluster, config, metrics);
    follow(events)
}

/// Watches objects of a kind that is not in namespaces, like [`watch`].
pub fn watch_unscoped<K>(
    cluster: &Cluster,
    config: watcher::Config,
    metrics: &Metrics,
) -> (Watched<K>, impl Future<Output = ()> + use<K>)
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Default + Eq + Hash + Clone + Debug,
{
    follow(checked(cluster.watch_all(config.page_size(PAGE_SIZE)), metrics))
}

/// Returns the list that the events of a watch make, and the work that keeps it current.
fn follow<K>(events: impl Stream<Item = watcher::Event<K>>) -> (Watched<K>, impl Future<Output = ()>)
where
    K: Resource + Clone + Debug + Send + Sync + 'static,
    K::DynamicType: Default + Eq + Hash + Clone + Debug,
{
    let (watched, mut publisher) = channel::<K>();
    let work = events.for_each(move |event| {
        publisher.publish(event);
        std::future::ready(())
    });
    (watched, work)
}

/// Returns the events of a watch. A failed watch is restarted with a backoff. Managed fields are dropped, because they are
/// half of an object and of no use here.
pub(crate) fn events<K>(
    cluster: &Cluster,
    config: watcher::Config,
    metrics: &Metrics,
) -> impl Stream<Item = watcher::Event<K>> + Send + use<K>
where
    K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Default + Eq + Hash + Clone + Debug,
{
    checked(cluster.watch(config.page_size(PAGE_SIZE)), metrics)
}

/// Returns the events of a watch without its failures, which are counted and logged.
fn checked<K>(
    events: BoxStream<'static, watcher::Result<watcher::Event<K>>>,
    metrics: &Metrics,
) -> impl Stream<Item = watcher::Event<K>> + Send + use<K>
where
    K: Resource + Clone + Debug + Send + Sync + 'static,
    K::DynamicType: Default + Eq + Hash + Clone + Debug,
{
    let kind = K::kind(&K::DynamicType::default()).into_owned();
    let failures = metrics.watch_failures.with_label_values(&[&kind]);
    let events = events.modify(|object| object.meta_mut().managed_fields = None);
    let mut absence = Absence::default();
    let events = events.map(move |event| match event {
        Ok(event) => {
            // Each attempt to list begins with this one.
            if !matches!(event, watcher::Event::Init) {
                absence = Absence::default();
            }
            vec![event]
        }
        Err(error) => {
            failures.inc();
            if !is_undefined(&error) {
                tracing::warn!(%error, kind, "a watch failed; restarting it");
                vec![]
            } else if absence.is_noticed() {
                tracing::error!(
                    kind,
                    "the cluster does not define this kind: upgrade the chart or apply the files in crds/; until \
                     then there are no objects of it"
                );
                vec![watcher::Event::Init, watcher::Event::InitDone]
            } else {
                vec![]
            }
        }
    });
    events.flat_map(stream::iter)
}

/// Absence of a kind's definition.
#[derive(Default)]
struct Absence {
    since: Option<Instant>,
    is_noticed: bool,
}

impl Absence {
    /// Returns true once, when the definition has been absent for longer than an API server takes to learn of it.
    fn is_noticed(&mut self) -> bool {
        let since = *self.since.get_or_insert_with(Instant::now);
        let is_first = !self.is_noticed && since.elapsed() >= ABSENCE_LIMIT;
        self.is_noticed |= is_first;
        is_first
    }
}

/// Returns true if the API server does not know the kind of the objects.
fn is_undefined(error: &watcher::Error) -> bool {
    matches!(
        error,
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
            if status.code == 404
    )
}

fn channel<K>() -> (Watched<K>, Publisher<K>)
where
    K: Resource + Clone + 'static,
    K::DynamicType: Default + Eq + Hash + Clone,
{
    let (store, writer) = reflector::store();
    let readers = Readers::default();
    (Watched { store, readers: readers.clone() }, Publisher { writer, readers })
}

impl<K> Watched<K>
where
    K: Resource + Clone + 'static,
    K::DynamicType: Eq + Hash + Clone,
{
    /// Returns the list.
    pub fn store(&self) -> Store<K> {
        self.store.clone()
    }

    /// Returns the objects of the list and, from then on, each object that is created, changed or deleted.
    pub fn subscribe(&self) -> impl Stream<Item = Arc<K>> + use<K> {
        let mut readers = self.readers.lock();
        let (sender, receiver) = mpsc::unbounded();
        send(&sender, self.store.state());
        readers.push(sender);
        receiver
    }
}

impl<K> Clone for Watched<K>
where
    K: Resource + Clone + 'static,
    K::DynamicType: Eq + Hash + Clone,
{
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), readers: self.readers.clone() }
    }
}

impl<K> Publisher<K>
where
    K: Resource + Clone + 'static,
    K::DynamicType: Default + Eq + Hash + Clone,
{
    /// Applies an event to the list, then tells the readers.
    fn publish(&mut self, event: watcher::Event<K>) {
        let list = self.writer.as_reader();
        let before = if matches!(event, watcher::Event::InitDone) { list.state() } else { Vec::new() };
        self.writer.apply_watcher_event(&event);
        let mut objects = match event {
            watcher::Event::Apply(object) | watcher::Event::Delete(object) => vec![Arc::new(object)],
            // They are in the list when the relist is done.
            watcher::Event::Init | watcher::Event::InitApply(_) => return,
            watcher::Event::InitDone => list.state(),
        };
        if !before.is_empty() {
            let left: HashSet<_> = objects.iter().map(|object| ObjectRef::from_obj(&**object)).collect();
            objects
                .extend(before.into_iter().filter(|object| !left.contains(&ObjectRef::from_obj(&**object))));
        }
        let mut readers = self.readers.lock();
        readers.retain(|reader| !reader.is_closed());
        for reader in readers.iter() {
            send(reader, objects.iter().cloned());
        }
    }
}

/// Sends objects to a reader. One that has gone is removed with the next event.
fn send<K>(reader: &mpsc::UnboundedSender<Arc<K>>, objects: impl IntoIterator<Item = Arc<K>>) {
    for object in objects {
        if reader.unbounded_send(object).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::ResourceExt;
    use serde_json::json;
    use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};

    use super::*;

    fn map(name: &str) -> ConfigMap {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "shop"}})).unwrap()
    }

    /// Returns the names of the objects that a reader has been told of, in order.
    fn heard(reader: &mut (impl Stream<Item = Arc<ConfigMap>> + Unpin)) -> Vec<String> {
        let mut names = Vec::new();
        while let Some(Some(object)) = reader.next().now_or_never() {
            names.push(object.name_any());
        }
        names.sort();
        names
    }

    fn listed(publisher: &mut Publisher<ConfigMap>, names: &[&str]) {
        publisher.publish(Init);
        for name in names {
            publisher.publish(InitApply(map(name)));
        }
        publisher.publish(InitDone);
    }

    #[test]
    fn every_reader_gets_the_list_and_then_each_change() {
        let (watched, mut publisher) = channel::<ConfigMap>();
        let mut first = watched.subscribe();
        assert!(heard(&mut first).is_empty());
        listed(&mut publisher, &["a", "b"]);
        let mut second = watched.subscribe();
        assert_eq!(heard(&mut first), ["a", "b"]);
        assert_eq!(heard(&mut second), ["a", "b"], "the list of before it began");
        publisher.publish(Apply(map("c")));
        publisher.publish(Delete(map("a")));
        for reader in [&mut first, &mut second] {
            assert_eq!(heard(reader), ["a", "c"]);
        }
        assert_eq!(watched.store().state().len(), 2);
    }

    #[test]
    fn readers_hear_of_objects_deleted_during_an_interruption() {
        let (watched, mut publisher) = channel::<ConfigMap>();
        listed(&mut publisher, &["a", "b"]);
        let mut reader = watched.subscribe();
        assert_eq!(heard(&mut reader), ["a", "b"]);
        listed(&mut publisher, &["b", "c"]);
        assert_eq!(heard(&mut reader), ["a", "b", "c"]);
        assert!(!watched.store().state().iter().any(|map| map.name_any() == "a"));
    }

    #[test]
    fn list_has_a_change_before_readers_hear_of_it() {
        let (watched, mut publisher) = channel::<ConfigMap>();
        listed(&mut publisher, &[]);
        let mut reader = watched.subscribe();
        publisher.publish(Init);
        publisher.publish(InitApply(map("a")));
        assert!(heard(&mut reader).is_empty(), "the relist is not done, and the list has no such object");
        publisher.publish(InitDone);
        assert_eq!(heard(&mut reader), ["a"]);
    }

    #[test]
    fn object_deleted_before_it_is_read_of_does_not_silence_the_reader() {
        let (watched, mut publisher) = channel::<ConfigMap>();
        listed(&mut publisher, &[]);
        let mut reader = watched.subscribe();
        publisher.publish(Apply(map("short")));
        publisher.publish(Delete(map("short")));
        publisher.publish(Apply(map("later")));
        assert_eq!(heard(&mut reader), ["later", "short", "short"]);
    }

    #[test]
    fn reader_that_left_is_removed() {
        let (watched, mut publisher) = channel::<ConfigMap>();
        drop(watched.subscribe());
        publisher.publish(Apply(map("a")));
        assert!(watched.readers.lock().is_empty());
    }
}
