//! The operator, there and gone.

use anyhow::ensure;
use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::Pod},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, CustomResourceExt, ResourceExt,
    api::{ListParams, Patch},
};
use larder_api::names;
use larder_crds::{CachePolicy, ConditionType};
use larder_e2e::{
    Sandbox, Workload, alone_in_the_cluster, cluster, eventually,
    eventually::{ROLLOUT_TIMEOUT, SHORT_TIMEOUT},
    policy::sidecar_of,
};
use serde_json::json;

use super::common::{IN_MEMORY, ensure_hit};

pub(crate) async fn while_the_webhook_is_down_pods_start_and_are_counted_as_missed_and_named()
-> anyhow::Result<()> {
    alone_in_the_cluster(async |sandbox| {
        // Nothing is repaired that should be seen.
        let spec = format!("{IN_MEMORY}sidecar: {{rollout: {{strategy: OnCreate}}}}\n");
        let policy = sandbox.policy("cache", &spec).await?;
        let workload = Workload::deployment("app", 2);
        policy.injects(&workload.template()?).await?;
        let agent = sandbox.agent().await?;

        let replicas = scale_operator(sandbox, 0).await?;
        let started = async {
            sandbox.apply(&workload.objects()?).await?;
            sandbox.rolled_out("app").await?;
            agent.reaches("app").await?;
            let answer = agent.get("http://app/items/1").await?;
            ensure!(answer.status == 200 && answer.cache_status().is_empty(), "{answer:?}");
            Ok(())
        }
        .await;
        scale_operator(sandbox, replicas).await?;
        started?;

        let status = policy
            .eventually("the missed pods are counted", ROLLOUT_TIMEOUT, |status| {
                ensure!(status.pods.missed == 2 && status.pods.injected == 0, "missed is not 2");
                Ok(())
            })
            .await?;
        for pod in sandbox.pods("app").await? {
            ensure!(sidecar_of(&pod.object).is_none(), "{} has a sidecar", pod.name);
            ensure!(status.missed_pods.contains(&pod.name), "{} is not named: {status:?}", pod.name);
        }
        let injected = policy.condition(ConditionType::Injected, "False").await?;
        ensure!(!injected.message.is_empty(), "{injected:?}");

        policy.change(json!({"sidecar": {"rollout": {"strategy": "Restart"}}})).await?;
        policy.serves(2).await?;
        sandbox.rolled_out("app").await?;
        for pod in sandbox.pods("app").await? {
            super::common::get_from(&agent, &pod, "/items/1").await?;
            ensure_hit(&super::common::get_from(&agent, &pod, "/items/1").await?)?;
        }
        Ok(())
    })
    .await
}

/// Scales the operator, waits until it is so, and gives how many replicas it had.
pub(crate) async fn scale_operator(sandbox: &Sandbox, replicas: i32) -> anyhow::Result<i32> {
    let deployments = Api::<Deployment>::namespaced(sandbox.client.clone(), cluster::NAMESPACE);
    let before = deployments.get(names::OPERATOR).await?.spec.and_then(|spec| spec.replicas).unwrap_or(1);
    let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
    deployments.patch(names::OPERATOR, &Default::default(), &patch).await?;
    if replicas > 0 {
        cluster::operator_is_ready(&sandbox.client).await?;
        return Ok(before);
    }
    let pods = Api::<Pod>::namespaced(sandbox.client.clone(), cluster::NAMESPACE);
    eventually("the operator is gone", ROLLOUT_TIMEOUT, async || {
        let left = pods.list(&ListParams::default()).await?.items.len();
        ensure!(left == 0, "{left} pods are left");
        Ok(())
    })
    .await?;
    Ok(before)
}

pub(crate) async fn without_its_definition_the_cache_passes_through_and_comes_back_with_it()
-> anyhow::Result<()> {
    alone_in_the_cluster(async |sandbox| {
        let (policy, agent) =
            sandbox.with_policy("cache", IN_MEMORY, &Workload::deployment("app", 1), 1).await?;
        let definitions = Api::<CustomResourceDefinition>::all(sandbox.client.clone());
        let policies = Api::<CachePolicy>::all(sandbox.client.clone());
        let name = CachePolicy::crd_name();
        let mut definition = definitions.get(name).await?;
        let kept: Vec<_> = policies.list(&Default::default()).await?.items;
        definitions.delete(name, &Default::default()).await?;
        let outcome = async {
            eventually("the definition is gone", SHORT_TIMEOUT, async || {
                ensure!(definitions.get_opt(name).await?.is_none(), "it is there");
                Ok(())
            })
            .await?;
            eventually("the sidecar is gone or passes through", eventually::seconds(60), async || {
                let answer = agent.get("http://app/items/1").await?;
                ensure!(answer.status == 200 && !answer.is_hit(), "{answer:?}");
                let again = agent.get("http://app/items/1").await?;
                ensure!(again.status == 200 && !again.is_hit(), "{again:?}");
                Ok(())
            })
            .await?;
            // A replica that begins without the definition is ready and says what it misses.
            let replicas = Api::<Pod>::namespaced(sandbox.client.clone(), cluster::NAMESPACE);
            let ours = ListParams::default().labels("app.kubernetes.io/component=operator");
            replicas.delete_collection(&Default::default(), &ours).await?;
            cluster::operator_is_ready(&sandbox.client).await?;
            eventually("a new replica says what it misses", SHORT_TIMEOUT, async || {
                let mut said = String::new();
                for replica in replicas.list(&ours).await? {
                    said += &replicas.logs(&replica.name_any(), &Default::default()).await?;
                }
                ensure!(said.contains("the cluster does not define this kind"), "{said}");
                let loops = said
                    .lines()
                    .filter(|line| line.contains("\"WARN\"") || line.contains("\"ERROR\""))
                    .count();
                ensure!(loops < 20, "{loops} warnings and errors");
                Ok(())
            })
            .await
        }
        .await;
        definition.metadata = ObjectMeta {
            name: definition.metadata.name,
            labels: definition.metadata.labels,
            annotations: definition.metadata.annotations,
            ..ObjectMeta::default()
        };
        definition.status = None;
        definitions.create(&Default::default(), &definition).await?;
        eventually("policies can be created again", SHORT_TIMEOUT, async || {
            for before in &kept {
                let namespace = before.namespace().unwrap_or_default();
                let api = Api::<CachePolicy>::namespaced(sandbox.client.clone(), &namespace);
                let again = CachePolicy::new(&before.name_any(), before.spec.clone());
                match api.create(&Default::default(), &again).await {
                    // It is there already, or its namespace is gone or about to be.
                    Err(kube::Error::Api(status)) if matches!(status.code, 403 | 409) => {}
                    Err(kube::Error::Api(status)) if status.message.starts_with("namespaces ") => {}
                    other => drop(other?),
                }
            }
            Ok(())
        })
        .await?;
        outcome?;
        policy.serves(1).await.map(drop)
    })
    .await
}
