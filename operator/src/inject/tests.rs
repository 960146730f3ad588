//! Tests of the injection as a whole.

mod capturing;
mod modes;

use super::*;

/// Returns the settings of sidecars in tests.
pub(crate) fn settings() -> SidecarSettings {
    SidecarSettings {
        image: "larder/sidecar:1".into(),
        pull_policy: None,
        pull_secrets: vec![],
        redirect_image: None,
        redirect_pull_policy: None,
        data_port: 24800,
        application_port: 24810,
        admin_port: 24890,
        drain_seconds: 5,
    }
}

/// Returns the injection of the policy `shop` into pods of its namespace, which has no other policies.
pub(crate) const fn injection<'a>(spec: &'a CachePolicySpec, settings: &'a SidecarSettings) -> Injection<'a> {
    Injection { namespace: "shop", policy: "shop", spec, settings, network_policies: &[], pod_security: None }
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
    inject(pod, &injection(spec, settings))
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
    assert_eq!(injected(&pod(), &spec(json!({})))["spec"]["containers"][1], pod()["spec"]["containers"][1]);
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
    assert_eq!(volumes.len(), 4);
    let folders = volumes.iter().filter(|volume| !volume["emptyDir"].is_null());
    assert!(folders.clone().all(|volume| volume["emptyDir"]["medium"] == "Memory"), "not on the node's disk");
    for volume in volumes.iter().filter(|volume| volume["emptyDir"].is_null()) {
        let source = volume.get("secret").or(volume.get("configMap")).unwrap();
        assert_eq!(source["optional"], true, "{volume}");
    }
    assert_eq!(volumes[3]["secret"]["items"], json!([{"key": "url", "path": "url"}]));
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
fn pull_secrets_are_added_once_and_withdrawn_with_the_sidecar() {
    let settings = SidecarSettings { pull_secrets: vec!["own".into(), "registry".into()], ..settings() };
    let with = |pod: &Value, settings: &SidecarSettings| match run(pod, &spec(json!({})), settings) {
        Outcome::Injected(injected) => injected,
        Outcome::Skipped(skip) => panic!("{skip}"),
    };
    let inject = |pod: &Value| with(pod, &settings);
    let without = with(&pod(), &self::settings());
    for (before, after) in [
        (json!([{"name": "own"}]), json!([{"name": "own"}, {"name": "registry"}])),
        (Value::Null, json!([{"name": "own"}, {"name": "registry"}])),
    ] {
        let plain = without_nulls(&changed("/spec/imagePullSecrets", before)).unwrap();
        let once = inject(&plain);
        assert_eq!(once.pod["spec"]["imagePullSecrets"], after);
        assert_ne!(once.hash, without.hash, "running pods are not rolled");
        assert_eq!(inject(&once.pod), once);

        let mut later = once.pod;
        later["spec"]["imagePullSecrets"].as_array_mut().unwrap().push(json!({"name": "later"}));
        later["spec"]["hostNetwork"] = json!(true);
        let Outcome::Skipped(skip) = run(&later, &spec(json!({})), &settings) else {
            panic!("it is injected")
        };
        let left = skipped(&later, &skip)["spec"]["imagePullSecrets"].clone();
        let mut expected = plain["spec"]["imagePullSecrets"].as_array().cloned().unwrap_or_default();
        expected.push(json!({"name": "later"}));
        assert_eq!(left, json!(expected));
    }
}

#[test]
fn another_capture_mode_gives_another_hash() {
    let hash = |mode: &str| {
        let (spec, settings) = (spec(json!({"capture": {"mode": mode}})), settings());
        let injection = injection(&spec, &settings);
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

fn skip_reason(pod: &Value) -> Option<SkipReason> {
    match run(pod, &spec(json!({})), &settings()) {
        Outcome::Injected(_) => None,
        Outcome::Skipped(skip) => Some(skip.reason),
    }
}

fn changed(pointer: &str, value: Value) -> Value {
    let mut pod = pod();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    pod.pointer_mut(parent).unwrap()[key] = value;
    pod
}

/// Returns an affinity that requires nodes of one of these terms, each with its expressions.
pub(crate) fn on_nodes(terms: Value) -> Value {
    let terms = terms.as_array().unwrap().iter().map(|all| json!({"matchExpressions": all}));
    let required = json!({"nodeSelectorTerms": terms.collect::<Vec<_>>()});
    json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}})
}

/// Returns an expression on the operating system of nodes.
pub(crate) fn os(operator: &str, value: &str) -> Value {
    json!({"key": "kubernetes.io/os", "operator": operator, "values": [value]})
}

#[test]
fn pod_that_would_break_is_left_alone_with_a_reason() {
    for (pointer, value, reason) in [
        ("/spec/os", json!({"name": "windows"}), SkipReason::Windows),
        ("/spec/nodeSelector", json!({"kubernetes.io/os": "windows"}), SkipReason::Windows),
        ("/spec/nodeSelector", json!({"beta.kubernetes.io/os": "windows"}), SkipReason::Windows),
        ("/spec/affinity", on_nodes(json!([[os("In", "windows")]])), SkipReason::Windows),
        ("/spec/affinity", on_nodes(json!([[os("NotIn", "linux")]])), SkipReason::Windows),
        ("/spec/securityContext", json!({"windowsOptions": {"runAsUserName": "a"}}), SkipReason::Windows),
        (
            "/spec/containers/1/securityContext",
            json!({"windowsOptions": {"hostProcess": true}}),
            SkipReason::Windows,
        ),
        ("/metadata/annotations", json!({"kubernetes.io/config.mirror": "a"}), SkipReason::MirrorPod),
        ("/spec/volumes", json!([{"name": "larder-policy", "emptyDir": {}}]), SkipReason::NameClash),
        ("/spec/volumes", json!([{"name": "larder-secret-0", "emptyDir": {}}]), SkipReason::NameClash),
        ("/spec/containers/1/name", json!("larder-sidecar"), SkipReason::NameClash),
        ("/metadata/annotations", json!({"a": "x".repeat(262_100)}), SkipReason::Annotations),
    ] {
        assert_eq!(skip_reason(&changed(pointer, value.clone())), Some(reason), "{pointer}");
    }
    assert_eq!(skip_reason(&changed("/spec/nodeSelector", json!({"kubernetes.io/os": "linux"}))), None);
    for terms in [
        json!([[os("In", "windows")], [os("In", "linux")]]),
        json!([[os("NotIn", "windows")]]),
        json!([[{"key": "zone", "operator": "In", "values": ["windows"]}]]),
        json!([]),
    ] {
        assert_eq!(skip_reason(&changed("/spec/affinity", on_nodes(terms.clone()))), None, "{terms}");
    }
    assert_eq!(
        skip_reason(&changed("/spec/volumes", json!([{"name": "larder-secret-x", "emptyDir": {}}]))),
        None
    );
}

#[test]
fn injected_pod_has_room_for_annotations_of_its_configuration() {
    let with = |length: usize| changed("/metadata/annotations", json!({"a": "x".repeat(length)}));
    let least = size_of_annotations(&injected(&with(0), &spec(json!({}))));
    let leaving = |room: usize| skip_reason(&with(MAX_ANNOTATIONS - least - room));
    assert_eq!(leaving(0), Some(SkipReason::Annotations));
    assert_eq!(leaving(150), Some(SkipReason::Annotations));
    assert_eq!(leaving(1000), None);
}

#[test]
fn skipped_pod_without_room_has_no_annotation() {
    let full = changed("/metadata/annotations", json!({"a": "x".repeat(262_100)}));
    let skip = Skip { reason: SkipReason::Annotations, message: "x".repeat(100) };
    assert_eq!(skipped(&full, &skip), full);
}

#[test]
fn sidecar_runs_as_a_user_that_the_platform_assigned() {
    let user = |pod: &Value| {
        injected(pod, &spec(json!({})))["spec"]["initContainers"][0]["securityContext"]["runAsUser"].clone()
    };
    assert_eq!(user(&pod()), 65532);
    assert_eq!(user(&changed("/spec/securityContext", json!({"runAsUser": 1000}))), 65532);
    let assigned = json!({"runAsUser": 1_000_650_000});
    assert_eq!(user(&changed("/spec/securityContext", assigned.clone())), Value::Null);
    assert_eq!(user(&changed("/spec/containers/0/securityContext", assigned)), Value::Null);
    assert_eq!(
        user(&changed("/metadata/annotations", json!({"openshift.io/scc": "restricted-v2"}))),
        Value::Null
    );
    let mut root = changed("/metadata/annotations", json!({"openshift.io/scc": "anyuid"}));
    root["spec"]["securityContext"] = json!({"runAsUser": 0});
    assert_eq!(user(&root), 65532, "the sidecar would be refused as root");
}

#[test]
fn sidecar_has_no_resources_of_its_own_where_they_exceed_those_of_the_pod() {
    let resources = |whole: Value| {
        let mut pod = changed("/spec/resources", whole);
        pod["spec"]["containers"][0]["resources"] = json!({"requests": {"memory": "64Mi"}});
        let sidecar = injected(&pod, &spec(json!({})))["spec"]["initContainers"][0].clone();
        let env = sidecar["env"].as_array().unwrap();
        let limit = env.iter().find(|one| one["name"] == "LARDER_MEMORY_LIMIT").unwrap();
        (sidecar["resources"].clone(), limit["value"].clone())
    };
    let own = json!({"limits": {"memory": "128Mi"}, "requests": {"cpu": "20m", "memory": "32Mi"}});
    assert_eq!(resources(json!({"limits": {"memory": "256Mi"}})), (own.clone(), Value::Null));
    assert_eq!(resources(json!({"requests": {"memory": "96Mi", "cpu": "1"}})), (own, Value::Null));
    let none = (json!({}), json!("128Mi"));
    assert_eq!(resources(json!({"limits": {"memory": "100Mi"}})), none);
    assert_eq!(resources(json!({"requests": {"memory": "95Mi"}})), none);
    assert_eq!(resources(json!({"requests": {"cpu": "10m"}})), none);
}

#[test]
fn token_of_the_pods_account_is_kept_from_the_sidecar() {
    let after = injected(&pod(), &spec(json!({})));
    let mounts = after["spec"]["initContainers"][0]["volumeMounts"].as_array().unwrap();
    let account =
        mounts.iter().find(|one| one["mountPath"] == "/var/run/secrets/kubernetes.io/serviceaccount");
    assert_eq!(account.unwrap()["name"], "larder-no-token");
}

#[test]
fn probe_that_is_added_after_the_injection_is_redirected() {
    let mut pod = injected(&pod(), &spec(json!({})));
    pod["spec"]["containers"][0]["livenessProbe"] = json!({"httpGet": {"path": "/live", "port": "http"}});
    pod["spec"]["initContainers"].as_array_mut().unwrap().push(json!({"name": "later", "image": "a"}));
    pod["spec"]["volumes"].as_array_mut().unwrap().push(json!({"name": "later", "emptyDir": {}}));
    let again = injected(&pod, &spec(json!({})));
    assert_eq!(again["spec"]["containers"][0]["livenessProbe"]["httpGet"]["port"], 8080);
    assert_eq!(again["spec"]["initContainers"][0]["name"], "larder-sidecar", "it keeps its place");
    assert_eq!(again["spec"]["initContainers"][1]["name"], "later");
    assert_eq!(again["spec"]["containers"][0]["ports"], pod["spec"]["containers"][0]["ports"]);
}

#[test]
fn additions_to_the_sidecar_stay_on_a_second_call() {
    let mut pod = injected(&pod(), &spec(json!({})));
    let sidecar = &mut pod["spec"]["initContainers"][0];
    sidecar["resources"]["limits"]["cpu"] = json!("1");
    sidecar["image"] = json!("mirror/larder/sidecar:1");
    sidecar["imagePullPolicy"] = json!("Always");
    sidecar["env"].as_array_mut().unwrap().push(json!({"name": "HTTPS_PROXY", "value": "a"}));
    assert_eq!(injected(&pod, &spec(json!({}))), pod);
}

#[test]
fn wait_of_another_webhook_stays_on_a_second_call() {
    let mut pod = injected(&pod(), &spec(json!({})));
    pod["spec"]["containers"][0]["lifecycle"]["preStop"] = json!({"sleep": {"seconds": 20}});
    let again = injected(&pod, &spec(json!({})));
    assert_eq!(again["spec"]["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"], 20);
    assert_eq!(again["spec"]["terminationGracePeriodSeconds"], pod["spec"]["terminationGracePeriodSeconds"]);
}

#[test]
fn pod_that_can_no_longer_be_captured_loses_the_sidecar_again() {
    let injected = injected(&pod(), &spec(json!({})));
    let mesh = json!({"name": "istio-proxy", "image": "a"});
    let meshed = |mut pod: Value| {
        pod["spec"]["containers"].as_array_mut().unwrap().push(mesh.clone());
        pod
    };
    let on_host = |mut pod: Value| {
        pod["spec"]["hostNetwork"] = json!(true);
        pod
    };
    for (changed, expected, reason) in [
        (meshed(injected.clone()), meshed(pod()), SkipReason::Mesh),
        (on_host(injected.clone()), on_host(pod()), SkipReason::HostNetwork),
    ] {
        let Outcome::Skipped(skip) = run(&changed, &spec(json!({})), &settings()) else {
            panic!("{reason:?}")
        };
        assert_eq!(skip.reason, reason);
        let mut plain = skipped(&changed, &skip);
        let note = plain["metadata"].as_object_mut().unwrap().remove("annotations").unwrap();
        assert_eq!(note.as_object().unwrap().len(), 1, "{note}");
        assert_eq!(plain, expected);
    }
}
