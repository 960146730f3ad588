//! The namespaces that the operator watches: all, or some, in which alone it has rights.
//!
//! # Guarantees
//! - The lists of several namespaces are one. It is complete when every namespace is listed, and not before.
//! - Objects that were deleted while the watch of a namespace was interrupted are not in the next list: when one
//!   namespace has to be listed again, all are.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    fmt::Debug,
};

use futures::{
    Stream, StreamExt,
    stream::{self, BoxStream, SelectAll},
};
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;

/// The API server, and the namespaces that are watched there.
#[derive(Clone)]
pub struct Cluster {
    /// Client of the API server.
    pub client: Client,
    /// Namespaces; none means all.
    namespaces: BTreeSet<String>,
}

impl Cluster {
    /// Returns the cluster with these namespaces alone, or with all if there are none.
    pub fn new(client: Client, namespaces: &[String]) -> Self {
        Self { client, namespaces: namespaces.iter().cloned().collect() }
    }

    /// Returns the cluster with a further namespace.
    pub fn with(&self, namespace: &str) -> Self {
        let mut cluster = self.clone();
        if !cluster.namespaces.is_empty() {
            cluster.namespaces.insert(namespace.to_owned());
        }
        cluster
    }

    /// Watches objects. A failed watch is restarted with a backoff.
    pub fn watch<K>(&self, config: watcher::Config) -> BoxStream<'static, watcher::Result<Event<K>>>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug + Send + 'static,
        K::DynamicType: Default,
    {
        if self.namespaces.is_empty() {
            return self.watch_all(config);
        }
        let apis = self.namespaces.iter().map(|namespace| Api::namespaced(self.client.clone(), namespace));
        merge(apis.collect(), config).boxed()
    }

    /// Watches the objects of the whole cluster.
    pub fn watch_all<K>(&self, config: watcher::Config) -> BoxStream<'static, watcher::Result<Event<K>>>
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
        K::DynamicType: Default,
    {
        watcher(Api::all(self.client.clone()), config).default_backoff().boxed()
    }
}

type Parts<K> = SelectAll<BoxStream<'static, (usize, watcher::Result<Event<K>>)>>;

fn merge<K>(apis: Vec<Api<K>>, config: watcher::Config) -> impl Stream<Item = watcher::Result<Event<K>>>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let count = apis.len();
    let begin = move || -> Parts<K> {
        stream::select_all(apis.iter().cloned().enumerate().map(|(part, api)| {
            watcher(api, config.clone()).default_backoff().map(move |event| (part, event)).boxed()
        }))
    };
    let state = (begin(), Merge::new(count), VecDeque::new(), begin);
    stream::unfold(state, async |(mut parts, mut merge, mut ready, begin)| {
        loop {
            if let Some(event) = ready.pop_front() {
                return Some((Ok(event), (parts, merge, ready, begin)));
            }
            match parts.next().await? {
                (_, Err(error)) => return Some((Err(error), (parts, merge, ready, begin))),
                (part, Ok(event)) => match merge.take(part, event) {
                    Some(events) => ready.extend(events),
                    None => (parts, merge) = (begin(), Merge::new(merge.listed.len())),
                },
            }
        }
    })
}

/// The lists of the parts until all are complete.
struct Merge<K> {
    listed: Vec<HashMap<String, K>>,
    awaited: HashSet<usize>,
}

impl<K: Resource> Merge<K> {
    fn new(count: usize) -> Self {
        Self { listed: (0..count).map(|_| HashMap::new()).collect(), awaited: (0..count).collect() }
    }

    /// Returns the events of the whole after an event of a part; `None` if everything has to be listed again.
    fn take(&mut self, part: usize, event: Event<K>) -> Option<Vec<Event<K>>> {
        match event {
            Event::Init if !self.awaited.contains(&part) => return None,
            Event::Init => self.listed[part].clear(),
            event if self.awaited.is_empty() => return Some(vec![event]),
            Event::InitApply(object) | Event::Apply(object) => {
                self.listed[part].insert(object.name_any(), object);
            }
            Event::Delete(object) => {
                self.listed[part].remove(&object.name_any());
            }
            Event::InitDone => {
                self.awaited.remove(&part);
                if self.awaited.is_empty() {
                    let objects = self.listed.iter_mut().flat_map(|listed| listed.drain());
                    let objects = objects.map(|(_, object)| Event::InitApply(object));
                    let first = std::iter::once(Event::Init);
                    return Some(first.chain(objects).chain([Event::InitDone]).collect());
                }
            }
        }
        Some(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use Event::{Apply, Delete, Init, InitApply, InitDone};
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    use super::*;

    fn map(name: &str) -> ConfigMap {
        serde_json::from_value(json!({"metadata": {"name": name}})).unwrap()
    }

    /// Returns events as text, the objects of a list in order.
    fn told(events: Option<Vec<Event<ConfigMap>>>) -> Vec<String> {
        let mut told: Vec<_> = events
            .unwrap_or_default()
            .iter()
            .map(|event| match event {
                Init => "init".to_owned(),
                InitApply(map) => format!("listed {}", map.name_any()),
                InitDone => "~done".to_owned(),
                Apply(map) => format!("applied {}", map.name_any()),
                Delete(map) => format!("deleted {}", map.name_any()),
            })
            .collect();
        told.sort();
        told
    }

    fn list(merge: &mut Merge<ConfigMap>, part: usize, names: &[&str]) -> Option<Vec<Event<ConfigMap>>> {
        merge.take(part, Init)?;
        for name in names {
            merge.take(part, InitApply(map(name)))?;
        }
        merge.take(part, InitDone)
    }

    #[test]
    fn list_is_complete_when_every_namespace_is() {
        let mut merge = Merge::new(2);
        assert!(told(list(&mut merge, 1, &["a", "b", "c"])).is_empty());
        // Changes in the one while the other is being listed.
        assert!(told(merge.take(1, Delete(map("b")))).is_empty());
        assert!(told(merge.take(1, Apply(map("d")))).is_empty());
        let whole = ["init", "listed a", "listed c", "listed d", "listed e", "~done"];
        assert_eq!(told(list(&mut merge, 0, &["e"])), whole);
        assert_eq!(told(merge.take(0, Apply(map("f")))), ["applied f"]);
        assert_eq!(told(merge.take(1, Delete(map("a")))), ["deleted a"]);
    }

    #[test]
    fn interrupted_first_list_begins_anew() {
        let mut merge = Merge::new(1);
        merge.take(0, Init).unwrap();
        merge.take(0, InitApply(map("gone"))).unwrap();
        assert_eq!(told(list(&mut merge, 0, &["a"])), ["init", "listed a", "~done"]);
    }

    #[test]
    fn relist_of_one_namespace_lists_all_again() {
        let mut merge = Merge::new(2);
        list(&mut merge, 0, &["a"]).unwrap();
        assert!(merge.take(0, Init).is_none(), "before the other is listed");
        let mut merge = Merge::new(2);
        list(&mut merge, 0, &["a"]).unwrap();
        list(&mut merge, 1, &["b"]).unwrap();
        assert!(merge.take(1, Init).is_none());
    }
}
