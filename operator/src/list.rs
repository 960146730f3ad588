//! Lists of objects by namespace. Each object is kept as JSON, which takes a fraction of the memory of its type, and is
//! parsed when it is read.

use std::{
    collections::{BTreeMap, HashMap},
    marker::PhantomData,
    ops::Bound,
    sync::Arc,
};

use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
    core::v1::{Pod, PodTemplateSpec, Service},
};
use kube::{Resource, ResourceExt, core::PartialObjectMeta, runtime::reflector::ObjectRef};
use memchr::memmem;
use parking_lot::RwLock;
use serde::{Serialize, de::DeserializeOwned};

use crate::pruned;

type Labels = BTreeMap<String, String>;

/// A kind of object of which lists are kept.
pub trait Listed:
    Resource<DynamicType = ()> + Clone + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// Removes what the operator does not read.
    fn prune(&mut self);

    /// Returns the labels of the pods that the object is or creates.
    fn pod_labels(&self) -> Option<&Labels>;
}

impl Listed for Pod {
    fn prune(&mut self) {
        pruned::pod(self);
    }

    fn pod_labels(&self) -> Option<&Labels> {
        self.metadata.labels.as_ref()
    }
}

/// Implements [`Listed`] for kinds with a pod template, which is kept whole.
macro_rules! listed_workload {
    ($($kind:ty),*) => {$(
        impl Listed for $kind {
            fn prune(&mut self) {
                pruned::workload(&mut self.metadata);
            }

            fn pod_labels(&self) -> Option<&Labels> {
                labels_of(&self.spec.as_ref()?.template)
            }
        }
    )*};
}
listed_workload!(Deployment, StatefulSet, DaemonSet);

impl Listed for PartialObjectMeta<ReplicaSet> {
    fn prune(&mut self) {
        pruned::workload(&mut self.metadata);
        self.metadata.labels = None;
    }

    fn pod_labels(&self) -> Option<&Labels> {
        None
    }
}

impl Listed for Service {
    // Its version is a precondition of writes.
    fn prune(&mut self) {
        pruned::annotations(&mut self.metadata);
    }

    fn pod_labels(&self) -> Option<&Labels> {
        None
    }
}

fn labels_of(template: &PodTemplateSpec) -> Option<&Labels> {
    template.metadata.as_ref()?.labels.as_ref()
}

/// A change of an object that the operator reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The object's namespace.
    pub namespace: String,
    /// Labels of the pods that the object is or creates.
    pub labels: Arc<Labels>,
}

/// Objects of a kind.
pub struct List<K> {
    objects: Arc<RwLock<Objects>>,
    kind: PhantomData<fn() -> K>,
}

/// Objects by namespace and name.
#[derive(Default)]
pub(crate) struct Objects(HashMap<String, BTreeMap<String, Packed>>);

/// An object.
#[derive(Clone)]
struct Packed {
    labels: Arc<Labels>,
    json: Arc<[u8]>,
}

impl Packed {
    fn read<K: Listed>(&self) -> Arc<K> {
        Arc::new(serde_json::from_slice(&self.json).expect("JSON of a type can be parsed as this type"))
    }
}

impl Objects {
    /// Inserts an object; returns the change, if there is one that the operator reads.
    pub(crate) fn insert<K: Listed>(&mut self, mut object: K) -> Option<Change> {
        object.prune();
        let meta = object.meta_mut();
        meta.managed_fields = None;
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let json: Arc<[u8]> =
            serde_json::to_vec(&object).expect("keys of Kubernetes' types are strings").into();
        let siblings = self.0.entry(namespace.clone()).or_default();
        if siblings.get(&name).is_some_and(|before| before.json == json) {
            return None;
        }
        let labels = object.pod_labels();
        // Pods of one workload are neighbours in the order of names, and have the same labels.
        let neighbour =
            siblings.range::<str, _>((Bound::Unbounded, Bound::Included(name.as_str()))).next_back();
        let labels = match (neighbour, labels) {
            (Some((_, neighbour)), Some(labels)) if *neighbour.labels == *labels => neighbour.labels.clone(),
            (_, Some(labels)) => Arc::new(labels.clone()),
            (_, None) => Arc::default(),
        };
        siblings.insert(name, Packed { labels: labels.clone(), json });
        Some(Change { namespace, labels })
    }

    /// Removes an object; returns the change, if the object was there.
    pub(crate) fn remove<K: Listed>(&mut self, object: &K) -> Option<Change> {
        let namespace = object.namespace().unwrap_or_default();
        let siblings = self.0.get_mut(&namespace)?;
        let labels = siblings.remove(&object.name_any())?.labels;
        if siblings.is_empty() {
            self.0.remove(&namespace);
        }
        Some(Change { namespace, labels })
    }

    /// Replaces everything; returns the changes.
    pub(crate) fn replace(&mut self, next: Self) -> Vec<Change> {
        let before = std::mem::replace(self, next);
        let mut changes = before.without(self);
        changes.extend(self.without(&before));
        changes
    }

    /// Replaces the namespaces that `listed` has objects of.
    pub(crate) fn adopt(&mut self, listed: Self) {
        self.0.extend(listed.0);
    }

    /// Removes the namespaces that are not to be kept.
    pub(crate) fn retain(&mut self, is_kept: impl Fn(&str) -> bool) {
        self.0.retain(|namespace, _| is_kept(namespace));
    }

    /// Returns the objects that are not in `others` in the same form.
    fn without(&self, others: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        for (namespace, objects) in &self.0 {
            let others = others.0.get(namespace);
            for (name, object) in objects {
                let other = others.and_then(|others| others.get(name));
                if other.is_none_or(|other| other.json != object.json) {
                    changes.push(Change { namespace: namespace.clone(), labels: object.labels.clone() });
                }
            }
        }
        changes
    }
}

impl<K: Listed> List<K> {
    /// Returns the object of that name.
    pub fn get(&self, object: &ObjectRef<K>) -> Option<Arc<K>> {
        let objects = self.objects.read();
        let found = objects.0.get(object.namespace.as_deref()?)?.get(&object.name)?.clone();
        drop(objects);
        Some(found.read())
    }

    /// Returns the objects of a namespace whose pods have labels that `selects`.
    pub fn selected(&self, namespace: &str, selects: impl Fn(&Labels) -> bool) -> Vec<Arc<K>> {
        self.packed(Some(namespace), |object| selects(&object.labels)).iter().map(Packed::read).collect()
    }

    /// Returns the objects of a namespace whose pods have labels that `selects`, or in whose JSON a text occurs.
    pub fn selected_or_mentioning(
        &self,
        namespace: &str,
        selects: impl Fn(&Labels) -> bool,
        text: &str,
    ) -> Vec<Arc<K>> {
        let finder = memmem::Finder::new(text);
        let is_read = |object: &Packed| selects(&object.labels) || finder.find(&object.json).is_some();
        self.packed(Some(namespace), is_read).iter().map(Packed::read).collect()
    }

    /// Returns the objects of a namespace, or of all, in whose JSON a text occurs.
    pub fn mentioning(&self, namespace: Option<&str>, text: &str) -> impl Iterator<Item = Arc<K>> + use<K> {
        let finder = memmem::Finder::new(text);
        self.packed(namespace, |object| finder.find(&object.json).is_some())
            .into_iter()
            .map(|object| object.read())
    }

    /// Returns the first object of all namespaces that `selects`, among those whose pods have a label of that name.
    pub fn find_labelled(&self, label: &str, selects: impl Fn(&K) -> bool) -> Option<Arc<K>> {
        let labelled = self.packed(None, |object| object.labels.contains_key(label));
        labelled.iter().map(Packed::read).find(|object| selects(object))
    }

    /// Returns the objects that `selects`, in the order of names. They are parsed later, one by one and outside the lock.
    fn packed(&self, namespace: Option<&str>, selects: impl Fn(&Packed) -> bool) -> Vec<Packed> {
        let objects = self.objects.read();
        let namespaces: Vec<_> = match namespace {
            Some(namespace) => objects.0.get(namespace).into_iter().collect(),
            None => objects.0.values().collect(),
        };
        let packed = namespaces.into_iter().flat_map(BTreeMap::values);
        packed.filter(|object| selects(object)).cloned().collect()
    }

    pub(crate) fn write(&self) -> parking_lot::RwLockWriteGuard<'_, Objects> {
        self.objects.write()
    }

    /// Returns the number of objects.
    pub fn len(&self) -> usize {
        self.objects.read().0.values().map(BTreeMap::len).sum()
    }

    /// Returns true if there are no objects.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<K> Default for List<K> {
    fn default() -> Self {
        Self { objects: Arc::default(), kind: PhantomData }
    }
}

impl<K> Clone for List<K> {
    fn clone(&self) -> Self {
        Self { objects: self.objects.clone(), kind: PhantomData }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::inject::tests as pods;

    fn pod(name: &str, change: impl FnOnce(&mut Value)) -> Pod {
        let mut pod = pods::pod();
        pod["metadata"]["name"] = json!(name);
        pod["metadata"]["namespace"] = json!("shop");
        change(&mut pod);
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn only_changes_that_are_read_are_reported() {
        let mut objects = Objects::default();
        let env = |pod: &mut Value, value: &str| {
            pod["spec"]["containers"][0]["env"] = json!([{"name": "A", "value": value}]);
        };
        assert!(objects.insert(pod("a", |pod| env(pod, "b"))).is_some());
        let version = |pod: &mut Value| {
            env(pod, "b");
            pod["metadata"]["resourceVersion"] = json!("7");
        };
        assert_eq!(objects.insert(pod("a", version)), None);
        assert_eq!(objects.insert(pod("a", |pod| env(pod, "c"))), None);
        let deleted = |pod: &mut Value| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert!(objects.insert(pod("a", deleted)).is_some());
        assert!(objects.remove(&pod("a", |_| {})).is_some());
        assert_eq!(objects.remove(&pod("a", |_| {})), None);
    }

    #[test]
    fn pods_of_a_workload_share_their_labels() {
        let mut objects = Objects::default();
        let first = objects.insert(pod("a-1", |_| {})).unwrap();
        let second = objects.insert(pod("a-2", |_| {})).unwrap();
        assert!(Arc::ptr_eq(&first.labels, &second.labels));
    }

    #[test]
    fn replacement_reports_only_objects_that_differ() {
        let list = |names: &[&str]| {
            let mut objects = Objects::default();
            for name in names {
                objects.insert(pod(name, |pod| pod["metadata"]["labels"] = json!({"name": name})));
            }
            objects
        };
        let mut objects = list(&["a", "b"]);
        let changes = objects.replace(list(&["b", "c"]));
        let mut names: Vec<_> = changes.iter().map(|change| change.labels["name"].as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["a", "c"]);
    }

    #[test]
    fn object_is_read_as_it_was_written() {
        let list = List::<Pod>::default();
        let written = pod("a", |_| {});
        list.write().insert(written.clone());
        let mut pruned = written;
        pruned.prune();
        assert_eq!(*list.selected("shop", |labels| labels["app"] == "shop")[0], pruned);
        assert!(list.selected("other", |_| true).is_empty());
        assert!(list.selected("shop", |labels| labels["app"] == "other").is_empty());
        assert_eq!(list.mentioning(None, "containers").count(), 1);
        assert_eq!(list.mentioning(Some("shop"), "no such text").count(), 0);
    }

    #[test]
    fn pod_takes_a_quarter_of_its_types_memory() {
        let pod = pod("a", |_| {});
        let whole = size_of::<Pod>() + size_of_val(&pod.spec.as_ref().unwrap().containers[..]);
        let list = List::<Pod>::default();
        list.write().insert(pod);
        let packed = list.packed(None, |_| true).remove(0);
        assert!(packed.json.len() * 4 < whole, "{} of {whole}", packed.json.len());
    }
}
