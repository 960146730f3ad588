//! An operator with rights in some namespaces, and upgrades of the chart that leave the webhooks alone.

use anyhow::{Context, ensure};
use k8s_openapi::api::{
    admissionregistration::v1::MutatingWebhookConfiguration,
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
    core::v1::{Namespace, Pod},
    rbac::v1::Role,
};
use kube::{
    Api, ResourceExt,
    api::{ListParams, PostParams},
};
use larder_api::names;
use larder_crds::{CachePolicy, ConditionType};
use larder_e2e::{
    Sandbox, Workload, alone_in_the_cluster, apply, cluster, eventually,
    eventually::SHORT_TIMEOUT,
    policy::{Policy, has, has_sidecar, manifest},
    workload::pod_of,
};
use serde_json::json;

use super::{
    common::{IN_MEMORY, ensure_hit},
    rights::restart_operator,
};

pub(crate) async fn operator_of_one_namespace_works_there_with_rights_nowhere_else() -> anyhow::Result<()> {
    alone_in_the_cluster(async |sandbox| {
        let [elsewhere, gone] = ["b", "c"].map(|end| format!("{}-{end}", sandbox.name));
        let namespaces = Api::<Namespace>::all(sandbox.client.clone());
        for name in [&elsewhere, &gone] {
            let namespace = json!({"metadata": {"name": name, "labels": {"larder.dev/e2e": "true"}}});
            namespaces.create(&PostParams::default(), &serde_json::from_value(namespace)?).await?;
        }
        let outcome = async {
            works_beside_namespaces_without_rights(sandbox, &elsewhere, &gone).await?;
            works_here_alone(sandbox, &elsewhere).await
        }
        .await;
        let restored = upgrade(sandbox, "rollout.maxConcurrent=10,watchNamespaces=[]").await;
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

/// Has an operator start that is to watch a namespace which is gone, and one in which it may not list pods.
async fn works_beside_namespaces_without_rights(
    sandbox: &Sandbox,
    elsewhere: &str,
    gone: &str,
) -> anyhow::Result<()> {
    upgrade(sandbox, &format!("watchNamespaces={}", json!([sandbox.name, elsewhere, gone]))).await?;
    let namespaces = Api::<Namespace>::all(sandbox.client.clone());
    namespaces.delete(gone, &Default::default()).await?;
    let roles = Api::<Role>::namespaced(sandbox.client.clone(), elsewhere);
    let name = format!("{}-policies", names::OPERATOR);
    let role = roles.get(&name).await?;
    let mut lacking = role.clone();
    for rule in lacking.rules.iter_mut().flatten() {
        if rule.resources.iter().flatten().any(|resource| resource == "pods") {
            rule.verbs.retain(|verb| verb != "list");
        }
    }
    lacking = roles.replace(&name, &PostParams::default(), &lacking).await?;
    eventually("the namespace and the right are gone", SHORT_TIMEOUT, async || {
        ensure!(namespaces.get_opt(gone).await?.is_none(), "the namespace is there");
        ensure!(!lists_pods(sandbox, elsewhere).await?, "the right is there");
        Ok(())
    })
    .await?;
    restart_operator(sandbox).await?;

    apply::apply(&sandbox.client, elsewhere, &manifest("unseen", IN_MEMORY)?).await?;
    let unseen = Api::<CachePolicy>::namespaced(sandbox.client.clone(), elsewhere);
    let is_ready = async |status: &str, reason: &str, words: &str| {
        eventually(&format!("the policy elsewhere is {reason}"), SHORT_TIMEOUT, async || {
            let seen = unseen.get("unseen").await?.status.context("no status")?;
            let ready = has(&seen, ConditionType::Ready, status)?;
            ensure!(ready.reason == reason && ready.message.contains(words), "{ready:?}");
            Ok(())
        })
        .await
    };
    is_ready("Unknown", "NotListed", "cannot list resource \"pods\"").await?;
    lacking.rules = role.rules;
    roles.replace(&name, &PostParams::default(), &lacking).await?;

    let (_, agent) = sandbox.with_policy("cache", IN_MEMORY, &Workload::deployment("app", 1), 1).await?;
    agent.get("http://app/items/1").await?;
    ensure_hit(&agent.get("http://app/items/1").await?)?;
    is_ready("False", "NoPods", "the selector matches no pod").await?;
    unseen.delete("unseen", &Default::default()).await.map(drop).context("the policy elsewhere")
}

async fn works_here_alone(sandbox: &Sandbox, elsewhere: &str) -> anyhow::Result<()> {
    let policy = Policy::of(sandbox, "cache");

    // What an upgrade changes of the webhooks, if it changes nothing else.
    let before = eventually("the last replica of before has stopped", SHORT_TIMEOUT, async || {
        let found = configuration(sandbox).await?;
        let webhooks = json!(found.webhooks);
        let named = &webhooks[0]["namespaceSelector"]["matchExpressions"][0]["values"];
        ensure!(*named == json!([sandbox.name]), "the webhook is called for {named}");
        Ok(found)
    })
    .await?;
    let here = json!([sandbox.name]);
    upgrade(sandbox, &format!("rollout.maxConcurrent=9,watchNamespaces={here}")).await?;
    apply::apply(&sandbox.client, elsewhere, &manifest("cache", IN_MEMORY)?).await?;
    let after = configuration(sandbox).await?;
    ensure!(before.webhooks == after.webhooks, "an upgrade changed the webhooks: {after:?}");
    ensure!(before.metadata.generation == after.metadata.generation, "an upgrade wrote them: {after:?}");
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
    let pod = pod_of(Workload::deployment("app", 1).template()?, "probe");
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
