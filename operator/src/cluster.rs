//! The namespaces that the operator watches: all, or some, in which alone it has rights.
//!
//! # Guarantees
//! - The lists of several namespaces are one. It is complete when every namespace is listed or has refused to be, and not before.
//! - A namespace that refuses to be listed, because it was deleted and the operator's Role with it, keeps none of the others waiting. It
//!   is noted in [`Forbidden`] before a list without its objects is complete, and until the list has them: nobody may take them
//!   for absent.
//! - Objects that were deleted while the watch of a namespace was interrupted are not in the next list: when one
//!   namespace has to be listed again, all are.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
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

use crate::forbidden::{Forbidden, kind_of};

/// The API server, and the namespaces that are watched there.
#[derive(Clone)]
pub struct Cluster {
    /// Client of the API server.
    pub client: Client,
    /// Namespaces; none means all.
    namespaces: BTreeSet<String>,
    /// Kinds that may not be listed in these namespaces.
    pub forbidden: Forbidden,
}

impl Cluster {
    /// Returns the cluster with these namespaces alone, or with all if there are none.
    pub fn new(client: Client, namespaces: &[String]) -> Self {
        Self { client, namespaces: namespaces.iter().cloned().collect(), forbidden: Forbidden::default() }
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
        let client = self.client.clone();
        let watch = move |namespace: &str| {
            watcher(Api::namespaced(client.clone(), namespace), config.clone()).default_backoff().boxed()
        };
        merge(Merge::new(&self.namespaces, &self.forbidden), watch).boxed()
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

type Watch<K> = BoxStream<'static, watcher::Result<Event<K>>>;
type Watches<K> = SelectAll<BoxStream<'static, (usize, watcher::Result<Event<K>>)>>;

/// Returns the events of the watches of some namespaces as those of one.
fn merge<K>(
    merge: Merge<K>,
    watch: impl Fn(&str) -> Watch<K>,
) -> impl Stream<Item = watcher::Result<Event<K>>>
where
    K: Resource<DynamicType: Default> + Send + 'static,
{
    let begin = move |parts: &[Part<K>]| -> Watches<K> {
        let parts = parts.iter().enumerate();
        stream::select_all(
            parts.map(|(number, part)| watch(&part.namespace).map(move |event| (number, event)).boxed()),
        )
    };
    let state = (begin(&merge.parts), merge, VecDeque::new(), begin);
    stream::unfold(state, async |(mut watches, mut merge, mut ready, begin)| {
        loop {
            if let Some(event) = ready.pop_front() {
                return Some((event, (watches, merge, ready, begin)));
            }
            // Whoever asks for the next event has the earlier ones in its list.
            merge.permit();
            match watches.next().await? {
                (number, Err(error)) => {
                    let refusal = refusal(&error).map(str::to_owned);
                    ready.push_back(Err(error));
                    if let Some(words) = refusal {
                        ready.extend(merge.refuse(number, words).into_iter().map(Ok));
                    }
                }
                (number, Ok(event)) => match merge.take(number, event) {
                    Some(events) => ready.extend(events.into_iter().map(Ok)),
                    None => {
                        merge.begin();
                        watches = begin(&merge.parts);
                    }
                },
            }
        }
    })
}

/// Returns the API server's words if the operator may not list the objects.
fn refusal(error: &watcher::Error) -> Option<&str> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == 403 => {
            Some(&status.message)
        }
        _ => None,
    }
}

/// The lists of the namespaces until all are complete.
struct Merge<K> {
    parts: Vec<Part<K>>,
    is_complete: bool,
    forbidden: Forbidden,
}

/// The list of a namespace.
struct Part<K> {
    namespace: String,
    state: State,
    /// Objects that were not passed on yet.
    listed: HashMap<String, K>,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Awaited,
    Refused,
    /// Listed, and perhaps still noted as forbidden.
    Listed,
    /// Listed, and known to be.
    Permitted,
}

impl State {
    const fn is_listed(self) -> bool {
        matches!(self, Self::Listed | Self::Permitted)
    }
}

impl<K: Resource<DynamicType: Default>> Merge<K> {
    fn new(namespaces: &BTreeSet<String>, forbidden: &Forbidden) -> Self {
        let namespaces = namespaces.iter().cloned();
        let parts =
            namespaces.map(|namespace| Part { namespace, state: State::Awaited, listed: HashMap::new() });
        Self { parts: parts.collect(), is_complete: false, forbidden: forbidden.clone() }
    }

    /// Awaits all lists again.
    fn begin(&mut self) {
        self.is_complete = false;
        for part in &mut self.parts {
            part.state = State::Awaited;
            part.listed.clear();
        }
    }

    /// Returns the events of the whole after an event of a part; `None` if everything has to be listed again.
    fn take(&mut self, number: usize, event: Event<K>) -> Option<Vec<Event<K>>> {
        let part = &mut self.parts[number];
        match event {
            Event::Init if part.state.is_listed() => return None,
            Event::Init => part.listed.clear(),
            event if self.is_complete && part.state.is_listed() => return Some(vec![event]),
            Event::InitApply(object) | Event::Apply(object) => {
                part.listed.insert(object.name_any(), object);
            }
            Event::Delete(object) => {
                part.listed.remove(&object.name_any());
            }
            Event::InitDone => {
                part.state = State::Listed;
                if self.is_complete {
                    return Some(part.listed.drain().map(|(_, object)| Event::Apply(object)).collect());
                }
                return Some(self.complete());
            }
        }
        Some(Vec::new())
    }

    /// Returns the events of the whole after a part was refused.
    fn refuse(&mut self, number: usize, words: String) -> Vec<Event<K>> {
        let part = &mut self.parts[number];
        part.state = State::Refused;
        part.listed.clear();
        self.forbidden.insert(&part.namespace, &kind_of::<K>(), words);
        if self.is_complete { Vec::new() } else { self.complete() }
    }

    /// Returns the list of the whole, unless a part is awaited.
    fn complete(&mut self) -> Vec<Event<K>> {
        if self.parts.iter().any(|part| part.state == State::Awaited) {
            return Vec::new();
        }
        self.is_complete = true;
        let objects = self.parts.iter_mut().flat_map(|part| part.listed.drain());
        let objects = objects.map(|(_, object)| Event::InitApply(object));
        std::iter::once(Event::Init).chain(objects).chain([Event::InitDone]).collect()
    }

    /// Notes that parts may be listed whose objects have been passed on.
    fn permit(&mut self) {
        if !self.is_complete {
            return;
        }
        for part in self.parts.iter_mut().filter(|part| part.state == State::Listed) {
            part.state = State::Permitted;
            self.forbidden.remove(&part.namespace, &kind_of::<K>());
        }
    }
}

#[cfg(test)]
mod tests {
    use Event::{Apply, Delete, Init, InitApply, InitDone};
    use futures::FutureExt;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::core::Status;
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

    fn of(count: usize) -> Merge<ConfigMap> {
        Merge::new(&(0..count).map(|number| number.to_string()).collect(), &Forbidden::default())
    }

    #[test]
    fn list_is_complete_when_every_namespace_is() {
        let mut merge = of(2);
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
        let mut merge = of(1);
        merge.take(0, Init).unwrap();
        merge.take(0, InitApply(map("gone"))).unwrap();
        assert_eq!(told(list(&mut merge, 0, &["a"])), ["init", "listed a", "~done"]);
    }

    #[test]
    fn relist_of_one_namespace_lists_all_again() {
        let mut merge = of(2);
        list(&mut merge, 0, &["a"]).unwrap();
        assert!(merge.take(0, Init).is_none(), "before the other is listed");
        let mut merge = of(2);
        list(&mut merge, 0, &["a"]).unwrap();
        list(&mut merge, 1, &["b"]).unwrap();
        assert!(merge.take(1, Init).is_none());
    }

    fn failure(code: u16) -> watcher::Result<Event<ConfigMap>> {
        let status = Status::failure("no Role", "").with_code(code);
        Err(watcher::Error::InitialListFailed(kube::Error::Api(status.boxed())))
    }

    /// A watch of two namespaces, which tell the operator this.
    struct Told {
        events: BoxStream<'static, watcher::Result<Event<ConfigMap>>>,
        forbidden: Forbidden,
    }

    impl Told {
        fn new(namespaces: [Vec<watcher::Result<Event<ConfigMap>>>; 2]) -> Self {
            let forbidden = Forbidden::default();
            let namespaces = parking_lot::Mutex::new(namespaces.map(Some));
            let watch = move |namespace: &str| {
                let number: usize = namespace.parse().unwrap();
                let events = namespaces.lock()[number].take().expect("one list is enough");
                stream::iter(events).chain(stream::pending()).boxed()
            };
            let parts = Merge::new(&["0", "1"].map(str::to_owned).into(), &forbidden);
            Self { events: merge(parts, watch).boxed(), forbidden }
        }

        /// Returns the next event, with `!` for each namespace that is noted as forbidden when it comes.
        fn next(&mut self) -> Option<String> {
            let event = self.events.next().now_or_never()?.unwrap();
            let event = event.map_or_else(|_| "error".to_owned(), |event| told(Some(vec![event])).remove(0));
            let marks = ["0", "1"].iter().filter(|namespace| self.forbidden.check(namespace).is_err());
            Some(marks.fold(event, |event, _| event + "!"))
        }

        fn all(&mut self) -> Vec<String> {
            std::iter::from_fn(|| self.next()).collect()
        }
    }

    #[test]
    fn namespace_that_refuses_its_list_keeps_no_other_waiting_and_is_noted() {
        let served = || vec![Ok(Init), Ok(InitApply(map("a"))), Ok(InitDone)];
        let refused = || vec![Ok(Init), failure(403)];
        for namespaces in [[served(), refused()], [refused(), served()]] {
            let mut told = Told::new(namespaces);
            assert_eq!(told.all().split_off(1), ["init!", "listed a!", "~done!"]);
            assert!(told.forbidden.check("0").is_err() != told.forbidden.check("1").is_err());
        }
        // Any other error is waited for, and no page of before a refusal is passed on.
        assert_eq!(Told::new([served(), vec![Ok(Init), failure(500)]]).all(), ["error"]);
        let page = vec![Ok(Init), Ok(InitApply(map("b"))), failure(403)];
        assert!(!Told::new([served(), page]).all().iter().any(|event| event.contains('b')));
    }

    #[test]
    fn objects_of_a_namespace_that_may_be_listed_again_join_before_that_is_noted() {
        let served = vec![Ok(Init), Ok(InitDone)];
        let refused = [Ok(Init), failure(403), Ok(Init), failure(403)];
        let listed = [Ok(Init), Ok(InitApply(map("b"))), Ok(InitDone), Ok(Delete(map("b")))];
        let mut told = Told::new([served, refused.into_iter().chain(listed).collect()]);
        let first = ["error!", "init!", "~done!", "error!", "applied b!", "deleted b"];
        assert_eq!(told.all(), first);
        assert!(told.forbidden.check("1").is_ok());
    }

    #[test]
    fn watch_that_is_refused_later_leaves_the_list_as_it_is() {
        let status = Status::failure("no Role", "").with_code(403);
        let refused = Err(watcher::Error::WatchStartFailed(kube::Error::Api(status.boxed())));
        let watched = vec![Ok(Init), Ok(InitApply(map("a"))), Ok(InitDone), refused];
        let mut told = Told::new([watched, vec![Ok(Init), Ok(InitDone)]]);
        assert_eq!(told.all(), ["init", "listed a", "~done", "error"]);
    }
}
