//! An operator with rights in one namespace, and upgrades of the chart that leave the webhooks alone.

use anyhow::{Context, ensure};
use k8s_openapi::api::{
    admissionregistration::v1::MutatingWebhookConfiguration,
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
    core::v1::{Namespace, Pod},
};
use kube::{
    Api, ResourceExt,
    api::{ListParams, PostParams},
};
use larder_api::names;
use larder_crds::CachePolicy;
use larder_e2e::{
    Sandbox, Workload, alone_in_the_cluster, apply, cluster, eventually,
    eventually::SHORT_TIMEOUT,
    policy::{has_sidecar, manifest},
    workload::pod_of,
};
use serde_json::json;

use super::common::{IN_MEMORY, ensure_hit};

pub(crate) async fn operator_of_one_namespace_works_there_with_rights_nowhere_else() -> anyhow::Result<()> {
    alone_in_the_cluster(async |sandbox| {
        let elsewhere = format!("{}-b", sandbox.name);
        let namespaces = Api::<Namespace>::all(sandbox.client.clone());
        let namespace = json!({"metadata": {"name": elsewhere, "labels": {"larder.dev/e2e": "true"}}});
        namespaces.create(&PostParams::default(), &serde_json::from_value(namespace)?).await?;
        let outcome = async {
            upgrade(sandbox, &format!("watchNamespaces=[{:?}]", sandbox.name)).await?;
            works_here_alone(sandbox, &elsewhere).await
        }
        .await;
        let restored = upgrade(sandbox, "watchNamespaces=[]").await;
        let seen = eventually(
            "the other policy is acted on when all namespaces are watched",
            SHORT_TIMEOUT,
            async || {
                let policy =
                    Api::<CachePolicy>::namespaced(sandbox.client.clone(), &elsewhere).get("cache").await?;
                ensure!(policy.status.is_some(), "it has no status");
                Ok(())
            },
        )
        .await;
        namespaces.delete(&elsewhere, &Default::default()).await?;
        outcome?;
        restored?;
        seen
    })
    .await
}

async fn works_here_alone(sandbox: &Sandbox, elsewhere: &str) -> anyhow::Result<()> {
    let policy = manifest("cache", IN_MEMORY)?;
    apply::apply(&sandbox.client, elsewhere, &policy).await?;
    let workload = Workload::deployment("app", 1);
    let (policy, agent) = sandbox.with_policy("cache", IN_MEMORY, &workload, 1).await?;
    agent.get("http://app/items/1").await?;
    ensure_hit(&agent.get("http://app/items/1").await?)?;

    // What an upgrade changes of the webhooks, if it changes nothing else.
    let before = eventually("the last replica of before has stopped", SHORT_TIMEOUT, async || {
        let found = configuration(sandbox).await?;
        let webhooks = json!(found.webhooks);
        let named = &webhooks[0]["namespaceSelector"]["matchExpressions"][0]["values"];
        ensure!(*named == json!([sandbox.name]), "the webhook is called for {named}");
        Ok(found)
    })
    .await?;
    upgrade(sandbox, "rollout.maxConcurrent=9").await?;
    let after = configuration(sandbox).await?;
    ensure!(before.webhooks == after.webhooks, "an upgrade changed the webhooks: {after:?}");
    ensure!(before.metadata.generation == after.metadata.generation, "an upgrade wrote them: {after:?}");
    upgrade(sandbox, "rollout.maxConcurrent=10").await?;
    for entry in after.managed_fields() {
        let is_operator = entry.manager.as_deref() == Some(names::FIELD_MANAGER);
        let fields = entry.fields_v1.as_ref().map(|fields| fields.0.to_string()).unwrap_or_default();
        ensure!(fields.contains("f:webhooks") == is_operator, "{:?} manages {fields}", entry.manager);
    }

    // A restart and an end of a policy, with these rights.
    policy.change(json!({"sidecar": {"resources": {"requests": {"cpu": "11m"}}}})).await?;
    policy.serves(1).await?;
    policy.delete().await?;
    eventually("the sidecar is taken back", larder_e2e::eventually::ROLLOUT_TIMEOUT, async || {
        for pod in sandbox.pods("app").await? {
            ensure!(!has_sidecar(&pod.object), "{} has one", pod.name);
        }
        Ok(())
    })
    .await?;

    let other = Api::<CachePolicy>::namespaced(sandbox.client.clone(), elsewhere).get("cache").await?;
    ensure!(other.status.is_none(), "a policy elsewhere is acted on: {:?}", other.status);
    let pod = pod_of(workload.template()?, "probe");
    let created = apply::dry_run(&sandbox.client, elsewhere, &pod).await?;
    ensure!(!has_sidecar(&created.data), "a pod elsewhere gets a sidecar");
    for (namespace, allowed) in [(sandbox.name.as_str(), true), (elsewhere, false), ("", false)] {
        ensure!(lists_pods(sandbox, namespace).await? == allowed, "rights in {namespace:?}");
    }
    // It asks for nothing that it may not.
    let replicas = Api::<Pod>::namespaced(sandbox.client.clone(), cluster::NAMESPACE);
    let ours = ListParams::default().labels("app.kubernetes.io/component=operator");
    for replica in replicas.list(&ours).await? {
        let log = replicas.logs(&replica.name_any(), &Default::default()).await?;
        let refused = log.lines().find(|line| line.contains("is forbidden"));
        ensure!(refused.is_none(), "{refused:?}");
    }
    Ok(())
}

async fn configuration(sandbox: &Sandbox) -> anyhow::Result<MutatingWebhookConfiguration> {
    let configurations = Api::<MutatingWebhookConfiguration>::all(sandbox.client.clone());
    configurations.get(names::WEBHOOK_CONFIGURATION).await.context("the webhook configuration")
}

async fn lists_pods(sandbox: &Sandbox, namespace: &str) -> anyhow::Result<bool> {
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(cluster::operator_account()),
            resource_attributes: Some(ResourceAttributes {
                namespace: Some(namespace.to_owned()),
                resource: Some("pods".to_owned()),
                verb: Some("list".to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let reviews: Api<SubjectAccessReview> = Api::all(sandbox.client.clone());
    Ok(reviews.create(&PostParams::default(), &review).await?.status.is_some_and(|status| status.allowed))
}

/// Changes a value of the chart.
async fn upgrade(sandbox: &Sandbox, value: &str) -> anyhow::Result<()> {
    let release = ["upgrade", "larder", "charts/larder", "--namespace", cluster::NAMESPACE, "--reuse-values"];
    let options = ["--set-json", value, "--wait", "--timeout", "120s"];
    cluster::tool("LARDER_HELM", &[&release[..], &options].concat()).await?;
    cluster::operator_is_ready(&sandbox.client).await
}
