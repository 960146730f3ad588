//! Writes that the operator's account may not make, although its role would allow them.

use anyhow::{Context, ensure};
use kube::{
    Api, Client,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
};
use larder_api::labels;
use larder_e2e::{Sandbox, Workload, apply::api_of, cluster, in_a_namespace, workload::pod_of};
use serde_json::{Value, json};

/// Writes that are tried with the rights of the operator.
struct AsOperator<'a> {
    sandbox: &'a Sandbox,
    client: Client,
}

impl AsOperator<'_> {
    fn api(&self, object: &str) -> anyhow::Result<Api<DynamicObject>> {
        let version =
            if ["ConfigMap", "Pod", "Secret", "Service"].contains(&object) { "v1" } else { "apps/v1" };
        api_of(&self.client, &self.sandbox.name, &json!({"apiVersion": version, "kind": object}))
    }

    async fn patch(&self, (kind, name): (&str, &str), patch: &Value) -> anyhow::Result<()> {
        let api = self.api(kind)?;
        api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    async fn create(&self, object: &Value, dry_run: bool) -> anyhow::Result<()> {
        let api = self.api(object["kind"].as_str().unwrap_or_default())?;
        let options = PostParams { dry_run, ..PostParams::default() };
        api.create(&options, &serde_json::from_value(object.clone())?).await?;
        Ok(())
    }

    async fn delete(&self, (kind, name): (&str, &str)) -> anyhow::Result<()> {
        self.api(kind)?.delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Requires that an attempt was refused in these words.
    fn refused(what: &str, tried: anyhow::Result<()>, sentence: &str) -> anyhow::Result<()> {
        match tried {
            Ok(_) => anyhow::bail!("not refused: {what}"),
            Err(error) => ensure!(format!("{error:#}").contains(sentence), "{what}: {error:#}"),
        }
        Ok(())
    }
}

#[tokio::test]
async fn operators_account_writes_only_its_annotations_and_objects() -> anyhow::Result<()> {
    in_a_namespace(async |sandbox| {
        let operator = AsOperator { sandbox, client: cluster::client_of_operator().await? };
        let mut deployment = Workload::deployment("app", 0).objects()?[0].clone();
        deployment["metadata"]["annotations"] = json!({"example.com/team": "shop"});
        deployment["spec"]["template"]["metadata"]["annotations"] = json!({"example.com/revision": "1"});
        let set = Workload::stateful_set("set", 0).objects()?[0].clone();
        let mut daemon = json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "daemon"},
            "spec": {"selector": {"matchLabels": {"app": "daemon"}}, "template": Workload::deployment("daemon", 1).template()?},
        });
        let nowhere = json!({"example.com/node": "none"});
        daemon["spec"]["template"]["spec"]["nodeSelector"] = nowhere.clone();
        let mut pod = pod_of(Workload::deployment("single", 1).template()?, "single");
        pod["spec"]["nodeSelector"] = nowhere;
        pod["metadata"]["annotations"] = json!({"example.com/team": "shop"});
        let users = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "larder-settings"}, "data": {"a": "b"}});
        sandbox.apply(&[deployment, set, daemon, pod.clone(), users.clone()]).await?;

        let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "app", "image": "evil"}]}}}});
        let annotation = |key: &str, value: Value| json!({"metadata": {"annotations": {key: value}}});
        let of_template = |patch: Value| json!({"spec": {"template": patch}});
        let workload = "changes nothing of a workload but annotations of larder.dev and the change cause";
        for object in [("Deployment", "app"), ("StatefulSet", "set"), ("DaemonSet", "daemon")] {
            let attempts = [
                ("an image", image.clone()),
                ("a label", json!({"metadata": {"labels": {"app": "other"}}})),
                ("an owner", json!({"metadata": {"ownerReferences": [
                    {"apiVersion": "v1", "kind": "ConfigMap", "name": "larder-settings", "uid": "0"}]}})),
                ("an annotation", annotation("example.com/team", json!("other"))),
                ("a new annotation", annotation("larder.developers/team", json!("other"))),
                ("a template's annotation", of_template(annotation("example.com/revision", json!("2")))),
                ("a template's label", of_template(json!({"metadata": {"labels": {"more": "yes"}}}))),
                ("minReadySeconds", json!({"spec": {"minReadySeconds": 7}})),
            ];
            for (what, patch) in attempts {
                let tried = operator.patch(object, &patch).await;
                AsOperator::refused(&format!("{what} of {}", object.0), tried, workload)?;
            }
            let both = json!({
                "metadata": {"annotations": {"larder.dev/roll-attempts": "1", "kubernetes.io/change-cause": "a test"}},
                "spec": {"template": annotation("larder.dev/restarted-at", json!("now"))},
            });
            operator.patch(object, &both).await.context("what it writes in a restart")?;
        }
        let tried = operator.patch(("Deployment", "app"), &annotation("example.com/team", Value::Null)).await;
        AsOperator::refused("the removal of an annotation", tried, workload)?;
        let tried = operator.patch(("Deployment", "app"), &of_template(annotation("example.com/revision", Value::Null))).await;
        AsOperator::refused("the removal of a template's annotation", tried, workload)?;
        let tried = operator.patch(("Deployment", "app"), &json!({"spec": {"replicas": 3}})).await;
        AsOperator::refused("replicas", tried, workload)?;

        let of_pod = "changes nothing of a pod but annotations of larder.dev";
        let attempts = [
            ("an image", json!({"spec": {"containers": [{"name": "app", "image": "evil"}]}})),
            ("a label", json!({"metadata": {"labels": {"app": "other"}}})),
            ("an annotation", annotation("example.com/team", json!("other"))),
            ("the removal of an annotation", annotation("example.com/team", Value::Null)),
        ];
        for (what, mut patch) in attempts {
            if patch["spec"].is_object() {
                // A merge replaces the list, and only images of a pod may change.
                let live = sandbox.raw("v1", "Pod", "single").await?.data["spec"]["containers"].clone();
                patch["spec"]["containers"] = live;
                patch["spec"]["containers"][0]["image"] = json!("evil");
            }
            let tried = operator.patch(("Pod", "single"), &patch).await;
            AsOperator::refused(&format!("{what} of a pod"), tried, of_pod)?;
        }
        operator.patch(("Pod", "single"), &annotation("larder.dev/config-hash", json!("1"))).await?;
        pod["metadata"]["name"] = json!("another");
        let tried = operator.create(&pod, false).await;
        AsOperator::refused("a pod", tried, "creates pods in dry runs only")?;
        operator.create(&pod, true).await?;

        let foreign = "writes only ConfigMaps larder-<policy> and Secrets larder-<policy>-admin that have its labels";
        let own = |kind: &str, name: &str| {
            json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "labels": {
                labels::MANAGED_BY: labels::MANAGER, labels::POLICY: "web",
            }}})
        };
        let tried = operator.delete(("ConfigMap", "larder-settings")).await;
        AsOperator::refused("the deletion of a ConfigMap", tried, foreign)?;
        let tried = operator.patch(("ConfigMap", "larder-settings"), &own("ConfigMap", "larder-settings")).await;
        AsOperator::refused("a change of a ConfigMap", tried, foreign)?;
        for (kind, name) in [("ConfigMap", "web"), ("ConfigMap", "larder-shop"), ("Secret", "larder-web"), ("Secret", "larder-webhook-tls"), ("Secret", "larder-token-key")] {
            let tried = operator.create(&own(kind, name), false).await;
            AsOperator::refused(&format!("{kind} {name}"), tried, foreign)?;
        }
        let mut token = own("Secret", "larder-web-admin");
        token["type"] = json!("kubernetes.io/service-account-token");
        token["metadata"]["annotations"] = json!({"kubernetes.io/service-account.name": "default"});
        AsOperator::refused("a token", operator.create(&token, false).await, "writes Secrets of type Opaque only")?;

        let companions = "writes only Services with the label larder.dev/companion-of and Services larder-<policy>-peers";
        let service = Workload::deployment("app", 0).objects()?.remove(1);
        AsOperator::refused("a Service", operator.create(&service, false).await, companions)?;
        sandbox.apply(&[service]).await?;
        let taken = json!({"metadata": {"labels": {"larder.dev/companion-of": "web"}}});
        let tried = operator.patch(("Service", "app"), &taken).await;
        AsOperator::refused("a Service that is taken", tried, companions)?;
        let tried = operator.delete(("Service", "app")).await;
        AsOperator::refused("the deletion of a Service", tried, companions)?;

        operator.create(&own("ConfigMap", "larder-web"), false).await?;
        operator.patch(("ConfigMap", "larder-web"), &json!({"data": {"a": "b"}})).await?;
        operator.delete(("ConfigMap", "larder-web")).await?;
        operator.create(&own("Secret", "larder-web-admin"), false).await
    })
    .await
}
