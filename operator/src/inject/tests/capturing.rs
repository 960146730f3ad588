//! Tests of the injection in each capture mode, and of what generated pods have in common.

use proptest::prelude::*;

use super::*;

fn by_variable() -> CachePolicySpec {
    spec(
        json!({"targets": [{"port": "http", "portFrom": {"env": "PORT"}}, {"port": "admin", "portFrom": {"argument": "--admin"}}]}),
    )
}

/// Returns a pod that takes its ports from a variable and an argument, and has probes of every form.
fn variable_pod() -> Value {
    let mut pod = pod();
    let app = &mut pod["spec"]["containers"][0];
    app["env"] =
        json!([{"name": "PORT", "value": "8080"}, {"name": "URL", "value": "http://localhost:$(PORT)"}]);
    app["args"] = json!(["serve", "--admin", "9000"]);
    app["readinessProbe"] = json!({"httpGet": {"path": "/ready", "port": 8080}});
    app["livenessProbe"] = json!({"grpc": {"port": 8080}});
    app["startupProbe"] = json!({"tcpSocket": {"port": "admin"}});
    pod["spec"]["containers"][1]["readinessProbe"] = json!({"httpGet": {"port": 8080}});
    pod["spec"]["containers"][1]["livenessProbe"] = json!({"httpGet": {"port": 8080, "host": "example.org"}});
    let named = json!({"httpGet": {"port": "http", "host": "example.org"}});
    pod["spec"]["containers"][0]["lifecycle"]["preStop"] = named;
    pod
}

#[test]
fn by_port_variable_the_sidecar_listens_in_place_of_the_application() {
    let before = variable_pod();
    let after = injected(&before, &by_variable());
    let [app, other] = [0, 1].map(|index| after["spec"]["containers"][index].clone());
    assert_eq!(app["ports"], before["spec"]["containers"][0]["ports"], "the numbers are still served");
    assert_eq!(app["env"][0], json!({"name": "PORT", "value": "24810"}));
    assert_eq!(app["env"][1], before["spec"]["containers"][0]["env"][1]);
    assert_eq!(app["args"], json!(["serve", "--admin", "24811"]));
    assert_eq!(app["readinessProbe"]["httpGet"], json!({"path": "/ready", "port": 24810}));
    assert_eq!(app["livenessProbe"]["grpc"]["port"], 24810);
    assert_eq!(app["startupProbe"]["tcpSocket"]["port"], 24811);
    assert_eq!(app["lifecycle"]["postStart"]["httpGet"]["port"], 24810);
    assert_eq!(other["readinessProbe"]["httpGet"]["port"], 24810, "it is about the same listener");
    assert_eq!(other["livenessProbe"]["httpGet"]["port"], 8080, "it is about another host");
    assert_eq!(app["lifecycle"]["preStop"]["httpGet"]["port"], "http", "it is about another host");
    let args = after["spec"]["initContainers"][0]["args"].as_array().unwrap();
    assert_eq!(
        args[..8],
        [
            "--listen",
            ":8080",
            "--upstream",
            "http://127.0.0.1:24810",
            "--listen",
            ":9000",
            "--upstream",
            "http://127.0.0.1:24811",
        ]
    );
    assert_eq!(injected(&after, &by_variable()), after);
}

#[test]
fn probe_that_is_added_after_the_injection_by_port_variable_is_redirected() {
    let mut pod = injected(&variable_pod(), &by_variable());
    pod["spec"]["containers"][0]["readinessProbe"] = json!({"httpGet": {"path": "/live", "port": 8080}});
    pod["spec"]["containers"][1]["startupProbe"] = json!({"tcpSocket": {"port": 9000}});
    let again = injected(&pod, &by_variable());
    assert_eq!(again["spec"]["containers"][0]["readinessProbe"]["httpGet"]["port"], 24810);
    assert_eq!(again["spec"]["containers"][1]["startupProbe"]["tcpSocket"]["port"], 24811);
}

#[test]
fn variable_that_another_webhook_changes_takes_the_sidecar_away_again() {
    let mut pod = injected(&variable_pod(), &by_variable());
    pod["spec"]["containers"][0]["env"][0]["value"] = json!("7000");
    let Outcome::Skipped(skip) = run(&pod, &by_variable(), &settings()) else { panic!("it is injected") };
    assert_eq!(skip.reason, SkipReason::PortNotVariable);
    let plain = skipped(&pod, &skip);
    assert!(!has_sidecar(&plain));
    assert_eq!(plain["spec"]["containers"][0]["env"][0]["value"], "7000");
    assert_eq!(plain["spec"]["containers"][0]["args"], json!(["serve", "--admin", "9000"]));
}

#[test]
fn native_sidecar_is_captured_like_a_container() {
    let proxy = json!({"name": "proxy", "image": "proxy", "restartPolicy": "Always",
        "ports": [{"name": "web", "containerPort": 8000}],
        "readinessProbe": {"httpGet": {"port": "web"}}});
    let mut before = pod();
    before["spec"]["initContainers"] = json!([proxy]);
    let spec = spec(json!({"targets": [{"port": "web"}]}));
    let after = injected(&before, &spec);
    let containers = after["spec"]["initContainers"].as_array().unwrap();
    assert_eq!(containers[0]["ports"][0]["containerPort"], 24800);
    assert_eq!(containers[0]["readinessProbe"]["httpGet"]["port"], 8000);
    assert_eq!(containers[1]["name"], names::SIDECAR);
    assert_eq!(injected(&after, &spec), after);
    assert_eq!(without_sidecar(&after), before);
}

#[test]
fn names_of_one_number_share_the_sidecars_port() {
    let mut before = pod();
    before["spec"]["containers"][0]["ports"] =
        json!([{"name": "http", "containerPort": 8080}, {"name": "web", "containerPort": 8080}]);
    let after = injected(&before, &spec(json!({})));
    assert_eq!(
        after["spec"]["containers"][0]["ports"],
        json!([
            {"name": "http", "containerPort": 24800}, {"name": "web", "containerPort": 24800},
            {"containerPort": 8080, "protocol": "TCP"},
        ])
    );
    let args = after["spec"]["initContainers"][0]["args"].as_array().unwrap();
    assert_eq!(args.iter().filter(|arg| *arg == "--listen").count(), 1);
    assert_eq!(without_sidecar(&after), before);
}

fn any_port() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({"name": "http", "containerPort": 8080})),
        Just(json!({"containerPort": 8080, "protocol": "TCP"})),
        Just(json!({"name": "web", "containerPort": 8080})),
        Just(json!({"name": "admin", "containerPort": 9000, "protocol": "TCP"})),
        Just(json!({"name": "dns", "containerPort": 53, "protocol": "UDP"})),
    ]
}

fn any_variable() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({"name": "PORT", "value": "8080"})),
        Just(json!({"name": "PORT", "value": ":8080"})),
        Just(json!({"name": "PORT", "value": "24810"})),
        Just(json!({"name": "ADMIN", "value": "9000"})),
        Just(json!({"name": "PORT", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}})),
    ]
}

fn any_argument() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!("--port=8080")),
        Just(json!("--port")),
        Just(json!("8080")),
        Just(json!("0.0.0.0:9000")),
        Just(json!("24811")),
    ]
}

fn any_place() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({"env": "PORT"})),
        Just(json!({"env": "ADMIN"})),
        Just(json!({"env": "NEW"})),
        Just(json!({"argument": "--port"})),
    ]
}

fn any_handler() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({"httpGet": {"port": 8080}})),
        Just(json!({"httpGet": {"port": 24810}})),
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
        second in prop_oneof![Just(json!("web")), Just(json!("http")), Just(json!(8080))],
        grace in proptest::option::of(0_u64..100),
        env in proptest::collection::vec(any_variable(), 0..3),
        args in proptest::collection::vec(any_argument(), 0..4),
        places in proptest::option::of([any_place(), any_place()]),
        foreign in any_handler(),
        is_native in any::<bool>(),
        mode in prop_oneof![Just("Auto"), Just("Redirect"), Just("CompanionService")],
    ) {
        let mut pod = pod();
        let app = &mut pod["spec"]["containers"][0];
        app["ports"] = json!(ports);
        app["readinessProbe"] = probe;
        app["lifecycle"] = json!({"preStop": hook});
        app["args"] = json!(args);
        if !env.is_empty() {
            app["env"] = json!(env);
        }
        if is_native {
            let mut moved = app.take();
            moved["restartPolicy"] = json!("Always");
            pod["spec"]["initContainers"] = json!([moved]);
            pod["spec"]["containers"].as_array_mut().unwrap().remove(0);
        }
        pod["spec"]["containers"].as_array_mut().unwrap().last_mut().unwrap()["startupProbe"] = foreign;
        pod["spec"]["terminationGracePeriodSeconds"] = json!(grace);
        let mut targets = [json!({"port": target}), json!({"port": second})];
        for (target, place) in targets.iter_mut().zip(places.iter().flatten()) {
            target["portFrom"] = place.clone();
        }
        let mode = if places.is_some() { "PortVariable" } else { mode };
        let spec = spec(json!({"targets": targets, "capture": {"mode": mode}}));
        let settings = modes::with_redirect();
        if let Outcome::Injected(once) = run(&pod, &spec, &settings) {
            prop_assert_eq!(run(&once.pod, &spec, &settings), Outcome::Injected(once.clone()));
            let mut on_host = once.pod;
            on_host["spec"]["hostNetwork"] = json!(true);
            let Outcome::Skipped(skip) = run(&on_host, &spec, &settings) else { panic!("it is injected") };
            let mut plain = skipped(&on_host, &skip);
            plain["metadata"].as_object_mut().unwrap().remove("annotations");
            pod["spec"]["hostNetwork"] = json!(true);
            prop_assert_eq!(without_nulls(&plain), without_nulls(&pod));
        }
    }
}
