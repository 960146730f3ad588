//! Selection of the policy that serves a pod.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use kube::{
    ResourceExt,
    core::DeserializeGuard,
    runtime::reflector::{ObjectRef, Store},
};
use larder_crds::{CachePolicy, CachePolicySpec, ConditionType, Limits, selector};
use larder_policy::ByteSize;
use parking_lot::Mutex;

use crate::{
    bounds::Bounds,
    capture::Mode,
    compile::{self, Compiled, Owner},
    in_force::{InForce, Parsed},
    stores::in_namespace,
};

/// A policy as stored in the API server. An invalid one does not affect the others.
pub type Guarded = DeserializeGuard<CachePolicy>;

/// The reason that a policy is not in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyError {
    /// The policy is invalid, with the errors.
    Invalid(String),
    /// The policy asks for more than the cluster allows, with the fields and the bounds.
    NotAllowed(String),
    /// The policy's namespace is excluded.
    NamespaceExcluded,
    /// An object of somebody else has the name of one that the operator needs, with an explanation.
    NameTaken(String),
    /// The policy's pods are served by an older policy.
    Conflict {
        /// The older policy.
        with: String,
    },
}

/// The reason of [`PolicyError::NameTaken`].
const NAME_TAKEN: &str = "NameTaken";

impl PolicyError {
    /// Returns the reason in the condition `Accepted`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "Invalid",
            Self::NotAllowed(_) => "NotAllowed",
            Self::NamespaceExcluded => "NamespaceExcluded",
            Self::NameTaken(_) => NAME_TAKEN,
            Self::Conflict { .. } => "Conflict",
        }
    }
}

/// All policies, and the namespaces in which they have no effect.
#[derive(Clone)]
pub struct Policies {
    store: Store<Guarded>,
    own_namespace: Arc<str>,
    /// Headers that identify a user under every policy.
    identity_headers: Arc<[String]>,
    /// Bounds on what policies may ask for.
    bounds: Arc<Bounds>,
    /// The policies in force that were last returned, by namespace.
    known: Arc<Mutex<HashMap<String, Known>>>,
}

/// Policies in force, and all policies of the namespace at that time.
#[derive(Debug, Default)]
struct Known {
    all: Vec<Arc<Guarded>>,
    /// The reasons that policies in `all` are not in force, as far as only the policy itself decides.
    errors: Vec<Option<PolicyError>>,
    in_force: Arc<InForce>,
}

/// Kubernetes' own namespace, where an outage would affect the whole cluster.
const KUBE_SYSTEM: &str = "kube-system";

impl Policies {
    /// Wraps the policies in `store`; none is accepted in `own_namespace`, the operator's.
    pub fn new(store: Store<Guarded>, own_namespace: &str) -> Self {
        Self {
            store,
            own_namespace: own_namespace.into(),
            identity_headers: Arc::default(),
            bounds: Arc::default(),
            known: Arc::default(),
        }
    }

    /// Adds headers that identify a user under every policy.
    pub fn with_identity_headers(self, headers: &[String]) -> Self {
        Self { identity_headers: headers.into(), ..self }
    }

    /// Sets bounds on what policies may ask for.
    pub fn with_bounds(self, bounds: &Bounds) -> Self {
        Self { bounds: Arc::new(bounds.clone()), ..self }
    }

    /// Returns the policy of that name, valid or not.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<Guarded>> {
        self.store.get(&ObjectRef::new(name).within(namespace))
    }

    /// Returns the policies of a namespace that may be in force. A policy that is not accepted and was in force before is included, its
    /// sidecar within the bounds: its pods continue with its last good document, and no other policy takes them.
    ///
    /// A policy is compiled once for each of its specs, not for each call.
    pub fn of(&self, namespace: &str) -> Arc<InForce> {
        let all = in_namespace(&self.store, namespace);
        let mut known = self.known.lock();
        if all.is_empty() {
            known.remove(namespace);
            return Arc::default();
        }
        let before = known.entry(namespace.to_owned()).or_default();
        let is_same = all.len() == before.all.len()
            && all.iter().zip(&before.all).all(|(policy, before)| Arc::ptr_eq(policy, before));
        if !is_same {
            *before = self.examine(all, before);
        }
        before.in_force.clone()
    }

    /// Selects the policies in force among all policies of a namespace.
    fn examine(&self, all: Vec<Arc<Guarded>>, before: &Known) -> Known {
        let earlier: HashMap<_, _> = before
            .all
            .iter()
            .zip(&before.errors)
            .filter_map(|(policy, error)| Some((policy.name_any(), (policy.0.as_ref().ok()?, error))))
            .collect();
        let mut errors = Vec::with_capacity(all.len());
        let mut in_force = Vec::new();
        for guarded in &all {
            let Some(policy) = Parsed::new(guarded) else {
                errors.push(None);
                continue;
            };
            let compiled_before = earlier.get(&policy.name_any()).filter(|(before, _)| {
                before.metadata.uid == policy.metadata.uid && before.spec == policy.spec
            });
            let error = match compiled_before {
                Some((_, error)) => (*error).clone(),
                None => self.compile(&policy).err(),
            };
            let goes_on = match &error {
                None => true,
                Some(PolicyError::Invalid(_) | PolicyError::NotAllowed(_)) => {
                    was_in_force(&policy) && self.bounds.allows_capture(&policy.spec)
                }
                Some(_) => false,
            };
            let mode = Mode::of(&policy.spec.capture, &policy.spec.targets);
            if goes_on && mode.is_some() && !lacks_its_name(&policy) {
                let confined = || policy.changed(|policy| self.bounds.confine(&mut policy.spec));
                in_force.push(if error.is_none() { policy } else { confined() });
            }
            errors.push(error);
        }
        Known { all, errors, in_force: Arc::new(InForce::new(in_force)) }
    }

    /// Returns the policy that serves a pod with these labels, unless the pod has opted out.
    pub fn deciding(&self, namespace: &str, labels: &BTreeMap<String, String>) -> Option<Parsed> {
        self.of(namespace).serving(labels).cloned()
    }

    /// Returns the document for a policy's sidecars.
    ///
    /// # Errors
    /// The reason that there is none.
    pub fn compile(&self, policy: &CachePolicy) -> Result<Compiled, PolicyError> {
        let namespace = policy.namespace().unwrap_or_default();
        if self.excludes(&namespace) {
            return Err(PolicyError::NamespaceExcluded);
        }
        #[cfg(test)]
        tests::COMPILED.with(|compiled| compiled.set(compiled.get() + 1));
        let (name, uid) = (policy.name_any(), policy.uid().unwrap_or_default());
        let owner = Owner { namespace: &namespace, name: &name, uid: &uid };
        let compiled = compile::compile(owner, &policy.spec.cache, &self.identity_headers, &self.bounds);
        let compiled = compiled.map_err(PolicyError::Invalid)?;
        // The API server says the same, but not of policies from before it had the rule.
        if let Some(error) = overfull(&policy.spec) {
            return Err(PolicyError::Invalid(error));
        }
        let exceeded = self.bounds.exceeded(&policy.spec);
        if exceeded.is_empty() { Ok(compiled) } else { Err(PolicyError::NotAllowed(exceeded.join("; "))) }
    }

    /// Returns the namespaces with policies in which policies may be in force, in order.
    pub fn namespaces(&self) -> Vec<String> {
        let mut namespaces: Vec<_> = self
            .store
            .state()
            .iter()
            .filter_map(|policy| policy.namespace())
            .filter(|namespace| !self.excludes(namespace))
            .collect();
        namespaces.sort();
        namespaces.dedup();
        namespaces
    }

    /// Returns true if a policy may select pods that have no labels.
    pub fn select_unlabelled(&self) -> bool {
        let none = BTreeMap::new();
        let selects = |policy: &Guarded| {
            policy.0.as_ref().is_ok_and(|policy| selector::matches(&policy.spec.selector, &none))
        };
        self.store.find(|policy| selects(policy)).is_some()
    }

    fn excludes(&self, namespace: &str) -> bool {
        namespace == KUBE_SYSTEM || namespace == &*self.own_namespace
    }
}

/// Returns true if a document of the policy was written before. The policy's status records the hash of the last one.
fn was_in_force(policy: &CachePolicy) -> bool {
    policy.status.as_ref().is_some_and(|status| status.config_hash.is_some())
}

/// Returns true if an object of somebody else has the name of one that the policy needs.
fn lacks_its_name(policy: &CachePolicy) -> bool {
    let conditions = policy.status.iter().flat_map(|status| &status.conditions);
    conditions
        .filter(|condition| condition.type_ == ConditionType::Accepted.as_str())
        .any(|condition| condition.status == "False" && condition.reason == NAME_TAKEN)
}

/// Returns the remedy for an `l1` that does not fit into the sidecar's memory.
fn overfull(spec: &CachePolicySpec) -> Option<String> {
    let limit = &spec.sidecar.resources.limits.memory.0;
    // Fractions and exponents are for the API server to reckon with.
    let memory: ByteSize = limit.parse().ok()?;
    let size = spec.cache.l1.max_size;
    (size.0.saturating_add(Limits::HEADROOM) > memory.0).then(|| {
        format!(
            "l1.maxSize ({size}) and {} for requests in progress do not fit into \
             sidecar.resources.limits.memory ({limit}): raise limits.memory or lower l1.maxSize",
            ByteSize(Limits::HEADROOM),
        )
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use kube::runtime::{reflector, watcher};
    use serde_json::{Value, json};

    use super::*;

    thread_local! {
        /// Number of policies that this test has compiled.
        pub(super) static COMPILED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
    }

    pub(crate) fn policies(list: &[Value]) -> Policies {
        let (store, mut writer) = reflector::store();
        for policy in list {
            let policy: Guarded = serde_json::from_value(policy.clone()).unwrap();
            writer.apply_watcher_event(&watcher::Event::Apply(policy));
        }
        Policies::new(store, "larder-system")
    }

    pub(crate) fn policy(name: &str, created: &str, labels: Value) -> Value {
        json!({
            "apiVersion": "larder.dev/v1alpha1",
            "kind": "CachePolicy",
            "metadata": {"name": name, "namespace": "shop", "uid": name, "creationTimestamp": created},
            "spec": {"selector": {"matchLabels": labels}, "targets": [{"port": "http"}]},
        })
    }

    fn labels() -> BTreeMap<String, String> {
        [("app".to_owned(), "shop".to_owned())].into()
    }

    #[test]
    fn oldest_matching_policy_serves() {
        let policies = policies(&[
            policy("younger", "2026-01-02T00:00:00Z", json!({"app": "shop"})),
            policy("older", "2026-01-01T00:00:00Z", json!({"app": "shop"})),
            policy("oldest", "2025-01-01T00:00:00Z", json!({"app": "other"})),
        ]);
        assert_eq!(policies.deciding("shop", &labels()).unwrap().name_any(), "older");
        assert!(policies.deciding("other", &labels()).is_none());
    }

    #[test]
    fn lookups_among_1000_policies_compile_none() {
        let named = |number: usize| {
            policy(&format!("p{number}"), "2026-01-01T00:00:00Z", json!({"app": format!("a{number}")}))
        };
        let (store, mut writer) = reflector::store();
        let mut apply = |policy: Value| {
            let policy: Guarded = serde_json::from_value(policy).unwrap();
            writer.apply_watcher_event(&watcher::Event::Apply(policy));
        };
        (0..1000).for_each(|number| apply(named(number)));
        let policies = Policies::new(store, "larder-system");
        let compiled = || COMPILED.with(std::cell::Cell::get);
        let labels = [("app".to_owned(), "a500".to_owned())].into();
        assert_eq!(policies.deciding("shop", &labels).unwrap().name_any(), "p500");
        assert_eq!(compiled(), 1000);
        let before = policies.of("shop");
        assert_eq!(policies.deciding("shop", &labels).unwrap().name_any(), "p500");
        assert!(Arc::ptr_eq(&before, &policies.of("shop")), "nothing was sorted or selected again");

        let mut told = named(7);
        told["status"] = json!({"configHash": "0123456789abcdef"});
        apply(told);
        assert!(policies.deciding("shop", &labels).is_some());
        assert_eq!(compiled(), 1000, "a status is no reason to compile");
        let mut changed = named(7);
        changed["spec"]["suspend"] = json!(true);
        apply(changed);
        assert!(policies.deciding("shop", &labels).is_some());
        assert_eq!(compiled(), 1001);
    }

    #[test]
    fn selector_of_absent_labels_selects_pods_without_labels() {
        let mut negative = policy("a", "2026-01-01T00:00:00Z", json!({}));
        assert!(!policies(&[negative.clone()]).select_unlabelled(), "an empty selector selects nothing");
        negative["spec"]["selector"] =
            json!({"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["batch"]}]});
        let policies = policies(&[negative]);
        assert!(policies.select_unlabelled());
        assert!(policies.deciding("shop", &BTreeMap::new()).is_some());
    }

    #[test]
    fn invalid_policy_serves_no_pod() {
        let mut none = policy("none", "2026-01-01T00:00:00Z", json!({"app": "shop"}));
        none["spec"]["capture"] = json!({"mode": "None"});
        let mut unreadable = policy("unreadable", "2026-01-01T00:00:00Z", json!({"app": "shop"}));
        unreadable["spec"]["l1"] = json!({"maxSize": "99999999999Ei"});
        let policies =
            policies(&[none, unreadable, policy("c", "2026-01-03T00:00:00Z", json!({"app": "shop"}))]);
        assert_eq!(policies.deciding("shop", &labels()).unwrap().name_any(), "c");
        assert_eq!(policies.namespaces(), ["shop"]);
        assert!(policies.get("shop", "unreadable").unwrap().0.is_err());
    }

    #[test]
    fn policy_broken_by_an_edit_retains_its_pods() {
        let mut broken = policy("older", "2026-01-01T00:00:00Z", json!({"app": "shop"}));
        broken["spec"]["l1"] = json!({"maxSize": "1Gi"});
        let younger = policy("younger", "2026-01-02T00:00:00Z", json!({"app": "shop"}));
        let never_good = policies(&[broken.clone(), younger.clone()]);
        assert_eq!(never_good.deciding("shop", &labels()).unwrap().name_any(), "younger");

        broken["status"] = json!({"configHash": "0123456789abcdef", "pods":
            {"matched": 1, "injected": 1, "current": 1, "ready": 1, "missed": 0}});
        let edited = policies(&[broken, younger]);
        assert_eq!(edited.deciding("shop", &labels()).unwrap().name_any(), "older");
    }

    #[test]
    fn policy_above_a_bound_is_not_accepted_and_confined_where_it_was() {
        let mut large = policy("large", "2026-01-01T00:00:00Z", json!({"app": "shop"}));
        large["spec"]["sidecar"] = json!({"resources": {"limits": {"memory": "1Gi"}}});
        let bounds = Bounds::parse(r#"{"maxMemory": "256Mi"}"#).unwrap();
        let of = |policy: &Value| policies(std::slice::from_ref(policy)).with_bounds(&bounds);
        let refused = of(&large);
        let guarded = refused.get("shop", "large").unwrap();
        let error = refused.compile(guarded.0.as_ref().unwrap()).unwrap_err();
        assert_eq!(error.as_str(), "NotAllowed");
        let PolicyError::NotAllowed(message) = error else { panic!() };
        assert!(message.contains("limits.memory (1Gi) is above policies.maxMemory (256Mi)"), "{message}");
        assert!(refused.deciding("shop", &labels()).is_none());

        large["status"] = json!({"configHash": "0123456789abcdef", "pods":
            {"matched": 1, "injected": 1, "current": 1, "ready": 1, "missed": 0}});
        for invalid in [false, true] {
            if invalid {
                large["spec"]["l1"] = json!({"maxSize": "9Gi"});
            }
            let kept = of(&large).deciding("shop", &labels()).unwrap();
            assert_eq!(kept.spec.sidecar.resources.limits.memory.0, "256Mi", "a new pod's sidecar");
        }
        large["spec"]["capture"] = json!({"mode": "NamedPort"});
        let bounds = Bounds::parse(r#"{"captureModes": ["Auto"]}"#).unwrap();
        assert!(policies(&[large]).with_bounds(&bounds).deciding("shop", &labels()).is_none());
    }

    #[test]
    fn oversized_l1_is_rejected() {
        let policy_error = |l1: &str, memory: &str| {
            let mut policy = policy("a", "2026-01-01T00:00:00Z", json!({"app": "shop"}));
            policy["spec"]["l1"] = json!({"maxSize": l1});
            policy["spec"]["sidecar"] = json!({"resources": {"limits": {"memory": memory}}});
            let policies = policies(&[policy]);
            let guarded = policies.get("shop", "a").unwrap();
            policies.compile(guarded.0.as_ref().unwrap()).err()
        };
        assert_eq!(policy_error("96Mi", "128Mi"), None);
        assert_eq!(policy_error("1Gi", "1.5Gi"), None, "not reckoned here");
        let Some(PolicyError::Invalid(error)) = policy_error("97Mi", "128Mi") else { panic!() };
        assert!(error.contains("l1.maxSize (97Mi) and 32Mi") && error.contains("128Mi"), "{error}");
    }

    #[test]
    fn system_namespaces_accept_no_policy() {
        let mut system = policy("a", "2026-01-01T00:00:00Z", json!({"app": "shop"}));
        system["metadata"]["namespace"] = json!("kube-system");
        let policies = policies(&[system]);
        assert!(policies.deciding("kube-system", &labels()).is_none());
        assert!(policies.namespaces().is_empty());
    }
}
