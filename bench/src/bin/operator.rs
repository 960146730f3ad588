//! The operator at scale: what it costs beside thousands of pods and policies that do nothing, and how fast it is.
//!
//! Pods are objects only: no scheduler is responsible for them. The cluster, with the chart installed, is that of
//! KUBECONFIG. Everything that is made is in namespaces of its own, which are deleted in the end.

#![expect(clippy::print_stdout, reason = "figures are printed as soon as they are known")]

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
};
use larder_bench::operator::{
    METRIC, Measured, OPERATOR_NAMESPACE, WEBHOOK_METRIC, histogram, idle, pods_of_operator, policies_of,
    processes,
};
use serde_json::{Value, json};

/// The label of the namespaces that a run makes.
const LABEL: &str = "larder.dev/bench";
/// A scheduler that does not exist, so that pods stay as they are.
const SCHEDULER: &str = "larder-bench";
/// Number of requests to the API server at a time.
const CONCURRENT: usize = 16;
/// Interval at which a status is read while a change is awaited.
const POLL: Duration = Duration::from_millis(100);

/// Measures the operator of a cluster beside many pods and policies.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// Number of policies.
    #[arg(long, default_value_t = 1000)]
    policies: usize,

    /// Number of pods that the policies select.
    #[arg(long, default_value_t = 5000)]
    pods: usize,

    /// Number of namespaces over which policies and pods are spread.
    #[arg(long, default_value_t = 100)]
    namespaces: usize,

    /// Number of pods in namespaces without policies.
    #[arg(long, default_value_t = 0)]
    foreign_pods: usize,

    /// Time without changes that is measured, in seconds.
    #[arg(long, default_value_t = 180)]
    idle_seconds: u64,

    /// Number of changes of policies that are timed.
    #[arg(long, default_value_t = 30)]
    changes: usize,

    /// Numbers of policies in one namespace with which admissions are measured.
    #[arg(long, value_delimiter = ',', default_value = "1,100,1000")]
    admission_policies: Vec<usize>,

    /// Number of admissions that are measured with each.
    #[arg(long, default_value_t = 500)]
    admissions: usize,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another TLS provider is installed"))?;
    let client = Client::try_default().await?;
    clean_up(&client).await?;
    let ran = tokio::select! {
        ran = run(&client, &arguments) => ran,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    clean_up(&client).await?;
    ran
}

async fn run(client: &Client, arguments: &Arguments) -> Result<()> {
    let &Arguments { policies, pods, namespaces, foreign_pods, .. } = arguments;
    ensure!(policies > 0 && namespaces > 0, "there must be at least one policy and one namespace");
    println!(
        "{policies} policies and {pods} pods in {namespaces} namespaces, {foreign_pods} pods elsewhere\n"
    );
    println!("before: {}", show(&processes(client).await?));

    let started = Instant::now();
    let names: Vec<_> = (0..namespaces).map(|number| format!("larder-bench-{number}")).collect();
    in_parallel(names.iter(), |name| make_namespace(client, name)).await?;
    let of = |policy: usize| names[policy % namespaces].as_str();
    in_parallel(0..policies, |policy| make_policy(client, of(policy), policy)).await?;
    if foreign_pods > 0 {
        make_namespace(client, "larder-bench-foreign").await?;
        in_parallel(0..foreign_pods, |pod| make_pod(client, "larder-bench-foreign", pod, pod, false)).await?;
    }
    // The API server learns of the webhook's namespaces.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = histogram(client, METRIC).await?;
    in_parallel(0..pods, |pod| make_pod(client, of(pod % policies), pod % policies, pod, false)).await?;
    let after = histogram(client, METRIC).await?;
    println!("made in {:.0} s; {}", started.elapsed().as_secs_f64(), latency(&before, &after));
    settle(client, arguments).await?;

    let idle = idle(client, Duration::from_secs(arguments.idle_seconds)).await?;
    println!("\nidle for {} s:\n{idle}", arguments.idle_seconds);

    let mut times = Vec::new();
    for change in 0..arguments.changes {
        let policy = change * policies / arguments.changes.max(1);
        times.push(change_policy(client, of(policy), policy).await?);
    }
    times.sort();
    if let (Some(median), Some(max)) = (times.get(times.len() / 2), times.last()) {
        println!("change of a policy to its status: median {median:.1?}, max {max:.1?}");
    }

    println!("\npolicies in the namespace | admissions in the operator; as the API server sees them");
    let namespace = "larder-bench-admission";
    make_namespace(client, namespace).await?;
    let mut made = 0;
    for &wanted in &arguments.admission_policies {
        in_parallel(made..wanted, |policy| make_policy(client, namespace, policy)).await?;
        made = made.max(wanted);
        tokio::time::sleep(Duration::from_secs(20)).await;
        let (before, before_api) =
            (histogram(client, METRIC).await?, histogram(client, WEBHOOK_METRIC).await?);
        // One after another: side by side they would wait for the API server's work on the others.
        for pod in 0..arguments.admissions {
            make_pod(client, namespace, pod % made, pod, true).await?;
        }
        let (after, after_api) = (histogram(client, METRIC).await?, histogram(client, WEBHOOK_METRIC).await?);
        println!("{made:>25} | {}; {}", latency(&before, &after), latency(&before_api, &after_api));
    }
    println!("\nin the end: {}", show(&processes(client).await?));
    Ok(())
}

/// Waits until the policies have seen their pods.
async fn settle(client: &Client, arguments: &Arguments) -> Result<()> {
    let started = Instant::now();
    loop {
        let mut seen = 0;
        for namespace in 0..arguments.namespaces {
            let policies = policies_of(client, &format!("larder-bench-{namespace}"));
            let list = policies.list(&ListParams::default()).await?;
            seen += list
                .iter()
                .filter_map(|policy| policy.data["status"]["pods"]["injected"].as_u64())
                .sum::<u64>();
        }
        if seen == arguments.pods as u64 {
            break println!("every pod is in a status {:.0} s later", started.elapsed().as_secs_f64());
        }
        ensure!(
            started.elapsed() < Duration::from_secs(300),
            "{seen} of {} pods have the sidecar",
            arguments.pods
        );
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    // Reconciliations that are due once more.
    tokio::time::sleep(Duration::from_secs(60)).await;
    Ok(())
}

/// Changes a policy; returns the time until its status is that of the changed policy.
async fn change_policy(client: &Client, namespace: &str, number: usize) -> Result<Duration> {
    let (policies, name) = (policies_of(client, namespace), policy_name(number));
    let before = policies.get(&name).await?.data["status"]["configHash"].clone();
    let ttl = format!("{}s", 60 + number % 1000);
    let change = json!({"spec": {"routes": [{"name": "all", "match": {"path": "/{id}"}, "ttl": ttl}]}});
    let started = Instant::now();
    let changed = policies.patch(&name, &PatchParams::default(), &Patch::Merge(&change)).await?;
    loop {
        let status = policies.get(&name).await?.data["status"].clone();
        if status["observedGeneration"].as_i64() == changed.metadata.generation
            && status["configHash"] != before
        {
            return Ok(started.elapsed());
        }
        ensure!(started.elapsed() < Duration::from_secs(120), "policy {name} still has {status}");
        tokio::time::sleep(POLL).await;
    }
}

async fn in_parallel<T, F>(items: impl Iterator<Item = T>, work: impl Fn(T) -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    stream::iter(items).map(work).buffer_unordered(CONCURRENT).try_collect::<Vec<()>>().await.map(drop)
}

async fn make_namespace(client: &Client, name: &str) -> Result<()> {
    let namespace: Namespace = from(json!({"metadata": {"name": name, "labels": {LABEL: "operator"}}}))?;
    Api::all(client.clone()).create(&PostParams::default(), &namespace).await?;
    // Pods need it.
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), name);
    while accounts.get_opt("default").await?.is_none() {
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

fn policy_name(number: usize) -> String {
    format!("app-{number}")
}

async fn make_policy(client: &Client, namespace: &str, number: usize) -> Result<()> {
    let name = policy_name(number);
    let policy: DynamicObject = from(json!({
        "apiVersion": "larder.dev/v1alpha1",
        "kind": "CachePolicy",
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "targets": [{"port": "http"}],
            "routes": [{"name": "all", "match": {"path": "/{id}"}, "ttl": "30s"}],
        },
    }))?;
    let made = policies_of(client, namespace).create(&PostParams::default(), &policy).await;
    made.map(drop).with_context(|| format!("policy {name}"))
}

/// Makes a pod of the size of a usual one.
async fn make_pod(client: &Client, namespace: &str, app: usize, number: usize, dry_run: bool) -> Result<()> {
    let env: Vec<_> =
        (0..40).map(|number| json!({"name": format!("SETTING_{number}"), "value": "x".repeat(60)})).collect();
    let pod: Pod = from(json!({
        "metadata": {
            "name": format!("app-{app}-{number}"),
            "labels": {"app": policy_name(app), "app.kubernetes.io/name": "bench"},
            "annotations": {"note": "x".repeat(1000)},
        },
        "spec": {
            "schedulerName": SCHEDULER,
            "containers": [{
                "name": "app",
                "image": "registry.invalid/app:1",
                "ports": [{"name": "http", "containerPort": 8080}],
                "env": env,
                "resources": {"requests": {"cpu": "1m", "memory": "1Mi"}},
                "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}},
            }],
        },
    }))?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let options = PostParams { dry_run, ..PostParams::default() };
    pods.create(&options, &pod).await.map(drop).with_context(|| format!("pod app-{app}-{number}"))
}

fn from<T: serde::de::DeserializeOwned>(value: Value) -> Result<T> {
    Ok(serde_json::from_value(value)?)
}

/// Deletes the namespaces of a run, and waits until they are gone.
async fn clean_up(client: &Client) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let ours = ListParams::default().labels(&format!("{LABEL}=operator"));
    for namespace in namespaces.list_metadata(&ours).await? {
        let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace.name_any());
        pods.delete_collection(&DeleteParams::default().grace_period(0), &ListParams::default()).await?;
        namespaces.delete(&namespace.name_any(), &DeleteParams::default()).await?;
    }
    while !namespaces.list_metadata(&ours).await?.items.is_empty() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}

fn show(processes: &[Measured]) -> String {
    let shown = processes.iter().map(|one| format!("{} {} MiB", one.role(), one.rss_mib()));
    format!(
        "{} in {OPERATOR_NAMESPACE} ({})",
        pods_of_operator(processes),
        shown.collect::<Vec<_>>().join(", ")
    )
}

fn latency(before: &larder_bench::operator::Histogram, after: &larder_bench::operator::Histogram) -> String {
    let since = after.since(before);
    match (since.quantile(0.5), since.quantile(0.99)) {
        (Some(p50), Some(p99)) => format!("{} admissions, p50 {p50}, p99 {p99}", since.count()),
        _ => "no histogram of admissions".to_owned(),
    }
}
