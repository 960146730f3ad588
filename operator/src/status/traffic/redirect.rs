//! Traffic of pods whose ports are redirected: it reaches the sidecars by any Service, name or address.

use super::super::{Observation, Verdict};
use crate::capture::SkipReason;

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
    let mut numbers: Vec<_> = pods
        .iter()
        .filter(|pod| pod.matched && pod.injected)
        .flat_map(|pod| pod.captured.iter().map(|captured| captured.port))
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    if numbers.is_empty() {
        return Verdict::new(None, "NoPods", "no pod has the sidecar");
    }
    let numbers: Vec<_> = numbers.iter().map(u16::to_string).collect();
    let message = format!("connections from outside the pods to port {} are redirected", numbers.join(", "));
    Verdict::new(true, "Redirect", message)
}

#[cfg(test)]
mod tests {
    use larder_crds::ConditionType::TrafficCaptured;
    use serde_json::json;

    use crate::{
        capture::{Skip, SkipReason},
        inject::tests::settings,
        policy_pods::PodReport,
        status::tests::{Scene, right},
    };

    fn scene() -> Scene {
        let settings =
            crate::cli::SidecarSettings { redirect_image: Some("larder/redirect:1".into()), ..settings() };
        let services = json!([{"metadata": {"name": "old"}, "spec": {"clusterIP": "None", "selector": {"app": "shop"},
            "ports": [{"port": 8080}]}}]);
        Scene { spec: json!({"capture": {"mode": "Redirect"}}), settings, services, ..Scene::default() }
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
