//! The cluster, with the rights of the user.

#[cfg(test)]
pub(crate) mod fake;

use std::{env, net::IpAddr, time::Duration};

use http::Uri;
use hyper_util::client::proxy::matcher::Matcher;
use k8s_openapi::api::{
    authentication::v1::SelfSubjectReview,
    authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
    core::v1::{Pod, Secret},
};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{DynamicObject, ListParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::ApiResource,
};
use larder_api::{labels, names};
use larder_crds::CachePolicy;

use crate::{
    args::Connection,
    error::{Error, Result, innermost},
    pods::SidecarPod,
    right::Right,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Variable of every pod, whose service account is used without a kubeconfig.
const IN_POD: &str = "KUBERNETES_SERVICE_HOST";

/// A client of the API server.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) client: Client,
    /// Namespace that was asked for, or that of the context.
    pub(crate) namespace: String,
}

impl Cluster {
    /// Reads the kubeconfig. Nothing is sent.
    pub(crate) async fn connect(connection: &Connection) -> Result<Self> {
        let mut config = config(connection).await?;
        let mut proxies = ["HTTPS_PROXY", "https_proxy"].into_iter().filter_map(|name| env::var(name).ok());
        let proxy = proxies.find(|proxy| !proxy.is_empty());
        if is_exempt(&config, proxy.as_deref(), &Matcher::from_env()) {
            config.proxy_url = None;
        }
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.read_timeout = Some(READ_TIMEOUT);
        // The client would go on for minutes before a person reads that the API server is overloaded.
        config.default_retry = false;
        // As for kubectl, an empty namespace is none.
        let namespace = connection.namespace.clone().filter(|namespace| !namespace.is_empty());
        let namespace = namespace.unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(unusable)?;
        Ok(Self { client, namespace })
    }

    /// Returns a policy of the namespace.
    pub(crate) async fn policy(&self, name: &str) -> Result<CachePolicy> {
        let policies: Api<CachePolicy> = Api::namespaced(self.client.clone(), &self.namespace);
        match policies.get_opt(name).await {
            Ok(Some(policy)) => Ok(policy),
            // Of a cluster without the resource, a list fails too, and says so.
            Ok(None) => match self.policies(false).await {
                Err(error @ Error::NotInstalled) => Err(error),
                _ => Err(Error::NoPolicy { namespace: self.namespace.clone(), name: name.to_owned() }),
            },
            Err(error) => Err(Error::of_api(error, "get the policy")),
        }
    }

    /// Returns the policies of the namespace or of all, by namespace and name.
    pub(crate) async fn policies(&self, of_all_namespaces: bool) -> Result<Vec<CachePolicy>> {
        let read = self.policies_read(of_all_namespaces).await?.into_iter();
        read.map(|policy| policy.map_err(Unreadable::into_error)).collect()
    }

    /// Returns the policies of the namespace or of all, by namespace and name, as far as each can be read.
    pub(crate) async fn policies_read(
        &self,
        of_all_namespaces: bool,
    ) -> Result<Vec<std::result::Result<CachePolicy, Unreadable>>> {
        let resource = ApiResource::erase::<CachePolicy>(&());
        let policies: Api<DynamicObject> = if of_all_namespaces {
            Api::all_with(self.client.clone(), &resource)
        } else {
            Api::namespaced_with(self.client.clone(), &self.namespace, &resource)
        };
        let mut policies = match policies.list(&ListParams::default()).await {
            Ok(policies) => policies.items,
            Err(kube::Error::Api(status)) if status.code == 404 => return Err(Error::NotInstalled),
            Err(error) => return Err(Error::of_api(error, "list policies")),
        };
        policies.sort_by_key(|policy| (policy.namespace(), policy.name_any()));
        let read = |policy: DynamicObject| {
            let name = format!("{}/{}", policy.namespace().unwrap_or_default(), policy.name_any());
            policy.try_parse().map_err(|error| Unreadable { name, reason: innermost(&error) })
        };
        Ok(policies.into_iter().map(read).collect())
    }

    /// Returns the pods with a policy's sidecar that have not completed: ready ones first, those that terminate last.
    pub(crate) async fn sidecar_pods(&self, policy: &CachePolicy) -> Result<Vec<SidecarPod>> {
        let namespace = policy.namespace().unwrap_or_default();
        let of_policy = ListParams::default()
            .labels(&format!("{}={}", labels::POLICY, policy.name_any()))
            .fields(names::UNFINISHED_PODS);
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
        let token = token.and_then(|token| Some(String::from_utf8(token.0).ok()?.trim().to_owned()));
        let token = token.filter(|token| !token.is_empty());
        token.ok_or(Error::NoToken { policy, secret })
    }

    /// Returns the right to forward ports to a namespace's pods by `create`, if the API server says that the user lacks it.
    pub(crate) async fn lacked_right_to_forward(&self, namespace: &str) -> Option<Right> {
        let access = Access::to("create", "", "pods/portforward").within(namespace);
        match self.may(&access).await {
            Ok(false) => Some(Right::to_forward(&self.user().await?, namespace)),
            Ok(true) | Err(_) => None,
        }
    }

    /// Asks the API server for a right of the user.
    pub(crate) async fn may(&self, access: &Access) -> Result<bool> {
        let resource_attributes = Some(access.0.clone());
        let spec = SelfSubjectAccessReviewSpec { resource_attributes, ..Default::default() };
        let review = SelfSubjectAccessReview { spec, ..Default::default() };
        let reviews: Api<SelfSubjectAccessReview> = Api::all(self.client.clone());
        let review = reviews.create(&PostParams::default(), &review).await;
        let review = review.map_err(|error| Error::of_api(error, "say what you may do"))?;
        Ok(review.status.is_some_and(|status| status.allowed))
    }

    /// Returns the name by which the API server knows the user.
    async fn user(&self) -> Option<String> {
        let reviews: Api<SelfSubjectReview> = Api::all(self.client.clone());
        let review = reviews.create(&PostParams::default(), &SelfSubjectReview::default()).await.ok()?;
        review.status?.user_info?.username
    }

    /// The API of a namespace's pods.
    pub(crate) fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }
}

/// A policy that this program can't read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unreadable {
    /// Namespace and name.
    pub(crate) name: String,
    pub(crate) reason: String,
}

impl Unreadable {
    fn into_error(self) -> Error {
        let Self { name, reason } = self;
        Error::unreadable("list policies", &format!("policy {name}: {reason}"))
    }
}

/// A right to ask for.
#[derive(Clone, Debug)]
pub(crate) struct Access(ResourceAttributes);

impl Access {
    /// Returns a right in the whole cluster. A resource may have a subresource: `pods/portforward`.
    pub(crate) fn to(verb: &str, group: &str, resource: &str) -> Self {
        let (resource, subresource) = match resource.split_once('/') {
            Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
            None => (resource, None),
        };
        let (verb, group, resource) =
            (Some(verb.to_owned()), Some(group.to_owned()), Some(resource.to_owned()));
        Self(ResourceAttributes { verb, group, resource, subresource, ..Default::default() })
    }

    /// Returns the right in a namespace.
    pub(crate) fn within(self, namespace: &str) -> Self {
        Self(ResourceAttributes { namespace: Some(namespace.to_owned()), ..self.0 })
    }

    /// Returns the resource with its group, as kubectl has it.
    pub(crate) fn resource(&self) -> String {
        let ResourceAttributes { group, resource, .. } = &self.0;
        let resource = resource.clone().unwrap_or_default();
        match group.as_deref().unwrap_or_default() {
            "" => resource,
            group => format!("{resource}.{group}"),
        }
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

/// Returns true if the proxy is that of the environment, which says that the cluster is not reached by it: kube compares
/// `NO_PROXY` with the proxy itself. As for kubectl, this computer is never reached by a proxy of the environment.
fn is_exempt(config: &Config, proxy_of_environment: Option<&str>, matcher: &Matcher) -> bool {
    let proxy = proxy_of_environment.and_then(|proxy| proxy.parse::<Uri>().ok());
    let host = config.cluster_url.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_local = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    proxy.is_some()
        && proxy == config.proxy_url
        && (is_local || matcher.intercept(&config.cluster_url).is_none())
}

/// Returns the error of a configuration without the user info of its proxy, which kube shows.
fn unusable(error: kube::Error) -> Error {
    match error {
        kube::Error::ProxyProtocolUnsupported { proxy_url }
        | kube::Error::ProxyProtocolDisabled { proxy_url, .. } => {
            Error::Proxy { host: proxy_url.host().unwrap_or_default().to_owned() }
        }
        error => Error::Kubeconfig(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpListener,
    };

    use http::Method;
    use serde_json::{Value, json};

    use super::{fake::*, *};

    fn kubeconfig(proxy: &str) -> Config {
        let mut config = Config::new("https://cluster.test".parse().unwrap());
        config.proxy_url = Some(proxy.parse().unwrap());
        config
    }

    #[test]
    fn proxies_are_used_and_their_passwords_never_shown() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _guard = runtime.enter();
        for proxy in ["http://jane:secret@proxy.test:1", "socks5://proxy.test:1"] {
            assert!(Client::try_from(kubeconfig(proxy)).is_ok(), "{proxy}");
        }
        let refused =
            Client::try_from(kubeconfig("ftp://jane:secret@proxy.test:1")).err().map(unusable).unwrap();
        let said = refused.to_string();
        assert!(said.contains("proxy proxy.test:") && !said.contains("secret"), "{said}");
    }

    #[test]
    fn clusters_that_the_environment_exempts_are_reached_without_its_proxy() {
        let proxy = "http://proxy.test:1";
        let exempt = |server: &str, of_environment: &str, exempted: &str| {
            let mut config = kubeconfig(proxy);
            config.cluster_url = server.parse().unwrap();
            let matcher = Matcher::builder().https(of_environment).no(exempted).build();
            is_exempt(&config, Some(of_environment), &matcher)
        };
        assert!(!exempt("https://10.1.2.3:6443", proxy, "cluster.test"));
        assert!(exempt("https://10.1.2.3:6443", proxy, "cluster.test,10.0.0.0/8"));
        assert!(exempt("https://api.cluster.test", proxy, "cluster.test"));
        assert!(exempt("https://127.0.0.1:6443", proxy, "") && exempt("https://[::1]:6443", proxy, ""));
        assert!(!exempt("https://127.0.0.1:6443", "http://another.test:1", ""), "of the kubeconfig");
    }

    #[test]
    fn overloaded_api_server_is_reported_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = stream.read(&mut [0; 4096]);
                let body = refusal(503, "overloaded").to_string();
                let length = body.len();
                let head =
                    "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close";
                let _ = write!(stream, "{head}\r\nContent-Length: {length}\r\n\r\n{body}");
            }
        });
        let file = env::temp_dir().join(format!("larder-kubeconfig-{}", std::process::id()));
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "a",
            "clusters": [{"name": "a", "cluster": {"server": format!("http://{address}")}}],
            "users": [{"name": "a", "user": {}}],
            "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        });
        std::fs::write(&file, kubeconfig.to_string()).unwrap();
        let connection = Connection { kubeconfig: Some(file.clone()), ..Connection::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let said = runtime.block_on(async {
            let cluster = Cluster::connect(&connection).await.unwrap();
            tokio::time::timeout(Duration::from_secs(10), cluster.policies(false)).await
        });
        std::fs::remove_file(&file).unwrap();
        let said = said.expect("the answer comes in time").unwrap_err().to_string();
        assert_eq!(said, "the API server refuses to list policies: overloaded");
    }

    #[test]
    fn mistyped_policy_is_reported_without_the_right_to_list() {
        let may_not = r#"cachepolicies.larder.dev is forbidden: User "jane" cannot list resource "cachepolicies" in API group "larder.dev" in the namespace "shop""#;
        let respond = |_: &Method, path: &str| match path.ends_with("/cachepolicies") {
            true => refusal(403, may_not),
            false => refusal(404, "not found"),
        };
        let error = with_server(respond, async |cluster| cluster.policy("shpo").await.unwrap_err());
        assert!(matches!(error, Error::NoPolicy { .. }), "{error}");
    }

    #[test]
    fn token_has_no_blanks_at_its_ends() {
        let policy: CachePolicy = serde_json::from_value(json!({
            "apiVersion": "larder.dev/v1alpha1", "kind": "CachePolicy",
            "metadata": {"name": "shop", "namespace": "shop"},
            "spec": {"selector": {"matchLabels": {"app": "shop"}}, "targets": [{"port": "http"}]},
        }))
        .unwrap();
        let secret = |token: &'static str| {
            move |_: &Method, _: &str| -> Value {
                json!({"apiVersion": "v1", "kind": "Secret", "metadata": {}, "data": {names::ADMIN_TOKEN_KEY: token}})
            }
        };
        let token = async |cluster: &Cluster| cluster.token(&policy).await;
        assert_eq!(with_server(secret("YQo="), token).unwrap(), "a");
        assert!(matches!(with_server(secret("Cg=="), token), Err(Error::NoToken { .. })));
    }
}
