//! The operator, there and gone.

use anyhow::{Context, ensure};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, StatefulSet},
        coordination::v1::Lease,
        core::v1::Pod,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
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
use serde_json::{Value, json};

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

        // Its pod's name is the first, so it is restarted first, which takes its time.
        let slow = Workload::stateful_set("a", 1).labels(json!({"app": "app", "own": "a"})).lingering(11);
        let mut slow = slow.pod(json!({"terminationGracePeriodSeconds": 15})).objects()?.remove(0);
        slow["spec"]["selector"] = json!({"matchLabels": {"own": "a"}});

        let replicas = scale_operator(sandbox, 0).await?;
        let started = async {
            sandbox.apply(&[slow]).await?;
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
                ensure!(status.pods.missed == 3 && status.pods.injected == 0, "missed is not 3");
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
        // Half of the rollout is done by another leader.
        eventually("the first workload is restarted", SHORT_TIMEOUT, async || {
            ensure!(revisions(sandbox).await?[0] == 2, "it is not");
            Ok(())
        })
        .await?;
        take_the_lease(sandbox).await?;
        policy.serves(3).await?;
        sandbox.rolled_out("app").await?;
        let revisions = revisions(sandbox).await?;
        ensure!(revisions == [2, 2], "not each was restarted once: {revisions:?}");
        for pod in sandbox.pods("app").await? {
            super::common::get_from(&agent, &pod, "/items/1").await?;
            ensure_hit(&super::common::get_from(&agent, &pod, "/items/1").await?)?;
        }
        Ok(())
    })
    .await
}

/// Returns the numbers of the StatefulSet's and the Deployment's templates; a restart counts one up.
async fn revisions(sandbox: &Sandbox) -> anyhow::Result<[i64; 2]> {
    let set = sandbox.api::<StatefulSet>().get("a").await?.metadata.generation;
    let deployment = sandbox.api::<Deployment>().get("app").await?;
    let revision = deployment.annotations().get("deployment.kubernetes.io/revision");
    Ok([set.context("no generation")?, revision.context("no revision")?.parse()?])
}

/// Takes the Lease from the leader, and gives it back when the leader has noticed, which happens when it next renews the Lease. Returns
/// when a replica leads.
async fn take_the_lease(sandbox: &Sandbox) -> anyhow::Result<()> {
    let leases = Api::<Lease>::namespaced(sandbox.client.clone(), cluster::NAMESPACE);
    let write = async |spec: Value| {
        let patch = Patch::Merge(json!({ "spec": spec }));
        let lease = leases.patch(names::LEASE, &Default::default(), &patch).await?;
        Ok::<_, anyhow::Error>(lease.spec.unwrap_or_default())
    };
    let now = MicroTime(Timestamp::now());
    let taken = write(json!({"holderIdentity": "somebody-else", "renewTime": now})).await?;
    let read = async || Ok::<_, anyhow::Error>(leases.get(names::LEASE).await?.spec.unwrap_or_default());
    let left = eventually("the leader has noticed", SHORT_TIMEOUT, async || {
        let lease = read().await?;
        ensure!(lease.renew_time != taken.renew_time, "it has not renewed the Lease");
        Ok(lease)
    })
    .await?;
    ensure!(revisions(sandbox).await? == [2, 1], "the leader has done all, or nothing");
    if left.holder_identity == taken.holder_identity {
        let free = json!({"holderIdentity": null, "acquireTime": null, "renewTime": null, "leaseDurationSeconds": null});
        write(free).await?;
    }
    eventually("a replica leads", SHORT_TIMEOUT, async || {
        let holder = read().await?.holder_identity.filter(|holder| holder.starts_with(names::OPERATOR));
        holder.map(drop).context("nobody has the Lease")
    })
    .await?;
    cluster::operator_is_ready(&sandbox.client).await
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
