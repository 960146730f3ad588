//! The operator's process, from start to stop.

use std::sync::Arc;

use axum_server::tls_rustls::RustlsConfig;
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
    controller::Dependencies,
    error::{Error, Result},
    health::{self, Readiness},
    leader,
    metrics::Metrics,
    pod_security::PodSecurity,
    policies::{Guarded, Policies},
    tls::{self, Loaded},
    watched::watch,
    webhook::{self, Webhook},
    webhook_configuration::Registration,
};

/// Runs the operator until the stop signal.
///
/// # Errors
/// If a part ends unexpectedly. The kubelet then restarts the operator.
pub async fn run(arguments: RunArguments) -> Result<()> {
    let client = Client::try_default().await?;
    let metrics = Metrics::new();
    let readiness = Readiness::default();
    let stop = CancellationToken::new();

    // Every replica knows the policies and network policies, and has the certificate: it can decide over pods.
    let (watched_policies, watch_policies) = watch::<Guarded>(&client, watcher::Config::default(), &metrics);
    let (network_policies, watch_network_policies) =
        watch::<NetworkPolicy>(&client, watcher::Config::default(), &metrics);
    let (policy_store, network_policies) = (watched_policies.store(), network_policies.store());
    // Only redirections depend on them, and without one the operator may not list namespaces.
    let (pod_security, watch_namespaces) = match &arguments.sidecar.redirect_image {
        Some(_) => {
            let (namespaces, work) =
                watch::<PartialObjectMeta<Namespace>>(&client, watcher::Config::default(), &metrics);
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
        pod_security: pod_security.clone(),
        settings: arguments.sidecar.clone(),
        metrics: metrics.clone(),
    };
    let admission = admit(&arguments, webhook, certificate.clone(), readiness.clone(), &stop);
    let admission = async {
        ready.await?;
        admission.await
    };

    // One of them leads, and writes.
    let registration = Registration::new(client.clone(), arguments.clone(), policies.clone(), certificate);
    let reporter =
        Reporter { controller: names::CONTROLLER.into(), instance: Some(arguments.pod_name.clone()) };
    let dependencies = Arc::new(Dependencies {
        client: client.clone(),
        arguments: arguments.clone(),
        policies,
        watched_policies,
        network_policies: network_policies.clone(),
        pod_security: pod_security.clone(),
        registration: Arc::new(registration),
        recorder: Recorder::new(client, reporter),
        metrics: metrics.clone(),
    });
    let controllers = async {
        leader::elect(dependencies, stop.clone()).await?;
        tokio::time::sleep(webhook::SHUTDOWN_TIMEOUT).await;
        Ok(())
    };

    tokio::select! {
        () = watch_policies => Err(Error::WatchEnded),
        () = watch_network_policies => Err(Error::WatchEnded),
        () = watch_namespaces => Err(Error::WatchEnded),
        ended = certificates => ended,
        ended = health::serve(arguments.health_listen, readiness, metrics) => ended,
        ended = admission => ended,
        ended = controllers => ended,
        never = stop_on_signal(&stop) => never,
    }
}

/// Serves the webhook with the current certificate, from the first one on.
async fn admit(
    arguments: &RunArguments,
    webhook: Webhook,
    mut certificate: channel::Receiver<Option<Arc<Loaded>>>,
    readiness: Readiness,
    stop: &CancellationToken,
) -> Result<()> {
    let address = arguments.webhook_listen;
    let failed = |source| Error::Serve { address, source };
    let first = certificate.wait_for(Option::is_some).await.map_err(|_| Error::WatchEnded)?.clone();
    let Some(first) = first else { return Err(Error::WatchEnded) };
    let config = RustlsConfig::from_pem(first.certificate.clone().into(), first.key.clone().into());
    let config = config.await.map_err(failed)?;
    readiness.set();
    let renewals = async {
        while certificate.changed().await.is_ok() {
            let next = certificate.borrow_and_update().clone();
            if let Some(next) = next {
                let pem = (next.certificate.clone().into(), next.key.clone().into());
                config.reload_from_pem(pem.0, pem.1).await.map_err(failed)?;
                tracing::info!("serving with a new certificate");
            }
        }
        Err(Error::WatchEnded)
    };
    tokio::select! {
        ended = webhook::serve(address, config.clone(), readiness, webhook, stop) => {
            ended?;
            // It was told to stop; the process ends when the lease is given back too.
            std::future::pending().await
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
