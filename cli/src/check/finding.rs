//! Findings of checks.

use larder_check::{Checked, Fault};
use serde::{Serialize, Serializer};

use crate::{
    error::{Error, Result},
    outcome::Outcome,
    paint::{Paint, Tone},
    wording,
};

/// Columns before a message and its remedy.
const INDENTATION: usize = 9;

larder_api::labelled! {
    /// Result of a check.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) enum State {
        /// All is well.
        Ok = "ok",
        /// Something has no effect, or could be better.
        Warning = "warning",
        /// Something is wrong.
        Failed = "failed",
        /// A right is missing, the API server did not say, or the check can't be made.
        Skipped = "skipped",
    }
}

impl Serialize for State {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// Finding of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Finding {
    /// Policy with its namespace, such as `shop/shop`; null of the cluster.
    policy: Option<String>,
    check: &'static str,
    state: State,
    message: String,
    /// The steps that correct it; null if all is well.
    remedy: Option<String>,
    /// True if the finding decides on the outcome even if the check was skipped: the command was asked for it, or there was no answer.
    #[serde(skip)]
    is_wanted: bool,
}

/// All findings.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    pub(super) checks: Vec<Finding>,
}

impl Finding {
    fn new(check: &'static str, state: State, message: String, remedy: Option<String>) -> Self {
        Self { policy: None, check, state, message, remedy, is_wanted: false }
    }

    pub(super) fn ok(check: &'static str, message: impl Into<String>) -> Self {
        Self::new(check, State::Ok, message.into(), None)
    }

    pub(super) fn warning(
        check: &'static str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(check, State::Warning, message.into(), Some(remedy.into()))
    }

    pub(super) fn failed(check: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(check, State::Failed, message.into(), Some(remedy.into()))
    }

    /// Returns the finding of a check that the operator has as well.
    ///
    /// # Errors
    /// If the API server can't be asked at all.
    pub(super) fn of(check: &'static str, checked: Checked) -> Result<Self> {
        match checked {
            Ok(message) => Ok(Self::ok(check, message)),
            Err(Fault::Wrong { problem, remedy }) => Ok(Self::failed(check, problem, remedy)),
            Err(Fault::Untried { reason, remedy }) => Ok(Self::warning(check, reason, remedy)),
            Err(Fault::Unknown { action, error }) => Self::not_checked(check, Error::of_api(*error, &action)),
        }
    }

    /// Returns the finding of a check that an error prevented.
    ///
    /// # Errors
    /// If the API server can't be asked at all.
    pub(super) fn not_checked(check: &'static str, error: Error) -> Result<Self> {
        let (message, remedy) = match &error {
            Error::Unauthorized | Error::Unreachable(_) => return Err(error),
            Error::Forbidden(right) => (right.lack(), format!("have an administrator run {}", right.grant())),
            error => (error.to_string(), "run the command again".to_owned()),
        };
        // People know which rights they lack, but not that the API server did not answer.
        let is_wanted = !matches!(error, Error::Forbidden(_));
        Ok(Self { is_wanted, ..Self::skipped(check, message, remedy) })
    }

    /// Returns the finding of a check that can't be made.
    pub(super) fn skipped(
        check: &'static str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(check, State::Skipped, message.into(), Some(remedy.into()))
    }

    /// Returns the finding as one of a policy.
    pub(super) fn of_policy(self, policy: &str) -> Self {
        Self { policy: Some(policy.to_owned()), ..self }
    }

    /// Returns the finding as one of the policies that the command was asked for.
    pub(super) fn of_policies(self) -> Self {
        Self { is_wanted: true, ..self }
    }

    pub(super) fn is_failed(&self) -> bool {
        self.state == State::Failed
    }

    pub(super) fn text(&self, paint: Paint) -> String {
        let tone = match self.state {
            State::Ok => Tone::Good,
            State::Failed => Tone::Bad,
            State::Warning | State::Skipped => Tone::Heading,
        };
        let word = self.state.as_str();
        let padding = " ".repeat(INDENTATION - word.len());
        let of_policy = self.policy.as_ref().map(|policy| format!("{policy} ")).unwrap_or_default();
        let line = format!("{of_policy}{}: {}", self.check, self.message);
        let mut text = format!("{}{padding}{}\n", paint.apply(tone, word), wording::one_line(&line));
        if let Some(remedy) = &self.remedy {
            text.push_str(&format!("{}{}\n", " ".repeat(INDENTATION), wording::one_line(remedy)));
        }
        text
    }
}

impl Report {
    pub(super) fn text(&self, paint: Paint) -> String {
        self.checks.iter().map(|finding| finding.text(paint)).collect()
    }

    /// Returns the worst outcome. A check of the cluster for which a right is missing does not count: people with rights in their
    /// namespace alone check what is there.
    pub(super) fn outcome(&self) -> Outcome {
        let outcomes = self.checks.iter().map(|finding| match finding.state {
            State::Ok | State::Warning => Outcome::Good,
            State::Skipped if !finding.is_wanted => Outcome::Good,
            State::Failed => Outcome::Faulty,
            State::Skipped => Outcome::Failed,
        });
        outcomes.fold(Outcome::Good, Outcome::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::right::Right;

    fn forbidden() -> Error {
        Error::Forbidden(Box::new(Right::to_forward("jane", "shop")))
    }

    #[test]
    fn findings_have_their_remedies_below() {
        let checks = vec![
            Finding::ok("definition", "is served"),
            Finding::failed("tiers", "redis is\u{1b}down", "start it").of_policy("shop/shop"),
            Finding::not_checked("leader", forbidden()).unwrap(),
        ];
        let said = Report { checks }.text(Paint::NONE);
        let expected = "\
ok       definition: is served
failed   shop/shop tiers: redis is down
         start it
skipped  leader: jane may not create pods/portforward in namespace shop
         have an administrator run kubectl create role ";
        assert!(said.starts_with(expected), "{said}");
    }

    #[test]
    fn check_that_the_cluster_keeps_from_being_made_is_a_warning() {
        let untried = Fault::Untried { reason: "a quota is exceeded".into(), remedy: "raise it".into() };
        let said = Finding::of("admission", Err(untried)).unwrap().text(Paint::NONE);
        assert_eq!(said, "warning  admission: a quota is exceeded\n         raise it\n");
    }

    #[test]
    fn missing_right_counts_only_where_policies_can_not_be_checked() {
        let outcome = |checks: Vec<Finding>| Report { checks }.outcome();
        let skipped = || Finding::not_checked("leader", forbidden()).unwrap();
        assert_eq!(outcome(vec![Finding::warning("lint", "a", "b"), skipped()]), Outcome::Good);
        assert_eq!(outcome(vec![Finding::failed("tiers", "a", "b"), skipped()]), Outcome::Faulty);
        assert_eq!(outcome(vec![skipped().of_policies()]), Outcome::Failed);
        assert!(Finding::not_checked("leader", Error::Unauthorized).is_err(), "nothing can be checked");
        let refused = Error::Refused { action: "get the Lease".into(), words: "overloaded".into() };
        assert_eq!(outcome(vec![Finding::not_checked("leader", refused).unwrap()]), Outcome::Failed);
        assert_eq!(outcome(vec![Finding::skipped("admission", "a", "b")]), Outcome::Good);
    }
}
