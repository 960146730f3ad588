//! Measurements of the operator of a cluster, by the kubelets, the API server and its own metrics.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Pod};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams},
};
use serde_json::Value;

/// Namespace of the operator.
pub const OPERATOR_NAMESPACE: &str = "larder-system";
/// The operator's own histogram of admissions.
pub const METRIC: &str = "larder_admission_duration_seconds";
/// The API server's histogram of the same, which has the way there and back.
pub const WEBHOOK_METRIC: &str = "apiserver_admission_webhook_admission_duration_seconds";
/// Resources to which the operator writes.
const WRITTEN: [&str; 9] = [
    "cachepolicies",
    "configmaps",
    "daemonsets",
    "deployments",
    "events",
    "mutatingwebhookconfigurations",
    "pods",
    "secrets",
    "statefulsets",
];

/// Returns the policies of a namespace.
pub fn policies_of(client: &Client, namespace: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("larder.dev", "v1alpha1", "CachePolicy");
    let resource = ApiResource::from_gvk_with_plural(&kind, "cachepolicies");
    Api::namespaced_with(client.clone(), namespace, &resource)
}

/// A replica of the operator, as its kubelet sees it.
#[derive(Clone, Debug)]
pub struct Measured {
    name: String,
    leads: bool,
    rss: u64,
    cpu: Duration,
}

impl Measured {
    /// Returns the replica's role.
    pub const fn role(&self) -> &'static str {
        if self.leads { "leader" } else { "follower" }
    }

    /// Returns the resident memory of the process in MiB, without pages of files.
    pub const fn rss_mib(&self) -> u64 {
        self.rss >> 20
    }
}

/// Returns the number of replicas in words.
pub fn pods_of_operator(processes: &[Measured]) -> String {
    format!("{} replicas", processes.len())
}

/// Measures the replicas of the operator.
pub async fn processes(client: &Client) -> Result<Vec<Measured>> {
    let pods = operator_pods(client).await?;
    let leases: Api<Lease> = Api::namespaced(client.clone(), OPERATOR_NAMESPACE);
    let holder = leases.get("larder-operator").await?.spec.and_then(|spec| spec.holder_identity);
    let nodes: BTreeSet<_> = pods.iter().filter_map(|pod| pod.spec.as_ref()?.node_name.clone()).collect();
    let mut measured = Vec::new();
    for node in nodes {
        let summary = get(client, &format!("/api/v1/nodes/{node}/proxy/stats/summary")).await?;
        let summary: Value = serde_json::from_str(&summary)?;
        for stats in summary["pods"].as_array().into_iter().flatten() {
            let name = stats["podRef"]["name"].as_str().unwrap_or_default();
            if stats["podRef"]["namespace"] != OPERATOR_NAMESPACE
                || !pods.iter().any(|pod| pod.name_any() == name)
            {
                continue;
            }
            let container = &stats["containers"][0];
            let number =
                |value: &Value| value.as_u64().context("the kubelet has not measured the operator yet");
            measured.push(Measured {
                name: name.to_owned(),
                leads: holder.as_deref() == Some(name),
                rss: number(&container["memory"]["rssBytes"])?,
                cpu: Duration::from_nanos(number(&container["cpu"]["usageCoreNanoSeconds"])?),
            });
        }
    }
    measured.sort_by_key(|one| !one.leads);
    Ok(measured)
}

async fn operator_pods(client: &Client) -> Result<Vec<Pod>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), OPERATOR_NAMESPACE);
    let list = pods.list(&ListParams::default().labels("app.kubernetes.io/name=larder")).await?;
    Ok(list.items.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect())
}

async fn get(client: &Client, path: &str) -> Result<String> {
    let request = http::Request::get(path).body(Vec::new())?;
    client.request_text(request).await.with_context(|| format!("GET {path}"))
}

/// Costs of the operator while nothing happened.
pub struct Idle {
    elapsed: Duration,
    before: Vec<Measured>,
    after: Vec<Measured>,
    requests: BTreeMap<(String, String), f64>,
}

/// Waits, and measures what the operator costs meanwhile.
pub async fn idle(client: &Client, time: Duration) -> Result<Idle> {
    let (before, requests_before, started) =
        (processes(client).await?, requests(client).await?, Instant::now());
    tokio::time::sleep(time).await;
    let (after, mut requests, elapsed) =
        (processes(client).await?, requests(client).await?, started.elapsed());
    for (key, count) in &mut requests {
        *count -= requests_before.get(key).copied().unwrap_or(0.0);
    }
    requests.retain(|_, count| *count > 0.0);
    Ok(Idle { elapsed, before, after, requests })
}

impl fmt::Display for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let minutes = self.elapsed.as_secs_f64() / 60.0;
        for after in &self.after {
            let before = self.before.iter().find(|before| before.name == after.name);
            let cpu = before.map_or(after.cpu, |before| after.cpu.saturating_sub(before.cpu)).as_secs_f64();
            writeln!(
                f,
                "  {:<8} RSS {} MiB, CPU {:.2} s a minute",
                after.role(),
                after.rss_mib(),
                cpu / minutes
            )?;
        }
        let is_write = |verb: &str| !matches!(verb, "GET" | "LIST" | "WATCH");
        let writes: f64 =
            self.requests.iter().filter(|((verb, _), _)| is_write(verb)).map(|(_, count)| count).sum();
        writeln!(f, "  writes: {:.1} a minute", writes / minutes)?;
        for ((verb, resource), count) in &self.requests {
            writeln!(f, "    {verb} {resource}: {:.1} a minute", count / minutes)?;
        }
        Ok(())
    }
}

/// Returns the numbers of requests for the resources that the operator writes, by verb and resource, of the whole cluster;
/// of leases those that are patched, which the operator's is.
async fn requests(client: &Client) -> Result<BTreeMap<(String, String), f64>> {
    let mut requests = BTreeMap::new();
    for (labels, value) in series(&get(client, "/metrics").await?, "apiserver_request_total") {
        let (verb, resource) = (label(&labels, "verb"), label(&labels, "resource"));
        let is_lease = resource == "leases" && verb == "PATCH";
        if WRITTEN.contains(&resource) || is_lease || matches!(resource, "jobs" | "cronjobs" | "clusterroles")
        {
            *requests.entry((verb.to_owned(), resource.to_owned())).or_insert(0.0) += value;
        }
    }
    Ok(requests)
}

/// A histogram: numbers of observations up to each bound.
#[derive(Clone, Debug, Default)]
pub struct Histogram(Vec<(f64, f64)>);

/// Returns a histogram of admissions: the operator's own of all replicas, or the API server's.
pub async fn histogram(client: &Client, metric: &str) -> Result<Histogram> {
    let mut texts = Vec::new();
    if metric == WEBHOOK_METRIC {
        texts.push(get(client, "/metrics").await?);
    } else {
        for pod in operator_pods(client).await? {
            let name = pod.name_any();
            let path = format!("/api/v1/namespaces/{OPERATOR_NAMESPACE}/pods/{name}:8081/proxy/metrics");
            texts.push(get(client, &path).await?);
        }
    }
    let mut bounds: Vec<(f64, f64)> = Vec::new();
    let name = format!("{metric}_bucket");
    for (labels, count) in texts.iter().flat_map(|text| series(text, &name)) {
        if metric == WEBHOOK_METRIC && label(&labels, "name") != "inject.larder.dev" {
            continue;
        }
        let bound: f64 = label(&labels, "le").replace("+Inf", "inf").parse()?;
        match bounds.iter_mut().find(|(other, _)| *other == bound) {
            Some((_, sum)) => *sum += count,
            None => bounds.push((bound, count)),
        }
    }
    bounds.sort_by(|one, other| one.0.total_cmp(&other.0));
    Ok(Histogram(bounds))
}

impl Histogram {
    /// Returns the observations that were made since `before`.
    pub fn since(&self, before: &Self) -> Self {
        let earlier =
            |bound: f64| before.0.iter().find(|(other, _)| *other == bound).map_or(0.0, |(_, count)| *count);
        Self(self.0.iter().map(|&(bound, count)| (bound, count - earlier(bound))).collect())
    }

    /// Returns the number of observations.
    pub fn count(&self) -> u64 {
        self.0.last().map_or(0, |(_, count)| *count as u64)
    }

    /// Returns the bound of the bucket in which a quantile is, as text; `None` without observations.
    pub fn quantile(&self, quantile: f64) -> Option<String> {
        let total = self.0.last().map(|(_, count)| *count).filter(|count| *count > 0.0)?;
        let (bound, _) = self.0.iter().find(|(_, count)| *count >= quantile * total)?;
        Some(format!("≤ {} ms", (bound * 1e6).round() / 1e3))
    }
}

/// Returns the series of a metric in Prometheus' text format: labels and values.
fn series(text: &str, metric: &str) -> Vec<(String, f64)> {
    let of_metric = text.lines().filter_map(|line| line.strip_prefix(metric)?.strip_prefix('{'));
    of_metric
        .filter_map(|rest| {
            let (labels, value) = rest.rsplit_once("} ")?;
            Some((labels.to_owned(), value.split(' ').next()?.parse().ok()?))
        })
        .collect()
}

/// Returns the value of a label, or nothing.
fn label<'a>(labels: &'a str, name: &str) -> &'a str {
    let mut all = labels.split("\",");
    let found = all.find_map(|label| label.trim_start().strip_prefix(name)?.strip_prefix("=\""));
    found.map_or("", |value| value.trim_end_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantile_is_the_bound_of_its_bucket() {
        let before = Histogram(vec![(0.001, 10.0), (0.01, 10.0), (f64::INFINITY, 10.0)]);
        let after = Histogram(vec![(0.001, 70.0), (0.01, 110.0), (f64::INFINITY, 110.0)]);
        let since = after.since(&before);
        assert_eq!(since.count(), 100);
        assert_eq!(since.quantile(0.5).as_deref(), Some("≤ 1 ms"));
        assert_eq!(since.quantile(0.99).as_deref(), Some("≤ 10 ms"));
        assert_eq!(before.since(&before).quantile(0.5), None);
    }

    #[test]
    fn series_have_their_labels() {
        let text =
            "# TYPE a counter\na{verb=\"GET\",resource=\"pods\"} 7\nab{verb=\"GET\"} 1\na{verb=\"LIST\"} 2\n";
        let series = series(text, "a");
        assert_eq!(series.len(), 2);
        assert_eq!(
            (label(&series[0].0, "verb"), label(&series[0].0, "resource"), series[0].1),
            ("GET", "pods", 7.0)
        );
        assert_eq!(label(&series[1].0, "resource"), "");
    }
}
