//! Figures of a policy's sidecars.

use serde::Serialize;

use crate::{
    error::Result,
    outcome::Outcome,
    paint::{Paint, Tone},
    wording,
};

/// Figures of a policy's sidecars.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report<T> {
    pub(crate) namespace: String,
    pub(crate) policy: String,
    /// The sum of the pods that have some.
    pub(crate) total: T,
    pub(crate) pods: Vec<PodFigures<T>>,
}

/// Figures of a pod's sidecar.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodFigures<T> {
    pub(crate) pod: String,
    /// The figures; none of a pod that did not respond, and no rates of one that was asked once.
    pub(crate) figures: Option<T>,
    /// Reason that the pod did not respond.
    pub(crate) error: Option<String>,
}

impl<T> PodFigures<T> {
    /// Returns the figures of a pod, or the reason that there are none.
    pub(crate) fn of(pod: &str, figures: Result<Option<T>>) -> Self {
        let (figures, error) = match figures {
            Ok(figures) => (figures, None),
            Err(error) => (None, Some(error.to_string())),
        };
        Self { pod: pod.to_owned(), figures, error }
    }
}

impl<T> Report<T> {
    /// Returns the outcome: all pods responded, or not.
    pub(crate) fn outcome(&self) -> Outcome {
        if self.errors().next().is_none() { Outcome::Good } else { Outcome::Failed }
    }

    /// Returns a line for each pod that did not respond.
    pub(crate) fn error_lines(&self, paint: Paint) -> String {
        self.errors().map(|error| paint.apply(Tone::Bad, &wording::one_line(error)) + "\n").collect()
    }

    fn errors(&self) -> impl Iterator<Item = &str> {
        self.pods.iter().filter_map(|pod| pod.error.as_deref())
    }
}
