//! The controllers of the leading replica: one reconciles policies, one cleans up after deleted policies.

mod admission;
mod companion;
mod covering;
mod policy;
mod refused;
mod rolling;
mod teardown;
mod writes;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::{Stream, StreamExt};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
    core::v1::{ConfigMap, Pod, PodTemplateSpec, Service},
    networking::v1::NetworkPolicy,
};
use kube::{
    Client, Resource, ResourceExt,
    core::PartialObjectMeta,
    runtime::{
        Controller,
        controller::{Action, Config},
        events::Recorder,
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use larder_api::{labels, names};
use larder_crds::selector;
use tokio::sync::Mutex;

use crate::{
    cli::RunArguments,
    error::Error,
    metrics::Metrics,
    pod_security::PodSecurity,
    policies::{Guarded, Policies},
    pruned,
    sidecars::Sidecars,
    stores::Stores,
    watched::{Watched, watch, watch_pruned},
    webhook_configuration::Registration,
};

/// Changes within this time are reconciled together.
const DEBOUNCE_INTERVAL: Duration = Duration::from_millis(200);
/// Delay before a failed reconciliation is retried.
const RETRY_INTERVAL: Duration = Duration::from_secs(3);

/// Dependencies of the controllers.
pub struct Dependencies {
    /// Client of the API server.
    pub client: Client,
    /// Command-line arguments of the operator.
    pub arguments: RunArguments,
    /// All policies.
    pub policies: Policies,
    /// The watch of the policies.
    pub watched_policies: Watched<Guarded>,
    /// Network policies.
    pub network_policies: Store<NetworkPolicy>,
    /// Pod Security levels of the namespaces.
    pub pod_security: PodSecurity,
    /// The webhook's configuration.
    pub registration: Arc<Registration>,
    /// Source of events.
    pub recorder: Recorder,
    /// Metrics of the operator.
    pub metrics: Metrics,
}

/// Context of the reconciliations: [`Dependencies`], the watched lists and what the leading replica remembers.
struct Context {
    dependencies: Arc<Dependencies>,
    stores: Stores,
    sidecars: Sidecars,
    /// The last restart of each workload by this replica, by uid; cached lists may be older.
    restarts: Mutex<HashMap<String, rolling::Recent>>,
    /// The ConfigMaps of deleted policies, by uid, whose leftover pods were reported.
    leftovers: Mutex<HashSet<String>>,
    /// The last refusal of a restart, by the workload's uid.
    refusals: Mutex<HashMap<String, rolling::Refused>>,
    /// Time at which the webhook last responded.
    reached: Mutex<Option<tokio::time::Instant>>,
    /// The ConfigMaps, by uid, whose token exists, each with the time until which this is assumed.
    tokens: Mutex<HashMap<String, tokio::time::Instant>>,
}

/// Runs the controllers until it is dropped. Only one replica may run it at a time.
pub async fn lead(dependencies: Arc<Dependencies>) {
    let (client, metrics) = (&dependencies.client, &dependencies.metrics);
    let everything = watcher::Config::default;
    let (pods, watch_pods) = watch_pruned::<Pod>(client, everything(), metrics, pruned::pod);
    let (replica_sets, watch_replica_sets) =
        watch::<PartialObjectMeta<ReplicaSet>>(client, everything(), metrics);
    let (deployments, watch_deployments) = watch::<Deployment>(client, everything(), metrics);
    let (stateful_sets, watch_stateful_sets) = watch::<StatefulSet>(client, everything(), metrics);
    let (daemon_sets, watch_daemon_sets) = watch::<DaemonSet>(client, everything(), metrics);
    let (services, watch_services) = watch::<Service>(client, everything(), metrics);
    let labelled = everything().labels(labels::POLICY);
    let (config_maps, watch_config_maps) = watch::<ConfigMap>(client, labelled, metrics);
    // Every replica watches these.
    let policies = &dependencies.watched_policies;

    let context = Arc::new(Context {
        dependencies: dependencies.clone(),
        stores: Stores {
            pods: pods.store(),
            replica_sets: replica_sets.store(),
            deployments: deployments.store(),
            stateful_sets: stateful_sets.store(),
            daemon_sets: daemon_sets.store(),
            services: services.store(),
            network_policies: dependencies.network_policies.clone(),
            pod_security: dependencies.pod_security.clone(),
        },
        sidecars: Sidecars::new(),
        restarts: Mutex::default(),
        leftovers: Mutex::default(),
        refusals: Mutex::default(),
        reached: Mutex::default(),
        tokens: Mutex::default(),
    });

    let store = policies.store();
    let of_pod = move |pod: Arc<Pod>| selecting(&store, &*pod, pod.labels());
    let store = policies.store();
    let of_deployment = move |one: Arc<Deployment>| {
        selecting(&store, &*one, labels_of(one.spec.as_ref().map(|spec| &spec.template)))
    };
    let store = policies.store();
    let of_stateful_set = move |one: Arc<StatefulSet>| {
        selecting(&store, &*one, labels_of(one.spec.as_ref().map(|spec| &spec.template)))
    };
    let store = policies.store();
    let of_daemon_set = move |one: Arc<DaemonSet>| {
        selecting(&store, &*one, labels_of(one.spec.as_ref().map(|spec| &spec.template)))
    };
    let store = policies.store();
    let of_service = move |service: Arc<Service>| {
        let namespace = service.namespace();
        let all = store.state_filter(|policy| policy.namespace() == namespace);
        all.iter().map(|policy| ObjectRef::from_obj(&**policy)).collect::<Vec<_>>()
    };
    let of_config_map = |map: Arc<ConfigMap>| owner::<Guarded>(&*map, map.labels());

    let config = Config::default().debounce(DEBOUNCE_INTERVAL);
    let in_force = Controller::for_shared_stream(policies.subscribe(), policies.store())
        .with_config(config.clone())
        .watches_shared_stream(pods.subscribe(), of_pod)
        .watches_shared_stream(deployments.subscribe(), of_deployment)
        .watches_shared_stream(stateful_sets.subscribe(), of_stateful_set)
        .watches_shared_stream(daemon_sets.subscribe(), of_daemon_set)
        .watches_shared_stream(services.subscribe(), of_service)
        .watches_shared_stream(config_maps.subscribe(), of_config_map)
        .run(policy::reconcile, error_policy, context.clone());
    let taken_back = Controller::for_shared_stream(config_maps.subscribe(), config_maps.store())
        .with_config(config)
        .watches_shared_stream(policies.subscribe(), |policy: Arc<Guarded>| {
            policy.namespace().map(|namespace| {
                ObjectRef::<ConfigMap>::new(&names::config_map(&policy.name_any())).within(&namespace)
            })
        })
        .run(teardown::reconcile, error_policy, context.clone());

    dependencies.metrics.leader.set(1);
    tracing::info!("this replica is the leader");
    tokio::join!(
        watch_pods,
        watch_replica_sets,
        watch_deployments,
        watch_stateful_sets,
        watch_daemon_sets,
        watch_services,
        watch_config_maps,
        count(in_force, "policy", &dependencies.metrics),
        count(taken_back, "teardown", &dependencies.metrics),
        dependencies.registration.keep(),
    );
}

/// Returns the labels of the pods of a template.
fn labels_of(template: Option<&PodTemplateSpec>) -> &std::collections::BTreeMap<String, String> {
    template.and_then(|template| template.metadata.as_ref()?.labels.as_ref()).unwrap_or(&NO_LABELS)
}

static NO_LABELS: std::collections::BTreeMap<String, String> = std::collections::BTreeMap::new();

/// Returns the policies that select an object's pods, or that put a sidecar into it.
fn selecting(
    policies: &Store<Guarded>,
    object: &impl Resource,
    labels: &std::collections::BTreeMap<String, String>,
) -> Vec<ObjectRef<Guarded>> {
    let namespace = object.meta().namespace.as_deref();
    let label = labels.get(labels::POLICY);
    let concerned = policies.state_filter(|policy| {
        policy.namespace().as_deref() == namespace
            && (label == Some(&policy.name_any())
                || policy.0.as_ref().is_ok_and(|policy| selector::matches(&policy.spec.selector, labels)))
    });
    concerned.iter().map(|policy| ObjectRef::from_obj(&**policy)).collect()
}

/// Returns the policy that an object's label names as its owner.
fn owner<K: Resource<DynamicType = ()>>(
    object: &impl Resource,
    labels: &std::collections::BTreeMap<String, String>,
) -> Option<ObjectRef<K>> {
    let namespace = object.meta().namespace.as_deref()?;
    Some(ObjectRef::new(labels.get(labels::POLICY)?).within(namespace))
}

fn error_policy<K>(_: Arc<K>, error: &Error, _: Arc<Context>) -> Action {
    tracing::warn!(%error, "a reconciliation failed; retrying");
    Action::requeue(RETRY_INTERVAL)
}

async fn count<K: Resource>(
    outcomes: impl Stream<
        Item = Result<(ObjectRef<K>, Action), kube::runtime::controller::Error<Error, watcher::Error>>,
    >,
    controller: &'static str,
    metrics: &Metrics,
) where
    K::DynamicType: std::hash::Hash + Eq,
{
    use kube::runtime::controller::Error as Outcome;
    outcomes
        .for_each(|outcome| async move {
            let error = match &outcome {
                Ok(_) => "",
                // A policy that is gone: the other controller's business.
                Err(Outcome::ObjectNotFound(_)) => return,
                Err(Outcome::ReconcilerFailed(error, _)) => error.as_str(),
                Err(Outcome::QueueError(error)) => {
                    tracing::warn!(%error, controller, "a watch failed; restarting it");
                    "Watch"
                }
                Err(_) => "Other",
            };
            metrics.reconciles.with_label_values(&[controller, error]).inc();
        })
        .await;
}
