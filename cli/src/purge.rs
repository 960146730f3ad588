//! `larder purge`.

use std::collections::{HashMap, HashSet};

use http::StatusCode;
use larder_api::admin::{PeersTold, PurgeReport, PurgeRequest, path};
use larder_crds::{CachePolicy, ConditionType};
use serde::Serialize;

use crate::{
    args,
    cluster::Cluster,
    conditions,
    error::{Error, Result},
    outcome::Outcome,
    output::Output,
    paint::{Paint, Tone},
    pods::SidecarPod,
    sidecar::{Sidecar, ask_all, ask_one},
    wording,
};

/// A purge and its progress.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    namespace: String,
    policy: String,
    names: PurgeRequest,
    through: Through,
    /// True if Redis has the purge.
    redis: bool,
    pods: Vec<PodReport>,
}

/// Pods that are told of a purge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Through {
    /// One pod tells Redis, and Redis all others.
    Redis,
    /// Every pod is told, because the policy has no Redis.
    EveryPod,
    /// Every pod is told, because not all of them run the policy's current configuration, which has Redis.
    EveryPodWhileConfigurationChanges,
    /// Every pod is told, because the first ones could not tell Redis.
    EveryPodWhileRedisIsAway,
}

/// Progress of a purge in a pod.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PodReport {
    pod: String,
    state: State,
    /// Place in the order of purges.
    order: Option<u64>,
    /// True if the pod has told Redis.
    redis: bool,
    /// Reason that the purge is pending or failed.
    reason: Option<String>,
    /// The other pods that the pod told directly; those that did not acknowledge it by name, where that is known.
    peers: Option<PeersTold>,
}

/// Response of a pod to a purge.
type Response = Result<(StatusCode, PurgeReport)>;

/// State of a purge in a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Acknowledged,
    /// In force in the pod, and not yet in Redis or in every other pod.
    Pending,
    Failed,
}

/// Purges names in all pods of a policy.
pub(crate) async fn run(args: &args::Purge, cluster: &Cluster, output: &Output) -> Result<Outcome> {
    let names = PurgeRequest {
        keys: args.keys.clone(),
        paths: args.paths.clone(),
        prefixes: args.prefixes.clone(),
        tags: args.tags.clone(),
        everything: args.everything,
        soft: args.soft,
    };
    let policy = cluster.policy(&args.policy).await?;
    let mut pods = cluster.sidecar_pods(&policy).await?;
    // A sidecar that does not run has nothing in memory.
    pods.retain(|pod| pod.running);
    if pods.is_empty() {
        return Err(Error::NoSidecar(args.policy.clone()));
    }
    let token = cluster.token(&policy).await?;
    let ask = async |pod| {
        let sidecar = Sidecar { cluster, pod, token: Some(&token) };
        sidecar.post::<PurgeReport>(path::PURGE, &names).await
    };
    let mut through = through(&policy);
    // Each pod can tell Redis.
    let mut asked = if through == Through::Redis { ask_one(&pods, ask).await? } else { Vec::new() };
    if through == Through::Redis && !asked.iter().any(|(_, response)| is_in_redis(response)) {
        through = Through::EveryPodWhileRedisIsAway;
    }
    if through != Through::Redis {
        let rest = pods.iter().filter(|pod| asked.iter().all(|(asked, _)| asked.name != pod.name));
        let rest: Vec<_> = rest.collect();
        asked.extend(ask_all(rest, ask).await?);
    }
    if asked.iter().all(|(_, response)| is_refused(response)) {
        // The purge itself is wrong.
        asked.pop().map_or(Ok(()), |(_, refused)| refused.map(drop))?;
    }
    if asked.iter().any(|(_, response)| is_unreachable(response)) {
        // Without news of the pods, they count as they were.
        if let Ok(now) = cluster.sidecar_pods(&policy).await {
            drop_gone(&mut asked, &now);
        }
    }
    if asked.is_empty() {
        return Err(Error::NoSidecar(args.policy.clone()));
    }
    let redis = asked.iter().any(|(_, response)| is_in_redis(response));
    let pods = pod_reports(asked, &pods);
    let (namespace, policy) = (cluster.namespace.clone(), args.policy.clone());
    let report = Report { namespace, policy, names, through, redis, pods };
    output.print(&report, |paint| text(&report, paint))?;
    Ok(outcome(&report))
}

fn is_in_redis(response: &Response) -> bool {
    response.as_ref().is_ok_and(|(_, report)| report.redis)
}

fn is_refused(response: &Response) -> bool {
    matches!(response, Err(Error::SidecarRefused { .. }))
}

fn is_unreachable(response: &Response) -> bool {
    matches!(response, Err(Error::SidecarUnreachable { .. }))
}

/// Drops pods that could not be told and no longer run a sidecar: nothing is left in its memory.
fn drop_gone(asked: &mut Vec<(&SidecarPod, Response)>, now: &[SidecarPod]) {
    let runs = |pod: &SidecarPod| now.iter().any(|now| now.name == pod.name && now.running);
    asked.retain(|(pod, response)| !is_unreachable(response) || runs(pod));
}

/// Returns the pods that are to be told.
fn through(policy: &CachePolicy) -> Through {
    if policy.spec.cache.l2.is_none() {
        return Through::EveryPod;
    }
    match conditions::holds(policy, ConditionType::ConfigCurrent) {
        true => Through::Redis,
        false => Through::EveryPodWhileConfigurationChanges,
    }
}

/// Returns the reports of pods. A pod that another one could not tell has the purge if it was told by itself.
fn pod_reports(asked: Vec<(&SidecarPod, Response)>, all: &[SidecarPod]) -> Vec<PodReport> {
    let told = asked.iter().filter(|(_, response)| response.is_ok()).map(|(pod, _)| pod.name.clone());
    let told: HashSet<_> = told.collect();
    let names: HashMap<_, _> =
        all.iter().filter_map(|pod| Some((pod.address?.to_string(), &pod.name))).collect();
    let missing = |peers: PeersTold| {
        let named = peers.missing.into_iter().map(|address| match names.get(&address) {
            Some(pod) => str::to_owned(pod),
            None => address,
        });
        PeersTold { missing: named.filter(|pod| !told.contains(pod)).collect(), ..peers }
    };
    asked.into_iter().map(|(pod, response)| PodReport::of(pod, response, missing)).collect()
}

impl PodReport {
    fn of(pod: &SidecarPod, response: Response, missing: impl FnOnce(PeersTold) -> PeersTold) -> Self {
        let redis = is_in_redis(&response);
        let (status, report) = match response {
            Ok(response) => response,
            Err(error) => {
                let (pod, reason) = (pod.name.clone(), Some(error.to_string()));
                return Self { pod, state: State::Failed, order: None, redis, reason, peers: None };
            }
        };
        let PurgeReport { purged: _, order, redis: _, pending, peers } = report;
        let peers = peers.map(missing);
        // Without Redis a purge has its place at once, and is pending only while other pods don't have it.
        let waits_for_peers = order.is_some();
        let all_have_it = peers.as_ref().is_some_and(|peers| peers.missing.is_empty());
        let state = match status {
            StatusCode::ACCEPTED if !(waits_for_peers && all_have_it) => State::Pending,
            _ => State::Acknowledged,
        };
        let reason = pending.filter(|_| state == State::Pending);
        Self { pod: pod.name.clone(), state, order, redis, reason, peers }
    }
}

/// Returns true if the policy has a Redis which does not have the purge.
fn lacks_redis(report: &Report) -> bool {
    report.through != Through::EveryPod && !report.redis
}

fn outcome(report: &Report) -> Outcome {
    let outcomes = report.pods.iter().map(|pod| match pod.state {
        State::Acknowledged => Outcome::Good,
        State::Pending => Outcome::Faulty,
        State::Failed => Outcome::Failed,
    });
    let of_redis = if lacks_redis(report) { Outcome::Faulty } else { Outcome::Good };
    outcomes.fold(of_redis, Outcome::max)
}

fn text(report: &Report, paint: Paint) -> String {
    let (word, tone) = match outcome(report) {
        Outcome::Good if report.names.soft => ("made stale", Tone::Good),
        Outcome::Good => ("purged", Tone::Good),
        Outcome::Faulty if report.pods.iter().any(|pod| pod.state == State::Pending) => {
            ("pending", Tone::Bad)
        }
        Outcome::Faulty => ("not in Redis", Tone::Bad),
        Outcome::Failed => ("not purged everywhere", Tone::Bad),
    };
    let mut text = format!("{}: {}\n", paint.apply(tone, word), wording::names(&report.names));
    for PodReport { pod, state, order, redis, reason, peers } in &report.pods {
        let reason = reason.as_deref().unwrap_or_default();
        let line = match (state, report.through) {
            (State::Acknowledged, Through::Redis) => {
                let order = order.map(|order| format!(", as purge {order}")).unwrap_or_default();
                format!("acknowledged by Redis and the pods that hear it, through pod {pod}{order}")
            }
            (State::Acknowledged, _) if *redis => format!("acknowledged by pod {pod} and by Redis"),
            (State::Acknowledged, _) => format!("acknowledged by pod {pod}"),
            (State::Pending, Through::EveryPod) => {
                format!(
                    "acknowledged by pod {pod}, and not by every other pod: it repeats it, and so may you"
                )
            }
            (State::Pending, _) => {
                format!(
                    "acknowledged by pod {pod}, and not by Redis: {reason}; the pod repeats it, and so may you"
                )
            }
            (State::Failed, _) => format!("{reason}; run the command again"),
        };
        text.push_str(&format!("  {}\n", wording::one_line(&line)));
        if let Some(peers) = peers {
            text.push_str(&format!("    {}\n", wording::one_line(&peers_words(peers))));
        }
    }
    match report.through {
        Through::Redis => {}
        Through::EveryPod => text.push_str("  each pod was told by itself, because the policy has no Redis\n"),
        Through::EveryPodWhileRedisIsAway => {
            text.push_str("  each pod was told by itself, because the first could not tell Redis\n");
        }
        Through::EveryPodWhileConfigurationChanges => text.push_str(
            "  each pod was told by itself, because not every one is known to run the policy's current configuration\n",
        ),
    }
    if lacks_redis(report) {
        text.push_str(
            "  Redis does not have the purge, and may still have the responses: run the command again\n",
        );
    }
    text
}

fn peers_words(PeersTold { acknowledged, missing }: &PeersTold) -> String {
    let pods = if *acknowledged == 1 { "pod" } else { "pods" };
    let acknowledged = format!("it told {acknowledged} other {pods} directly");
    match missing.as_slice() {
        [] => acknowledged,
        missing => format!("{acknowledged}; not acknowledged by {}", missing.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn policy(l2: Value, observed: i64, current: &str) -> CachePolicy {
        let mut spec = json!({"selector": {"matchLabels": {"app": "shop"}}, "targets": [{"port": "http"}]});
        if !l2.is_null() {
            spec["l2"] = l2;
        }
        serde_json::from_value(json!({
            "apiVersion": "larder.dev/v1alpha1",
            "kind": "CachePolicy",
            "metadata": {"name": "shop", "namespace": "shop", "generation": 2},
            "spec": spec,
            "status": {"observedGeneration": observed, "conditions": [{
                "type": "ConfigCurrent", "status": current, "reason": "R", "message": "m", "observedGeneration": 2,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }]},
        }))
        .unwrap()
    }

    fn redis() -> Value {
        json!({"redis": {"urlFrom": {"secretKeyRef": {"name": "redis", "key": "url"}}}})
    }

    fn report(through: Through, pods: Vec<PodReport>) -> Report {
        let names = PurgeRequest { tags: vec!["user:1".into()], ..PurgeRequest::default() };
        let redis = pods.iter().any(|pod| pod.redis);
        Report { namespace: "shop".into(), policy: "shop".into(), names, through, redis, pods }
    }

    fn pod(state: State, reason: Option<&str>) -> PodReport {
        PodReport {
            pod: "shop-1".into(),
            state,
            order: Some(7),
            redis: false,
            reason: reason.map(Into::into),
            peers: None,
        }
    }

    fn pod_with_redis() -> PodReport {
        PodReport { redis: true, ..pod(State::Acknowledged, None) }
    }

    #[test]
    fn one_pod_is_told_only_if_all_are_known_to_hear_redis() {
        assert_eq!(through(&policy(redis(), 2, "True")), Through::Redis);
        assert_eq!(through(&policy(redis(), 1, "True")), Through::EveryPodWhileConfigurationChanges);
        assert_eq!(through(&policy(redis(), 2, "False")), Through::EveryPodWhileConfigurationChanges);
        assert_eq!(through(&policy(Value::Null, 2, "True")), Through::EveryPod);
    }

    #[test]
    fn worst_pod_decides_the_exit_code() {
        let of = |states: &[State]| {
            let pods = states.iter().map(|state| pod(*state, None)).collect();
            outcome(&report(Through::EveryPod, pods))
        };
        assert_eq!(of(&[State::Acknowledged, State::Acknowledged]), Outcome::Good);
        assert_eq!(of(&[State::Pending, State::Acknowledged]), Outcome::Faulty);
        assert_eq!(of(&[State::Pending, State::Failed]), Outcome::Failed);
    }

    #[test]
    fn acknowledgements_are_told_apart_from_pending_purges() {
        let said = text(&report(Through::Redis, vec![pod_with_redis()]), Paint::NONE);
        assert_eq!(
            said,
            "purged: tag user:1\n  acknowledged by Redis and the pods that hear it, through pod shop-1, as purge 7\n"
        );
        let said = text(&report(Through::Redis, vec![pod(State::Pending, Some("it is down"))]), Paint::NONE);
        assert!(
            said.starts_with("pending: tag user:1\n") && said.contains("not by Redis: it is down"),
            "{said}"
        );
    }

    fn told(missing: &[&str]) -> Response {
        let peers =
            PeersTold { acknowledged: 1, missing: missing.iter().map(|one| str::to_owned(one)).collect() };
        let (status, pending) = match missing.is_empty() {
            true => (StatusCode::OK, None),
            false => (StatusCode::ACCEPTED, Some("not acknowledged".to_owned())),
        };
        let (purged, order) = (Default::default(), Some(1));
        Ok((status, PurgeReport { purged, order, redis: false, pending, peers: Some(peers) }))
    }

    #[test]
    fn pods_that_did_not_acknowledge_are_named_unless_they_were_told_by_themselves() {
        let pod = |number: u8| SidecarPod {
            address: Some(([10, 0, 0, number], 24890).into()),
            ..SidecarPod::named(&format!("shop-{number}"))
        };
        let pods = [pod(1), pod(2), pod(3)];
        let (one, two) = (&pods[0], &pods[1]);
        let of = |asked| report(Through::EveryPod, pod_reports(asked, &pods));
        let all = of(vec![(one, told(&["10.0.0.2:24890"])), (two, told(&[]))]);
        assert_eq!(outcome(&all), Outcome::Good);
        assert!(text(&all, Paint::NONE).contains("pod shop-1\n    it told 1 other pod directly\n"));
        let some = of(vec![(one, told(&["10.0.0.3:24890", "10.0.0.9:24890"])), (two, told(&[]))]);
        assert_eq!((outcome(&some), some.pods[0].state), (Outcome::Faulty, State::Pending));
        let said = text(&some, Paint::NONE);
        assert!(said.contains("directly; not acknowledged by shop-3, 10.0.0.9:24890\n"), "{said}");
        let unknown =
            PurgeReport { purged: Default::default(), order: None, redis: false, pending: None, peers: None };
        let away = of(vec![(one, Ok((StatusCode::ACCEPTED, unknown)))]);
        assert_eq!(away.pods[0].state, State::Pending);
    }

    #[test]
    fn purge_without_redis_is_not_done_where_the_policy_has_one() {
        for through in [Through::EveryPodWhileRedisIsAway, Through::EveryPodWhileConfigurationChanges] {
            let without = report(through, vec![pod(State::Acknowledged, None)]);
            let said = text(&without, Paint::NONE);
            assert_eq!(outcome(&without), Outcome::Faulty);
            assert!(said.starts_with("not in Redis: ") && said.contains("Redis does not have"), "{said}");
            let with = report(through, vec![pod(State::Acknowledged, None), pod_with_redis()]);
            assert_eq!(outcome(&with), Outcome::Good);
            assert!(!text(&with, Paint::NONE).contains("Redis does not have"));
        }
        let told = report(Through::EveryPod, vec![pod(State::Acknowledged, None)]);
        assert_eq!(outcome(&told), Outcome::Good);
    }

    #[test]
    fn pods_that_are_gone_need_not_be_told() {
        let pod = |name: &str, running| SidecarPod { running, ..SidecarPod::named(name) };
        let lost = || Err(Error::SidecarUnreachable { pod: "a".into(), reason: "gone".into() });
        let refused = Err(Error::SidecarRefused { pod: "d".into(), detail: "no".into() });
        let pods = ["a", "b", "c", "d"].map(|name| pod(name, true));
        let mut asked: Vec<_> = pods.iter().zip([lost(), lost(), lost(), refused]).collect();
        drop_gone(&mut asked, &[pod("b", false), pod("c", true)]);
        let left: Vec<_> = asked.iter().map(|(pod, _)| pod.name.as_str()).collect();
        assert_eq!(left, ["c", "d"]);
    }

    #[test]
    fn only_a_report_of_redis_counts_as_one() {
        let response = |redis| {
            Ok((
                StatusCode::OK,
                PurgeReport { purged: Default::default(), order: Some(1), redis, pending: None, peers: None },
            ))
        };
        assert!(is_in_redis(&response(true)) && !is_in_redis(&response(false)));
    }
}
