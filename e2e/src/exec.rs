//! Programs run inside pods.

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{AttachParams, AttachedProcess},
};
use tokio::io::AsyncReadExt;

/// The program of the image that the tests bring along.
pub(crate) const PROGRAM: &str = "/larder-e2e-app";

/// Starts a program in a container of a pod, with its standard streams attached.
pub(crate) async fn start(
    pods: &Api<Pod>,
    pod: &str,
    container: &str,
    command: &[&str],
) -> anyhow::Result<AttachedProcess> {
    let streams = AttachParams::default().container(container).stdin(true).stdout(true).stderr(false);
    pods.exec(pod, command.iter().copied(), &streams)
        .await
        .with_context(|| format!("exec {command:?} in {pod}/{container}"))
}

/// Runs a program in a container of a pod and gives what it printed.
///
/// # Errors
/// When it ends with a code other than 0, with what it said.
pub async fn run(pods: &Api<Pod>, pod: &str, container: &str, command: &[&str]) -> anyhow::Result<String> {
    let streams = AttachParams::default().container(container).stdin(false).stdout(true).stderr(true);
    let mut process = pods
        .exec(pod, command.iter().copied(), &streams)
        .await
        .with_context(|| format!("exec {command:?} in {pod}/{container}"))?;
    let status = process.take_status().context("no status to wait for")?;
    let (mut stdout, mut stderr) =
        (process.stdout().context("no standard output")?, process.stderr().context("no standard error")?);
    let (mut printed, mut said) = (String::new(), String::new());
    let (read, read_too) =
        tokio::join!(stdout.read_to_string(&mut printed), stderr.read_to_string(&mut said));
    read?;
    read_too?;
    let status = status.await.context("the connection broke off")?;
    ensure!(
        status.status.as_deref() == Some("Success"),
        "{command:?} in {pod}/{container}: {} {said}",
        status.message.unwrap_or_default()
    );
    process.join().await?;
    Ok(printed)
}
