//! `larder check`.

mod before;
mod finding;
mod installation;
mod policy;

use kube::ResourceExt;
use larder_crds::CachePolicy;
use larder_lint::{Checker, Environment};

use self::{
    finding::{Finding, Report},
    installation::Installation,
};
use crate::{
    args,
    cluster::Cluster,
    error::{Error, Result},
    outcome::Outcome,
    output::Output,
};

/// Checks the cluster and its policies, or whether Larder can be installed.
pub(crate) async fn run(args: &args::Check, cluster: &Cluster, output: &Output) -> Result<Outcome> {
    let checks = match args.pre {
        true => before::findings(cluster, &args.release).await?,
        false => findings(args, cluster).await?,
    };
    let report = Report { checks };
    output.print(&report, |paint| report.text(paint))?;
    Ok(report.outcome())
}

async fn findings(args: &args::Check, cluster: &Cluster) -> Result<Vec<Finding>> {
    let definition = Finding::of("definition", larder_check::definition(&cluster.client).await)?;
    if definition.is_failed() {
        return Ok(vec![definition]);
    }
    let mut findings = vec![definition];
    let policies = match cluster.policies(args.all_namespaces).await {
        Ok(policies) => policies,
        Err(error @ Error::Forbidden(_)) => {
            findings.push(Finding::not_checked("policies", error)?.of_policies());
            vec![]
        }
        Err(error) => return Err(error),
    };
    let installation = Installation::find(cluster, args.operator_namespace.as_deref()).await;
    findings.extend(installation.findings(cluster, &policies).await?);
    if policies.is_empty() && findings.iter().all(Finding::is_of_cluster) {
        let place = match args.all_namespaces {
            true => "any namespace".to_owned(),
            false => format!("namespace {}", cluster.namespace),
        };
        findings.push(Finding::ok("policies", format!("there are none in {place}")));
    }
    let checker = Checker::new(Environment::Cluster);
    for policy in &policies {
        findings.extend(policy::findings(cluster, policy, &checker).await?);
    }
    Ok(findings)
}

/// Returns the name of a policy with its namespace.
fn full_name(policy: &CachePolicy) -> String {
    format!("{}/{}", policy.namespace().unwrap_or_default(), policy.name_any())
}
