//! The chart uninstalled, installed again and upgraded, under load.

use std::path::Path;

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Pod;
use larder_e2e::{
    Sandbox, Workload, alone_in_the_cluster, cluster, environment, eventually,
    eventually::{SHORT_TIMEOUT, seconds},
    load::Load,
    policy::sidecar_of,
};
use serde_json::{Value, json};
use tokio::process::Command;

use super::common::{IN_MEMORY, ensure_hit};

/// The chart of this checkout.
const CHART: &str = "charts/larder";

pub(crate) async fn uninstalling_leaves_nothing_and_an_upgrade_from_the_previous_chart_goes_on()
-> anyhow::Result<()> {
    alone_in_the_cluster(async |sandbox| {
        let values = helm(&["get", "values", "--output", "yaml"], "").await?;
        let outcome = uninstall_and_upgrade(sandbox, &values).await;
        // Other tests need the chart of this checkout, however this one ended.
        let restored =
            helm(&["upgrade", CHART, "--install", "--values", "-", "--wait", "--timeout", "120s"], &values)
                .await;
        outcome.and(restored.map(drop))
    })
    .await
}

async fn uninstall_and_upgrade(sandbox: &Sandbox, values: &str) -> anyhow::Result<()> {
    // It lingers, because nothing drains a pod that was created without a sidecar.
    let workload =
        Workload::deployment("app", 1).lingering(5).pod(json!({"terminationGracePeriodSeconds": 10}));
    let (policy, agent) = sandbox.with_policy("cache", IN_MEMORY, &workload, 1).await?;
    agent.get("http://app/items/1").await?;
    let load = Load::start(&agent, "http://app/items/{n}").await?;

    helm(&["uninstall", "--wait", "--timeout", "60s"], "").await?;
    eventually("nothing of Larder is left but definitions", SHORT_TIMEOUT, async || {
        let left = left_in_the_cluster().await?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await?;
    ensure_hit(&agent.get("http://app/items/1").await?)
        .context("the sidecar goes on with its last configuration")?;
    sandbox.scale("app", 2).await?;
    ensure!(sidecars(sandbox).await? == 1, "a pod that was created meanwhile has a sidecar, too");

    let previous = previous_chart(sandbox).await?;
    let install = ["install", &previous, "--values", "-", "--skip-schema-validation"];
    let installed = helm(&install, values).await;
    tokio::fs::remove_file(&previous).await?;
    installed?;
    // The program is that of this checkout, which need not know each argument of an earlier chart.
    if let Err(error) = eventually("the operator is ready", seconds(20), async || {
        ensure!(ready_replicas().await? > 0, "no replica is ready");
        Ok(())
    })
    .await
    {
        eprintln!("the operator of this checkout does not run by the previous chart: {error:#}");
    }
    helm(&["upgrade", CHART, "--reset-then-reuse-values", "--wait", "--timeout", "120s"], "").await?;
    let kept = helm(&["get", "values", "--output", "yaml"], "").await?;
    ensure!(kept == values, "the upgrade changed values: {kept}");
    policy.serves(2).await?;
    sandbox.rolled_out("app").await?;
    ensure!(sidecars(sandbox).await? == 2, "the pod that was missed has no sidecar");

    let tested = helm(&["test", "--logs", "--timeout", "120s"], "").await?;
    for line in ["ok      definition", "ok      leader", "ok      webhook", "would get the sidecar"] {
        ensure!(tested.contains(line), "{line} is missing: {tested}");
    }
    load.lost_nothing("uninstall, install and upgrade").await
}

/// Runs a command of helm on the release, with a text on its standard input.
async fn helm(arguments: &[&str], input: &str) -> anyhow::Result<String> {
    let (command, rest) = arguments.split_at(if arguments[0] == "get" { 2 } else { 1 });
    let whole = [command, &["larder"], rest, &["--namespace", cluster::NAMESPACE]].concat();
    cluster::tool_with_input("LARDER_HELM", &whole, input).await
}

/// Returns the names of everything of Larder that is left: in its namespace, all but what each namespace has; outside of
/// namespaces, all that is named after it but what is kept on purpose.
async fn left_in_the_cluster() -> anyhow::Result<Vec<String>> {
    let mut left = vec![];
    for namespaced in [true, false] {
        let scope = format!("--namespaced={namespaced}");
        let kinds =
            cluster::tool("LARDER_KUBECTL", &["api-resources", "--verbs=list", &scope, "--output=name"])
                .await?;
        let kinds = kinds.lines().filter(|kind| !kind.starts_with("events")).collect::<Vec<_>>().join(",");
        let get = ["get", &kinds, "--output=name", "--ignore-not-found", "--namespace", cluster::NAMESPACE];
        let objects = cluster::tool("LARDER_KUBECTL", &get).await?;
        let of_ours = |object: &&str| {
            if namespaced {
                !["configmap/kube-root-ca.crt", "serviceaccount/default"].contains(object)
            } else {
                let kept = ["customresourcedefinition", "apiservice", "namespace/", "node/", "csinode"];
                object.contains("larder") && !kept.iter().any(|kind| object.starts_with(kind))
            }
        };
        left.extend(objects.lines().filter(of_ours).map(str::to_owned));
    }
    Ok(left)
}

/// Returns the number of pods of the application with a sidecar.
async fn sidecars(sandbox: &Sandbox) -> anyhow::Result<usize> {
    let pods = sandbox.api::<Pod>().list(&kube::api::ListParams::default().labels("app=app")).await?;
    let pods = pods.items.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    let pods: Vec<Value> = pods.map(serde_json::to_value).collect::<Result<_, _>>()?;
    Ok(pods.iter().filter(|pod| sidecar_of(pod).is_some()).count())
}

async fn ready_replicas() -> anyhow::Result<u32> {
    let path = "--output=jsonpath={.status.readyReplicas}";
    let get = ["get", "deployment", larder_api::names::OPERATOR, path, "--namespace", cluster::NAMESPACE];
    Ok(cluster::tool("LARDER_KUBECTL", &get).await?.parse().unwrap_or(0))
}

/// Packs the chart from before its last change, and returns the path of the archive.
async fn previous_chart(sandbox: &Sandbox) -> anyhow::Result<String> {
    let changed = git(&["status", "--porcelain", "--", CHART]).await?;
    let commit = match changed.trim() {
        "" => {
            let last = git(&["log", "-1", "--format=%H", "--", CHART]).await?;
            git(&["rev-parse", &format!("{}^", last.trim())]).await?
        }
        _ => git(&["rev-parse", "HEAD"]).await?,
    };
    let archive = std::env::temp_dir().join(format!("{}.tgz", sandbox.name));
    let archive = archive.to_str().context("the folder for temporary files is not UTF-8")?.to_owned();
    let tree = format!("{}:{CHART}", commit.trim());
    git(&["archive", "--format=tgz", "--prefix=larder/", "--output", &archive, &tree]).await?;
    ensure!(Path::new(&archive).exists(), "git wrote no {archive}");
    Ok(archive)
}

async fn git(arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("git").args(arguments).current_dir(environment::root()?).output().await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "git {arguments:?}: {said}; the test needs the history of {CHART}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
