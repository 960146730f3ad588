//! Pods that the API server admits without Larder are admitted with it.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, DynamicObject, Patch, PostParams},
};
use larder_api::{annotations, labels, names};
use larder_crds::ConditionType;
use larder_e2e::{
    Sandbox, Workload, apply, eventually,
    eventually::{ROLLOUT_TIMEOUT, SHORT_TIMEOUT},
    in_a_namespace,
    policy::{has, has_sidecar},
    workload::pod_of,
};
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use serde_json::{Value, json};

use super::common::IN_MEMORY;

/// Number of pods that are generated.
const PODS: u32 = 150;

fn one_of(values: Vec<Value>) -> impl Strategy<Value = Value> {
    proptest::sample::select(values)
}

/// A value, or null in half of the cases, which removes the member.
fn perhaps(values: Vec<Value>) -> impl Strategy<Value = Value> {
    prop_oneof![Just(Value::Null), one_of(values)]
}

/// A value of those that leave a pod without a sidecar in most modes, in one of six cases.
fn seldom(values: Vec<Value>) -> impl Strategy<Value = Value> {
    prop_oneof![5 => Just(Value::Null), 1 => one_of(values)]
}

fn any_handler() -> impl Strategy<Value = Value> {
    perhaps(vec![
        json!({"httpGet": {"path": "/", "port": "http"}}),
        json!({"httpGet": {"path": "/", "port": 8080}, "timeoutSeconds": 3}),
        json!({"tcpSocket": {"port": "http"}}),
        json!({"exec": {"command": ["true"]}}),
        json!({"grpc": {"port": 8080}}),
    ])
}

fn any_security() -> impl Strategy<Value = Value> {
    perhaps(vec![
        json!({"runAsUser": 0}),
        json!({"runAsUser": 1_000_650_000, "runAsNonRoot": true}),
        json!({"runAsNonRoot": true, "runAsUser": 1000, "runAsGroup": 3000}),
        json!({"readOnlyRootFilesystem": true}),
        json!({"seccompProfile": {"type": "Unconfined"}}),
    ])
}

fn any_resources() -> impl Strategy<Value = Value> {
    perhaps(vec![
        json!({"requests": {"cpu": "10m", "memory": "16Mi"}}),
        json!({"limits": {"cpu": "100m", "memory": "64Mi"}}),
        json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "2Gi"}}),
    ])
}

fn any_environment() -> impl Strategy<Value = Value> {
    perhaps(vec![
        json!([{"name": "PORT", "value": "8080"}]),
        json!([{"name": "A", "value": "$(PORT)"}, {"name": "PORT", "value": ":8080"}, {"name": "B", "value": "$(PORT)"}]),
        json!([{"name": "PORT", "value": "9090"}]),
        json!([{"name": "PORT", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]),
    ])
}

fn any_arguments() -> impl Strategy<Value = Value> {
    perhaps(vec![json!(["serve", "--port=8080"]), json!(["--port", "8080"]), json!(["--port"])])
}

fn any_container() -> impl Strategy<Value = Value> {
    let ports = one_of(vec![
        json!([{"name": "http", "containerPort": 8080}]),
        json!([{"name": "http", "containerPort": 8080}, {"name": "admin", "containerPort": 9000}]),
        json!([{"name": "http", "containerPort": 8080}, {"containerPort": 8080, "protocol": "UDP"}]),
        json!([{"containerPort": 8080}]),
        json!([{"name": "http", "containerPort": 8080}, {"name": "web", "containerPort": 8080}]),
        json!([{"name": "http", "containerPort": 80}]),
        json!([{"name": "http", "containerPort": 24800}]),
        json!([{"name": "http", "containerPort": 8080, "hostPort": 31080}]),
        json!([]),
    ]);
    let stops = perhaps(vec![
        json!({"sleep": {"seconds": 3}}),
        json!({"exec": {"command": ["true"]}}),
        json!({"httpGet": {"port": "http", "path": "/stop"}}),
    ]);
    let name = one_of(["app", "app", "app", "app", "app", "larder-sidecar"].map(Value::from).into());
    let reads = (any_environment(), any_arguments());
    (
        name,
        ports,
        [any_handler(), any_handler(), any_handler()],
        stops,
        any_security(),
        any_resources(),
        reads,
    )
        .prop_map(
            |(name, ports, [readiness, liveness, startup], stop, security, resources, (env, args))| {
                json!({
                    "env": env, "args": args,
                    "name": name, "image": "app", "ports": ports,
                    "readinessProbe": readiness, "livenessProbe": liveness, "startupProbe": startup,
                    "lifecycle": {"preStop": stop}, "securityContext": security, "resources": resources,
                })
            },
        )
}

fn any_metadata() -> impl Strategy<Value = Value> {
    let large = |bytes: usize| json!({"large": "x".repeat(bytes)});
    perhaps(vec![
        json!({"sidecar.istio.io/inject": "false"}),
        large(200_000),
        large(261_500),
        large(262_130),
        json!({annotations::SKIPPED: "Mesh: from an earlier time"}),
        json!({annotations::INJECTION_HASH: "0123456789abcdef", annotations::ORIGINAL: "no JSON"}),
    ])
}

fn any_pod() -> impl Strategy<Value = Value> {
    let spec = (
        seldom(vec![json!({"name": "windows"}), json!({"name": "linux"})]),
        seldom(vec![json!({"kubernetes.io/os": "windows"}), json!({"kubernetes.io/os": "linux"})]),
        seldom(vec![json!(true)]),
        perhaps(vec![json!(false)]),
        perhaps(vec![json!(true), json!(false)]),
        perhaps(vec![json!(0), json!(1), json!(30), json!(3600)]),
        any_security(),
        perhaps(vec![
            json!({"limits": {"cpu": "1", "memory": "100Mi"}}),
            json!({"requests": {"cpu": "20m", "memory": "40Mi"}}),
            json!({"requests": {"cpu": "4", "memory": "4Gi"}, "limits": {"cpu": "4", "memory": "4Gi"}}),
        ]),
        seldom(vec![
            json!([{"name": "larder-policy", "emptyDir": {}}]),
            json!([{"name": "larder-secret-0", "emptyDir": {}}]),
            json!([{"name": "data", "emptyDir": {}}]),
        ]),
        perhaps(vec![
            json!([{"name": "setup", "image": "setup"}]),
            json!([{"name": "proxy", "image": "proxy", "restartPolicy": "Always", "ports": [{"name": "proxy", "containerPort": 9001}]}]),
            json!([{"name": "proxy", "image": "proxy", "restartPolicy": "Always", "ports": [{"name": "web", "containerPort": 8080}],
                "readinessProbe": {"httpGet": {"port": "web", "path": "/"}}}]),
            json!([{"name": "istio-proxy", "image": "proxy", "restartPolicy": "Always"}]),
        ]),
        perhaps(vec![json!("Never"), json!("OnFailure"), json!("Always")]),
    );
    let label = one_of(["app", "app", "variable", "argument"].map(Value::from).into());
    (spec, any_container(), any_metadata(), label).prop_map(|(spec, container, annotations, label)| {
        let (os, node, host_network, host_users, token, grace, security, resources, volumes, init, restart) = spec;
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"generateName": "app-", "labels": {"app": label}, "annotations": annotations},
            "spec": {
                "os": os, "nodeSelector": node, "hostNetwork": host_network, "hostUsers": host_users,
                "automountServiceAccountToken": token, "terminationGracePeriodSeconds": grace,
                "securityContext": security, "resources": resources, "volumes": volumes, "initContainers": init,
                "restartPolicy": restart, "containers": [container],
            },
        });
        remove_nulls(&mut pod);
        pod
    })
}

fn remove_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, value| !value.is_null());
            members.values_mut().for_each(remove_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_nulls),
        _ => {}
    }
}

async fn create(sandbox: &Sandbox, pod: &Value) -> Result<Value, kube::Error> {
    let resource = kube::core::ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&());
    let pods: Api<DynamicObject> = Api::namespaced_with(sandbox.client.clone(), &sandbox.name, &resource);
    let pod = serde_json::from_value(pod.clone()).expect("it is an object");
    let options = PostParams { dry_run: true, ..PostParams::default() };
    Ok(serde_json::to_value(pods.create(&options, &pod).await?).expect("it is an object"))
}

/// Lets the namespace take pods of every kind.
async fn allow_everything(sandbox: &Sandbox) -> anyhow::Result<()> {
    let namespaces = Api::<Namespace>::all(sandbox.client.clone());
    let level =
        Patch::Merge(json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "privileged"}}}));
    namespaces.patch(&sandbox.name, &Default::default(), &level).await?;
    Ok(())
}

#[tokio::test]
async fn generated_pods_are_admitted_with_the_sidecar_or_left_alone_with_a_reason() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        allow_everything(sandbox).await?;
        let policy = sandbox.policy("cache", IN_MEMORY).await?;
        policy.injects(&Workload::deployment("app", 1).template()?).await?;
        for (name, place) in [("variable", "{env: PORT}"), ("argument", "{argument: --port}")] {
            let targets = format!("[{{port: http, portFrom: {place}}}]");
            let spec =
                IN_MEMORY.replace("app: app", &format!("app: {name}")).replace("[{port: http}]", &targets);
            let policy = sandbox.policy(name, &spec).await?;
            let pod = Workload::deployment(name, 1).container(json!({"args": ["serve", "--port=8080"]}));
            policy.injects(&pod.template()?).await?;
        }
        let mut runner = TestRunner::deterministic();
        let (mut admitted, mut injected, mut by_variable) = (0, 0, 0);
        let mut reasons = BTreeMap::<_, u32>::new();
        for _ in 0..PODS {
            let pod = any_pod().new_tree(&mut runner).map_err(anyhow::Error::msg)?.current();
            let mut plain = pod.clone();
            plain["metadata"]["labels"][labels::INJECT] = json!("false");
            if create(sandbox, &plain).await.is_err() {
                continue;
            }
            admitted += 1;
            let created =
                create(sandbox, &pod).await.with_context(|| format!("refused with Larder: {pod:.3000}"))?;
            let note = created["metadata"]["annotations"][annotations::SKIPPED].as_str();
            let noted = note.is_some();
            let reason = note.and_then(|note| note.split(':').next()).unwrap_or_default();
            *reasons.entry(reason.to_owned()).or_default() += 1;
            let is_full =
                created["metadata"]["annotations"]["large"].as_str().is_some_and(|text| text.len() > 261_000);
            // A container of that name is not the operator's.
            let is_injected = has_sidecar(&created);
            injected += u32::from(is_injected);
            by_variable += u32::from(is_injected && pod["metadata"]["labels"]["app"] != "app");
            ensure!(is_injected || noted || is_full, "neither sidecar nor reason: {created:.3000}");
            if is_injected {
                let token = &created["spec"]["initContainers"].as_array().context("no init containers")?;
                let sidecar = token.iter().find(|one| one["name"] == names::SIDECAR).context("no sidecar")?;
                let mounts = sidecar["volumeMounts"].as_array().context("no mounts")?;
                let account = mounts
                    .iter()
                    .find(|one| one["mountPath"] == "/var/run/secrets/kubernetes.io/serviceaccount");
                ensure!(account.is_some_and(|one| one["name"] == names::NO_TOKEN_VOLUME), "{sidecar}");
            }
        }
        ensure!(
            admitted >= PODS / 4 && injected >= PODS / 20 && by_variable > 0,
            "only {admitted} admitted, {injected} injected, {by_variable} by a variable: {reasons:?}"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn config_map_of_somebody_else_is_left_alone() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let maps = sandbox.api::<ConfigMap>();
        let name = names::config_map("cache");
        let own = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"mine": "1"}});
        let own: ConfigMap = serde_json::from_value(own)?;
        let created = maps.create(&PostParams::default(), &own).await?;
        let policy = sandbox.policy("cache", IN_MEMORY).await?;
        let accepted = policy.condition(ConditionType::Accepted, "False").await?;
        ensure!(accepted.reason == "NameTaken" && accepted.message.contains(&name), "{accepted:?}");
        let pod = pod_of(Workload::deployment("app", 1).template()?, "app");
        eventually("pods are left alone", SHORT_TIMEOUT, async || {
            let pod = apply::dry_run(&sandbox.client, &sandbox.name, &pod).await?;
            ensure!(!has_sidecar(&pod.data), "it has a sidecar");
            Ok(())
        })
        .await?;
        ensure!(maps.get(&name).await?.resource_version() == created.resource_version(), "it was changed");
        policy.delete().await?;
        let after = sandbox.policy("other", &IN_MEMORY.replace("app: app", "app: other")).await?;
        after.condition(ConditionType::Accepted, "True").await?;
        ensure!(maps.get(&name).await?.resource_version() == created.resource_version(), "it was changed");

        let policy = sandbox.policy("cache", IN_MEMORY).await?;
        maps.delete(&name, &DeleteParams::default()).await?;
        policy.condition(ConditionType::Accepted, "True").await?;
        policy.injects(&Workload::deployment("app", 1).template()?).await
    })
    .await
}

#[tokio::test]
async fn secret_of_somebody_else_is_left_alone_and_reported() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let secrets = sandbox.api::<Secret>();
        let name = names::admin_secret("cache");
        let own = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"mine": "1"}});
        let created = secrets.create(&PostParams::default(), &serde_json::from_value(own)?).await?;
        let policy = sandbox.policy("cache", IN_MEMORY).await?;
        let workload = Workload::deployment("app", 1);
        policy.injects(&workload.template()?).await?;
        sandbox.apply(&workload.objects()?).await?;
        let wanted = format!("the Secret {name} has no key token");
        policy
            .eventually("the Secret is reported", ROLLOUT_TIMEOUT, |status| {
                let current = has(status, ConditionType::ConfigCurrent, "False")?;
                ensure!(current.reason == "NoAdminToken" && current.message.contains(&wanted), "{current:?}");
                Ok(())
            })
            .await?;
        ensure!(secrets.get(&name).await?.resource_version() == created.resource_version(), "it was changed");
        secrets.delete(&name, &DeleteParams::default()).await?;
        policy.serves(1).await?;
        sandbox.admin_token("cache").await.map(drop)
    })
    .await
}
