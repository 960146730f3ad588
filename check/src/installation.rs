//! The definition, the controller and the webhook's configuration.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::{admissionregistration::v1::MutatingWebhookConfiguration, coordination::v1::Lease};
use kube::{Api, Client, Resource};
use larder_api::names;
use larder_crds::CachePolicy;

use crate::{Checked, Fault};

/// Interval between two looks at a Lease.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// Time for which a Lease is looked at that seems to have expired: longer than until the next renewal by a holder that lives.
const LOOK_TIME: Duration = Duration::from_secs(14);

/// Checks that the cluster defines policies.
///
/// # Errors
/// The fault.
pub async fn definition(client: &Client) -> Checked {
    let (api_version, plural) = (CachePolicy::api_version(&()), CachePolicy::plural(&()));
    match client.list_api_group_resources(&api_version).await {
        Ok(list) if list.resources.iter().any(|resource| resource.name == plural) => {
            Ok(format!("the cluster serves {plural} of {api_version}"))
        }
        Ok(_) => Err(not_served(&plural, &api_version)),
        Err(kube::Error::Api(status)) if status.code == 404 => Err(not_served(&plural, &api_version)),
        Err(error) => Err(Fault::unknown("ask for the resources that the cluster serves", error)),
    }
}

fn not_served(plural: &str, api_version: &str) -> Fault {
    Fault::wrong(
        format!("the cluster does not serve {plural} of {api_version}"),
        "the chart has the definition: run `helm upgrade`, or `helm install` where Larder is not installed",
    )
}

/// Checks that a replica of the operator in a namespace runs the controller.
///
/// # Errors
/// The fault.
pub async fn leader(client: &Client, namespace: &str) -> Checked {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let look =
        async || leases.get_opt(names::LEASE).await.map_err(|error| Fault::unknown("get the Lease", error));
    let first = look().await?;
    let mut found = holder(first.as_ref(), Timestamp::now().as_second());
    if let Some(first) = first.filter(|lease| found.is_none() && named(lease).is_some()) {
        // The clocks of this computer and of the holder may differ: a renewal shows that the holder lives.
        for _ in 0..LOOK_TIME.as_secs() / LOOK_INTERVAL.as_secs() {
            tokio::time::sleep(LOOK_INTERVAL).await;
            found = look().await?.and_then(|lease| renewed(&first, &lease));
            if found.is_some() {
                break;
            }
        }
    }
    found.map(|name| format!("{name} runs the controller")).ok_or_else(|| {
        Fault::wrong(
            "no replica runs the controller",
            format!("`kubectl -n {namespace} logs deployment/{}` says why", names::OPERATOR),
        )
    })
}

/// Returns the webhook's configuration, if there is one.
///
/// # Errors
/// The fault of a request that failed.
pub async fn registered(client: &Client) -> Result<Option<MutatingWebhookConfiguration>, Fault> {
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let configuration = configurations.get_opt(names::WEBHOOK_CONFIGURATION).await;
    configuration.map_err(|error| Fault::unknown("get the webhook's configuration", error))
}

/// Returns the holder of a Lease that has not expired by the clock of this computer, nor is of its future.
fn holder(lease: Option<&Lease>, now: i64) -> Option<String> {
    let spec = lease?.spec.as_ref()?;
    let renewed = spec.renew_time.as_ref()?.0.as_second();
    let is_held = (renewed..=renewed + i64::from(spec.lease_duration_seconds?)).contains(&now);
    named(lease?).filter(|_| is_held)
}

/// Returns the holder that a Lease names, whether or not it has expired.
fn named(lease: &Lease) -> Option<String> {
    lease.spec.as_ref()?.holder_identity.clone().filter(|holder| !holder.is_empty())
}

/// Returns the holder of a Lease that was renewed since an earlier look.
fn renewed(before: &Lease, now: &Lease) -> Option<String> {
    let time = |lease: &Lease| lease.spec.as_ref()?.renew_time.as_ref().map(|time| time.0);
    named(now).filter(|_| time(now).is_some() && time(now) != time(before))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn lease(spec: Value) -> Lease {
        serde_json::from_value(json!({ "spec": spec })).unwrap()
    }

    fn held(name: &str) -> Lease {
        lease(json!({
            "holderIdentity": name,
            "leaseDurationSeconds": 15,
            "renewTime": "1970-01-01T00:01:40.000000Z",
        }))
    }

    #[test]
    fn lease_that_seems_to_have_expired_has_the_holder_that_renews_it() {
        let later = lease(json!({"holderIdentity": "a", "renewTime": "1970-01-01T00:01:50.000000Z"}));
        assert_eq!(renewed(&held("a"), &later), Some("a".to_owned()));
        assert_eq!(renewed(&held("a"), &held("a")), None, "nobody renewed it");
        assert_eq!(renewed(&held("a"), &lease(json!({"holderIdentity": ""}))), None, "it was released");
        assert_eq!(holder(Some(&held("a")), 90), None, "of the future: a clock is wrong");
    }

    #[test]
    fn lease_without_a_holder_or_past_its_time_has_no_holder() {
        assert_eq!(holder(Some(&held("a")), 110), Some("a".to_owned()));
        assert_eq!(holder(Some(&held("a")), 116), None, "it has expired");
        assert_eq!(holder(Some(&held("")), 110), None, "it was released");
        assert_eq!(holder(Some(&lease(json!({}))), 110), None);
        assert_eq!(holder(None, 110), None);
    }
}
