//! The condition `WritesSeen`: every write to the pods passes through a sidecar that purges by it.

use larder_api::admin::CacheState;
use larder_crds::RolloutStrategy;
use larder_policy::{coverage::State, spec::UnseenWrites};

use super::{Observation, Verdict};
use crate::coverage::Sight;

/// The reason while a new policy waits for its pods.
pub(super) const WAITING: &str = "WaitingForPods";
/// The reason when pods take writes that no sidecar sees.
pub(super) const UNSEEN: &str = "UnseenWrites";

/// Derives the condition `WritesSeen`.
pub(super) fn writes_seen(seen: &Observation<'_>) -> Verdict {
    let Some(view) = seen.coverage else {
        return match seen.policy_error {
            None => {
                Verdict::new(true, "NoRules", "the policy has no onWrite rules that rely on seeing writes")
            }
            Some(policy_error) => Verdict::new(None, policy_error.as_str(), "the policy is not in force"),
        };
    };
    let effect = match (view.state, view.choice) {
        (State::Serving, _) => {
            "responses may be older than such a write, by their TTL at most (invalidation.unseenWrites: Serve)"
        }
        (State::Waiting | State::Interrupted, UnseenWrites::PassThrough) => {
            "every sidecar passes everything through until each pod has a sidecar"
        }
        (State::Waiting | State::Interrupted, UnseenWrites::Serve) => {
            "every sidecar passes everything through until the restart has replaced the pods"
        }
    };
    if let Some(message) = view.assessment.message() {
        let reason = if view.state == State::Waiting { WAITING } else { UNSEEN };
        let remedy = remedy(seen).map_or_else(String::new, |remedy| format!("; {remedy}"));
        return Verdict::new(false, reason, format!("{message}; {effect}{remedy}"));
    }
    if view.state != State::Serving {
        let message = match view.assessment.awaited.first() {
            Some(pod) => format!("waiting for the sidecar of pod {pod} to confirm that it runs the policy"),
            None => "every pod has the sidecar; informing the sidecars".to_owned(),
        };
        return Verdict::new(false, WAITING, message);
    }
    Verdict::new(true, "WritesSeen", "every pod that takes requests has the sidecar")
}

/// Returns the reason that sidecars serve nothing from the cache although all other conditions hold, if there is one.
pub(super) fn waiting(seen: &Observation<'_>, writes: &Verdict) -> Option<Verdict> {
    let view = seen.coverage?;
    if view.state != State::Serving {
        return Some(Verdict::new(false, WAITING, writes.message.clone()));
    }
    let answers = || seen.answers.values().filter_map(|answer| answer.as_ref().ok());
    let waiting = answers().filter(|answer| answer.state == CacheState::Waiting).count();
    let message = format!(
        "{waiting} of {} sidecars have not yet learned that every pod has the sidecar, and pass everything through",
        answers().count()
    );
    (waiting > 0).then(|| Verdict::new(false, WAITING, message))
}

/// Returns the remedy for the user, where the operator does nothing by itself.
fn remedy(seen: &Observation<'_>) -> Option<&'static str> {
    let view = seen.coverage?;
    let has = |sight| view.assessment.unseen.iter().any(|(_, of)| *of == sight);
    if has(Sight::OptedOut) {
        return Some(match view.choice {
            UnseenWrites::PassThrough => {
                "exclude the pod from the selector, remove the label, or set invalidation.unseenWrites: Serve"
            }
            UnseenWrites::Serve => "exclude the pod from the selector, or remove the label",
        });
    }
    let on_create = seen.spec.sidecar.rollout.strategy == RolloutStrategy::OnCreate;
    match view.choice {
        _ if !has(Sight::Plain) => None,
        UnseenWrites::PassThrough if on_create => Some(
            "sidecar.rollout.strategy is OnCreate, so nothing is restarted: restart the pods by hand, set the strategy \
             Restart, or set invalidation.unseenWrites: Serve",
        ),
        UnseenWrites::Serve if on_create => {
            Some("restart the pods manually, or set sidecar.rollout.strategy: Restart")
        }
        UnseenWrites::PassThrough => {
            Some("see the condition Injected for the remedy, or set invalidation.unseenWrites: Serve")
        }
        UnseenWrites::Serve => Some("see the condition Injected for the remedy"),
    }
}

#[cfg(test)]
mod tests {
    use larder_api::admin::PolicyReport;
    use larder_crds::ConditionType::{Ready, WritesSeen};
    use serde_json::json;

    use super::*;
    use crate::{
        coverage::{Assessment, View},
        status::tests::{HASH, Scene},
    };

    fn scene(state: State, choice: UnseenWrites, sight: Option<Sight>, strategy: &str) -> Scene {
        let unseen = sight.map(|sight| ("plain".to_owned(), sight)).into_iter().collect();
        let assessment = Assessment { unseen, awaited: vec![] };
        Scene {
            spec: json!({"sidecar": {"rollout": {"strategy": strategy}}}),
            coverage: Some(View { assessment, choice, state }),
            ..Scene::default()
        }
    }

    #[test]
    fn writes_seen_is_true_when_seen_or_irrelevant() {
        Scene::default().expect(WritesSeen, "True", "NoRules", "no onWrite rules");
        let covered = || scene(State::Serving, UnseenWrites::PassThrough, None, "Restart");
        covered().expect(WritesSeen, "True", "WritesSeen", "every pod");
        covered().expect(Ready, "True", "Serving", "1 pods");
    }

    #[test]
    fn first_rollout_waits_and_reports_it() {
        let waits = || scene(State::Waiting, UnseenWrites::PassThrough, Some(Sight::Plain), "Restart");
        waits().expect(WritesSeen, "False", "WaitingForPods", "writes through pod plain are not seen");
        waits().expect(Ready, "False", "WaitingForPods", "passes everything through");
        let on_create = scene(State::Waiting, UnseenWrites::PassThrough, Some(Sight::Plain), "OnCreate");
        on_create.expect(WritesSeen, "False", "WaitingForPods", "unseenWrites: Serve");
    }

    #[test]
    fn plain_pod_that_appears_later_is_reported_as_the_policy_chose() {
        let passes = || scene(State::Interrupted, UnseenWrites::PassThrough, Some(Sight::Plain), "Restart");
        passes().expect(WritesSeen, "False", "UnseenWrites", "passes everything through");
        passes().expect(Ready, "False", "WaitingForPods", "pod plain");
        let serves = || scene(State::Serving, UnseenWrites::Serve, Some(Sight::OptedOut), "Restart");
        serves().expect(WritesSeen, "False", "UnseenWrites", "by their TTL at most");
        serves().expect(WritesSeen, "False", "UnseenWrites", "remove the label");
        serves().expect(Ready, "True", "Serving", "1 pods");
    }

    #[test]
    fn uninformed_sidecars_are_not_ready() {
        let covered = scene(State::Serving, UnseenWrites::PassThrough, None, "Restart");
        let waits = PolicyReport {
            hash: Some(HASH.into()),
            state: CacheState::Waiting,
            admin_token: true,
            ..PolicyReport::default()
        };
        let unheard = Scene { answers: vec![("a", Ok(waits))], ..covered };
        unheard.expect(Ready, "False", "WaitingForPods", "1 of 1 sidecars have not yet learned");
    }

    #[test]
    fn sidecar_with_an_older_configuration_is_named() {
        let mut scene = scene(State::Waiting, UnseenWrites::PassThrough, None, "Restart");
        scene.coverage.as_mut().unwrap().assessment.awaited = vec!["older".into()];
        scene.expect(WritesSeen, "False", "WaitingForPods", "pod older");
    }
}
