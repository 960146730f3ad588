//! `larder status`.

use kube::ResourceExt;
use larder_api::admin::{CacheState, PolicyReport, RequestCounts, TierState, path};
use larder_crds::{CachePolicy, CachePolicyStatus, ConditionType};
use serde::Serialize;

use crate::{
    args,
    cluster::Cluster,
    conditions,
    error::Result,
    outcome::Outcome,
    output::Output,
    paint::{Paint, Tone},
    pods::SidecarPod,
    sidecar::{Sidecar, ask_all},
    table::{Cell, Table},
    wording,
};

/// State of a policy.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PolicyState {
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// True if the policy is in force as it is now.
    ready: bool,
    /// True if the status is of the policy as it is now.
    pub(crate) observed: bool,
    /// The resource's status.
    pub(crate) status: CachePolicyStatus,
    /// Sum of the sidecars' requests since their processes began.
    requests: RequestCounts,
    pub(crate) sidecars: Vec<SidecarState>,
}

/// State of a sidecar.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SidecarState {
    pub(crate) pod: String,
    ready: bool,
    pub(crate) terminating: bool,
    /// True if the sidecar runs the policy's current configuration.
    pub(crate) current: bool,
    /// The sidecar's own report.
    pub(crate) report: Option<PolicyReport>,
    /// Reason that there is no report.
    pub(crate) error: Option<String>,
}

/// Shows policies and their sidecars.
pub(crate) async fn run(args: &args::Status, cluster: &Cluster, output: &Output) -> Result<Outcome> {
    let policies = match &args.policy {
        Some(name) => vec![cluster.policy(name).await?],
        None => cluster.policies(args.all_namespaces).await?,
    };
    let mut states = Vec::with_capacity(policies.len());
    for policy in &policies {
        states.push(state(cluster, policy).await?);
    }
    output.print(&states, |paint| match states.is_empty() {
        true if args.all_namespaces => "no policies in any namespace\n".to_owned(),
        true => format!("no policies in namespace {}\n", cluster.namespace),
        false => states.iter().map(|state| text(state, paint)).collect::<Vec<_>>().join("\n"),
    })?;
    Ok(if states.iter().all(PolicyState::is_well) { Outcome::Good } else { Outcome::Faulty })
}

/// Asks for the state of a policy.
pub(crate) async fn state(cluster: &Cluster, policy: &CachePolicy) -> Result<PolicyState> {
    let status = policy.status.clone().unwrap_or_default();
    let pods = cluster.sidecar_pods(policy).await?;
    let reports = ask_all(&pods, async |pod| {
        if !pod.running {
            return Ok(None);
        }
        let sidecar = Sidecar { cluster, pod, token: None };
        sidecar.get::<PolicyReport>(path::POLICY).await.map(Some)
    });
    // The hash of the status may be that of an earlier configuration.
    let is_observed = |kind| conditions::find(policy, kind).is_some();
    let hash = status.config_hash.as_deref().filter(|_| is_observed(ConditionType::ConfigCurrent));
    let sidecars: Vec<_> =
        reports.await?.into_iter().map(|(pod, report)| SidecarState::new(pod, report, hash)).collect();
    let counts = sidecars.iter().filter_map(|sidecar| sidecar.report.as_ref()?.requests);
    let requests = counts.fold(RequestCounts::default(), |sum, one| RequestCounts {
        total: sum.total + one.total,
        hits: sum.hits + one.hits,
        misses: sum.misses + one.misses,
    });
    let namespace = policy.namespace().unwrap_or_default();
    Ok(PolicyState {
        namespace,
        name: policy.name_any(),
        ready: conditions::holds(policy, ConditionType::Ready),
        observed: is_observed(ConditionType::Ready),
        status,
        requests,
        sidecars,
    })
}

impl PolicyState {
    /// Returns true if the policy is in force and no sidecar and no tier is in trouble.
    fn is_well(&self) -> bool {
        self.ready && self.sidecars.iter().all(SidecarState::is_well)
    }
}

impl SidecarState {
    fn new(pod: &SidecarPod, report: Result<Option<PolicyReport>>, hash: Option<&str>) -> Self {
        let (report, error) = match report {
            Ok(Some(report)) => (Some(report), None),
            Ok(None) => (None, Some("the sidecar does not run".to_owned())),
            Err(error) => (None, Some(error.to_string())),
        };
        let running = report.as_ref().and_then(|report| report.hash.as_deref());
        Self {
            pod: pod.name.clone(),
            ready: pod.ready,
            terminating: pod.terminating,
            current: hash.is_some() && running == hash,
            report,
            error,
        }
    }

    /// Returns true unless attention is needed; a pod that ends needs none.
    fn is_well(&self) -> bool {
        let tiers_are_up = |report: &PolicyReport| {
            report.tiers.values().all(|tier| *tier != TierState::Down) && report.error.is_none()
        };
        self.terminating || (self.current && self.report.as_ref().is_some_and(tiers_are_up))
    }

    fn row(&self) -> Vec<Cell> {
        let toned =
            |is_good: bool, text: String| Cell::toned(text, if is_good { Tone::Good } else { Tone::Bad });
        let readiness = match (self.terminating, self.ready) {
            (true, _) => Cell::from("Terminating"),
            (false, true) => toned(true, "Ready".into()),
            (false, false) => toned(false, "NotReady".into()),
        };
        let mut row = vec![self.pod.as_str().into(), readiness];
        let Some(report) = &self.report else {
            row.push(toned(false, "unknown".into()));
            return row;
        };
        let configuration = match (&report.hash, self.current) {
            (None, _) => "none",
            (Some(_), true) => "current",
            (Some(_), false) => "other",
        };
        let RequestCounts { total, hits, misses } = report.requests.unwrap_or_default();
        row.extend([
            toned(self.current, configuration.into()),
            state_word(report.state).into(),
            toned(self.is_well(), tiers(report)),
            total.to_string().into(),
            hits.to_string().into(),
            wording::percent(hits, hits + misses).into(),
        ]);
        row
    }

    /// Returns the errors that explain the row.
    fn notes(&self) -> Vec<String> {
        let report = self.report.iter();
        let of_configuration = report.clone().filter_map(|report| report.error.clone());
        let of_tiers = report.flat_map(|report| &report.last_errors);
        let of_tiers = of_tiers.map(|(tier, error)| format!("{tier}: {error}"));
        let errors = self.error.iter().cloned().chain(of_configuration).chain(of_tiers);
        errors.map(|error| format!("pod {}: {error}", self.pod)).collect()
    }
}

fn tiers(report: &PolicyReport) -> String {
    let tiers = report.tiers.iter().map(|(name, state)| match state {
        TierState::Up => format!("{name} up"),
        TierState::Down => format!("{name} down"),
        TierState::Unknown => format!("{name} unknown"),
    });
    let tiers: Vec<_> = tiers.collect();
    if tiers.is_empty() { "memory".to_owned() } else { tiers.join(", ") }
}

const fn state_word(state: CacheState) -> &'static str {
    match state {
        CacheState::Serving => "serving",
        CacheState::Suspended => "suspended",
        CacheState::Waiting => "waiting",
        CacheState::Absent => "absent",
        CacheState::Unknown => "unknown",
    }
}

fn text(state: &PolicyState, paint: Paint) -> String {
    let PolicyState { namespace, name, ready, observed, status, requests, sidecars } = state;
    let (word, tone) = if *ready { ("Ready", Tone::Good) } else { ("not Ready", Tone::Bad) };
    let mut text = paint.apply(Tone::Heading, &wording::one_line(&format!("{namespace}/{name}")));
    text.push_str(&format!(": {}", paint.apply(tone, word)));
    if let Some(capture) = &status.capture {
        text.push_str(&format!(", captured by {}", wording::one_line(capture)));
    }
    if let Some(hash) = &status.config_hash {
        text.push_str(&format!(", configuration {}", wording::one_line(hash)));
    }
    let pods = &status.pods;
    text.push_str(&format!(
        "\n  Pods: {} matched, {} injected, {} current, {} ready, {} missed\n",
        pods.matched, pods.injected, pods.current, pods.ready, pods.missed
    ));
    let RequestCounts { total, hits, misses } = *requests;
    text.push_str(&format!(
        "  Requests: {total}, of which {hits} did not reach the application; hit ratio {}\n",
        wording::percent(hits, hits + misses)
    ));
    if !observed {
        let line = "the operator has not reported on the policy as it is now";
        text.push_str(&format!("  {}\n", paint.apply(Tone::Bad, line)));
    }
    for condition in status.conditions.iter().filter(|condition| condition.status != "True") {
        let line = format!("{} is {}: {}", condition.type_, condition.status, condition.message);
        text.push_str(&format!("  {}\n", paint.apply(Tone::Bad, &wording::one_line(&line))));
    }
    if !sidecars.is_empty() {
        let headings = ["POD", "POD STATE", "CONFIGURATION", "CACHE", "TIERS", "REQUESTS", "HITS", "HIT%"];
        let mut table = Table::new(&headings);
        sidecars.iter().for_each(|sidecar| table.push(sidecar.row()));
        text.push_str(&table.to_text(paint, "  "));
    }
    for note in sidecars.iter().flat_map(SidecarState::notes) {
        text.push_str(&format!("  {}\n", paint.apply(Tone::Bad, &wording::one_line(&note))));
    }
    text
}

#[cfg(test)]
impl PolicyState {
    /// Returns the state of a policy that is in force.
    pub(crate) fn named(name: &str, sidecars: Vec<SidecarState>) -> Self {
        Self {
            namespace: "shop".into(),
            name: name.into(),
            ready: true,
            observed: true,
            status: CachePolicyStatus::default(),
            requests: RequestCounts::default(),
            sidecars,
        }
    }
}

#[cfg(test)]
impl SidecarState {
    /// Returns the state of a sidecar that gave this report, or does not run.
    pub(crate) fn named(pod: &str, report: Option<PolicyReport>, hash: Option<&str>) -> Self {
        Self::new(&SidecarPod::named(pod), Ok(report), hash)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::error::Error;

    fn pod() -> SidecarPod {
        SidecarPod::named("shop-1")
    }

    fn report(redis: &str) -> PolicyReport {
        let errors = if redis == "up" { json!({}) } else { json!({"redis": "connection\u{1b}refused"}) };
        serde_json::from_value(json!({
            "hash": "h", "state": "serving", "error": null, "tiers": {"redis": redis}, "last_errors": errors,
            "requests": {"total": 12, "hits": 9, "misses": 1},
        }))
        .unwrap()
    }

    fn policy(sidecars: Vec<SidecarState>) -> PolicyState {
        let status = serde_json::from_value(json!({
            "configHash": "h", "capture": "NamedPort",
            "pods": {"matched": 1, "injected": 1, "current": 1, "ready": 1, "missed": 0},
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "R", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
        }))
        .unwrap();
        let requests = RequestCounts { total: 12, hits: 9, misses: 1 };
        PolicyState { status, requests, ..PolicyState::named("shop", sidecars) }
    }

    #[test]
    fn policy_in_force_with_its_tiers_is_well() {
        let state = policy(vec![SidecarState::new(&pod(), Ok(Some(report("up"))), Some("h"))]);
        assert!(state.is_well());
        let expected = "\
shop/shop: Ready, captured by NamedPort, configuration h
  Pods: 1 matched, 1 injected, 1 current, 1 ready, 0 missed
  Requests: 12, of which 9 did not reach the application; hit ratio 90%
  POD      POD STATE   CONFIGURATION   CACHE     TIERS      REQUESTS   HITS   HIT%
  shop-1   Ready       current         serving   redis up   12         9      90%
";
        assert_eq!(text(&state, Paint::NONE), expected);
    }

    #[test]
    fn policy_that_the_operator_has_not_seen_is_not_well() {
        let state = PolicyState { ready: false, observed: false, ..policy(vec![]) };
        let said = text(&state, Paint::NONE);
        assert!(
            !state.is_well() && said.contains("not Ready") && said.contains("has not reported"),
            "{said}"
        );
    }

    #[test]
    fn tier_that_is_down_is_not_well_and_has_its_error() {
        let state = policy(vec![SidecarState::new(&pod(), Ok(Some(report("down"))), Some("h"))]);
        assert!(!state.is_well());
        assert!(text(&state, Paint::NONE).contains("pod shop-1: redis: connection refused"));
    }

    #[test]
    fn sidecar_of_another_configuration_is_not_well() {
        let state = policy(vec![SidecarState::new(&pod(), Ok(Some(report("up"))), Some("new"))]);
        assert!(!state.is_well() && text(&state, Paint::NONE).contains("other"));
        let before_any = SidecarState::new(&pod(), Ok(Some(PolicyReport::default())), None);
        assert!(!before_any.current);
    }

    #[test]
    fn unreachable_sidecar_is_not_well_unless_its_pod_terminates() {
        let gone = || Err(Error::SidecarUnreachable { pod: "shop-1".into(), reason: "gone".into() });
        let state = policy(vec![SidecarState::new(&pod(), gone(), Some("h"))]);
        assert!(!state.is_well() && text(&state, Paint::NONE).contains("can't reach the sidecar"));
        let terminating = SidecarPod { terminating: true, ..pod() };
        assert!(policy(vec![SidecarState::new(&terminating, gone(), Some("h"))]).is_well());
    }
}
