//! Diagnostics of a failed test.

use k8s_openapi::api::core::v1::{Event, Pod};
use kube::{Api, ResourceExt, api::LogParams};
use larder_api::names;
use larder_crds::CachePolicy;

use crate::{Sandbox, cluster};

/// Prints why the test failed, the policies' status, the pods, the Events and the logs.
pub(crate) async fn print(sandbox: &Sandbox, why: Option<&anyhow::Error>) {
    if let Some(why) = why {
        eprintln!("--- it failed: {why:#}");
    }
    eprintln!("--- what namespace {} looks like", sandbox.name);
    if let Err(error) = try_print(sandbox).await {
        eprintln!("that is all, for {error:#}");
    }
}

async fn try_print(sandbox: &Sandbox) -> anyhow::Result<()> {
    for policy in sandbox.api::<CachePolicy>().list(&Default::default()).await? {
        let status = serde_yaml::to_string(&policy.status)?;
        eprintln!("--- policy {}, generation {:?}\n{status}", policy.name_any(), policy.metadata.generation);
    }
    let pods = sandbox.api::<Pod>();
    for pod in pods.list(&Default::default()).await? {
        print_pod(&pods, &pod).await?;
    }
    for event in sandbox.api::<Event>().list(&Default::default()).await? {
        let about = event.involved_object;
        eprintln!(
            "--- Event {} about {} {}: {}",
            event.reason.unwrap_or_default(),
            about.kind.unwrap_or_default(),
            about.name.unwrap_or_default(),
            event.message.unwrap_or_default()
        );
    }
    let operator = Api::<Pod>::namespaced(sandbox.client.clone(), cluster::NAMESPACE);
    for pod in operator.list(&Default::default()).await? {
        let last = LogParams { tail_lines: Some(400), ..Default::default() };
        let log = operator.logs(&pod.name_any(), &last).await.unwrap_or_default();
        let about: Vec<_> = log.lines().filter(|line| line.contains(&sandbox.name)).collect();
        eprintln!("--- {} about it:\n{}", pod.name_any(), about.join("\n"));
    }
    Ok(())
}

async fn print_pod(pods: &Api<Pod>, pod: &Pod) -> anyhow::Result<()> {
    let name = pod.name_any();
    let status = pod.status.clone().unwrap_or_default();
    let leaving = if pod.metadata.deletion_timestamp.is_some() { ", terminating" } else { "" };
    eprintln!("--- pod {name}: {}{leaving}, {:?}", status.phase.unwrap_or_default(), pod.annotations());
    let containers = status
        .init_container_statuses
        .into_iter()
        .flatten()
        .chain(status.container_statuses.into_iter().flatten());
    for container in containers {
        eprintln!(
            "    {}: ready {}, restarts {}, {:?}",
            container.name, container.ready, container.restart_count, container.state
        );
        if container.name == names::SIDECAR || container.restart_count > 0 {
            let last =
                LogParams { container: Some(container.name), tail_lines: Some(40), ..Default::default() };
            // A container that never started has no log.
            eprintln!("{}", pods.logs(&name, &last).await.unwrap_or_default());
        }
    }
    Ok(())
}
