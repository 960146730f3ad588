//! `larder purge`.

use http::StatusCode;
use larder_api::admin::{PurgeReport, PurgeRequest, path};
use larder_crds::{CachePolicy, ConditionType};
use serde::Serialize;

use crate::{
    args,
    cluster::Cluster,
    error::{Error, Result},
    outcome::Outcome,
    output::Output,
    paint::{Paint, Tone},
    pods::SidecarPod,
    sidecar::{Sidecar, ask_all},
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
    /// Every pod is told, because the first one could not tell Redis.
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
    /// Reason that the purge is pending or failed.
    reason: Option<String>,
}

/// State of a purge in a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Acknowledged,
    /// In force in the pod, and not yet in Redis.
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
    let mut asked = if through == Through::Redis { ask_one(&pods, ask).await? } else { Vec::new() };
    if asked.iter().any(|(_, response)| is_pending(response)) {
        through = Through::EveryPodWhileRedisIsAway;
    }
    if through != Through::Redis {
        let rest = pods.iter().filter(|pod| asked.iter().all(|(asked, _)| asked.name != pod.name));
        let mut responses = ask_all(rest, ask).await?;
        if responses.iter().all(|(_, response)| is_refused(response)) {
            responses.pop().map_or(Ok(()), |(_, refused)| refused.map(drop))?;
        }
        asked.extend(responses);
    }
    let pods = asked.into_iter().map(|(pod, response)| pod_report(pod, response)).collect();
    let report =
        Report { namespace: cluster.namespace.clone(), policy: args.policy.clone(), names, through, pods };
    output.print(&report, |paint| text(&report, paint));
    Ok(outcome(&report))
}

/// Asks one pod after the other until one responds: each can tell Redis.
async fn ask_one<'a>(
    pods: &'a [SidecarPod],
    ask: impl AsyncFn(&'a SidecarPod) -> Result<(StatusCode, PurgeReport)>,
) -> Result<Vec<(&'a SidecarPod, Result<(StatusCode, PurgeReport)>)>> {
    let mut asked = Vec::new();
    for pod in pods {
        match ask(pod).await {
            Ok(response) => return Ok(vec![(pod, Ok(response))]),
            Err(error @ Error::SidecarUnreachable { .. }) => asked.push((pod, Err(error))),
            Err(error) => return Err(error),
        }
    }
    Ok(asked)
}

/// Returns true for a purge that is in force in the pod, and not in Redis.
fn is_pending(response: &Result<(StatusCode, PurgeReport)>) -> bool {
    matches!(response, Ok((StatusCode::ACCEPTED, _)))
}

/// Returns true for a purge that a sidecar refuses; if all do, the purge itself is wrong.
fn is_refused<T>(response: &Result<T>) -> bool {
    matches!(response, Err(Error::SidecarRefused { .. }))
}

/// Returns the pods that are to be told.
fn through(policy: &CachePolicy) -> Through {
    if policy.spec.cache.l2.is_none() {
        return Through::EveryPod;
    }
    let status = policy.status.clone().unwrap_or_default();
    let is_observed = status.observed_generation == policy.metadata.generation;
    let is_current = status.conditions.iter().any(|condition| {
        condition.type_ == ConditionType::ConfigCurrent.as_str() && condition.status == "True"
    });
    if is_observed && is_current { Through::Redis } else { Through::EveryPodWhileConfigurationChanges }
}

fn pod_report(pod: &SidecarPod, response: Result<(StatusCode, PurgeReport)>) -> PodReport {
    let (state, order, reason) = match response {
        Ok((StatusCode::ACCEPTED, report)) => (State::Pending, report.order, report.pending),
        Ok((_, report)) => (State::Acknowledged, report.order, None),
        Err(error) => (State::Failed, None, Some(error.to_string())),
    };
    PodReport { pod: pod.name.clone(), state, order, reason }
}

fn outcome(report: &Report) -> Outcome {
    let outcomes = report.pods.iter().map(|pod| match pod.state {
        State::Acknowledged => Outcome::Good,
        State::Pending => Outcome::Faulty,
        State::Failed => Outcome::Failed,
    });
    outcomes.max().unwrap_or(Outcome::Failed)
}

fn text(report: &Report, paint: Paint) -> String {
    let (word, tone) = match outcome(report) {
        Outcome::Good if report.names.soft => ("made stale", Tone::Good),
        Outcome::Good => ("purged", Tone::Good),
        Outcome::Faulty => ("pending", Tone::Bad),
        Outcome::Failed => ("not purged everywhere", Tone::Bad),
    };
    let mut text = format!("{}: {}\n", paint.apply(tone, word), wording::names(&report.names));
    for PodReport { pod, state, order, reason } in &report.pods {
        let reason = reason.as_deref().unwrap_or_default();
        let line = match (state, report.through) {
            (State::Acknowledged, Through::Redis) => {
                let order = order.map(|order| format!(", as purge {order}")).unwrap_or_default();
                format!("acknowledged by Redis and the pods that hear it, through pod {pod}{order}")
            }
            (State::Acknowledged, _) => format!("acknowledged by pod {pod}"),
            (State::Pending, _) => {
                format!(
                    "acknowledged by pod {pod}, and not by Redis: {reason}; the pod repeats it, and so may you"
                )
            }
            (State::Failed, _) => format!("{reason}; run the command again"),
        };
        text.push_str(&format!("  {line}\n"));
    }
    match report.through {
        Through::Redis => {}
        Through::EveryPod => text.push_str("  each pod was told by itself, because the policy has no Redis\n"),
        Through::EveryPodWhileRedisIsAway => {
            text.push_str("  each pod was told by itself, because Redis can't be; it may still have stale responses\n");
        }
        Through::EveryPodWhileConfigurationChanges => text.push_str(
            "  each pod was told by itself, because not every one is known to run the policy's current configuration\n",
        ),
    }
    text
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
                "type": "ConfigCurrent", "status": current, "reason": "R", "message": "m",
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
        Report { namespace: "shop".into(), policy: "shop".into(), names, through, pods }
    }

    fn pod(state: State, reason: Option<&str>) -> PodReport {
        PodReport { pod: "shop-1".into(), state, order: Some(7), reason: reason.map(Into::into) }
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
        let said = text(&report(Through::Redis, vec![pod(State::Acknowledged, None)]), Paint::NONE);
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

    #[test]
    fn sidecar_that_is_unreachable_is_passed_over() {
        let pod = |name: &str| SidecarPod {
            namespace: "shop".into(),
            name: name.into(),
            port: 1,
            running: true,
            ready: true,
            terminating: false,
        };
        let pods = [pod("a"), pod("b"), pod("c")];
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let asked = runtime.block_on(ask_one(&pods, async |pod| match pod.name.as_str() {
            "a" => Err(Error::SidecarUnreachable { pod: "a".into(), reason: "gone".into() }),
            _ => {
                let report =
                    PurgeReport { purged: Default::default(), order: Some(1), redis: true, pending: None };
                Ok((StatusCode::OK, report))
            }
        }));
        let asked: Vec<_> = asked.unwrap().into_iter().map(|(pod, _)| pod.name.as_str()).collect();
        assert_eq!(asked, ["b"]);
    }
}
