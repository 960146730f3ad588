//! The Service by which the sidecars of a policy find one another: headless, over all of the policy's pods, ready or not.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::{
        apis::meta::v1::{ObjectMeta, OwnerReference},
        util::intstr::IntOrString,
    },
};
use kube::ResourceExt;
use larder_api::{labels, names};
use serde_json::{Value, json};

/// A difference between the Service that exists and the one that should.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// The Service is to be created.
    Create(Box<Service>),
    /// The Service is to be changed by a merge patch.
    Change(Value),
    /// Somebody else's Service has the name.
    Taken,
}

/// Returns the step to a policy's Service, whose pods have the admin API at this port; `None` if there is nothing to do.
pub fn step(policy: &str, port: u16, owner: &OwnerReference, services: &[Arc<Service>]) -> Option<Step> {
    let desired = service(policy, port, owner);
    let name = names::peers(policy);
    let Some(existing) = services.iter().find(|service| service.name_any() == name) else {
        return Some(Step::Create(Box::new(desired)));
    };
    let is_own = desired
        .labels()
        .iter()
        .all(|(label, value)| existing.labels().get(label).is_some_and(|own| own == value));
    if !is_own {
        return Some(Step::Taken);
    }
    let is_same = essence(existing) == essence(&desired);
    (!is_same).then(|| {
        Step::Change(json!({
            "metadata": {
                "uid": existing.uid(),
                "resourceVersion": existing.resource_version(),
                "ownerReferences": desired.owner_references(),
            },
            "spec": essence(&desired)["spec"],
        }))
    })
}

fn service(policy: &str, port: u16, owner: &OwnerReference) -> Service {
    let own = [(labels::MANAGED_BY, labels::MANAGER), (labels::POLICY, policy)];
    let number = i32::from(port);
    Service {
        metadata: ObjectMeta {
            name: Some(names::peers(policy)),
            labels: Some(own.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            owner_references: Some(vec![owner.clone()]),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            // A pod that is not ready yet, or not any more, may have responses to purge.
            publish_not_ready_addresses: Some(true),
            selector: Some(BTreeMap::from([(labels::POLICY.to_owned(), policy.to_owned())])),
            ports: Some(vec![ServicePort {
                name: Some(names::ADMIN_PORT.to_owned()),
                port: number,
                target_port: Some(IntOrString::Int(number)),
                protocol: Some("TCP".to_owned()),
                // A mesh that looks into HTTP would send the requests of one connection over several.
                app_protocol: Some("tcp".to_owned()),
                ..ServicePort::default()
            }]),
            type_: Some("ClusterIP".to_owned()),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// Returns the parts in which a Service that exists must equal the one that should.
fn essence(service: &Service) -> Value {
    let spec = json!(service.spec);
    let fields = ["publishNotReadyAddresses", "selector", "ports"];
    let spec: BTreeMap<_, _> = fields.into_iter().map(|field| (field, spec[field].clone())).collect();
    let owners: Vec<_> = service.owner_references().iter().map(|owner| &owner.uid).collect();
    json!({ "spec": spec, "owners": owners })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(uid: &str) -> OwnerReference {
        OwnerReference { uid: uid.to_owned(), ..OwnerReference::default() }
    }

    fn created() -> Service {
        let Some(Step::Create(service)) = step("a.shop", 24890, &owner("u"), &[]) else {
            panic!("it is created")
        };
        *service
    }

    #[test]
    fn service_selects_the_policys_pods_ready_or_not() {
        let service = created();
        let spec = service.spec.as_ref().unwrap();
        assert_eq!(service.name_any(), "larder-a-dot-shop-peers");
        assert_eq!(spec.selector.as_ref().unwrap()[labels::POLICY], "a.shop");
        assert_eq!(
            (spec.cluster_ip.as_deref(), spec.publish_not_ready_addresses),
            (Some("None"), Some(true))
        );
    }

    #[test]
    fn service_is_changed_only_where_it_differs() {
        let services = [Arc::new(created())];
        assert_eq!(step("a.shop", 24890, &owner("u"), &services), None);
        let Some(Step::Change(change)) = step("a.shop", 24891, &owner("u"), &services) else {
            panic!("other port")
        };
        assert_eq!(change["spec"]["ports"][0]["targetPort"], 24891);
        let changed = step("a.shop", 24890, &owner("other"), &services);
        assert!(matches!(changed, Some(Step::Change(_))), "another ConfigMap");
    }

    #[test]
    fn service_of_somebody_else_stays() {
        let mut foreign = created();
        foreign.metadata.labels = None;
        assert_eq!(step("a.shop", 24890, &owner("u"), &[Arc::new(foreign)]), Some(Step::Taken));
        let of_another_policy = [Arc::new(created())];
        assert!(matches!(step("a-shop", 24890, &owner("u"), &of_another_policy), Some(Step::Create(_))));
    }
}
