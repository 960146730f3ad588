//! The operator's process, from start to stop.

use std::{sync::Arc, time::Duration};

use futures::FutureExt;
use k8s_openapi::api::{core::v1::Namespace, networking::v1::NetworkPolicy};
use kube::{
    Client,
    core::PartialObjectMeta,
    runtime::{
        events::{Recorder, Reporter},
        watcher,
    },
};
use larder_api::names;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch as channel,
};
use tokio_util::sync::CancellationToken;

use crate::{
    cli::RunArguments,
    cluster::Cluster,
    controller::Dependencies,
    error::{Error, Result},
    health::{self, Readiness},
    leader,
    metrics::Metrics,
    pod_security::PodSecurity,
    policies::{Guarded, Policies},
    tls::{self, Loaded},
    watched::{watch, watch_unscoped},
    webhook::{self, Webhook, server, trial::Trials},
    webhook_configuration::Registration,
};

/// Interval at which the file with the client CA is read.
const CLIENT_CA_INTERVAL: Duration = Duration::from_secs(60);

/// Runs the operator until the stop signal.
///
/// # Errors
/// If a part ends unexpectedly. The kubelet then restarts the operator.
pub async fn run(arguments: RunArguments) -> Result<()> {
    let client = Client::try_default().await?;
    let cluster = Cluster::new(client.clone(), &arguments.watch_namespaces);
    let metrics = Metrics::new();
    let readiness = Readiness::default();
    let stop = CancellationToken::new();

    // Every replica knows the policies and network policies, and has the certificate: it can decide over pods.
    let (watched_policies, watch_policies) = watch::<Guarded>(&cluster, watcher::Config::default(), &metrics);
    let (network_policies, watch_network_policies) =
        watch::<NetworkPolicy>(&cluster, watcher::Config::default(), &metrics);
    let (policy_store, network_policies) = (watched_policies.store(), network_policies.store());
    // Only redirections depend on them, and without one the operator may not list namespaces.
    let (pod_security, watch_namespaces) = match &arguments.sidecar.redirect_image {
        Some(_) => {
            let (namespaces, work) = watch_unscoped::<PartialObjectMeta<Namespace>>(
                &cluster,
                watcher::Config::default(),
                &metrics,
            );
            (PodSecurity::new(namespaces.store()), work.left_future())
        }
        None => (PodSecurity::default(), std::future::pending().right_future()),
    };
    let policies = Policies::new(policy_store.clone(), &arguments.namespace)
        .with_identity_headers(&arguments.identity_headers)
        .with_bounds(&arguments.policy_bounds);
    let (loaded, certificate) = channel::channel(None);
    let certificates = tls::keep(client.clone(), &arguments, loaded);
    let ready = async {
        policy_store.wait_until_ready().await.map_err(|_| Error::WatchEnded)?;
        network_policies.wait_until_ready().await.map_err(|_| Error::WatchEnded)?;
        pod_security.ready().await
    };
    let webhook = Webhook {
        policies: policies.clone(),
        network_policies: network_policies.clone(),
        forbidden: cluster.forbidden.clone(),
        pod_security: pod_security.clone(),
        settings: arguments.sidecar.clone(),
        trials: Some(Trials::new(
            client.clone(),
            Duration::from_secs(arguments.webhook_timeout_seconds.into()),
        )),
        metrics: metrics.clone(),
    };
    let admission = admit(&arguments, webhook, certificate.clone(), readiness.clone(), &stop);
    let admission = async {
        match stop.run_until_cancelled(ready).await {
            Some(ready) => ready?,
            None => return Ok(()),
        }
        admission.await
    };

    // One of them leads, and writes.
    let registration = Registration::new(client.clone(), arguments.clone(), policies.clone(), certificate);
    let reporter =
        Reporter { controller: names::CONTROLLER.into(), instance: Some(arguments.pod_name.clone()) };
    let dependencies = Arc::new(Dependencies {
        client: client.clone(),
        cluster,
        arguments: arguments.clone(),
        policies,
        watched_policies,
        network_policies: network_policies.clone(),
        pod_security: pod_security.clone(),
        registration: Arc::new(registration),
        recorder: Recorder::new(client, reporter),
        metrics: metrics.clone(),
    });
    let leadership = leader::elect(dependencies, stop.clone());

    tokio::select! {
        () = watch_policies => Err(Error::WatchEnded),
        () = watch_network_policies => Err(Error::WatchEnded),
        () = watch_namespaces => Err(Error::WatchEnded),
        ended = certificates => ended,
        ended = health::serve(arguments.health_listen, readiness, metrics) => ended,
        ended = async { tokio::try_join!(admission, leadership) } => ended.map(drop),
        never = stop_on_signal(&stop) => never,
    }
}

/// Serves the webhook with the current certificate, from the first one on, and the current client CA, until `stop`.
async fn admit(
    arguments: &RunArguments,
    webhook: Webhook,
    mut certificate: channel::Receiver<Option<Arc<Loaded>>>,
    readiness: Readiness,
    stop: &CancellationToken,
) -> Result<()> {
    let client_ca = arguments.webhook_client_ca.as_deref();
    let mut clients = server::read_client_ca(client_ca)?;
    let Some(first) = stop.run_until_cancelled(certificate.wait_for(Option::is_some)).await else {
        return Ok(());
    };
    let Some(mut loaded) = first.map_err(|_| Error::WatchEnded)?.clone() else {
        return Err(Error::WatchEnded);
    };
    let (configs, config) = channel::channel(server::config(&loaded, clients.as_deref())?);
    readiness.set();
    let renewals = async {
        let mut clock = tokio::time::interval(CLIENT_CA_INTERVAL);
        loop {
            tokio::select! {
                changed = certificate.changed() => if changed.is_err() { return Err(Error::WatchEnded) },
                _ = clock.tick(), if client_ca.is_some() => {}
            }
            let next = (certificate.borrow_and_update().clone(), server::read_client_ca(client_ca));
            let next = match next {
                (Some(next), Ok(ca)) if next != loaded || ca != clients => (next, ca),
                (_, Err(error)) => {
                    tracing::warn!(%error, "the client CA of before remains in force");
                    continue;
                }
                _ => continue,
            };
            match server::config(&next.0, next.1.as_deref()) {
                Ok(config) => {
                    (loaded, clients) = next;
                    configs.send_replace(config);
                    tracing::info!("serving with a new certificate or client CA");
                }
                Err(error) => {
                    tracing::warn!(%error, "the certificate and client CA of before remain in force")
                }
            }
        }
    };
    let address = arguments.webhook_listen;
    tokio::select! {
        ended = webhook::serve(address, config, client_ca.is_some(), readiness, webhook, stop) => {
            ended
        }
        ended = renewals => ended,
    }
}

async fn stop_on_signal(stop: &CancellationToken) -> Result<()> {
    let interrupted = signal(SignalKind::interrupt());
    let terminated = signal(SignalKind::terminate());
    if let (Ok(mut interrupted), Ok(mut terminated)) = (interrupted, terminated) {
        tokio::select! { _ = interrupted.recv() => {} _ = terminated.recv() => {} }
        tracing::info!("stopping");
        stop.cancel();
    }
    std::future::pending().await
}
