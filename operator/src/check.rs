//! Checks of an installation, from inside the cluster: what `helm test` runs, under the operator's own account.
//!
//! # Guarantees
//! - Nothing is created: pods are tried by dry runs.
//! - A check that fails says how to correct that.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use anyhow::bail;
use k8s_openapi::api::{admissionregistration::v1::MutatingWebhook, core::v1::Secret};
use kube::{Api, Client, api::ListParams};
use larder_api::names;
use larder_check::{Fault, admit, pod_of};
use larder_crds::CachePolicy;

use crate::{cli::CheckArguments, reach::reach, tls::Material};

/// Interval between two attempts of a check.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Remedy where the operator's account lacks a right.
const RIGHTS_REMEDY: &str = "`helm upgrade` restores the chart's roles and bindings";

/// Success in words, or the failure with its remedy.
type Checked = Result<String, String>;

/// Runs every check and prints the results.
///
/// # Errors
/// If a check failed for as long as the arguments allow.
pub async fn check(arguments: &CheckArguments) -> anyhow::Result<()> {
    let client = Client::try_default().await?;
    let namespace = &arguments.namespace;
    let installation = Installation { client: client.clone(), arguments };
    let deadline = Instant::now() + Duration::from_secs(arguments.patience_seconds.into());
    let results = [
        ("definition", until(deadline, async || said(larder_check::definition(&client).await)).await),
        ("leader", until(deadline, async || said(larder_check::leader(&client, namespace).await)).await),
        ("webhook", until(deadline, async || installation.webhook().await).await),
        ("admission", until(deadline, async || installation.admission().await).await),
    ];
    let (report, failures) = report(&results);
    std::io::stdout().write_all(report.as_bytes())?;
    match failures {
        0 => Ok(()),
        1 => bail!("1 check failed"),
        many => bail!("{many} checks failed"),
    }
}

/// Returns a line for each result, and the number of failures.
fn report(results: &[(&str, Checked)]) -> (String, usize) {
    let line = |(name, result): &(&str, Checked)| match result {
        Ok(message) => format!("ok      {name}: {message}\n"),
        Err(message) => format!("failed  {name}: {message}\n"),
    };
    (results.iter().map(line).collect(), results.iter().filter(|(_, result)| result.is_err()).count())
}

/// Repeats a check until it passes or the deadline is reached.
async fn until(deadline: Instant, check: impl AsyncFn() -> Checked) -> Checked {
    loop {
        let result = check().await;
        if result.is_ok() || Instant::now() + RETRY_INTERVAL > deadline {
            return result;
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// The installation to check.
struct Installation<'a> {
    client: Client,
    arguments: &'a CheckArguments,
}

impl Installation<'_> {
    /// Checks that the webhook responds through its Service, with a certificate that the API server trusts.
    async fn webhook(&self) -> Checked {
        let CheckArguments { namespace, webhook_service, .. } = self.arguments;
        let (bundle, origin) = match self.registered().await? {
            Some(webhook) => {
                let bundle = webhook.client_config.ca_bundle.map(|bundle| bundle.0).unwrap_or_default();
                (String::from_utf8_lossy(&bundle).into_owned(), "its configuration")
            }
            // Without policies no webhook is registered.
            None => {
                let secrets: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
                let secret = secrets.get_opt(names::TLS_SECRET).await;
                let secret = secret.map_err(|error| refused("get", "the Secret of the webhook", &error))?;
                let material = secret.as_ref().and_then(|secret| Material::read(secret).ok());
                (material.map(|material| material.bundle()).unwrap_or_default(), "its Secret")
            }
        };
        match reach(webhook_service, namespace, &bundle).await {
            Ok(()) => Ok(format!("it responds, with a certificate of the CA in {origin}")),
            Err(error) => Err(format!(
                "{error}; check that its pods are ready (`kubectl -n {namespace} get pods`), and that no NetworkPolicy \
                 keeps others from the webhook's port"
            )),
        }
    }

    /// Checks by a dry run that the API server calls the webhook for a pod of a policy.
    async fn admission(&self) -> Checked {
        let none = "no policy is in force whose selector is of matchLabels alone; not tried".to_owned();
        let Some(webhook) = self.registered().await? else { return Ok(none) };
        let expressions = webhook.namespace_selector.and_then(|selector| selector.match_expressions);
        let named = expressions.into_iter().flatten().flat_map(|named| named.values.unwrap_or_default());
        for namespace in named {
            let policies: Api<CachePolicy> = Api::namespaced(self.client.clone(), &namespace);
            let policies = policies.list(&ListParams::default()).await;
            let policies = policies.map_err(|error| refused("list", "the policies", &error))?;
            if let Some((policy, pod)) =
                policies.items.iter().find_map(|policy| Some((policy, pod_of(policy)?)))
            {
                return match admit(&self.client, policy, &pod).await {
                    // Rules of the cluster for pods are no fault of the installation.
                    Err(untried @ Fault::Untried { .. }) => Ok(untried.to_string()),
                    admitted => said(admitted),
                };
            }
        }
        Ok(none)
    }

    /// Returns the webhook, if it is registered.
    async fn registered(&self) -> Result<Option<MutatingWebhook>, String> {
        let configuration = said(larder_check::registered(&self.client).await)?;
        Ok(configuration.and_then(|configuration| configuration.webhooks?.into_iter().next()))
    }
}

/// Returns the result of a check that the operator's rights suffice for.
fn said<T>(result: Result<T, Fault>) -> Result<T, String> {
    result.map_err(|fault| match fault {
        Fault::Unknown { error, action } if matches!(*error, kube::Error::Api(_)) => {
            format!("could not {action}: {error}; {RIGHTS_REMEDY}")
        }
        Fault::Unknown { .. } => format!("{fault}; look at the API server's logs"),
        Fault::Wrong { .. } | Fault::Untried { .. } => fault.to_string(),
    })
}

fn refused(verb: &str, what: &str, error: &kube::Error) -> String {
    format!("could not {verb} {what}: {error}; {RIGHTS_REMEDY}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_has_a_line_for_each_check_and_counts_failures() {
        let results =
            [("definition", Ok("is served".to_owned())), ("webhook", Err("is away; wait".to_owned()))];
        let (text, failures) = report(&results);
        assert_eq!(text, "ok      definition: is served\nfailed  webhook: is away; wait\n");
        assert_eq!(failures, 1);
    }
}
