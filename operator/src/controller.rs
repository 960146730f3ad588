//! The controllers of the leading replica: one reconciles policies, one cleans up after deleted policies.

mod covering;
mod policy;
mod retire;
mod rolling;
mod writes;

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::{Stream, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::{ConfigMap, Pod, Service},
};
use kube::{
    Client, Resource, ResourceExt,
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
    policies::{Guarded, Policies},
    sidecars::Sidecars,
    webhook_configuration::Registration,
    world::{World, drain, watch},
};

/// Changes within this time are reconciled together.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// Delay before a failed reconciliation is retried.
const RETRY: Duration = Duration::from_secs(3);

/// Dependencies of the controllers.
pub struct Shared {
    /// Client of the API server.
    pub client: Client,
    /// Command-line arguments of the operator.
    pub arguments: RunArguments,
    /// All policies.
    pub policies: Policies,
    /// The webhook's configuration.
    pub registration: Arc<Registration>,
    /// Source of events.
    pub recorder: Recorder,
    /// Metrics of the operator.
    pub metrics: Metrics,
}

/// [`Shared`], and the state of a leader.
struct Leader {
    shared: Arc<Shared>,
    world: World,
    sidecars: Sidecars,
    /// Time of the last restart of each workload by this replica; cached lists may be older.
    restarts: Mutex<HashMap<String, Timestamp>>,
    /// Time at which the webhook last responded.
    reached: Mutex<Option<tokio::time::Instant>>,
    /// The ConfigMaps, by uid, whose token exists, each with the time until which this is assumed.
    tokens: Mutex<HashMap<String, tokio::time::Instant>>,
}

/// Runs the controllers until it is dropped. Only one replica may run it at a time.
pub async fn lead(
    shared: Arc<Shared>,
    network_policies: Store<k8s_openapi::api::networking::v1::NetworkPolicy>,
) {
    let client = &shared.client;
    let everything = watcher::Config::default;
    let (pods, pod_changes) = watch::<Pod>(client, everything());
    let (replica_sets, replica_set_changes) = watch(client, everything());
    let (deployments, deployment_changes) = watch::<Deployment>(client, everything());
    let (stateful_sets, stateful_set_changes) = watch::<StatefulSet>(client, everything());
    let (services, service_changes) = watch::<Service>(client, everything());
    let (policies, policy_changes) = watch::<Guarded>(client, everything());
    let (_, deleted_policies) = watch::<Guarded>(client, everything());
    let labelled = everything().labels(labels::POLICY);
    let (config_maps, config_map_changes) = watch::<ConfigMap>(client, labelled.clone());
    let (_, other_config_map_changes) = watch::<ConfigMap>(client, labelled);

    let world = World { pods, replica_sets, deployments, stateful_sets, services, network_policies };
    let leader = Arc::new(Leader {
        shared: shared.clone(),
        world,
        sidecars: Sidecars::new(),
        restarts: Mutex::default(),
        reached: Mutex::default(),
        tokens: Mutex::default(),
    });

    let store = policies.clone();
    let of_pod = move |pod: Pod| selecting(&store, &pod, pod.labels());
    let store = policies.clone();
    let of_deployment = move |deployment: Deployment| {
        let template = deployment.spec.as_ref().and_then(|spec| spec.template.metadata.as_ref());
        selecting(
            &store,
            &deployment,
            template.and_then(|template| template.labels.as_ref()).unwrap_or(&NO_LABELS),
        )
    };
    let store = policies.clone();
    let of_stateful_set = move |set: StatefulSet| {
        let template = set.spec.as_ref().and_then(|spec| spec.template.metadata.as_ref());
        selecting(&store, &set, template.and_then(|template| template.labels.as_ref()).unwrap_or(&NO_LABELS))
    };
    let store = policies.clone();
    let of_service = move |service: Service| {
        let namespace = service.namespace();
        let all = store.state_filter(|policy| policy.namespace() == namespace);
        all.iter().map(|policy| ObjectRef::from_obj(&**policy)).collect::<Vec<_>>()
    };
    let of_config_map = |map: ConfigMap| owner::<Guarded>(&map, map.labels());

    let config = Config::default().debounce(DEBOUNCE);
    let in_force = Controller::for_stream(policy_changes, policies)
        .with_config(config.clone())
        .watches_stream(pod_changes, of_pod)
        .watches_stream(deployment_changes, of_deployment)
        .watches_stream(stateful_set_changes, of_stateful_set)
        .watches_stream(service_changes, of_service)
        .watches_stream(other_config_map_changes, of_config_map)
        .run(policy::reconcile, retry, leader.clone());
    let taken_back = Controller::for_stream(config_map_changes, config_maps)
        .with_config(config)
        .watches_stream(deleted_policies, |policy: Guarded| {
            policy.namespace().map(|namespace| {
                ObjectRef::<ConfigMap>::new(&names::config_map(&policy.name_any())).within(&namespace)
            })
        })
        .run(retire::reconcile, retry, leader.clone());

    shared.metrics.leader.set(1);
    tracing::info!("this replica is the leader");
    tokio::join!(
        count(in_force, "policy", &shared.metrics),
        count(taken_back, "retire", &shared.metrics),
        drain(replica_set_changes),
        shared.registration.keep(),
    );
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

fn retry<K>(_: Arc<K>, error: &Error, _: Arc<Leader>) -> Action {
    tracing::warn!(%error, "a reconciliation failed; retrying");
    Action::requeue(RETRY)
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
