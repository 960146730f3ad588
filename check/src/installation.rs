//! The definition, the controller and the webhook's configuration.

use jiff::Timestamp;
use k8s_openapi::api::{admissionregistration::v1::MutatingWebhookConfiguration, coordination::v1::Lease};
use kube::{Api, Client, Resource};
use larder_api::names;
use larder_crds::CachePolicy;

use crate::{Checked, Fault};

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
    let lease = leases.get_opt(names::LEASE).await.map_err(|error| Fault::unknown("get the Lease", error))?;
    let holder = holder(lease.as_ref(), Timestamp::now().as_second());
    holder.map(|name| format!("{name} runs the controller")).ok_or_else(|| {
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

/// Returns the holder of a Lease that has not expired.
fn holder(lease: Option<&Lease>, now: i64) -> Option<String> {
    let spec = lease?.spec.as_ref()?;
    let renewed = spec.renew_time.as_ref()?.0.as_second();
    let is_held = now <= renewed + i64::from(spec.lease_duration_seconds?);
    spec.holder_identity.clone().filter(|holder| is_held && !holder.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn lease_without_a_holder_or_past_its_time_has_no_holder() {
        let lease = |spec: Value| serde_json::from_value::<Lease>(json!({ "spec": spec })).unwrap();
        let held = |name: &str| {
            lease(json!({
                "holderIdentity": name,
                "leaseDurationSeconds": 15,
                "renewTime": "1970-01-01T00:01:40.000000Z",
            }))
        };
        assert_eq!(holder(Some(&held("a")), 110), Some("a".to_owned()));
        assert_eq!(holder(Some(&held("a")), 116), None, "it has expired");
        assert_eq!(holder(Some(&held("")), 110), None, "it was released");
        assert_eq!(holder(Some(&lease(json!({}))), 110), None);
        assert_eq!(holder(None, 110), None);
    }
}
