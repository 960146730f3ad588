//! Bounds of the cluster on what policies may ask for: the chart's `policies`.
//!
//! Whoever may write a policy decides over pods of others in the namespace: their memory, the servers that they connect to, and for how
//! long they serve what they stored. A policy that asks for more is not accepted; the message has the field, its value and the bound.

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use larder_crds::{CachePolicySpec, CaptureMode};
use larder_policy::{
    Destinations, Duration,
    destinations::HostPattern,
    spec::{CacheSpec, RouteSpec},
};
use serde::Deserialize;
use serde_json::json;

use crate::{capture::Mode, quantity::nanos};

/// Bounds on policies. The default has none but those on the addresses of servers.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(from = "Written")]
pub struct Bounds {
    max_memory: Option<Quantity>,
    max_cpu: Option<Quantity>,
    max_ttl: Option<Duration>,
    max_stale: Option<Duration>,
    capture_modes: Vec<CaptureMode>,
    /// Bounds on the servers that sidecars connect to.
    pub destinations: Destinations,
}

/// Bounds as the chart has them.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Written {
    max_memory: Option<Quantity>,
    #[serde(rename = "maxCPU")]
    max_cpu: Option<Quantity>,
    #[serde(rename = "maxTTL")]
    max_ttl: Option<Duration>,
    max_stale: Option<Duration>,
    capture_modes: Vec<CaptureMode>,
    sources: WrittenSources,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct WrittenSources {
    allowed_hosts: Vec<HostPattern>,
    allowed_networks: Vec<IpNet>,
    denied_networks: Option<Vec<IpNet>>,
}

impl From<Written> for Bounds {
    fn from(written: Written) -> Self {
        let Written { max_memory, max_cpu, max_ttl, max_stale, capture_modes, sources } = written;
        let WrittenSources { allowed_hosts, allowed_networks, denied_networks } = sources;
        let denied_networks = denied_networks.unwrap_or(Destinations::of_cluster().denied_networks);
        let destinations = Destinations { allowed_hosts, allowed_networks, denied_networks };
        Self { max_memory, max_cpu, max_ttl, max_stale, capture_modes, destinations }
    }
}

impl Default for Bounds {
    fn default() -> Self {
        Written::default().into()
    }
}

impl Bounds {
    /// Reads bounds in JSON.
    ///
    /// # Errors
    /// The reason that they cannot be read.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bounds: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        for (name, quantity) in [("maxMemory", &bounds.max_memory), ("maxCPU", &bounds.max_cpu)] {
            if let Some(quantity) = quantity.as_ref().filter(|quantity| nanos(quantity).is_none()) {
                return Err(format!("{name}: {:?} is not a quantity", quantity.0));
            }
        }
        Ok(bounds)
    }

    /// Returns the fields of a policy that exceed a bound, one clause each.
    pub fn exceeded(&self, spec: &CachePolicySpec) -> Vec<String> {
        let mut found = Vec::new();
        let resources = &spec.sidecar.resources;
        let at = "spec.sidecar.resources";
        let memory = ("maxMemory", &self.max_memory);
        let cpu = ("maxCPU", &self.max_cpu);
        for (field, asked, (name, bound)) in [
            ("limits.memory", Some(&resources.limits.memory), memory),
            ("requests.memory", Some(&resources.requests.memory), memory),
            ("limits.cpu", resources.limits.cpu.as_ref(), cpu),
            ("requests.cpu", Some(&resources.requests.cpu), cpu),
        ] {
            let Some(bound) = bound else { continue };
            match asked {
                None => found.push(format!("{at}.{field} is not set, which {name} ({}) requires", bound.0)),
                Some(asked) if nanos(asked) > nanos(bound) => {
                    found.push(above(&format!("{at}.{field}"), &asked.0, name, &bound.0));
                }
                Some(_) => {}
            }
        }
        if !self.allows_capture(spec) {
            let (asked, modes) = (name(spec.capture.mode), self.capture_modes.iter().map(|mode| name(*mode)));
            let modes = modes.collect::<Vec<_>>().join(", ");
            let chosen =
                Mode::of(&spec.capture, &spec.targets).filter(|_| spec.capture.mode == CaptureMode::Auto);
            let chosen = chosen.map(|mode| format!(", which is {} here", mode.as_str())).unwrap_or_default();
            found.push(format!(
                "spec.capture.mode ({asked}{chosen}) is not among policies.captureModes ({modes}) of the chart"
            ));
        }
        self.times(&spec.cache, &mut found);
        self.hosts(&spec.cache, &mut found);
        found
    }

    /// Returns true if a policy's capture mode is allowed, or the mode that `Auto` chooses. `None`, which captures nothing, always is.
    pub fn allows_capture(&self, spec: &CachePolicySpec) -> bool {
        let Some(mode) = Mode::of(&spec.capture, &spec.targets) else { return true };
        let asked = name(spec.capture.mode);
        let mut allowed = self.capture_modes.iter().map(|mode| name(*mode));
        self.capture_modes.is_empty() || allowed.any(|allowed| allowed == asked || allowed == mode.as_str())
    }

    fn times(&self, spec: &CacheSpec, found: &mut Vec<String>) {
        for (index, route) in spec.complete_routes().iter().enumerate() {
            let mut add = |field: &str, of: &dyn Fn(&str) -> String| {
                let message = of(&spec.written_at(index, field));
                if !found.contains(&message) {
                    found.push(message);
                }
            };
            let statuses = route.statuses.iter().flatten().enumerate();
            let statuses = statuses.map(|(index, status)| (format!("statuses[{index}].ttl"), status.ttl));
            let ttls = [
                ("ttl", route.ttl),
                ("maxTTL", route.max_ttl),
                ("l1TTL", route.l1_ttl),
                ("l2TTL", route.l2_ttl),
                ("notFoundTTL", route.not_found_ttl),
            ];
            let ttls = ttls.map(|(field, ttl)| (field.to_owned(), ttl)).into_iter().chain(statuses);
            let ttls = ttls.map(|(field, ttl)| (field, ttl, ("maxTTL", self.max_ttl)));
            let windows = [
                ("staleWhileRevalidate", route.stale_while_revalidate),
                ("staleIfError", route.stale_if_error),
                ("grace", route.grace),
            ];
            let windows = windows.map(|(field, time)| (field.to_owned(), time, ("maxStale", self.max_stale)));
            for (field, time, (name, bound)) in ttls.chain(windows) {
                if let (Some(time), Some(bound)) = (time, bound)
                    && time > bound
                {
                    add(&field, &|at| above(at, &time.to_string(), name, &bound.to_string()));
                }
            }
            if let (Some(_), Some(bound)) = (&route.ttl_from, self.max_ttl) {
                add("ttlFrom", &|at| {
                    format!(
                        "{at} lets a response state any TTL, which policies.maxTTL ({bound}) of the chart forbids: set ttl"
                    )
                });
            }
        }
    }

    fn hosts(&self, spec: &CacheSpec, found: &mut Vec<String>) {
        let sources = spec.sources.iter().enumerate();
        let sources = sources.filter_map(|(index, source)| {
            Some((format!("spec.sources[{index}].http.url"), &source.http.as_ref()?.url))
        });
        let otlp = spec.telemetry.as_ref().and_then(|telemetry| telemetry.otlp.as_ref());
        let otlp = otlp.map(|otlp| ("spec.telemetry.otlp.endpoint".to_owned(), &otlp.endpoint));
        for (field, url) in sources.chain(otlp) {
            // An invalid URL is found elsewhere.
            let Ok(uri) = url.parse::<hyper::Uri>() else { continue };
            if let Err(error) = self.destinations.check_host(uri.host().unwrap_or_default()) {
                found.push(format!("{field}: {error}"));
            }
        }
    }

    /// Lowers the resources of a policy's sidecar to the bounds. The sidecar fits its L1 into the memory that it gets.
    pub fn confine(&self, spec: &mut CachePolicySpec) {
        let lower = |quantity: &mut Quantity, bound: &Option<Quantity>| {
            if let Some(bound) = bound.as_ref().filter(|bound| nanos(quantity) > nanos(bound)) {
                *quantity = bound.clone();
            }
        };
        let resources = &mut spec.sidecar.resources;
        lower(&mut resources.limits.memory, &self.max_memory);
        lower(&mut resources.requests.memory, &self.max_memory);
        lower(&mut resources.requests.cpu, &self.max_cpu);
        match &mut resources.limits.cpu {
            Some(cpu) => lower(cpu, &self.max_cpu),
            none => none.clone_from(&self.max_cpu),
        }
    }

    /// Bounds the routes that store and leave the TTL to the responses.
    pub fn cap(&self, spec: &mut CacheSpec) {
        let is_open = |route: &&mut RouteSpec| !route.pass && route.ttl.is_none() && route.max_ttl.is_none();
        for route in spec.routes.iter_mut().filter(is_open) {
            route.max_ttl = self.max_ttl;
        }
    }
}

/// Returns the name of a capture mode in a policy.
fn name(mode: CaptureMode) -> String {
    json!(mode).as_str().unwrap_or_default().to_owned()
}

fn above(field: &str, value: &str, name: &str, bound: &str) -> String {
    format!("{field} ({value}) is above policies.{name} ({bound}) of the chart")
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::inject::tests::spec;

    fn exceeded(bounds: Value, policy: Value) -> Vec<String> {
        Bounds::parse(&bounds.to_string()).unwrap().exceeded(&spec(policy))
    }

    fn refuses(bounds: Value, policy: Value, words: &[&str]) {
        let found = exceeded(bounds, policy);
        let [only] = found.as_slice() else { panic!("{found:?}") };
        assert!(words.iter().all(|words| only.contains(words)), "{only}");
    }

    #[test]
    fn resources_above_their_bound_are_named() {
        let limits = |limits: Value| json!({"sidecar": {"resources": {"limits": limits}}});
        let memory = json!({"maxMemory": "256Mi"});
        for fits in ["256Mi", "0.25Gi", "268435456", "128Mi"] {
            assert_eq!(exceeded(memory.clone(), limits(json!({"memory": fits}))), [""; 0], "{fits}");
        }
        for above in ["257Mi", "1Gi", "0.26Gi", "1e9"] {
            let words = ["spec.sidecar.resources.limits.memory", above, "policies.maxMemory (256Mi)"];
            refuses(memory.clone(), limits(json!({"memory": above})), &words);
        }
        refuses(json!({"maxMemory": "64Mi"}), json!({}), &["limits.memory (128Mi)"]);
        let cpu = json!({"maxCPU": "500m"});
        refuses(cpu.clone(), json!({}), &["limits.cpu is not set", "maxCPU (500m)"]);
        refuses(cpu.clone(), limits(json!({"cpu": "1"})), &["limits.cpu (1)", "maxCPU (500m)"]);
        assert_eq!(exceeded(cpu, limits(json!({"cpu": "0.5"}))), [""; 0]);
    }

    #[test]
    fn every_ttl_is_bounded() {
        let route = |fields: Value| {
            let mut route = json!({"name": "a", "match": {"path": "/a"}});
            route.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            json!({"routes": [route]})
        };
        let ttl = || json!({"maxTTL": "24h"});
        for (fields, named) in [
            (json!({"ttl": "25h"}), "spec.routes[0].ttl (25h"),
            (json!({"maxTTL": "48h"}), "spec.routes[0].maxTTL (48h"),
            (json!({"ttl": "1h", "l1TTL": "25h"}), "l1TTL"),
            (json!({"ttl": "1h", "l2TTL": "25h"}), "l2TTL"),
            (json!({"notFoundTTL": "25h"}), "notFoundTTL"),
            (json!({"statuses": [{"code": 404, "ttl": "25h"}]}), "spec.routes[0].statuses[0].ttl"),
        ] {
            refuses(ttl(), route(fields), &[named, "policies.maxTTL (24h"]);
        }
        refuses(ttl(), route(json!({"ttl": "1h", "ttlFrom": {"header": "x-ttl"}})), &["ttlFrom", "24h"]);
        let shared = |fields: Value| {
            let route = |name: &str| json!({"name": name, "match": {"path": "/a"}});
            json!({"defaults": fields, "routes": [route("a"), route("b")]})
        };
        refuses(ttl(), shared(json!({"ttl": "25h"})), &["spec.defaults.ttl (25h", "policies.maxTTL (24h"]);
        let sourced = shared(json!({"ttl": "1h", "ttlFrom": {"header": "x-ttl"}}));
        refuses(ttl(), sourced, &["spec.defaults.ttlFrom lets"]);
        let window = route(json!({"ttl": "1h", "staleIfError": "48h"}));
        assert_eq!(exceeded(ttl(), window.clone()), [""; 0]);
        refuses(json!({"maxStale": "24h"}), window, &["staleIfError", "policies.maxStale"]);
        let window = route(json!({"ttl": "1h", "grace": "48h"}));
        refuses(json!({"maxStale": "24h"}), window, &["grace", "policies.maxStale"]);
        let window = shared(json!({"ttl": "1h", "grace": "48h"}));
        refuses(json!({"maxStale": "24h"}), window, &["spec.defaults.grace (48h", "policies.maxStale"]);
        let mut open = spec(route(json!({}))).cache;
        Bounds::parse(&ttl().to_string()).unwrap().cap(&mut open);
        assert_eq!(open.routes[0].max_ttl.unwrap().0.as_secs(), 86_400);
    }

    #[test]
    fn capture_modes_are_bounded() {
        let mode = |mode: &str| json!({"capture": {"mode": mode}});
        let by_variable = json!({"targets": [{"port": "http", "portFrom": {"env": "PORT"}}]});
        let only = |mode: &str| json!({"captureModes": [mode]});
        for allowed in [mode("NamedPort"), mode("Auto"), mode("None")] {
            assert_eq!(exceeded(only("NamedPort"), allowed), [""; 0]);
        }
        refuses(only("NamedPort"), mode("Redirect"), &["spec.capture.mode (Redirect)", "(NamedPort)"]);
        refuses(
            only("NamedPort"),
            by_variable.clone(),
            &["(Auto, which is PortVariable here)", "(NamedPort)"],
        );
        assert_eq!(exceeded(only("Auto"), by_variable), [""; 0]);
        refuses(only("Auto"), mode("NamedPort"), &["spec.capture.mode (NamedPort)", "(Auto)"]);
    }

    #[test]
    fn hosts_that_are_written_in_a_policy_are_checked() {
        let source = |url: &str| json!({"sources": [{"name": "a", "http": {"url": url}}]});
        for url in [
            "http://169.254.169.254/latest",
            "http://127.0.0.1:80",
            "https://[::1]/",
            "http://[::ffff:a9fe:a9fe]/",
        ] {
            refuses(json!({}), source(url), &["spec.sources[0].http.url", "deniedNetworks"]);
        }
        assert_eq!(
            exceeded(json!({"sources": {"deniedNetworks": []}}), source("http://127.0.0.1:80")),
            [""; 0]
        );
        let hosts = || json!({"sources": {"allowedHosts": ["*.example.com"]}});
        assert_eq!(exceeded(hosts(), source("http://a.example.com")), [""; 0]);
        refuses(hosts(), source("http://a.example.org"), &["host a.example.org", "*.example.com"]);
        refuses(hosts(), source("http://127.0.0.1"), &["127.0.0.0/8"]);
        let otlp = json!({"telemetry": {"otlp": {"endpoint": "http://169.254.1.1:4317"}}});
        refuses(json!({}), otlp, &["spec.telemetry.otlp.endpoint"]);
    }

    #[test]
    fn confined_sidecar_keeps_to_the_bounds() {
        let bounds = Bounds::parse(r#"{"maxMemory": "256Mi", "maxCPU": "1"}"#).unwrap();
        let resources = json!({"limits": {"memory": "10Gi"}, "requests": {"memory": "8Gi", "cpu": "4"}});
        let mut spec = spec(json!({"sidecar": {"resources": resources}}));
        bounds.confine(&mut spec);
        assert_eq!(bounds.exceeded(&spec), [""; 0]);
        assert_eq!(spec.sidecar.resources.limits.memory.0, "256Mi");
    }

    #[test]
    fn malformed_bounds_are_refused() {
        for (text, word) in [
            (r#"{"maxMemory": "lots"}"#, "maxMemory"),
            (r#"{"maxRAM": "1Gi"}"#, "maxRAM"),
            (r#"{"maxTTL": "1d"}"#, "duration"),
            (r#"{"captureModes": ["Magic"]}"#, "Magic"),
            (r#"{"sources": {"deniedNetworks": ["10"]}}"#, "address"),
            (r#"{"sources": {"allowedHosts": ["https://a"]}}"#, "not a host"),
            (r#"{"sources": {"hosts": []}}"#, "hosts"),
        ] {
            let error = Bounds::parse(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
        assert_eq!(Bounds::parse("{}").unwrap(), Bounds::default());
    }
}
