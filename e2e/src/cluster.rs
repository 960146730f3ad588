//! The cluster, which all tests share.

use anyhow::{Context, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use kube::{Api, Client};
use tokio::{
    process::Command,
    sync::{OnceCell, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use crate::{environment, eventually, eventually::ROLLOUT_TIMEOUT};
use larder_api::names;

/// Where Larder runs.
pub const NAMESPACE: &str = "larder-system";

/// Held to read by a test that minds its own namespace, to write by one that disturbs all.
static IN_USE: RwLock<()> = RwLock::const_new(());

/// Set once the operator has been seen ready.
static READY: OnceCell<()> = OnceCell::const_new();

/// A share of the cluster.
pub(crate) async fn share() -> RwLockReadGuard<'static, ()> {
    IN_USE.read().await
}

/// The cluster without any other test on it.
pub(crate) async fn all_of_it() -> RwLockWriteGuard<'static, ()> {
    IN_USE.write().await
}

/// A client, once Larder is there. Each test has its own, for a client lives in the runtime that made it.
pub async fn client() -> anyhow::Result<Client> {
    let client = Client::try_default().await.context(
        "no cluster to talk to: run `./dev up`, then the tests by `./dev test e2e`, or after `eval \"$(./dev env)\"`",
    )?;
    READY.get_or_try_init(|| operator_is_ready(&client)).await?;
    Ok(client)
}

/// The user name of the operator.
pub fn operator_account() -> String {
    format!("system:serviceaccount:{NAMESPACE}:{}", names::OPERATOR)
}

/// A client with the rights of the operator's account.
pub async fn client_of_operator() -> anyhow::Result<Client> {
    let mut config = kube::Config::infer().await?;
    config.auth_info.impersonate = Some(operator_account());
    Ok(Client::try_from(config)?)
}

/// Waits until every replica of the operator is ready and of its latest template.
pub async fn operator_is_ready(client: &Client) -> anyhow::Result<()> {
    let deployments = Api::<Deployment>::namespaced(client.clone(), NAMESPACE);
    eventually("the operator is ready", ROLLOUT_TIMEOUT, async || {
        let deployment = deployments.get(names::OPERATOR).await?;
        let wanted = deployment.spec.and_then(|spec| spec.replicas).unwrap_or(1);
        let status = deployment.status.unwrap_or_default();
        ensure!(wanted > 0, "it is scaled to 0");
        ensure!(status.observed_generation == deployment.metadata.generation, "its status is old");
        ensure!(status.updated_replicas == Some(wanted), "not all of its pods are new: {status:?}");
        ensure!(status.replicas == Some(wanted), "an old pod is still there: {status:?}");
        ensure!(status.available_replicas == Some(wanted), "not all of its pods are available: {status:?}");
        Ok(())
    })
    .await
}

/// Runs helm or kubectl, named by a variable, and gives what it printed.
///
/// # Errors
/// When it fails, with what it said.
pub async fn tool(variable: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(environment::variable(variable)?)
        .args(arguments)
        .current_dir(environment::root()?)
        .kill_on_drop(true)
        .output()
        .await?;
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs kubectl with a text on its standard input.
///
/// # Errors
/// When it fails, with what it said.
pub async fn kubectl_with_input(arguments: &[&str], input: &str) -> anyhow::Result<String> {
    tool_with_input("LARDER_KUBECTL", arguments, input).await
}

/// Runs helm or kubectl, named by a variable, with a text on its standard input.
///
/// # Errors
/// When it fails, with what it said.
pub async fn tool_with_input(variable: &str, arguments: &[&str], input: &str) -> anyhow::Result<String> {
    use tokio::io::AsyncWriteExt;
    let mut child = Command::new(environment::variable(variable)?)
        .args(arguments)
        .current_dir(environment::root()?)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut stdin = child.stdin.take().context("kubectl has no standard input")?;
    stdin.write_all(input.as_bytes()).await?;
    drop(stdin);
    let output = child.wait_with_output().await?;
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
