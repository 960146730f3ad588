//! The changes of an application's pods over time, to be read beside the requests that a load lost.

use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    ResourceExt,
    runtime::{WatchStreamExt, watcher},
};
use tokio::task::JoinHandle;

use crate::Sandbox;

/// A watch of an application's pods that notes each change.
pub struct Timeline {
    changes: Arc<Mutex<Vec<String>>>,
    watch: JoinHandle<()>,
}

impl Timeline {
    /// Begins to watch the pods with the label `app: <app>`.
    pub fn of(sandbox: &Sandbox, app: &str) -> Self {
        let changes = Arc::<Mutex<Vec<String>>>::default();
        let pods = watcher(sandbox.api::<Pod>(), watcher::Config::default().labels(&format!("app={app}")));
        let noted = changes.clone();
        let watch = tokio::spawn(async move {
            let mut pods = std::pin::pin!(pods.default_backoff());
            while let Some(event) = pods.next().await {
                let change = match &event {
                    Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) => state(pod),
                    Ok(watcher::Event::Delete(pod)) => format!("{}: gone", pod.name_any()),
                    Ok(watcher::Event::Init | watcher::Event::InitDone) => continue,
                    Err(error) => format!("the watch failed: {error}"),
                };
                let mut changes = noted.lock().unwrap_or_else(PoisonError::into_inner);
                changes.push(format!("{:.3} {change}", Timestamp::now()));
            }
        });
        Self { changes, watch }
    }

    /// Prints the changes so far, with the time at which each was heard of.
    pub fn print(&self) {
        let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        eprintln!("--- the pods over time:\n{}", changes.join("\n"));
    }
}

impl Drop for Timeline {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

fn state(pod: &Pod) -> String {
    let status = pod.status.clone().unwrap_or_default();
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let containers: Vec<_> = containers
        .map(|container| {
            let state = container.state.as_ref();
            let runs = state.is_some_and(|state| state.running.is_some());
            let ended = state.is_some_and(|state| state.terminated.is_some());
            let state = if runs {
                "runs"
            } else if ended {
                "ended"
            } else {
                "waits"
            };
            format!("{} {state}{}", container.name, if container.ready { ", ready" } else { "" })
        })
        .collect();
    let is_ready = status
        .conditions
        .iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    format!(
        "{} ({} on {}): {}{}; {}",
        pod.name_any(),
        status.pod_ip.as_deref().unwrap_or("no address"),
        pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("no node"),
        if is_ready { "ready" } else { "not ready" },
        if pod.metadata.deletion_timestamp.is_some() { ", terminating" } else { "" },
        containers.join("; ")
    )
}
