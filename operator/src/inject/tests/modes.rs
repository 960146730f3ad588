//! Injection in the capture modes that leave the pod's ports as they are.

use super::*;

/// Returns settings with which redirections are allowed.
pub(super) fn with_redirect() -> SidecarSettings {
    SidecarSettings { redirect_image: Some("larder/redirect:1".into()), ..settings() }
}

fn in_mode(pod: &Value, mode: &str) -> Value {
    let spec = spec(json!({"capture": {"mode": mode}}));
    match run(pod, &spec, &with_redirect()) {
        Outcome::Injected(injected) => injected.pod,
        Outcome::Skipped(skip) => panic!("{skip}"),
    }
}

#[test]
fn rules_are_set_before_any_other_container_runs() {
    let mut before = pod();
    before["spec"]["initContainers"] = json!([{"name": "setup", "image": "a"}]);
    let after = in_mode(&before, "Redirect");
    let names = |pod: &Value| {
        let containers = pod["spec"]["initContainers"].as_array().unwrap().iter();
        containers.map(|one| one["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&after), ["larder-redirect", "setup", "larder-sidecar"]);
    assert_eq!(after["spec"]["containers"][0]["ports"], before["spec"]["containers"][0]["ports"]);
    let first = &after["spec"]["initContainers"][0];
    assert_eq!(first["resources"], after["spec"]["initContainers"][2]["resources"]);
    let account = &first["volumeMounts"][0];
    assert_eq!(account["mountPath"], "/var/run/secrets/kubernetes.io/serviceaccount");
    assert_eq!(account["name"], "larder-no-token");

    let mut later = after;
    later["spec"]["initContainers"][0]["image"] = json!("mirror/larder/redirect:1");
    later["spec"]["initContainers"].as_array_mut().unwrap().insert(0, json!({"name": "later", "image": "a"}));
    later["spec"]["containers"][1]["livenessProbe"] = json!({"tcpSocket": {"port": 8080}});
    let again = in_mode(&later, "Redirect");
    assert_eq!(names(&again), ["larder-redirect", "later", "setup", "larder-sidecar"]);
    assert_eq!(again["spec"]["initContainers"][0]["image"], "mirror/larder/redirect:1");
    assert_eq!(again["spec"]["containers"][1]["livenessProbe"]["tcpSocket"]["port"], 24804);
}

#[test]
fn sidecar_starts_before_a_native_sidecar_in_whose_place_it_listens() {
    let spec = spec(json!({"targets": [{"port": "web", "portFrom": {"env": "PORT"}}]}));
    let web = json!({"name": "web", "restartPolicy": "Always", "ports": [{"name": "web", "containerPort": 8000}],
        "env": [{"name": "PORT", "value": "8000"}]});
    let with = |containers: Value| {
        let mut pod = pod();
        pod["spec"]["initContainers"] = containers;
        pod
    };
    let names = |pod: &Value| match run(pod, &spec, &settings()) {
        Outcome::Injected(Injected { pod, .. }) => {
            assert_eq!(injected(&pod, &spec), pod);
            let containers = pod["spec"]["initContainers"].as_array().unwrap().iter();
            Ok(containers.map(|one| one["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>())
        }
        Outcome::Skipped(skip) => Err(skip.reason),
    };
    let expected = |names: [&str; 4]| Ok(names.map(str::to_owned).to_vec());
    let (early, calls) = (json!({"name": "early"}), json!({"name": "calls-web"}));
    let found = names(&with(json!([early, web, calls])));
    assert_eq!(found, expected(["early", "larder-sidecar", "web", "calls-web"]));
    let init = json!({"name": "linkerd-init", "args": ["--incoming-proxy-port", "4143"]});
    let found = names(&with(json!([init, web, calls])));
    assert_eq!(found, expected(["linkerd-init", "larder-sidecar", "web", "calls-web"]));
    let found = names(&with(json!([calls, web, init])));
    assert_eq!(found, expected(["calls-web", "web", "linkerd-init", "larder-sidecar"]));
    assert_eq!(names(&with(json!([web, calls, init]))), Err(SkipReason::PortNotVariable), "after the mesh");
}

#[test]
fn container_of_that_name_stays_in_other_modes() {
    let mut before = pod();
    before["spec"]["initContainers"] = json!([{"name": "larder-redirect", "image": "a"}]);
    let once = in_mode(&before, "NamedPort");
    assert_eq!(in_mode(&once, "NamedPort"), once);
    assert_eq!(once["spec"]["initContainers"][0]["image"], "a");
}

#[test]
fn image_of_the_redirection_rolls_only_pods_that_have_it() {
    let hash = |mode: &str, image: &str| {
        let settings = SidecarSettings { redirect_image: Some(image.into()), ..settings() };
        let spec = spec(json!({"capture": {"mode": mode}}));
        let injection = injection(&spec, &settings);
        super::hash(&injection, &[])
    };
    assert_ne!(hash("Redirect", "a"), hash("Redirect", "b"));
    assert_eq!(hash("NamedPort", "a"), hash("NamedPort", "b"));
}

#[test]
fn sidecar_beside_the_application_has_ports_of_its_own() {
    let before = pod();
    let after = in_mode(&before, "CompanionService");
    let ports = after["spec"]["initContainers"][0]["ports"].as_array().unwrap();
    assert_eq!(ports.len(), 1, "endpoint controllers of Kubernetes 1.30 ignore names of init containers");
    let (own, ports) = (&before["spec"]["containers"][0], &after["spec"]["containers"][0]["ports"]);
    let [listed @ .., added] = ports.as_array().unwrap().as_slice() else { panic!() };
    assert_eq!(*added, json!({"name": "larder-http", "containerPort": 24800, "protocol": "TCP"}));
    assert_eq!(listed, own["ports"].as_array().unwrap().as_slice());
    for field in ["readinessProbe", "livenessProbe"] {
        assert_eq!(after["spec"]["containers"][0][field], own[field], "{field}");
    }
    assert_eq!(in_mode(&after, "CompanionService"), after);
    assert_eq!(without_sidecar(&after), before);
}
