//! `CachePolicy`: the pods that get a cache, and the cache's configuration.
#![expect(clippy::duplicated_attributes, reason = "the columns of `kubectl get` share types and priorities")]

use k8s_openapi::apimachinery::pkg::{
    api::resource::Quantity, apis::meta::v1::LabelSelector, util::intstr::IntOrString,
};
use kube::CustomResource;
use larder_policy::spec::CacheSpec;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{CachePolicyStatus, schema};

/// A cache in front of the pods of an application, and its configuration.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "larder.dev",
    version = "v1alpha1",
    kind = "CachePolicy",
    plural = "cachepolicies",
    shortname = "cpol",
    category = "larder",
    namespaced,
    status = "CachePolicyStatus",
    derive = "PartialEq",
    doc = "A cache in front of the pods that a selector names.",
    printcolumn(
        name = "Pods",
        type_ = "integer",
        json_path = ".status.pods.matched",
        description = "Pods that the selector names."
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status",
        description = "Whether every matched pod serves by this policy."
    ),
    printcolumn(
        name = "Hit%",
        type_ = "integer",
        json_path = ".status.traffic.hitPercent",
        description = "Hits among hits and misses of the last minute, in percent."
    ),
    printcolumn(
        name = "Rate",
        type_ = "string",
        json_path = ".status.traffic.requestsPerSecond",
        description = "Requests a second of the last minute, to all sidecars together."
    ),
    printcolumn(
        name = "Capture",
        type_ = "string",
        json_path = ".status.capture",
        description = "Capture mode in use."
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Injected",
        type_ = "integer",
        json_path = ".status.pods.injected",
        description = "Pods that have the sidecar.",
        priority = 1
    ),
    printcolumn(
        name = "Current",
        type_ = "integer",
        json_path = ".status.pods.current",
        description = "Pods whose sidecar has answered with this policy's hash.",
        priority = 1
    ),
    printcolumn(
        name = "Missed",
        type_ = "integer",
        json_path = ".status.pods.missed",
        description = "Pods without the sidecar.",
        priority = 1
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason",
        priority = 1
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].message",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "!isQuantity(string(self.l1.maxSize)) || !isQuantity(string(self.sidecar.resources.limits.memory)) || quantity(string(self.l1.maxSize)).add(quantity('32Mi')).compareTo(quantity(string(self.sidecar.resources.limits.memory))) <= 0",
        "message": "l1.maxSize and 32Mi for requests in progress do not fit into sidecar.resources.limits.memory (128Mi where it is not set): raise limits.memory or lower l1.maxSize",
    },
    {
        "rule": "!isQuantity(string(self.l1.maxObjectSize)) || !isQuantity(string(self.l1.maxSize)) || quantity(string(self.l1.maxObjectSize)).compareTo(quantity(string(self.l1.maxSize))) <= 0",
        "message": "l1.maxObjectSize (1Mi where it is not set) is above l1.maxSize: raise l1.maxSize or lower l1.maxObjectSize",
    },
    {
        "rule": "self.capture.mode == 'PortVariable' ? self.targets.all(t, has(t.portFrom)) : !self.targets.exists(t, has(t.portFrom)) || self.capture.mode == 'None' || (self.capture.mode == 'Auto' && self.targets.all(t, has(t.portFrom)))",
        "message": "portFrom belongs to capture.mode PortVariable, and to Auto, which then chooses it: set it for every target, such as {port: http, portFrom: {env: PORT}}, or for none and another mode",
    },
    {
        "rule": "!has(self.routes) || self.routes.all(r, !has(r.from) || r.from.all(f, !has(f.postgres) || (has(self.sources) && self.sources.exists(s, s.name == f.postgres.source && has(s.postgres)))))",
        "message": "a route's from.postgres names no Postgres server of spec.sources: add it there, or write the name of one that is there",
    },
    {
        "rule": "!has(self.routes) || self.routes.all(r, !has(r.from) || r.from.all(f, !has(f.http) || (has(self.sources) && self.sources.exists(s, s.name == f.http.source && has(s.http)))))",
        "message": "a route's from.http names no HTTP server of spec.sources: add it there, or write the name of one that is there",
    },
    {
        "rule": "!has(self.routes) || self.routes.all(r, !has(r.from) || r.from.all(f, !has(f.http) || !has(f.http.persist) || (has(self.sources) && self.sources.exists(s, s.name == f.http.persist.source && has(s.postgres)))))",
        "message": "a route's persist names no Postgres server of spec.sources: add it there, or write the name of one that is there",
    },
    {
        "rule": "!has(self.routes) || self.routes.all(r, !has(r.lastKnownGood) || (has(self.sources) && self.sources.exists(s, s.name == r.lastKnownGood.source && has(s.postgres))))",
        "message": "a route's lastKnownGood names no Postgres server of spec.sources: add it there, or write the name of one that is there",
    },
    {
        "rule": "!has(self.routes) || self.routes.all(r, !has(r.ttlJitterPercent) || has(r.ttl) || (has(self.defaults) && has(self.defaults.ttl) && !has(r.maxTTL)))",
        "message": "ttlJitterPercent shortens the ttl of the route: set one beside it",
    },
    {
        "rule": "!has(self.routes) || self.routes.all(r, !has(r.ttlFrom) || has(r.ttl) || (has(self.defaults) && has(self.defaults.ttl) && !has(r.maxTTL)))",
        "message": "ttlFrom needs a ttl beside it, which applies to responses that state none: set one",
    },
    {
        "rule": "!has(self.routes) || self.routes.all(r, !has(r.from) || size(r.from) == 0 || has(r.ttl) || (has(self.defaults) && has(self.defaults.ttl) && !has(r.maxTTL)))",
        "message": "a route with from needs a ttl: a row does not declare how long it is fresh",
    },
    {
        "rule": "!has(self.routes) || (has(self.defaults) && has(self.defaults.key) && has(self.defaults.key.body)) || self.routes.all(r, !has(r.match.methods) || !r.match.methods.exists(m, m == 'POST') || (has(r.pass) && r.pass) || (has(r.key) && has(r.key.body)))",
        "message": "responses to POST depend on the body: set key.body, such as {maxSize: 64Ki}, or take POST out of match.methods",
    },
    {
        "rule": "!has(self.routes) || self.routes.all(r, (has(r.pass) && r.pass) || (has(r.forwardHeaders) ? r.forwardHeaders : has(self.defaults) && has(self.defaults.forwardHeaders) ? self.defaults.forwardHeaders : 'All') != 'Keyed' || (has(r.key) && has(r.key.host) ? r.key.host : has(self.defaults) && has(self.defaults.key) && has(self.defaults.key.host) ? self.defaults.key.host : 'Include') != 'Ignore')",
        "message": "forwardHeaders: Keyed sends only what is in the key, and an application needs a Host: set key.host to Include, or forwardHeaders to All",
    },
    {
        "rule": "!has(self.defaults) || !has(self.defaults.lastKnownGood) || (has(self.sources) && self.sources.exists(s, s.name == self.defaults.lastKnownGood.source && has(s.postgres)))",
        "message": "defaults.lastKnownGood names no Postgres server of spec.sources: add it there, or write the name of one that is there",
    },
    {
        "rule": "!has(self.invalidation) || !has(self.invalidation.notifications) || (has(self.sources) && self.sources.exists(s, s.name == self.invalidation.notifications.source && has(s.postgres)))",
        "message": "invalidation.notifications names no Postgres server of spec.sources: add it there, or write the name of one that is there",
    },
    {
        "rule": "!has(self.invalidation) || !has(self.invalidation.changes) || (has(self.sources) && self.sources.exists(s, s.name == self.invalidation.changes.source && has(s.postgres)))",
        "message": "invalidation.changes names no Postgres server of spec.sources: add it there, or write the name of one that is there",
    },
]))]
pub struct CachePolicySpec {
    /// Selector of the pods, by labels that the pods themselves carry. Of two policies that select a pod, the older one
    /// serves it.
    #[schemars(schema_with = "schema::label_selector")]
    pub selector: LabelSelector,

    /// Ports of the application that are served through the sidecar.
    #[schemars(
        length(max = 4),
        extend("x-kubernetes-list-type" = "atomic", "x-kubernetes-validations" = [{
            "rule": "size(self) > 0",
            "message": "list at least one port of the application's containers, such as {port: http}",
        }])
    )]
    pub targets: Vec<Target>,

    /// Capture of the requests by the sidecar.
    #[serde(default)]
    pub capture: Capture,

    /// The sidecar itself.
    #[serde(default)]
    pub sidecar: SidecarSpec,

    /// Configuration of the cache.
    #[serde(flatten)]
    pub cache: CacheSpec,
}

/// A port of the application.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// Container port, by name or number.
    #[schemars(schema_with = "schema::port")]
    pub port: IntOrString,

    /// Place from which the application takes the number of this port. With `capture.mode: PortVariable` the sidecar takes
    /// the port, and the application gets another number there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_from: Option<PortFrom>,
}

/// Place from which an application takes the number of its port. Set exactly one member. The value is the number, alone or
/// after a colon, as in `:8080` or `http://+:8080`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.env) != has(self.argument)",
    "message": "portFrom needs a place: set one of env and argument",
}]))]
pub struct PortFrom {
    /// Environment variable of the container, such as `PORT`. A variable that the container does not list is added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), extend("x-kubernetes-validations" = [{
        "rule": "self.matches('^[A-Za-z_][A-Za-z0-9_.-]*$')",
        "message": "write the name of an environment variable, such as PORT",
    }]))]
    pub env: Option<String>,

    /// Argument of the container's `command` or `args`, such as `--port`. The number follows after `=` or as the next argument.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), extend("x-kubernetes-validations" = [{
        "rule": r"self.matches('^[^=\\s]+$')",
        "message": "write the argument that the port follows, without = and spaces, such as --port",
    }]))]
    pub argument: Option<String>,
}

/// Capture of the requests by the sidecar.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Capture {
    /// Capture mode: `NamedPort`; `PortVariable`; `Auto`, which chooses `PortVariable` if the targets have `portFrom` and
    /// `NamedPort` otherwise; `Redirect`, by an init container with the capability `NET_ADMIN`, in any namespace that allows
    /// it, if the chart's `capture.redirect.enabled` does; `CompanionService`, by a Service `<service>-cached` for callers who
    /// opt in; or `None`, which gives no pod a sidecar. `Auto` chooses neither `Redirect` nor `CompanionService`.
    /// `status.capture` is the mode in use.
    #[serde(default)]
    pub mode: CaptureMode,
}

/// Capture mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CaptureMode {
    /// `PortVariable` if the targets have `portFrom`, and `NamedPort` otherwise.
    #[default]
    Auto,
    /// The port's name moves to the sidecar's number: every Service and monitor that names the port reaches the sidecar.
    NamedPort,
    /// The sidecar takes the port's number, and the application gets another by the variable or argument in `portFrom`: every
    /// client of the port reaches the sidecar, through any Service or by the pod's address.
    PortVariable,
    /// An init container with the capability `NET_ADMIN` redirects connections to the application's number: numeric
    /// `targetPort`s, headless Services, pod addresses and ports without names are captured. Needs the chart's
    /// `capture.redirect.enabled` and a namespace whose Pod Security level is `privileged`.
    Redirect,
    /// A Service `<service>-cached` beside each Service of the pods leads to the sidecars, for callers who opt in. Callers of
    /// the Service itself reach the application, and their writes purge nothing.
    CompanionService,
    /// No capture: no pod gets a sidecar, and pods that have one lose it.
    None,
}

/// The sidecar itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SidecarSpec {
    /// Rollout of the sidecar to running workloads.
    #[serde(default)]
    pub rollout: Rollout,

    /// Resources of the sidecar.
    #[serde(default)]
    pub resources: Resources,

    /// Verbosity of the sidecar's log. `Debug` logs the whole target of each request, query included. A change rolls
    /// the pods, as a change of `resources` does.
    #[serde(default, skip_serializing_if = "LogLevel::is_info")]
    #[schemars(extend("default" = "Info"))]
    pub log_level: LogLevel,
}

/// Verbosity of the sidecar's log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LogLevel {
    /// Events that matter in operation: the configuration in use, and failures.
    #[default]
    Info,
    /// Also a line for each request, each hit and miss, and each request to a source, with whole targets.
    Debug,
}

impl LogLevel {
    fn is_info(&self) -> bool {
        *self == Self::default()
    }
}

/// Rollout of the sidecar to running workloads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// Rollout strategy. Default `Restart`.
    #[serde(default)]
    pub strategy: RolloutStrategy,

    /// Maximum number of workloads that are restarted at a time, once the pods of the first are ready. The chart's
    /// `rollout.maxConcurrent` bounds the sum over all policies. Default 3.
    #[serde(default = "default_max_concurrent")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_concurrent: u16,
}

impl Default for Rollout {
    fn default() -> Self {
        Self { strategy: RolloutStrategy::default(), max_concurrent: default_max_concurrent() }
    }
}

const fn default_max_concurrent() -> u16 {
    3
}

/// Rollout strategy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RolloutStrategy {
    /// Restart Deployments, StatefulSets and DaemonSets, by their own update strategy.
    #[default]
    Restart,
    /// Restart nothing; pods get the sidecar when they are next created.
    OnCreate,
}

/// Resources of the sidecar.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "!isQuantity(string(self.requests.memory)) || !isQuantity(string(self.limits.memory)) || quantity(string(self.requests.memory)).compareTo(quantity(string(self.limits.memory))) <= 0",
        "message": "requests.memory is above limits.memory (128Mi where it is not set): raise limits.memory or lower requests.memory",
    },
    {
        "rule": "!has(self.limits.cpu) || !isQuantity(string(self.requests.cpu)) || !isQuantity(string(self.limits.cpu)) || quantity(string(self.requests.cpu)).compareTo(quantity(string(self.limits.cpu))) <= 0",
        "message": "requests.cpu is above limits.cpu: raise limits.cpu or lower requests.cpu",
    },
]))]
pub struct Resources {
    /// Resources that the scheduler reserves for each sidecar.
    #[serde(default)]
    pub requests: Requests,

    /// Limits of each sidecar.
    #[serde(default)]
    pub limits: Limits,
}

/// Resources that the scheduler reserves for each sidecar.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Requests {
    /// CPU time.
    #[serde(default = "default_cpu_request")]
    #[schemars(schema_with = "schema::quantity")]
    pub cpu: Quantity,

    /// Memory.
    #[serde(default = "default_memory_request")]
    #[schemars(schema_with = "schema::quantity")]
    pub memory: Quantity,
}

impl Default for Requests {
    fn default() -> Self {
        Self { cpu: default_cpu_request(), memory: default_memory_request() }
    }
}

fn default_cpu_request() -> Quantity {
    Quantity("20m".into())
}

fn default_memory_request() -> Quantity {
    Quantity("32Mi".into())
}

/// Limits of each sidecar.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// CPU time. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quantity")]
    pub cpu: Option<Quantity>,

    /// Memory: at least `l1.maxSize` plus 32Mi for requests in progress.
    #[serde(default = "default_memory_limit")]
    #[schemars(schema_with = "schema::quantity")]
    pub memory: Quantity,
}

impl Limits {
    /// The part of [`Self::memory`] that is reserved for requests in progress, in bytes.
    pub const HEADROOM: u64 = 32 << 20;
}

impl Default for Limits {
    fn default() -> Self {
        Self { cpu: None, memory: default_memory_limit() }
    }
}

fn default_memory_limit() -> Quantity {
    Quantity("128Mi".into())
}

#[cfg(test)]
mod tests {
    use kube::Resource;

    use super::*;

    #[test]
    fn the_resource_has_the_names_that_other_crates_use() {
        assert_eq!(CachePolicy::group(&()), larder_api::GROUP);
        assert_eq!(CachePolicy::api_version(&()), larder_api::API_VERSION);
        assert_eq!(CachePolicy::kind(&()), larder_api::KIND);
    }

    #[test]
    fn omitted_fields_have_their_defaults() {
        let spec: CachePolicySpec = serde_json::from_value(serde_json::json!({
            "selector": {"matchLabels": {"app": "shop"}},
            "targets": [{"port": "http"}],
            "sidecar": {"resources": {"limits": {"memory": "1Gi"}}},
        }))
        .unwrap();
        assert_eq!(spec.capture.mode, CaptureMode::Auto);
        assert_eq!(spec.sidecar.rollout.strategy, RolloutStrategy::Restart);
        assert_eq!(spec.sidecar.resources.requests.cpu.0, "20m");
        assert_eq!(spec.sidecar.resources.limits.memory.0, "1Gi");
        assert!(!spec.cache.suspend);
    }

    #[test]
    fn the_cache_sits_flat_in_the_spec() {
        let spec: CachePolicySpec = serde_json::from_value(serde_json::json!({
            "selector": {"matchLabels": {"app": "shop"}},
            "targets": [{"port": 8080}],
            "suspend": true,
            "l1": {"maxSize": "1Mi"},
        }))
        .unwrap();
        assert!(spec.cache.suspend);
        assert_eq!(spec.targets[0].port, IntOrString::Int(8080));
        assert_eq!(serde_json::to_value(&spec).unwrap()["l1"]["maxSize"], "1Mi");
    }

    #[test]
    fn the_defaults_fit_into_the_memory() {
        let spec: CachePolicySpec = serde_json::from_value(serde_json::json!({
            "selector": {"matchLabels": {"app": "shop"}},
            "targets": [{"port": 8080}],
        }))
        .unwrap();
        let memory: larder_policy::ByteSize = spec.sidecar.resources.limits.memory.0.parse().unwrap();
        assert!(spec.cache.l1.max_size.0 + Limits::HEADROOM <= memory.0);
        assert_eq!(Limits::HEADROOM, 32 << 20, "the rules of the spec say 32Mi");
    }
}
