//! The controllers of the leading replica: one reconciles policies, one cleans up after deleted policies, one carries out purges.

mod admission;
mod companion;
mod covering;
mod invalidation;
mod peers;
mod policy;
mod refused;
mod requeue;
mod rolling;
mod teardown;
mod token;
mod vacancy;
mod writes;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
    core::v1::{ConfigMap, Pod, Service},
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
use larder_crds::{CacheInvalidation, selector};
use tokio::sync::{Mutex, OnceCell};

use crate::{
    argo::Rollouts,
    cli::RunArguments,
    cluster::Cluster,
    error::Error,
    list::Change,
    metrics::Metrics,
    pod_security::PodSecurity,
    policies::{Guarded, Policies},
    scope,
    scoped::{self, Scope},
    sidecars::Sidecars,
    stores::Stores,
    throughput::Throughput,
    token_key::TokenKey,
    watched::{Watched, watch},
    webhook_configuration::Registration,
};

/// Changes within this time are reconciled together.
const DEBOUNCE_INTERVAL: Duration = Duration::from_millis(200);
/// Maximum number of policies that are reconciled at a time.
const MAX_CONCURRENT: u16 = 64;
/// Delay before a failed reconciliation is retried.
const RETRY_INTERVAL: Duration = Duration::from_secs(3);

/// Dependencies of the controllers.
pub struct Dependencies {
    /// Client of the API server.
    pub client: Client,
    /// The namespaces that are watched.
    pub cluster: Cluster,
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
    /// Requests of the sidecars, by the policy's namespace and name.
    throughput: Mutex<HashMap<(String, String), Throughput>>,
    /// The ConfigMaps of policies.
    config_maps: Store<ConfigMap>,
    /// The version in which each of them was last read from the API server, unless it was written since.
    seen_config_maps: Mutex<HashMap<ObjectRef<ConfigMap>, String>>,
    /// The tokens that exist, by the uid of the ConfigMap.
    tokens: Mutex<HashMap<String, token::Token>>,
    /// The key from which they are derived, once it was needed.
    token_key: OnceCell<TokenKey>,
    /// Purges that were asked for as objects.
    invalidations: Store<CacheInvalidation>,
    /// Those that have not ended, with the pods that were asked.
    begun: Mutex<invalidation::Begun>,
    /// Number of purges that are carried out now, by namespace.
    purging: parking_lot::Mutex<HashMap<String, usize>>,
}

/// Runs the controllers until it is dropped. Only one replica may run it at a time.
pub async fn lead(dependencies: Arc<Dependencies>) {
    let (cluster, metrics) = (&dependencies.cluster, &dependencies.metrics);
    let everything = watcher::Config::default;
    let labelled = everything().labels(labels::POLICY);
    let (config_maps, watch_config_maps) = watch::<ConfigMap>(cluster, labelled, metrics);
    let (invalidations, watch_invalidations) = watch::<CacheInvalidation>(cluster, everything(), metrics);
    // Every replica watches these.
    let policies = &dependencies.watched_policies;
    let (wanted, watch_scope) = scope::follow(policies, &config_maps, &dependencies.arguments.namespace);
    // Its own pods and Deployment are among them: they say whether the operator is being upgraded.
    let cluster = &cluster.with(&dependencies.arguments.namespace);
    let unfinished = everything().fields(larder_api::names::UNFINISHED_PODS);
    let (pods, watch_pods) = scoped::watch::<Pod>(cluster, unfinished, metrics, wanted.clone());
    let (replica_sets, watch_replica_sets) =
        scoped::watch::<PartialObjectMeta<ReplicaSet>>(cluster, everything(), metrics, wanted.clone());
    let (deployments, watch_deployments) =
        scoped::watch::<Deployment>(cluster, everything(), metrics, wanted.clone());
    let (stateful_sets, watch_stateful_sets) =
        scoped::watch::<StatefulSet>(cluster, everything(), metrics, wanted.clone());
    let (daemon_sets, watch_daemon_sets) =
        scoped::watch::<DaemonSet>(cluster, everything(), metrics, wanted.clone());
    let (services, watch_services) = scoped::watch::<Service>(cluster, everything(), metrics, wanted.clone());

    let context = Arc::new(Context {
        dependencies: dependencies.clone(),
        stores: Stores {
            pods: pods.list(),
            replica_sets: replica_sets.list(),
            deployments: deployments.list(),
            stateful_sets: stateful_sets.list(),
            daemon_sets: daemon_sets.list(),
            services: services.list(),
            scope: Scope {
                wanted,
                covered: vec![
                    pods.covered(),
                    replica_sets.covered(),
                    deployments.covered(),
                    stateful_sets.covered(),
                    daemon_sets.covered(),
                    services.covered(),
                ],
                forbidden: cluster.forbidden.clone(),
            },
            network_policies: dependencies.network_policies.clone(),
            pod_security: dependencies.pod_security.clone(),
            rollouts: Rollouts::default(),
        },
        sidecars: Sidecars::new(),
        restarts: Mutex::default(),
        leftovers: Mutex::default(),
        refusals: Mutex::default(),
        reached: Mutex::default(),
        throughput: Mutex::default(),
        config_maps: config_maps.store(),
        seen_config_maps: Mutex::default(),
        tokens: Mutex::default(),
        token_key: OnceCell::new(),
        invalidations: invalidations.store(),
        begun: Mutex::default(),
        purging: parking_lot::Mutex::default(),
    });

    let of_pods = |changes: BoxStream<'static, Change>| {
        let store = policies.store();
        changes.flat_map(move |change| stream::iter(selecting(&store, &change)))
    };
    let store = policies.store();
    let of_services = services.subscribe().flat_map(move |service| {
        let all = store.state_filter(|policy| policy.namespace().as_ref() == Some(&service.namespace));
        stream::iter(all.iter().map(|policy| ObjectRef::from_obj(&**policy)).collect::<Vec<_>>())
    });
    let of_config_map = |map: Arc<ConfigMap>| owner::<Guarded>(&*map, map.labels());

    let config = Config::default().debounce(DEBOUNCE_INTERVAL).concurrency(MAX_CONCURRENT);
    let in_force = Controller::for_shared_stream(policies.subscribe(), policies.store())
        .with_config(config.clone())
        .reconcile_on(of_pods(pods.subscribe().boxed()))
        .reconcile_on(of_pods(deployments.subscribe().boxed()))
        .reconcile_on(of_pods(stateful_sets.subscribe().boxed()))
        .reconcile_on(of_pods(daemon_sets.subscribe().boxed()))
        .reconcile_on(of_services)
        .watches_shared_stream(config_maps.subscribe(), of_config_map)
        .run(policy::reconcile, error_policy, context.clone());
    let purged = Controller::for_shared_stream(invalidations.subscribe(), invalidations.store())
        .with_config(config.clone())
        .run(invalidation::reconcile, error_policy, context.clone());
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
        watch_scope,
        watch_pods,
        watch_replica_sets,
        watch_deployments,
        watch_stateful_sets,
        watch_daemon_sets,
        watch_services,
        watch_config_maps,
        watch_invalidations,
        context.load_token_key(),
        count(purged, "invalidation", &dependencies.metrics),
        count(in_force, "policy", &dependencies.metrics),
        count(taken_back, "teardown", &dependencies.metrics),
        dependencies.registration.keep(),
    );
}

/// Returns the policies that select the pods of a changed object, or that put a sidecar into them.
fn selecting(policies: &Store<Guarded>, change: &Change) -> Vec<ObjectRef<Guarded>> {
    let label = change.labels.get(labels::POLICY);
    let concerned = policies.state_filter(|policy| {
        policy.namespace().as_ref() == Some(&change.namespace)
            && (label == Some(&policy.name_any())
                || policy
                    .0
                    .as_ref()
                    .is_ok_and(|policy| selector::matches(&policy.spec.selector, &change.labels)))
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
