//! The cluster, with the rights of the user.

use std::{env, time::Duration};

use k8s_openapi::api::{
    authentication::v1::SelfSubjectReview,
    core::v1::{Pod, Secret},
};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{ListParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use larder_api::{labels, names};
use larder_crds::CachePolicy;

use crate::{
    args::Connection,
    error::{Error, Result},
    pods::SidecarPod,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Variable of every pod, whose service account is used without a kubeconfig.
const IN_POD: &str = "KUBERNETES_SERVICE_HOST";

/// A client of the API server.
#[derive(Clone)]
pub(crate) struct Cluster {
    client: Client,
    /// Namespace that was asked for, or that of the context.
    pub(crate) namespace: String,
}

impl Cluster {
    /// Reads the kubeconfig. Nothing is sent.
    pub(crate) async fn connect(connection: &Connection) -> Result<Self> {
        let mut config = config(connection).await?;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.read_timeout = Some(READ_TIMEOUT);
        let namespace = connection.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(|error| Error::Kubeconfig(error.to_string()))?;
        Ok(Self { client, namespace })
    }

    /// Returns a policy of the namespace.
    pub(crate) async fn policy(&self, name: &str) -> Result<CachePolicy> {
        let policies: Api<CachePolicy> = Api::namespaced(self.client.clone(), &self.namespace);
        match policies.get_opt(name).await {
            Ok(Some(policy)) => Ok(policy),
            // Of a cluster without the resource, a list fails too, and says so.
            Ok(None) => {
                self.policies(false).await?;
                Err(Error::NoPolicy { namespace: self.namespace.clone(), name: name.to_owned() })
            }
            Err(error) => Err(Error::of_api(error, "get the policy")),
        }
    }

    /// Returns the policies of the namespace or of all, by namespace and name.
    pub(crate) async fn policies(&self, of_all_namespaces: bool) -> Result<Vec<CachePolicy>> {
        let policies: Api<CachePolicy> = if of_all_namespaces {
            Api::all(self.client.clone())
        } else {
            Api::namespaced(self.client.clone(), &self.namespace)
        };
        let mut policies = match policies.list(&ListParams::default()).await {
            Ok(policies) => policies.items,
            Err(kube::Error::Api(status)) if status.code == 404 => return Err(Error::NotInstalled),
            Err(error) => return Err(Error::of_api(error, "list policies")),
        };
        policies.sort_by_key(|policy| (policy.namespace(), policy.name_any()));
        Ok(policies)
    }

    /// Returns the pods with a policy's sidecar that have not completed: ready ones first, those that terminate last.
    pub(crate) async fn sidecar_pods(&self, policy: &CachePolicy) -> Result<Vec<SidecarPod>> {
        let namespace = policy.namespace().unwrap_or_default();
        let of_policy = ListParams::default()
            .labels(&format!("{}={}", labels::POLICY, policy.name_any()))
            .fields("status.phase!=Succeeded,status.phase!=Failed");
        let pods = self.pods(&namespace).list(&of_policy).await;
        let pods = pods.map_err(|error| Error::of_api(error, "list pods"))?;
        let mut pods: Vec<_> = pods.items.iter().filter_map(SidecarPod::of).collect();
        pods.sort_by_key(|pod| (pod.terminating, !pod.ready, pod.name.clone()));
        Ok(pods)
    }

    /// Returns the token of the admin API of a policy's sidecars.
    pub(crate) async fn token(&self, policy: &CachePolicy) -> Result<String> {
        let namespace = policy.namespace().unwrap_or_default();
        let (policy, secret) = (policy.name_any(), names::admin_secret(&policy.name_any()));
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &namespace);
        let found = secrets.get_opt(&secret).await;
        let found = found.map_err(|error| Error::of_api(error, "get the token of the sidecars"))?;
        let token = found.and_then(|secret| secret.data?.remove(names::ADMIN_TOKEN_KEY));
        let token = token.and_then(|token| String::from_utf8(token.0).ok());
        token.ok_or(Error::NoToken { policy, secret })
    }

    /// Returns the name by which the API server knows the user.
    pub(crate) async fn user(&self) -> Option<String> {
        let reviews: Api<SelfSubjectReview> = Api::all(self.client.clone());
        let review = reviews.create(&PostParams::default(), &SelfSubjectReview::default()).await.ok()?;
        review.status?.user_info?.username
    }

    /// The API of a namespace's pods.
    pub(crate) fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }
}

async fn config(Connection { context, kubeconfig, .. }: &Connection) -> Result<Config> {
    let options = KubeConfigOptions { context: context.clone(), ..KubeConfigOptions::default() };
    match kubeconfig {
        Some(file) => {
            let read = Kubeconfig::read_from(file).map_err(|error| Error::Kubeconfig(error.to_string()))?;
            let config = Config::from_custom_kubeconfig(read, &options).await;
            config.map_err(|error| Error::Kubeconfig(error.to_string()))
        }
        None if context.is_some() || env::var_os(IN_POD).is_none() => {
            let config = Config::from_kubeconfig(&options).await;
            config.map_err(|error| Error::Kubeconfig(error.to_string()))
        }
        None => Config::infer().await.map_err(|error| Error::Kubeconfig(error.to_string())),
    }
}
