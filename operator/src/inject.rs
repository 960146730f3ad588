//! Injection of the sidecar into a pod: a pure function over the pod's JSON.
//!
//! # Guarantees
//! - Fields that the operator's types do not know survive: the pod is never parsed into them.
//! - `inject(inject(pod)) == inject(pod)`: an admission webhook is called again when other webhooks changed the pod.
//! - The injected pod passes the `restricted` Pod Security Standard if the pod did.
//! - Probes and lifecycle hooks of the application reach the application, as before.

mod pre_stop;
mod sidecar;

use std::sync::Arc;

use k8s_openapi::api::networking::v1::NetworkPolicy;
use larder_api::{annotations, labels, names};
use larder_crds::CachePolicySpec;
use larder_policy::spec::SecretKeyRef;
use serde_json::{Map, Value, json};

use crate::{
    capture::{Captured, Inputs, Mode, Plan, Skip, SkipReason},
    cli::SidecarSettings,
    compile,
};

/// The default of a pod's `terminationGracePeriodSeconds`.
const DEFAULT_GRACE_SECONDS: u64 = 30;

/// Result of an injection.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The pod has the sidecar.
    Injected(Injected),
    /// The pod cannot have the sidecar.
    Skipped(Skip),
}

/// A pod with the sidecar.
#[derive(Clone, Debug, PartialEq)]
pub struct Injected {
    /// The pod's JSON.
    pub pod: Value,
    /// The hash of the injection's inputs.
    pub hash: String,
    /// The captured ports.
    pub captured: Vec<Captured>,
}

/// Inputs of an injection, besides the pod itself.
#[derive(Clone, Copy, Debug)]
pub struct Injection<'a> {
    /// The policy's namespace, which is the pod's.
    pub namespace: &'a str,
    /// The policy's name.
    pub policy: &'a str,
    /// The policy.
    pub spec: &'a CachePolicySpec,
    /// Settings of injected sidecars.
    pub settings: &'a SidecarSettings,
    /// The namespace's network policies.
    pub network_policies: &'a [Arc<NetworkPolicy>],
}

/// Injects the sidecar into `pod`, a pod's JSON, or returns the reason against it.
pub fn inject(pod: &Value, injection: &Injection<'_>) -> Outcome {
    let secrets = compile::secrets(&injection.spec.cache);
    let hash = hash(injection, &secrets);
    if has_sidecar(pod) {
        let annotations = &pod["metadata"]["annotations"];
        if annotations[annotations::INJECTION_HASH] != hash.as_str() {
            return Outcome::Skipped(Skip {
                reason: SkipReason::ForeignSidecar,
                message: format!(
                    "the pod already has a container {} with other settings; remove it and the larder.dev \
                     annotations from the pod template",
                    names::SIDECAR
                ),
            });
        }
        let captured = captured_of(pod);
        return Outcome::Injected(Injected { pod: pod.clone(), hash, captured });
    }
    if pod["metadata"]["annotations"][annotations::WITHHELD] == hash.as_str() {
        return Outcome::Skipped(Skip {
            reason: SkipReason::RolloutUndone,
            message: "a rollout with the sidecar could not end and was undone; the sidecar is tried again when the pod \
                      template or the policy's sidecar changes"
                .into(),
        });
    }
    let inputs = Inputs {
        targets: &injection.spec.targets,
        settings: injection.settings,
        network_policies: injection.network_policies,
    };
    let plan = match Plan::new(injection.spec.capture.mode, pod, &inputs) {
        Ok(plan) => plan,
        Err(skip) => return Outcome::Skipped(skip),
    };
    let captured = plan.captured().to_vec();

    let before = pod;
    let mut pod = before.clone();
    plan.apply(&mut pod);
    let mut original = json!({ "captured": captured, "containers": {} });
    let mut sleeps = false;
    let containers = before["spec"]["containers"].as_array().into_iter().flatten();
    let changed = pod["spec"]["containers"].as_array_mut().into_iter().flatten();
    for (before, container) in containers.zip(changed) {
        let name = before["name"].as_str().unwrap_or_default();
        if captured.iter().any(|one| one.container == name) {
            original["containers"][name] = rewritten_fields(before);
            sleeps |= pre_stop::sleep_before_stop(container, injection.settings.drain_seconds);
        }
    }
    let spec = member(&mut pod, "spec");
    if sleeps {
        let grace = spec.get("terminationGracePeriodSeconds").and_then(Value::as_u64);
        original["terminationGracePeriodSeconds"] = json!(grace);
        let grace = grace.unwrap_or(DEFAULT_GRACE_SECONDS) + u64::from(injection.settings.drain_seconds);
        spec.insert("terminationGracePeriodSeconds".into(), json!(grace));
    }
    list(spec, "initContainers").push(sidecar::container(injection, &captured, &secrets));
    list(spec, "volumes").extend(sidecar::volumes(injection.policy, &secrets));

    let metadata = member(&mut pod, "metadata");
    map(metadata, "labels").insert(labels::POLICY.into(), json!(injection.policy));
    let annotations = map(metadata, "annotations");
    annotations.remove(annotations::SKIPPED);
    annotations.insert(annotations::INJECTION_HASH.into(), json!(hash));
    annotations.insert(annotations::ORIGINAL.into(), json!(original.to_string()));
    Outcome::Injected(Injected { pod, hash, captured })
}

/// Returns `pod` with an annotation that states the reason for the missing sidecar.
pub fn skipped(pod: &Value, skip: &Skip) -> Value {
    let mut pod = pod.clone();
    map(member(&mut pod, "metadata"), "annotations")
        .insert(annotations::SKIPPED.into(), json!(skip.to_string()));
    pod
}

/// Returns true if a pod's JSON has the sidecar.
pub fn has_sidecar(pod: &Value) -> bool {
    let containers = pod["spec"]["initContainers"].as_array().into_iter().flatten();
    containers.into_iter().any(|container| container["name"] == names::SIDECAR)
}

/// Returns the ports that were captured when the pod was injected.
pub fn captured_of(pod: &Value) -> Vec<Captured> {
    pod["metadata"]["annotations"][annotations::ORIGINAL]
        .as_str()
        .and_then(|text| serde_json::from_str::<Value>(text).ok())
        .and_then(|original| serde_json::from_value(original["captured"].clone()).ok())
        .unwrap_or_default()
}

/// Hashes everything that decides the shape of an injected pod, the pod itself aside. The input is JSON with sorted
/// objects, so that the hash is equal in every replica.
pub fn hash(injection: &Injection<'_>, secrets: &[SecretKeyRef]) -> String {
    let SidecarSettings { image, pull_policy, data_port, admin_port, drain_seconds } = injection.settings;
    let parts = json!({
        "layout": 1,
        "capture": Mode::of(injection.spec.capture.mode).map(Mode::fingerprint),
        "policy": injection.policy,
        "image": image,
        "pullPolicy": pull_policy.map(|policy| policy.as_str()),
        "dataPort": data_port,
        "adminPort": admin_port,
        "drainSeconds": drain_seconds,
        "targets": injection.spec.targets,
        "resources": injection.spec.sidecar.resources,
        "logLevel": injection.spec.sidecar.log_level,
        "secrets": secrets,
    });
    larder_policy::digest::short(&blake3::hash(parts.to_string().as_bytes()))
}

/// Returns the fields of a container that injection may rewrite, unchanged.
fn rewritten_fields(container: &Value) -> Value {
    let fields = ["ports", "readinessProbe", "livenessProbe", "startupProbe", "lifecycle"];
    fields
        .into_iter()
        .filter_map(|field| Some((field.to_owned(), container.get(field)?.clone())))
        .collect::<Map<_, _>>()
        .into()
}

fn member<'a>(object: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    if !object.is_object() {
        *object = json!({});
    }
    map(object.as_object_mut().expect("the value was just set to an object"), key)
}

fn map<'a>(object: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let value = object.entry(key).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("the value was just set to an object")
}

fn list<'a>(object: &'a mut Map<String, Value>, key: &str) -> &'a mut Vec<Value> {
    let value = object.entry(key).or_insert_with(|| json!([]));
    if !value.is_array() {
        *value = json!([]);
    }
    value.as_array_mut().expect("the value was just set to an array")
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns the settings of sidecars in tests.
    pub(crate) fn settings() -> SidecarSettings {
        SidecarSettings {
            image: "larder/sidecar:1".into(),
            pull_policy: None,
            data_port: 24800,
            admin_port: 24890,
            drain_seconds: 5,
        }
    }

    /// Returns a pod that passes `restricted`, with two containers.
    pub(crate) fn pod() -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "shop-1", "labels": {"app": "shop"}},
            "spec": {
                "containers": [
                    {
                        "name": "app",
                        "image": "app",
                        "ports": [
                            {"name": "http", "containerPort": 8080, "protocol": "TCP", "fromTheFuture": 1},
                            {"name": "admin", "containerPort": 9000},
                        ],
                        "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 3},
                        "livenessProbe": {"tcpSocket": {"port": "http"}},
                        "startupProbe": {"httpGet": {"path": "/", "port": "admin"}},
                        "lifecycle": {"postStart": {"httpGet": {"path": "/hook", "port": "http"}}},
                    },
                    {"name": "other", "image": "other", "readinessProbe": {"httpGet": {"port": "http"}}},
                ],
                "terminationGracePeriodSeconds": 20,
                "aFieldFromTheFuture": {"deep": [1, {"x": null}]},
            },
        })
    }

    pub(crate) fn spec(value: Value) -> CachePolicySpec {
        let mut whole = json!({"selector": {"matchLabels": {"app": "shop"}}, "targets": [{"port": "http"}]});
        for (key, value) in value.as_object().unwrap() {
            whole[key] = value.clone();
        }
        serde_json::from_value(whole).unwrap()
    }

    fn run(pod: &Value, spec: &CachePolicySpec, settings: &SidecarSettings) -> Outcome {
        inject(pod, &Injection { namespace: "shop", policy: "shop", spec, settings, network_policies: &[] })
    }

    fn injected(pod: &Value, spec: &CachePolicySpec) -> Value {
        match run(pod, spec, &settings()) {
            Outcome::Injected(injected) => injected.pod,
            Outcome::Skipped(skip) => panic!("{skip}"),
        }
    }

    #[test]
    fn the_name_moves_to_the_sidecar_and_the_number_stays_listed() {
        let ports = injected(&pod(), &spec(json!({})))["spec"]["containers"][0]["ports"].clone();
        assert_eq!(
            ports,
            json!([
                {"name": "http", "containerPort": 24800, "protocol": "TCP", "fromTheFuture": 1},
                {"name": "admin", "containerPort": 9000},
                {"containerPort": 8080, "protocol": "TCP"},
            ])
        );
    }

    #[test]
    fn probes_and_hooks_still_reach_the_application() {
        let app = injected(&pod(), &spec(json!({})))["spec"]["containers"][0].clone();
        assert_eq!(
            app["readinessProbe"],
            json!({"httpGet": {"path": "/ready", "port": 8080}, "periodSeconds": 3})
        );
        assert_eq!(app["livenessProbe"]["tcpSocket"]["port"], 8080);
        assert_eq!(app["startupProbe"]["httpGet"]["port"], "admin", "another port's name still holds");
        assert_eq!(app["lifecycle"]["postStart"]["httpGet"]["port"], 8080);
    }

    #[test]
    fn the_sidecar_logs_as_much_as_the_policy_says() {
        let log = |spec: &Value| {
            let Outcome::Injected(injected) = run(&pod(), &self::spec(spec.clone()), &settings()) else {
                panic!("not injected")
            };
            let env = injected.pod["spec"]["initContainers"][0]["env"].as_array().unwrap().clone();
            let log = env.iter().find(|variable| variable["name"] == "RUST_LOG");
            (log.map(|variable| variable["value"].clone()), injected.hash)
        };
        let (info, hash) = log(&json!({}));
        assert_eq!(info, None);
        let (debug, other_hash) = log(&json!({"sidecar": {"logLevel": "Debug"}}));
        assert_eq!(debug, Some(json!("info,opentelemetry=warn,larder_sidecar=debug")));
        assert_ne!(hash, other_hash, "running pods are not rolled");
    }

    #[test]
    fn a_container_without_a_captured_port_is_left_alone() {
        assert_eq!(
            injected(&pod(), &spec(json!({})))["spec"]["containers"][1],
            pod()["spec"]["containers"][1]
        );
    }

    #[test]
    fn unknown_fields_survive() {
        let after = injected(&pod(), &spec(json!({})));
        assert_eq!(after["spec"]["aFieldFromTheFuture"], pod()["spec"]["aFieldFromTheFuture"]);
    }

    #[test]
    fn the_pod_waits_for_endpoints_before_it_stops() {
        let after = injected(&pod(), &spec(json!({})));
        assert_eq!(after["spec"]["containers"][0]["lifecycle"]["preStop"], json!({"sleep": {"seconds": 5}}));
        assert_eq!(after["spec"]["terminationGracePeriodSeconds"], 25);

        let mut own = pod();
        own["spec"]["containers"][0]["lifecycle"]["preStop"] =
            json!({"httpGet": {"path": "/bye", "port": "http"}});
        let after = injected(&own, &spec(json!({})));
        assert_eq!(
            after["spec"]["containers"][0]["lifecycle"]["preStop"],
            json!({"httpGet": {"path": "/bye", "port": 8080}})
        );
        assert_eq!(after["spec"]["terminationGracePeriodSeconds"], 20);

        let mut default = pod();
        default["spec"].as_object_mut().unwrap().remove("terminationGracePeriodSeconds");
        assert_eq!(injected(&default, &spec(json!({})))["spec"]["terminationGracePeriodSeconds"], 35);
    }

    #[test]
    fn the_sidecar_is_native_and_passes_restricted() {
        let spec = spec(json!({
            "targets": [{"port": "http"}, {"port": "admin"}],
            "l2": {"redis": {"urlFrom": {"secretKeyRef": {"name": "shop-redis", "key": "url"}}}},
        }));
        let after = injected(&pod(), &spec);
        let sidecar = &after["spec"]["initContainers"][0];
        assert_eq!(sidecar["restartPolicy"], "Always");
        assert_eq!(
            sidecar["args"],
            json!([
                "--listen",
                ":24800",
                "--upstream",
                "http://127.0.0.1:8080",
                "--listen",
                ":24801",
                "--upstream",
                "http://127.0.0.1:9000",
                "--admin-listen",
                ":24890",
                "--policy",
                "/etc/larder/policy/policy.yaml",
                "--admin-token-file",
                "/etc/larder/admin/token",
                "--pod-ip",
                "$(POD_IP)",
            ])
        );
        let security = &sidecar["securityContext"];
        assert_eq!(security["runAsNonRoot"], true);
        assert_eq!(security["allowPrivilegeEscalation"], false);
        assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
        assert_eq!(security["seccompProfile"], json!({"type": "RuntimeDefault"}));
        assert_eq!(sidecar["resources"]["requests"], json!({"cpu": "20m", "memory": "32Mi"}));
        let volumes = after["spec"]["volumes"].as_array().unwrap();
        assert_eq!(volumes.len(), 3);
        for volume in volumes {
            let source = volume.get("secret").or(volume.get("configMap")).unwrap();
            assert_eq!(source["optional"], true, "{volume}");
        }
        assert_eq!(volumes[2]["secret"]["items"], json!([{"key": "url", "path": "url"}]));
    }

    #[test]
    fn original_values_are_recorded() {
        let after = injected(&pod(), &spec(json!({})));
        let original: Value =
            serde_json::from_str(after["metadata"]["annotations"][annotations::ORIGINAL].as_str().unwrap())
                .unwrap();
        let before = pod();
        let app = &before["spec"]["containers"][0];
        for field in ["ports", "readinessProbe", "livenessProbe", "startupProbe", "lifecycle"] {
            assert_eq!(original["containers"]["app"][field], app[field], "{field}");
        }
        assert_eq!(original["terminationGracePeriodSeconds"], 20);
        assert_eq!(captured_of(&after)[0].port, 8080);
    }

    #[test]
    fn other_settings_give_another_hash() {
        let hash = |spec: &CachePolicySpec, settings: &SidecarSettings| match run(&pod(), spec, settings) {
            Outcome::Injected(injected) => injected.hash,
            Outcome::Skipped(skip) => panic!("{skip}"),
        };
        let plain = spec(json!({}));
        let base = hash(&plain, &settings());
        assert_eq!(base, hash(&spec(json!({"suspend": true, "l1": {"maxSize": "1Mi"}})), &settings()));
        assert_ne!(base, hash(&plain, &SidecarSettings { image: "larder/sidecar:2".into(), ..settings() }));
        assert_ne!(base, hash(&plain, &SidecarSettings { drain_seconds: 6, ..settings() }));
        assert_ne!(
            base,
            hash(&spec(json!({"sidecar": {"resources": {"limits": {"memory": "1Gi"}}}})), &settings())
        );
        let redis = json!({"l2": {"redis": {"urlFrom": {"secretKeyRef": {"name": "a", "key": "url"}}}}});
        assert_ne!(base, hash(&spec(redis), &settings()), "a Secret more needs another pod");
    }

    #[test]
    fn another_capture_mode_gives_another_hash() {
        let hash = |mode: &str| {
            let (spec, settings) = (spec(json!({"capture": {"mode": mode}})), settings());
            let injection = Injection {
                namespace: "shop",
                policy: "shop",
                spec: &spec,
                settings: &settings,
                network_policies: &[],
            };
            self::hash(&injection, &[])
        };
        assert_eq!(hash("Auto"), hash("NamedPort"), "they are the same mode, and switching rolls no pod");
        assert_ne!(hash("Auto"), hash("None"));
    }

    #[test]
    fn a_copy_of_an_injected_pod_with_other_settings_is_refused() {
        let copy = injected(&pod(), &spec(json!({})));
        let next = SidecarSettings { image: "larder/sidecar:2".into(), ..settings() };
        match run(&copy, &spec(json!({})), &next) {
            Outcome::Skipped(skip) => assert_eq!(skip.reason, SkipReason::ForeignSidecar),
            Outcome::Injected(_) => panic!("the old sidecar would stay"),
        }
    }

    #[test]
    fn skip_annotation_is_removed_on_injection() {
        let skip = Skip { reason: SkipReason::Mesh, message: "istio".into() };
        let noted = skipped(&pod(), &skip);
        assert_eq!(noted["metadata"]["annotations"][annotations::SKIPPED], "Mesh: istio");
        assert_eq!(injected(&noted, &spec(json!({}))), injected(&pod(), &spec(json!({}))));
    }

    fn any_port() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(json!({"name": "http", "containerPort": 8080})),
            Just(json!({"containerPort": 8080, "protocol": "TCP"})),
            Just(json!({"name": "admin", "containerPort": 9000, "protocol": "TCP"})),
            Just(json!({"name": "dns", "containerPort": 53, "protocol": "UDP"})),
        ]
    }

    fn any_handler() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(json!({"httpGet": {"port": "http"}})),
            Just(json!({"tcpSocket": {"port": "admin"}})),
            Just(json!({"grpc": {"port": 8080}})),
            Just(json!({"exec": {"command": ["true"]}})),
            Just(Value::Null),
        ]
    }

    proptest! {
        #[test]
        fn injecting_twice_is_injecting_once(
            ports in proptest::collection::vec(any_port(), 0..4),
            probe in any_handler(),
            hook in any_handler(),
            target in prop_oneof![Just(json!("http")), Just(json!(8080)), Just(json!("admin"))],
            grace in proptest::option::of(0_u64..100),
        ) {
            let mut pod = pod();
            let app = &mut pod["spec"]["containers"][0];
            app["ports"] = json!(ports);
            app["readinessProbe"] = probe;
            app["lifecycle"] = json!({"preStop": hook});
            pod["spec"]["terminationGracePeriodSeconds"] = json!(grace);
            let spec = spec(json!({"targets": [{"port": target}]}));
            if let Outcome::Injected(once) = run(&pod, &spec, &settings()) {
                prop_assert_eq!(run(&once.pod, &spec, &settings()), Outcome::Injected(once));
            }
        }
    }
}
