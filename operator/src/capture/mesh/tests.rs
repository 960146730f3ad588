//! Tests of injection beside a mesh, in both orders of the webhooks.

use larder_api::names;
use larder_crds::CachePolicySpec;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::inject::{
    Outcome, inject, skipped,
    tests::{injection, pod, settings, spec},
};

/// Injection by a mesh.
#[derive(Clone, Copy, Debug)]
struct Injector {
    mesh: &'static str,
    /// True if the proxy is an init container that restarts.
    native: bool,
    /// True if a CNI plugin makes the rules.
    cni: bool,
}

impl Injector {
    /// Injects the mesh as its webhook does: Istio's native proxy is moved to the front and its init container to the end
    /// otherwise; Linkerd appends.
    fn inject(self, pod: &Value) -> Value {
        let mut pod = pod.clone();
        let annotation = |name: &str, default: &str| {
            pod["metadata"]["annotations"][name].as_str().unwrap_or(default).to_owned()
        };
        let istio = self.mesh == "istio";
        let mut init = if istio {
            let excluded = annotation("traffic.sidecar.istio.io/excludeInboundPorts", "");
            let included = annotation("traffic.sidecar.istio.io/includeInboundPorts", "*");
            json!({"name": "istio-init", "args": [
                "istio-iptables", "-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-x", "",
                "-b", included, "-d", format!("15090,15021,15020,{excluded}").trim_end_matches(','),
            ]})
        } else {
            let skipped = annotation("config.linkerd.io/skip-inbound-ports", "4567,4568");
            let skipped_outbound = annotation("config.linkerd.io/skip-outbound-ports", "4567,4568");
            json!({"name": "linkerd-init", "args": [
                "--incoming-proxy-port", "4143", "--outgoing-proxy-port", "4140", "--proxy-uid", "2102",
                "--inbound-ports-to-ignore", format!("4190,4191,{skipped}"),
                "--outbound-ports-to-ignore", skipped_outbound,
            ]})
        };
        if self.cni {
            init = json!({"name": if istio { "istio-validation" } else { "linkerd-network-validator" }});
        }
        let proxy = json!({"name": format!("{}-proxy", self.mesh)});
        let spec = pod["spec"].as_object_mut().unwrap();
        let containers = list(spec, "initContainers");
        match (istio, self.native) {
            (true, true) => drop(containers.splice(0..0, [init, proxy.clone()])),
            (_, true) => containers.extend([init, proxy.clone()]),
            (_, false) => containers.push(init),
        }
        if !self.native {
            list(spec, "containers").push(proxy);
        }
        pod
    }
}

fn list<'a>(spec: &'a mut Map<String, Value>, key: &str) -> &'a mut Vec<Value> {
    spec.entry(key).or_insert_with(|| json!([])).as_array_mut().unwrap()
}

fn run(pod: &Value) -> Outcome {
    run_with(pod, &spec(json!({})))
}

fn run_with(pod: &Value, spec: &CachePolicySpec) -> Outcome {
    let settings = SidecarSettings { redirect_image: Some("larder/redirect:1".into()), ..settings() };
    inject(pod, &injection(spec, &settings))
}

fn injected(pod: &Value) -> Value {
    match run(pod) {
        Outcome::Injected(injected) => injected.pod,
        Outcome::Skipped(skip) => panic!("{skip}"),
    }
}

fn skip_of(pod: &Value) -> Skip {
    match run(pod) {
        Outcome::Injected(injected) => panic!("injected: {}", injected.pod),
        Outcome::Skipped(skip) => skip,
    }
}

fn init_names(pod: &Value) -> Vec<&str> {
    pod["spec"]["initContainers"].as_array().unwrap().iter().map(|one| text(&one["name"])).collect()
}

fn args(pod: &Value, flag: &str) -> String {
    let init = pod["spec"]["initContainers"].as_array().unwrap();
    let init = init.iter().find(|one| one["name"].as_str().unwrap().ends_with("-init")).unwrap();
    let args = init["args"].as_array().unwrap();
    let index = args.iter().position(|arg| arg == flag).unwrap();
    text(&args[index + 1]).to_owned()
}

const fn injector(mesh: &'static str, native: bool, cni: bool) -> Injector {
    Injector { mesh, native, cni }
}

#[test]
fn admin_port_is_exempt_from_the_rules_in_both_orders() {
    for (mesh, flag, ports, outbound, others) in [
        ("istio", "-d", "15090,15021,15020,24890", "-o", "24890"),
        (
            "linkerd",
            "--inbound-ports-to-ignore",
            "4190,4191,4567,4568,24890",
            "--outbound-ports-to-ignore",
            "4567,4568,24890",
        ),
    ] {
        for native in [true, false] {
            let mesh = injector(mesh, native, false);
            for pod in [injected(&mesh.inject(&pod())), injected(&mesh.inject(&injected(&pod())))] {
                assert_eq!(args(&pod, flag), ports, "{mesh:?}");
                assert_eq!(args(&pod, outbound), others, "{mesh:?}");
                assert_eq!(*init_names(&pod).last().unwrap(), names::SIDECAR, "{mesh:?}");
            }
        }
    }
}

#[test]
fn annotation_exempts_the_admin_port_where_a_plugin_makes_the_rules() {
    let exclude = "traffic.sidecar.istio.io/excludeInboundPorts";
    let istio = injector("istio", true, true);
    assert_eq!(injected(&istio.inject(&pod()))["metadata"]["annotations"][exclude], "24890");
    let mut own = pod();
    own["metadata"]["annotations"] = json!({exclude: "9000"});
    let annotations = injected(&istio.inject(&own))["metadata"]["annotations"].clone();
    assert_eq!(annotations[exclude], "9000,24890");
    assert_eq!(annotations["traffic.sidecar.istio.io/excludeOutboundPorts"], "24890");
    let linkerd = injected(&injector("linkerd", false, true).inject(&pod()));
    for annotation in ["config.linkerd.io/skip-inbound-ports", "config.linkerd.io/skip-outbound-ports"] {
        assert_eq!(linkerd["metadata"]["annotations"][annotation], "24890");
    }
}

#[test]
fn sidecars_port_is_treated_like_the_applications() {
    let with = |annotation: &str, value: &str| {
        let mut pod = pod();
        pod["metadata"]["annotations"] = json!({annotation: value});
        pod
    };
    let istio = injector("istio", true, false);
    let included =
        injected(&istio.inject(&with("traffic.sidecar.istio.io/includeInboundPorts", "9000,8080")));
    assert_eq!(args(&included, "-b"), "9000,8080,24800");
    assert_eq!(args(&included, "-d"), "15090,15021,15020", "only listed ports are captured");
    let other = injected(&istio.inject(&with("traffic.sidecar.istio.io/includeInboundPorts", "9000")));
    assert_eq!(args(&other, "-b"), "9000");
    let excluded = istio.inject(&with("traffic.sidecar.istio.io/excludeInboundPorts", "8080"));
    assert_eq!(args(&injected(&excluded), "-d"), "15090,15021,15020,8080,24800,24890");
    let linkerd = injector("linkerd", true, false);
    let skipped =
        injected(&linkerd.inject(&with("config.linkerd.io/skip-inbound-ports", "8000-8100,24000-25000")));
    assert_eq!(args(&skipped, "--inbound-ports-to-ignore"), "4190,4191,8000-8100,24000-25000");
}

#[test]
fn every_spelling_of_an_argument_is_understood() {
    for (given, wanted) in [
        (
            json!(["--istio-local-exclude-ports", "1"]),
            json!(["--istio-local-exclude-ports", "1,24890", "-o", "24890"]),
        ),
        (
            json!(["--istio-local-exclude-ports=1", "--istio-local-outbound-ports-exclude=2"]),
            json!(["--istio-local-exclude-ports=1,24890", "--istio-local-outbound-ports-exclude=2,24890"]),
        ),
        (json!(["-d", "", "-o", ""]), json!(["-d", "24890", "-o", "24890"])),
        (json!([]), json!(["-d", "24890", "-o", "24890"])),
        (json!(["-d", "24890", "-o", "24890"]), json!(["-d", "24890", "-o", "24890"])),
    ] {
        let with = |args: &Value| {
            let mut args = args.clone();
            args.as_array_mut().unwrap().insert(0, json!("istio-iptables"));
            let mut pod = injector("istio", true, false).inject(&pod());
            pod["spec"]["initContainers"][0]["args"] = args;
            pod
        };
        let after = injected(&with(&given));
        assert_eq!(
            after["spec"]["initContainers"][0]["args"],
            with(&wanted)["spec"]["initContainers"][0]["args"]
        );
        let skip = Skip { reason: SkipReason::HostNetwork, message: String::new() };
        let undone = skipped(&after, &skip);
        assert_eq!(undone["spec"]["initContainers"], with(&given)["spec"]["initContainers"]);
    }
}

#[test]
fn pod_whose_rules_are_not_known_is_left_alone() {
    let with = |init: Value| {
        let mut pod = pod();
        pod["spec"]["initContainers"] = init;
        pod
    };
    for (init, words) in [
        (json!([{"name": "istio-proxy"}]), "without istio-init"),
        (json!([{"name": "istio-init", "args": ["sh"]}, {"name": "istio-proxy"}]), "other arguments"),
        (json!([{"name": "linkerd-init"}]), "other arguments"),
        (json!([{"name": "kuma-sidecar"}]), "kuma-sidecar"),
    ] {
        let skip = skip_of(&with(init.clone()));
        assert!(skip.reason == SkipReason::Mesh && skip.message.contains(words), "{init}: {skip}");
    }
    let mut gateway = injector("istio", false, false).inject(&pod());
    gateway["spec"]["containers"][2]["ports"] = json!([{"name": "http", "containerPort": 8080}]);
    gateway["spec"]["containers"][0]["ports"] = json!([]);
    assert!(skip_of(&gateway).message.contains("belongs to istio-proxy"));
}

#[test]
fn pod_of_a_mesh_is_captured_in_every_mode_but_redirect() {
    let mut plain = pod();
    plain["spec"]["containers"][0]["env"] = json!([{"name": "PORT", "value": "8080"}]);
    for mode in ["NamedPort", "PortVariable", "CompanionService", "Redirect"] {
        let target = match mode {
            "PortVariable" => json!({"port": "http", "portFrom": {"env": "PORT"}}),
            _ => json!({"port": "http"}),
        };
        let spec = spec(json!({"capture": {"mode": mode}, "targets": [target]}));
        for mesh in ["istio", "linkerd"] {
            let outcome = run_with(&injector(mesh, true, false).inject(&plain), &spec);
            match (mode, outcome) {
                ("Redirect", Outcome::Skipped(skip)) => {
                    assert!(skip.reason == SkipReason::Mesh && skip.message.contains("NamedPort"), "{skip}");
                }
                (_, Outcome::Injected(injected)) => assert_ne!(mode, "Redirect", "{}", injected.pod),
                (_, Outcome::Skipped(skip)) => panic!("{mode}: {skip}"),
            }
        }
    }
}

#[test]
fn application_probes_that_istio_has_rewritten_stay() {
    let agent = json!({"httpGet": {"path": "/app-health/app/livez", "port": 15020}});
    let istio = injector("istio", true, false);
    let mut first = istio.inject(&pod());
    first["spec"]["containers"][0]["livenessProbe"] = agent.clone();
    assert_eq!(injected(&first)["spec"]["containers"][0]["livenessProbe"], agent);
    let mut second = istio.inject(&injected(&pod()));
    second["spec"]["containers"][0]["livenessProbe"] = agent.clone();
    let sidecars = json!({"httpGet": {"path": "/app-health/larder-sidecar/livez", "port": 15020}});
    second["spec"]["initContainers"][2]["livenessProbe"] = sidecars.clone();
    let second = injected(&second);
    assert_eq!(second["spec"]["containers"][0]["livenessProbe"], agent);
    assert_eq!(second["spec"]["initContainers"][2]["livenessProbe"], sidecars);
}

#[test]
fn probes_of_istios_agent_follow_an_application_with_another_number() {
    let spec = spec(
        json!({"capture": {"mode": "PortVariable"}, "targets": [{"port": "http", "portFrom": {"env": "PORT"}}]}),
    );
    let injected = |pod: &Value| match run_with(pod, &spec) {
        Outcome::Injected(injected) => injected.pod,
        Outcome::Skipped(skip) => panic!("{skip}"),
    };
    let with_agent = |pod: &Value| {
        let mut pod = injector("istio", true, false).inject(pod);
        let number =
            pod["spec"]["containers"][0]["readinessProbe"]["httpGet"]["port"].as_u64().unwrap_or(8080);
        let probers = json!({
            "/app-health/app/readyz": {"httpGet": {"path": "/ready", "port": number}, "timeoutSeconds": 1},
            "/app-health/other/livez": {"tcpSocket": {"port": 9000}},
        });
        let init = pod["spec"]["initContainers"].as_array_mut().unwrap();
        let proxy = init.iter_mut().find(|one| one["name"] == "istio-proxy").unwrap();
        proxy["env"] = json!([{"name": "A", "value": "{}"}, {"name": PROBERS, "value": probers.to_string()}]);
        pod["spec"]["containers"][0]["readinessProbe"] =
            json!({"httpGet": {"path": "/app-health/app/readyz", "port": 15020}});
        pod
    };
    let ports = |pod: &Value| {
        let init = pod["spec"]["initContainers"].as_array().unwrap();
        let proxy = init.iter().find(|one| one["name"] == "istio-proxy").unwrap();
        let probers: Value = serde_json::from_str(text(&proxy["env"][1]["value"])).unwrap();
        (
            probers["/app-health/app/readyz"]["httpGet"]["port"].as_u64().unwrap(),
            probers["/app-health/other/livez"]["tcpSocket"]["port"].as_u64().unwrap(),
        )
    };
    let mut plain = pod();
    plain["spec"]["containers"][0]["env"] = json!([{"name": "PORT", "value": "8080"}]);
    let application_port = u64::from(settings().application_port);
    for pod in [injected(&with_agent(&plain)), injected(&with_agent(&injected(&plain)))] {
        assert_eq!(ports(&pod), (application_port, 9000));
        assert_eq!(injected(&pod), pod);
        let undone = skipped(&pod, &Skip { reason: SkipReason::HostNetwork, message: String::new() });
        assert_eq!(ports(&undone), (8080, 9000));
    }
}

proptest! {
    #[test]
    fn both_orders_are_stable_and_can_be_undone(
        istio in any::<bool>(),
        native in any::<bool>(),
        cni in any::<bool>(),
        setup in any::<bool>(),
        listed in proptest::option::of(prop_oneof![Just("8080"), Just("24890"), Just("1-65535"), Just("9000, 8080")]),
    ) {
        let mesh = injector(if istio { "istio" } else { "linkerd" }, native, cni);
        let mut plain = pod();
        if let Some(listed) = listed {
            let name = if istio { "traffic.sidecar.istio.io/excludeInboundPorts" } else { "config.linkerd.io/skip-inbound-ports" };
            plain["metadata"]["annotations"] = json!({name: listed});
        }
        if setup {
            plain["spec"]["initContainers"] = json!([{"name": "setup", "image": "setup"}]);
        }
        let meshed = mesh.inject(&plain);
        let mesh_first = injected(&meshed);
        let larder_first = injected(&mesh.inject(&injected(&plain)));
        for pod in [&mesh_first, &larder_first] {
            prop_assert_eq!(&injected(pod), pod);
            let names = init_names(pod);
            let sidecar = names.iter().position(|name| *name == names::SIDECAR).unwrap();
            let mesh = names.iter().rposition(|name| name.starts_with("istio-") || name.starts_with("linkerd-"));
            prop_assert!(mesh.unwrap() < sidecar, "{:?}", names);
            let mut on_host = pod.clone();
            on_host["spec"]["hostNetwork"] = json!(true);
            let undone = skipped(&on_host, &skip_of(&on_host));
            prop_assert_eq!(&undone["spec"]["containers"], &meshed["spec"]["containers"]);
            let arguments = |pod: &Value| {
                let init = pod["spec"]["initContainers"].as_array().unwrap();
                init.iter().map(|one| one["args"].to_string()).collect::<std::collections::BTreeSet<_>>()
            };
            prop_assert_eq!(arguments(&undone), arguments(&meshed));
        }
        let without_place = |pod: &Value| {
            let mut pod = pod.clone();
            let init = pod["spec"]["initContainers"].as_array_mut().unwrap();
            init.sort_by_key(|one| text(&one["name"]).to_owned());
            pod
        };
        prop_assert_eq!(without_place(&mesh_first), without_place(&larder_first));
    }
}
