//! Tests of what the capture modes have in common.

use serde_json::json;

use super::*;
use crate::inject::tests::{pod, settings};

/// Returns the inputs of a plan in a namespace without NetworkPolicies and Pod Security.
pub(crate) const fn inputs<'a>(
    capture: &'a Capture,
    targets: &'a [Target],
    settings: &'a SidecarSettings,
) -> Inputs<'a> {
    Inputs { capture, targets, settings, network_policies: &[], pod_security: None }
}

#[test]
fn modes_have_different_fingerprints() {
    for mode in Mode::ALL {
        let fingerprint = |mode: Mode| mode.fingerprint(&settings());
        let same = Mode::ALL.into_iter().filter(|other| fingerprint(*other) == fingerprint(mode));
        assert_eq!(same.count(), 1, "{mode:?}");
    }
}

#[test]
fn mode_that_a_mesh_excludes_is_not_offered() {
    let targets = [serde_json::from_value(json!({"port": "http"})).unwrap()];
    let settings = SidecarSettings { redirect_image: Some("a".into()), ..settings() };
    let offered = |pod: &Value| {
        let offers = offers(None, pod, &inputs(&Capture::default(), &targets, &settings));
        ["NamedPort", "PortVariable", "Redirect", "CompanionService"]
            .map(|mode| offers.iter().any(|offer| offer.starts_with(&format!("capture by {mode}:"))))
    };
    let mut pod = pod();
    pod["spec"]["containers"][0]["env"] = json!([{"name": "PORT", "value": "8080"}]);
    assert_eq!(offered(&pod), [true; 4]);
    let with = |proxy: &str| {
        let mut pod = pod.clone();
        pod["spec"]["containers"].as_array_mut().unwrap().push(json!({ "name": proxy }));
        pod
    };
    assert_eq!(offered(&with("linkerd-proxy")), [true, true, false, true]);
    assert_eq!(offered(&with("kuma-sidecar")), [false; 4]);
}

#[test]
fn capture_none_plans_nothing() {
    let targets = [serde_json::from_value(json!({"port": "http"})).unwrap()];
    let settings = settings();
    let plan = |mode| {
        let capture = Capture { mode };
        let inputs = inputs(&capture, &targets, &settings);
        Plan::new(&pod(), &inputs)
    };
    assert_eq!(plan(CaptureMode::None).unwrap_err().reason, SkipReason::CaptureNone);
    assert_eq!(plan(CaptureMode::Auto).unwrap(), plan(CaptureMode::NamedPort).unwrap());
}
