//! Pods with the sidecar in them.

use anyhow::{Context, ensure};
use k8s_openapi::api::{core::v1::Pod, discovery::v1::EndpointSlice};
use kube::api::ListParams;
use larder_api::{admin::path, annotations, labels, ports};
use larder_e2e::{
    Ask, Workload, apply, eventually,
    eventually::{ROLLOUT_TIMEOUT, SHORT_TIMEOUT},
    in_a_namespace,
    policy::sidecar_of,
    workload::pod_of,
};
use serde_json::{Value, json};

use super::common::{IN_MEMORY, ensure_hit};

#[tokio::test]
async fn a_restricted_namespace_takes_the_injected_pod() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let lax = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "lax"},
            "spec": {"containers": [{"name": "app", "image": "app"}]},
        });
        apply::rejects(&sandbox.client, &sandbox.name, &lax, "violates PodSecurity \"restricted").await?;

        let (_, agent) = sandbox.with_policy("cache", IN_MEMORY, &Workload::deployment("app", 1), 1).await?;
        let pod = &sandbox.pods("app").await?[0];
        let sidecar = sidecar_of(&pod.object).context("no sidecar")?;
        ensure!(sidecar["restartPolicy"] == "Always", "not a native sidecar: {sidecar}");
        let context = &sidecar["securityContext"];
        ensure!(context["runAsNonRoot"] == true && context["allowPrivilegeEscalation"] == false, "{context}");
        ensure!(context["capabilities"] == json!({"drop": ["ALL"]}), "{context}");
        ensure!(context["readOnlyRootFilesystem"] == true, "{context}");
        ensure!(context["seccompProfile"]["type"] == "RuntimeDefault", "{context}");
        ensure!(pod.object["metadata"]["labels"][labels::POLICY] == "cache", "{}", pod.object["metadata"]);
        agent.get("http://app/items/1").await?;
        ensure_hit(&agent.get("http://app/items/1").await?)
    })
    .await
}

#[tokio::test]
async fn probes_and_hooks_still_call_the_application() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let hook = |path: &str| json!({"httpGet": {"path": path, "port": "http"}});
        let workload = Workload::deployment("app", 1).container(json!({
            "startupProbe": {"httpGet": {"path": "/startup", "port": 8080}, "periodSeconds": 1},
            "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 1},
            "livenessProbe": {"tcpSocket": {"port": "http"}, "periodSeconds": 1},
            "lifecycle": {"preStop": hook("/bye")},
        }));
        let (_, agent) = sandbox.with_policy("cache", IN_MEMORY, &workload, 1).await?;
        let pod = &sandbox.pods("app").await?[0];
        let app = &pod.object["spec"]["containers"][0];

        let ports = app["ports"].as_array().context("no ports")?;
        let http = ports.iter().find(|port| port["name"] == "http").context("the name is gone")?;
        ensure!(http["containerPort"] == ports::DATA, "the name does not lead to the sidecar: {ports:?}");
        let own = ports
            .iter()
            .find(|port| port["containerPort"] == 8080)
            .context("the application's port is gone")?;
        ensure!(own["name"].is_null(), "{ports:?}");
        for pointer in [
            "/startupProbe/httpGet",
            "/readinessProbe/httpGet",
            "/livenessProbe/tcpSocket",
            "/lifecycle/preStop/httpGet",
        ] {
            let asked = app.pointer(pointer).with_context(|| format!("{pointer} is gone: {app}"))?;
            ensure!(asked["port"] == 8080, "{pointer} asks the sidecar: {asked}");
        }
        ensure!(app["lifecycle"]["preStop"].get("sleep").is_none(), "its own hook stays: {app}");
        let original = &pod.object["metadata"]["annotations"][annotations::ORIGINAL];
        ensure!(original.as_str().is_some_and(|original| original.contains("http")), "{original}");
        eventually("the kubelet asks the application", SHORT_TIMEOUT, async || {
            let calls = agent.get(&pod.app("/calls")).await?.json()?;
            ensure!(calls["GET /ready"].as_u64() > Some(0), "nobody asks whether it is ready: {calls}");
            Ok(())
        })
        .await?;

        let sidecar = sidecar_of(&pod.object).context("no sidecar")?;
        for probe in ["readinessProbe", "livenessProbe"] {
            ensure!(sidecar[probe]["httpGet"].is_object(), "the sidecar has no {probe}: {sidecar}");
        }
        ensure!(sidecar["startupProbe"].is_null(), "nothing waits for the sidecar: {sidecar}");

        let slices = sandbox.api::<EndpointSlice>();
        let list = slices.list(&ListParams::default().labels("kubernetes.io/service-name=app")).await?;
        let ports: Vec<_> = list
            .items
            .iter()
            .flat_map(|slice| slice.ports.iter().flatten())
            .filter_map(|port| port.port)
            .collect();
        ensure!(ports == [i32::from(ports::DATA)], "the Service leads to {ports:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_application_without_a_hook_waits_for_endpoints_to_move() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        sandbox.with_policy("cache", IN_MEMORY, &Workload::deployment("app", 1), 1).await?;
        let pod = &sandbox.pods("app").await?[0].object;
        let sleep = pod["spec"]["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64();
        let sleep = sleep.context("no sleep before it stops")?;
        ensure!(sleep > 0, "it does not wait");
        ensure!(
            pod["spec"]["terminationGracePeriodSeconds"].as_u64() >= Some(2 + sleep),
            "the grace period does not cover the sleep: {}",
            pod["spec"]["terminationGracePeriodSeconds"]
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_running_stateful_set_gets_the_sidecar_and_loses_it() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        sandbox.apply(&Workload::stateful_set("app", 2).objects()?).await?;
        let agent = sandbox.agent().await?;
        eventually("the plain pods answer", ROLLOUT_TIMEOUT, async || {
            ensure!(agent.get("http://app/items/1").await?.cache_status().is_empty(), "a cache answers");
            Ok(())
        })
        .await?;
        let policy = sandbox.policy("cache", IN_MEMORY).await?;
        policy.serves(2).await?;
        for pod in sandbox.pods("app").await? {
            // The sidecar serves before its application has started.
            eventually("the second response is a hit", ROLLOUT_TIMEOUT, async || {
                super::common::get_from(&agent, &pod, "/items/1").await?;
                ensure_hit(&super::common::get_from(&agent, &pod, "/items/1").await?)
            })
            .await?;
        }
        policy.change(json!({"capture": {"mode": "None"}})).await?;
        eventually("the sidecars are gone", ROLLOUT_TIMEOUT, async || {
            let pods = sandbox.pods("app").await?;
            ensure!(pods.len() == 2, "{} pods", pods.len());
            for pod in pods {
                ensure!(sidecar_of(&pod.object).is_none(), "{} has one", pod.name);
            }
            Ok(())
        })
        .await
    })
    .await
}

#[tokio::test]
async fn fields_that_the_operator_does_not_know_survive() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        // Fields of Kubernetes 1.34; the operator's types are those of 1.33.
        let rules = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
        let workload = Workload::deployment("app", 1)
            .pod(json!({"hostnameOverride": "a-name-of-its-own"}))
            .container(json!({"restartPolicy": "Always", "restartPolicyRules": rules}));
        let plain = pod_of(workload.template()?, "plain");
        let kept = |pod: &Value| -> anyhow::Result<()> {
            ensure!(pod["spec"]["hostnameOverride"] == "a-name-of-its-own", "{}", pod["spec"]);
            ensure!(pod["spec"]["containers"][0]["restartPolicyRules"] == rules, "{}", pod["spec"]);
            Ok(())
        };
        let stored = apply::dry_run(&sandbox.client, &sandbox.name, &plain).await?;
        kept(&stored.data).context("the API server itself does not keep them")?;

        sandbox.with_policy("cache", IN_MEMORY, &workload, 1).await?;
        let name = &sandbox.pods("app").await?[0].name;
        let injected = sandbox.raw("v1", "Pod", name).await?.data;
        ensure!(sidecar_of(&injected).is_some(), "not injected");
        kept(&injected)
    })
    .await
}

#[tokio::test]
async fn the_application_starts_without_the_config_map_and_the_secrets() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        // The Secret that it names is not there.
        let (_, agent) = sandbox
            .with_policy("cache", &super::common::with_redis(), &Workload::deployment("app", 1), 1)
            .await?;
        let pod = &sandbox.pods("app").await?[0];
        for _ in 0..2 {
            let answer = agent.get("http://app/items/1").await?;
            ensure!(answer.status == 200, "{answer:?}");
        }

        // The same pod, with a ConfigMap and a token that are not there either, and no policy that selects it.
        let mut orphan = sandbox.raw("v1", "Pod", &pod.name).await?.data;
        let spec = orphan["spec"].as_object_mut().context("no spec")?;
        spec.remove("nodeName");
        for volume in spec["volumes"].as_array_mut().into_iter().flatten() {
            for (kind, name) in [("configMap", "name"), ("secret", "secretName")] {
                if volume[kind].is_object() {
                    volume[kind][name] = json!("not-there");
                }
            }
        }
        let orphan = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "orphan", "labels": {"app": "orphan"}},
            "spec": spec,
        });
        sandbox.apply(&[orphan]).await?;
        let orphan = eventually("the orphan is ready", ROLLOUT_TIMEOUT, async || {
            let pod = sandbox.pods("orphan").await?.pop().context("not there")?;
            let conditions = pod.object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let ready = conditions
                .iter()
                .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
            ensure!(ready, "{conditions:?}");
            Ok(pod)
        })
        .await?;
        let answer = agent.get(&orphan.url("/items/1")).await?;
        ensure!(answer.status == 200 && answer.cache_status().contains("no-policy"), "{answer:?}");
        let refused = agent.send(&Ask::get(&orphan.admin(path::STATS)).token("")).await?;
        ensure!(refused.status == 401, "no token lets everybody in: {refused:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn pod_that_opts_out_is_not_injected() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let policy = sandbox.policy("cache", IN_MEMORY).await?;
        policy.injects(&Workload::deployment("app", 1).template()?).await?;
        let workload = Workload::deployment("app", 1).labels(json!({labels::INJECT: "false"}));
        sandbox.apply(&workload.objects()?).await?;
        sandbox.rolled_out("app").await?;
        ensure!(sidecar_of(&sandbox.pods("app").await?[0].object).is_none(), "it was injected");
        policy
            .eventually("the pod does not count", SHORT_TIMEOUT, |status| {
                ensure!(status.pods.matched == 0 && status.pods.missed == 0, "it counts");
                Ok(())
            })
            .await?;
        ensure!(sandbox.api::<Pod>().list(&Default::default()).await?.items.len() == 1, "it was replaced");
        Ok(())
    })
    .await
}
