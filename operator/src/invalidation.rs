//! The progress and the result of a `CacheInvalidation`, from what its policy's pods responded.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use larder_crds::{
    CacheInvalidation, CacheInvalidationSpec, CacheInvalidationStatus, MissingPod, PurgeResult,
    cache_invalidation::{DEFAULT_TIMEOUT_SECONDS, DEFAULT_TTL_SECONDS},
};

/// Maximum number of pods that a status names.
const MAX_NAMED_PODS: usize = 20;
/// Maximum length of a reason in a status, in characters. A sidecar's may name what it refuses.
const MAX_REASON: usize = 1024;
/// Bounds of the interval at which pods that have not acknowledged a purge are asked again.
const RETRY_INTERVALS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];
/// Share of a purge's age after which pods are asked again, as a divisor.
const PATIENCE: u32 = 5;

/// State of a purge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Pods were asked: the number that acknowledged, and the others.
    Asked {
        /// Number of pods that acknowledged the purge.
        acknowledged: usize,
        /// Pods that did not.
        missing: Vec<MissingPod>,
    },
    /// Nobody can be asked yet, with the reason in one word and as a sentence.
    Obstructed(&'static str, String),
    /// A pod refused the purge as wrong, with its reason.
    Refused(String),
}

impl Progress {
    fn result(&self, is_late: bool) -> Option<PurgeResult> {
        match self {
            Self::Asked { missing, .. } if missing.is_empty() => Some(PurgeResult::Complete),
            Self::Refused(_) => Some(PurgeResult::Partial),
            Self::Asked { .. } | Self::Obstructed(..) => is_late.then_some(PurgeResult::Partial),
        }
    }

    /// Returns the reason in one word and as a sentence.
    fn reason(&self, result: Option<PurgeResult>) -> (&'static str, String) {
        match self {
            Self::Asked { acknowledged, missing } => {
                let all = acknowledged + missing.len();
                let reason = match result {
                    Some(PurgeResult::Complete) => "Acknowledged",
                    Some(PurgeResult::Partial) => "TimedOut",
                    None => "Waiting",
                };
                let pods = if all == 1 { "pod has" } else { "pods have" };
                let mut words = format!("{acknowledged} of {all} {pods} acknowledged the purge");
                if let Some(MissingPod { pod, message }) = missing.first() {
                    words += &format!("; {pod}: {message}");
                }
                (reason, words)
            }
            Self::Obstructed(reason, words) => (reason, words.clone()),
            Self::Refused(words) => ("Refused", words.clone()),
        }
    }
}

/// Returns true if the purge of an object has ended.
pub fn is_finished(invalidation: &CacheInvalidation) -> bool {
    invalidation.status.as_ref().is_some_and(|status| status.completion_time.is_some())
}

/// Returns the time until a finished object is to be deleted.
pub fn time_left(invalidation: &CacheInvalidation, now: Timestamp) -> Option<Duration> {
    let ended = invalidation.status.as_ref()?.completion_time.as_ref()?.0;
    let ttl = invalidation.spec.ttl_seconds_after_finished.unwrap_or(DEFAULT_TTL_SECONDS);
    let end = ended + SignedDuration::from_secs(ttl.into());
    Some(Duration::try_from(end.duration_since(now)).unwrap_or_default())
}

/// Returns the interval after which pods are asked again: it grows with the age of the object.
pub fn retry_interval(invalidation: &CacheInvalidation, now: Timestamp) -> Duration {
    let created = invalidation.metadata.creation_timestamp.as_ref();
    let age = created.and_then(|created| Duration::try_from(now.duration_since(created.0)).ok());
    let [least, most] = RETRY_INTERVALS;
    (age.unwrap_or_default() / PATIENCE).clamp(least, most)
}

/// Returns a reason that fits into a status.
fn shortened(reason: &str) -> String {
    match reason.char_indices().nth(MAX_REASON) {
        Some((end, _)) => format!("{}…", &reason[..end]),
        None => reason.to_owned(),
    }
}

/// Returns true if pods have had the time that the object gives them.
fn is_late(spec: &CacheInvalidationSpec, created: Timestamp, now: Timestamp) -> bool {
    let timeout = spec.timeout_seconds.unwrap_or(DEFAULT_TIMEOUT_SECONDS);
    now.duration_since(created) >= SignedDuration::from_secs(timeout.into())
}

/// Returns the status of an object after a look at its pods.
pub fn status(
    invalidation: &CacheInvalidation,
    progress: &Progress,
    now: Timestamp,
) -> CacheInvalidationStatus {
    let before = invalidation.status.as_ref();
    let created = invalidation.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
    let result = progress.result(is_late(&invalidation.spec, created, now));
    let (reason, message) = progress.reason(result);
    let message = shortened(&message);
    let condition = |kind: PurgeResult| {
        let holds = if result == Some(kind) { "True" } else { "False" };
        let before =
            before.and_then(|before| before.conditions.iter().find(|one| one.type_ == kind.as_str()));
        let since = before.filter(|before| before.status == holds);
        Condition {
            type_: kind.as_str().to_owned(),
            status: holds.to_owned(),
            reason: reason.to_owned(),
            message: message.clone(),
            observed_generation: invalidation.metadata.generation,
            last_transition_time: since.map_or(Time(now), |since| since.last_transition_time.clone()),
        }
    };
    let (acknowledged, missing) = match progress {
        Progress::Asked { acknowledged, missing } => (*acknowledged, missing.as_slice()),
        Progress::Obstructed(..) | Progress::Refused(_) => (0, [].as_slice()),
    };
    let short = |MissingPod { pod, message }: &MissingPod| MissingPod {
        pod: pod.clone(),
        message: shortened(message),
    };
    let number = |pods: usize| i32::try_from(pods).unwrap_or(i32::MAX);
    CacheInvalidationStatus {
        pods: number(acknowledged + missing.len()),
        acknowledged: number(acknowledged),
        missing: missing.iter().take(MAX_NAMED_PODS).map(short).collect(),
        completion_time: result.map(|_| Time(now)),
        conditions: PurgeResult::ALL.iter().copied().map(condition).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    fn invalidation() -> CacheInvalidation {
        let spec = CacheInvalidationSpec {
            policy: "shop".into(),
            everything: true,
            timeout_seconds: Some(10),
            ttl_seconds_after_finished: Some(60),
            ..CacheInvalidationSpec::default()
        };
        let mut invalidation = CacheInvalidation::new("all", spec);
        invalidation.metadata.creation_timestamp = Some(Time(at(0)));
        invalidation
    }

    fn asked(acknowledged: usize, missing: &[&str]) -> Progress {
        let missing =
            missing.iter().map(|pod| MissingPod { pod: (*pod).into(), message: "no response".into() });
        Progress::Asked { acknowledged, missing: missing.collect() }
    }

    /// Returns the conditions as `Type=Status/Reason`.
    fn conditions(status: &CacheInvalidationStatus) -> Vec<String> {
        let conditions = status.conditions.iter();
        conditions.map(|one| format!("{}={}/{}", one.type_, one.status, one.reason)).collect()
    }

    #[test]
    fn purge_is_complete_when_every_pod_has_acknowledged_it() {
        let mut invalidation = invalidation();
        let waiting = status(&invalidation, &asked(2, &["c"]), at(1));
        assert_eq!(conditions(&waiting), ["Complete=False/Waiting", "Partial=False/Waiting"]);
        assert_eq!((waiting.pods, waiting.acknowledged, waiting.missing[0].pod.as_str()), (3, 2, "c"));
        assert_eq!(waiting.completion_time, None);
        invalidation.status = Some(waiting);

        let complete = status(&invalidation, &asked(3, &[]), at(2));
        assert_eq!(conditions(&complete), ["Complete=True/Acknowledged", "Partial=False/Acknowledged"]);
        assert_eq!((complete.pods, complete.acknowledged, complete.missing.len()), (3, 3, 0));
        assert_eq!(complete.conditions[0].last_transition_time, Time(at(2)));
        assert_eq!(complete.conditions[1].last_transition_time, Time(at(1)), "not partial since then");
    }

    #[test]
    fn purge_is_partial_when_its_time_is_over_or_it_is_refused() {
        let invalidation = invalidation();
        let late = status(&invalidation, &asked(2, &["c"]), at(10));
        assert_eq!(conditions(&late), ["Complete=False/TimedOut", "Partial=True/TimedOut"]);
        assert_eq!(late.conditions[1].message, "2 of 3 pods have acknowledged the purge; c: no response");

        let nobody = Progress::Obstructed("NoPolicy", "there is no CachePolicy shop".into());
        assert_eq!(conditions(&status(&invalidation, &nobody, at(1)))[1], "Partial=False/NoPolicy");
        assert_eq!(conditions(&status(&invalidation, &nobody, at(10)))[1], "Partial=True/NoPolicy");

        let refused = status(&invalidation, &Progress::Refused("\"x\" is not a key".into()), at(1));
        assert_eq!(conditions(&refused)[1], "Partial=True/Refused");
    }

    #[test]
    fn finished_object_remains_for_its_ttl() {
        let mut invalidation = invalidation();
        assert_eq!(time_left(&invalidation, at(0)), None);
        invalidation.status = Some(status(&invalidation, &asked(1, &[]), at(5)));
        assert!(is_finished(&invalidation));
        assert_eq!(time_left(&invalidation, at(6)), Some(Duration::from_secs(59)));
        assert_eq!(time_left(&invalidation, at(70)), Some(Duration::ZERO));
    }

    #[test]
    fn long_reason_is_shortened() {
        let refused = status(&invalidation(), &Progress::Refused("é".repeat(5000)), at(1));
        assert_eq!(refused.conditions[1].message.chars().count(), MAX_REASON + 1);
    }

    #[test]
    fn pods_are_asked_less_often_as_time_goes_by() {
        let interval = |seconds| retry_interval(&invalidation(), at(seconds)).as_secs();
        assert_eq!([-5, 0, 4, 20, 600].map(interval), [1, 1, 1, 4, 10]);
    }

    #[test]
    fn status_names_twenty_pods_at_most_and_counts_all() {
        let missing: Vec<_> = (0..30).map(|number| format!("pod-{number}")).collect();
        let missing: Vec<_> = missing.iter().map(String::as_str).collect();
        let status = status(&invalidation(), &asked(0, &missing), at(1));
        assert_eq!((status.pods, status.missing.len()), (30, 20));
    }
}
