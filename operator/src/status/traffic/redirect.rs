//! Traffic of pods whose ports are redirected: it reaches the sidecars by any Service, name or address.

use larder_api::names;

use super::super::{Observation, Verdict};
use crate::{capture::SkipReason, policy_pods::PodReport};

pub(super) fn redirected(seen: &Observation<'_>) -> Verdict {
    let pods = &seen.policy_pods.pods;
    let refused = pods
        .iter()
        .filter_map(|pod| pod.skip.as_ref())
        .find(|skip| matches!(skip.reason, SkipReason::RedirectDisabled | SkipReason::PodSecurity));
    if let Some(skip) = refused {
        return Verdict::new(false, skip.reason.as_str(), skip.message.clone());
    }
    if seen.settings.redirect_image.is_none() {
        let message = "capture.mode Redirect is not allowed by the operator: set capture.redirect.enabled=true in the chart's \
                       values, or choose another capture.mode";
        return Verdict::new(false, SkipReason::RedirectDisabled.as_str(), message);
    }
    let injected = pods.iter().filter(|pod| pod.matched && pod.injected);
    let (redirected, others): (Vec<_>, Vec<_>) = injected.partition(|pod| has_rules(pod));
    let remark = others.first().map(|pod| {
        format!(
            "pod {} has the sidecar without the redirection, from before capture.mode Redirect: it gets that when it is replaced",
            pod.name
        )
    });
    let mut numbers: Vec<_> =
        redirected.iter().flat_map(|pod| &pod.captured).map(|captured| captured.port).collect();
    numbers.sort_unstable();
    numbers.dedup();
    match (numbers.is_empty(), remark) {
        (true, None) => Verdict::new(None, "NoPods", "no pod has the sidecar"),
        (true, Some(remark)) => Verdict::new(false, "NotRedirected", remark),
        (false, remark) => {
            let numbers: Vec<_> = numbers.iter().map(u16::to_string).collect();
            let message =
                format!("connections from outside the pods to port {} are redirected", numbers.join(", "));
            let message = [Some(message), remark].into_iter().flatten().collect::<Vec<_>>().join("; ");
            Verdict::new(true, "Redirect", message)
        }
    }
}

/// Returns true if a pod has the init container that sets the rules.
fn has_rules(pod: &PodReport) -> bool {
    let spec = pod.object.iter().filter_map(|pod| pod.spec.as_ref());
    let mut containers = spec.flat_map(|spec| spec.init_containers.iter().flatten());
    containers.any(|container| container.name == names::REDIRECT)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use larder_crds::ConditionType::TrafficCaptured;
    use serde_json::json;

    use crate::{
        capture::{Skip, SkipReason},
        inject::tests::settings,
        policy_pods::PodReport,
        status::tests::{Scene, right},
    };

    /// Returns a pod whose connections are redirected.
    fn with_rules(name: &str) -> PodReport {
        let pod = json!({"spec": {"containers": [], "initContainers": [{"name": "larder-redirect"}]}});
        PodReport { object: Some(Arc::new(serde_json::from_value(pod).unwrap())), ..right(name) }
    }

    fn scene() -> Scene {
        let settings =
            crate::cli::SidecarSettings { redirect_image: Some("larder/redirect:1".into()), ..settings() };
        let services = json!([{"metadata": {"name": "old"}, "spec": {"clusterIP": "None", "selector": {"app": "shop"},
            "ports": [{"port": 8080}]}}]);
        let pods = vec![with_rules("a")];
        Scene { spec: json!({"capture": {"mode": "Redirect"}}), settings, services, pods, ..Scene::default() }
    }

    #[test]
    fn redirection_captures_any_service() {
        scene().expect(TrafficCaptured, "True", "Redirect", "to port 8080 are redirected");
        Scene { services: json!([]), ..scene() }.expect(TrafficCaptured, "True", "Redirect", "8080");
        Scene { pods: vec![], answers: vec![], ..scene() }.expect(
            TrafficCaptured,
            "Unknown",
            "NoPods",
            "no pod",
        );
    }

    #[test]
    fn sidecar_of_another_mode_captures_nothing() {
        let pods = vec![right("former")];
        let words = "pod former has the sidecar without the redirection";
        Scene { pods, ..scene() }.expect(TrafficCaptured, "False", "NotRedirected", words);
        let pods = vec![right("former"), with_rules("b")];
        Scene { pods, ..scene() }.expect(TrafficCaptured, "True", "Redirect", words);
    }

    #[test]
    fn redirection_that_is_off_names_the_charts_line() {
        let off = || Scene { settings: settings(), ..scene() };
        off().expect(TrafficCaptured, "False", "RedirectDisabled", "capture.redirect.enabled=true");
        Scene { pods: vec![], answers: vec![], ..off() }.expect(
            TrafficCaptured,
            "False",
            "RedirectDisabled",
            "chart's values",
        );
    }

    #[test]
    fn refusal_by_the_namespace_is_reported() {
        let skip = Skip { reason: SkipReason::PodSecurity, message: "enforces baseline".into() };
        let pod = PodReport { injected: false, skip: Some(skip), captured: vec![], ..right("a") };
        Scene { pods: vec![pod], answers: vec![], ..scene() }.expect(
            TrafficCaptured,
            "False",
            "PodSecurity",
            "enforces baseline",
        );
    }
}
