//! A throw-away namespace for each test.

use std::{
    collections::hash_map::RandomState,
    env,
    hash::{BuildHasher, Hasher},
    panic::{AssertUnwindSafe, resume_unwind},
    thread,
};

use anyhow::{Context, ensure};
use futures::FutureExt;
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{Event, Namespace, Pod, Secret},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DynamicObject, ListParams, Patch},
};
use larder_api::{names, ports};
use serde_json::{Value, json};

use crate::{
    Agent, Workload, apply, cluster, dump, eventually,
    eventually::{ROLLOUT_TIMEOUT, SHORT_TIMEOUT},
    policy,
    policy::Policy,
    workload,
};

/// A namespace of a test's own, in which the `restricted` Pod Security Standard is enforced.
pub struct Sandbox {
    /// A client, for what this type has no function for.
    pub client: Client,
    /// The namespace.
    pub name: String,
}

/// A pod that is there to stay.
#[derive(Clone, Debug)]
pub struct RunningPod {
    /// Name of the pod.
    pub name: String,
    /// Address of the pod.
    pub ip: String,
    /// uid, which distinguishes the pod from another of the same name.
    pub uid: String,
    /// All of it.
    pub object: Value,
}

/// Runs a test in a namespace of its own, beside others.
pub async fn in_a_namespace(test: impl AsyncFnOnce(&Sandbox) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let _shared = cluster::share().await;
    Sandbox::run(cluster::client().await?, test).await
}

/// Runs a test that disturbs the whole cluster: no other one runs meanwhile.
pub async fn alone_in_the_cluster(
    test: impl AsyncFnOnce(&Sandbox) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let _alone = cluster::all_of_it().await;
    Sandbox::run(cluster::client().await?, test).await
}

impl Sandbox {
    async fn run(client: Client, test: impl AsyncFnOnce(&Self) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let namespaces = Api::<Namespace>::all(client.clone());
        let name = namespace_name();
        namespaces
            .create(
                &Default::default(),
                &Namespace {
                    metadata: ObjectMeta {
                        name: Some(name.clone()),
                        labels: Some(
                            [
                                ("larder.dev/e2e", "true"),
                                ("pod-security.kubernetes.io/enforce", "restricted"),
                            ]
                            .map(|(name, value)| (name.to_owned(), value.to_owned()))
                            .into(),
                        ),
                        ..Default::default()
                    },
                    ..Default::default()
                },
            )
            .await?;
        let sandbox = Self { client, name };
        let outcome = AssertUnwindSafe(test(&sandbox)).catch_unwind().await;
        match &outcome {
            Ok(Ok(())) => {}
            Ok(Err(why)) => dump::print(&sandbox, Some(why)).await,
            // A panic has printed its own reason.
            Err(_) => dump::print(&sandbox, None).await,
        }
        if env::var_os("KEEP").is_some() {
            eprintln!("namespace {} is kept", sandbox.name);
        } else {
            namespaces.delete(&sandbox.name, &Default::default()).await?;
        }
        outcome.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// The API of a kind in the namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Applies objects.
    pub async fn apply(&self, objects: &[Value]) -> anyhow::Result<()> {
        for object in objects {
            apply::apply(&self.client, &self.name, object).await?;
        }
        Ok(())
    }

    /// Applies a policy, from the YAML of its spec.
    pub async fn policy(&self, name: &str, spec: &str) -> anyhow::Result<Policy<'_>> {
        self.apply(&[policy::manifest(name, spec)?]).await?;
        Ok(Policy::of(self, name))
    }

    /// Applies a policy and, once the webhook knows of it, a workload that it selects; waits until it is in force.
    pub async fn with_policy(
        &self,
        name: &str,
        spec: &str,
        workload: &Workload,
        pods: i32,
    ) -> anyhow::Result<(Policy<'_>, Agent)> {
        let policy = self.policy(name, spec).await?;
        self.apply(&[workload::agent()?]).await?;
        policy.injects(&workload.template()?).await?;
        self.apply(&workload.objects()?).await?;
        let agent = self.agent().await?;
        policy.serves(pods).await?;
        if workload.kind == "Deployment" {
            self.rolled_out(&workload.name).await?;
        }
        if workload.http {
            agent.reaches(&workload.name).await?;
        }
        Ok((policy, agent))
    }

    /// Starts the agent and waits until it runs.
    pub async fn agent(&self) -> anyhow::Result<Agent> {
        self.apply(&[workload::agent()?]).await?;
        let pods = self.api::<Pod>();
        eventually("the agent runs", ROLLOUT_TIMEOUT, async || {
            let status = pods.get("agent").await?.status.unwrap_or_default();
            ensure!(status.phase.as_deref() == Some("Running"), "{:?}", status.phase);
            Ok(())
        })
        .await?;
        Ok(Agent::new(pods))
    }

    /// Sets the Pod Security level of the namespace, instead of `restricted`.
    pub async fn enforce(&self, level: &str) -> anyhow::Result<()> {
        let labels = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": level}}});
        let namespaces = Api::<Namespace>::all(self.client.clone());
        namespaces.patch(&self.name, &Default::default(), &Patch::Merge(labels)).await?;
        Ok(())
    }

    /// The pods with the label `app: <app>` that are not on their way out.
    pub async fn pods(&self, app: &str) -> anyhow::Result<Vec<RunningPod>> {
        let list = self.api::<Pod>().list(&ListParams::default().labels(&format!("app={app}"))).await?;
        list.items
            .into_iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_none())
            .map(|pod| {
                let ip = pod.status.as_ref().and_then(|status| status.pod_ip.clone());
                Ok(RunningPod {
                    name: pod.name_any(),
                    ip: ip.with_context(|| format!("pod {} has no address yet", pod.name_any()))?,
                    uid: pod.uid().unwrap_or_default(),
                    object: serde_json::to_value(pod)?,
                })
            })
            .collect()
    }

    /// Waits until a Deployment's pods are all new and available, and the old ones gone.
    pub async fn rolled_out(&self, name: &str) -> anyhow::Result<()> {
        let deployments = self.api::<Deployment>();
        eventually(&format!("{name} has rolled out"), ROLLOUT_TIMEOUT, async || {
            let deployment = deployments.get(name).await?;
            let wanted = deployment.spec.and_then(|spec| spec.replicas);
            let status = deployment.status.unwrap_or_default();
            ensure!(status.observed_generation == deployment.metadata.generation, "its status is old");
            ensure!(status.updated_replicas.unwrap_or(0) == wanted.unwrap_or(1), "{status:?}");
            ensure!(status.replicas.unwrap_or(0) == wanted.unwrap_or(1), "{status:?}");
            ensure!(status.available_replicas.unwrap_or(0) == wanted.unwrap_or(1), "{status:?}");
            Ok(())
        })
        .await
    }

    /// Waits until so many pods of an application are left, those on their way out counted too.
    pub async fn pods_left(&self, app: &str, count: usize) -> anyhow::Result<()> {
        let pods = self.api::<Pod>();
        eventually(&format!("{count} pods of {app} are left"), ROLLOUT_TIMEOUT, async || {
            let list = pods.list_metadata(&ListParams::default().labels(&format!("app={app}"))).await?;
            ensure!(list.items.len() == count, "there are {}", list.items.len());
            Ok(())
        })
        .await
    }

    /// Scales a Deployment and waits until it is so.
    pub async fn scale(&self, deployment: &str, replicas: i32) -> anyhow::Result<()> {
        let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        self.api::<Deployment>().patch(deployment, &Default::default(), &patch).await?;
        self.rolled_out(deployment).await?;
        self.pods_left(deployment, replicas.unsigned_abs() as usize).await
    }

    /// The token for the admin port of a policy's sidecars.
    pub async fn admin_token(&self, policy: &str) -> anyhow::Result<String> {
        let secret = self.api::<Secret>().get(&names::admin_secret(policy)).await?;
        let token = secret
            .data
            .and_then(|mut data| data.remove(names::ADMIN_TOKEN_KEY))
            .context("the Secret has no token")?;
        Ok(String::from_utf8(token.0)?)
    }

    /// Waits for an Event with that reason, and gives its message.
    pub async fn event(&self, reason: &str) -> anyhow::Result<String> {
        let events = self.api::<Event>();
        eventually(&format!("an Event {reason}"), SHORT_TIMEOUT, async || {
            let list = events.list(&Default::default()).await?.items;
            let found = list.iter().find(|event| event.reason.as_deref() == Some(reason));
            let seen =
                || list.iter().filter_map(|event| event.reason.as_deref()).collect::<Vec<_>>().join(", ");
            let event = found.with_context(|| format!("there are {}", seen()))?;
            Ok(event.message.clone().unwrap_or_default())
        })
        .await
    }

    /// An object as the API server has it, with fields that no type of ours knows.
    pub async fn raw(&self, api_version: &str, kind: &str, name: &str) -> anyhow::Result<DynamicObject> {
        let types = json!({"apiVersion": api_version, "kind": kind});
        Ok(apply::api_of(&self.client, &self.name, &types)?.get(name).await?)
    }
}

impl RunningPod {
    /// A URL of this pod's sidecar.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}:{}{path}", self.ip, ports::DATA)
    }

    /// A URL of this pod's sidecar's admin port.
    pub fn admin(&self, path: &str) -> String {
        format!("http://{}:{}{path}", self.ip, ports::ADMIN)
    }

    /// A URL of this pod's application, the sidecar left out.
    pub fn app(&self, path: &str) -> String {
        format!("http://{}:8080{path}", self.ip)
    }
}

/// `e2e-<the test's name>-<random>`: the test's name is that of its thread.
fn namespace_name() -> String {
    let thread = thread::current();
    let test = thread.name().and_then(|name| name.rsplit("::").next()).unwrap_or("test").replace('_', "-");
    let test = &test[..test.len().min(45)];
    let random = RandomState::new().build_hasher().finish() & 0xffff_ffff;
    format!("e2e-{}-{random:08x}", test.trim_matches('-'))
}
