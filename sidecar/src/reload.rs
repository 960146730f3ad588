//! Secrets that change while they are used, such as a URL or a CA.
//!
//! # Guarantees
//! - Changed secrets that can't be used replace nothing: those in use stay until others have proven to work.
//! - Secrets that were refused are tried again when they change, and otherwise at most once in [`RETRY_INTERVAL`].

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Interval at which refused secrets are tried again, because their server may only be starting.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// The secrets in use, and the error of newer ones that can't be used.
pub struct Reload<S> {
    /// Name of the secrets in the log and in errors, such as "URL or CA of redis".
    subject: &'static str,
    state: Mutex<State<S>>,
}

struct State<S> {
    /// The secrets that worked last.
    in_use: Option<S>,
    refused: Option<Rejected<S>>,
    /// Reason why there is no connection.
    down: Option<String>,
}

struct Rejected<S> {
    /// `None` if the secrets could not be read.
    what: Option<S>,
    at: Instant,
    why: String,
}

/// Secrets as they were read just now, or the reason why they could not be read.
pub type Newest<S> = Result<S, String>;

impl<S: Clone + PartialEq> Reload<S> {
    /// Creates the state before any secrets are in use.
    pub const fn new(subject: &'static str) -> Self {
        Self { subject, state: Mutex::new(State { in_use: None, refused: None, down: None }) }
    }

    /// Returns the secrets in use, unless they are the newest.
    pub fn instead_of(&self, newest: &Newest<S>) -> Option<S> {
        self.state.lock().in_use.clone().filter(|in_use| newest.as_ref() != Ok(in_use))
    }

    /// Returns the secrets in use.
    pub fn in_use(&self) -> Option<S> {
        self.state.lock().in_use.clone()
    }

    /// Returns the newest secrets if they are to be tried now.
    pub fn candidate(&self, newest: Newest<S>) -> Option<S> {
        {
            let mut state = self.state.lock();
            if newest.is_ok() && newest.as_ref().ok() == state.in_use.as_ref() {
                state.refused = None;
                return None;
            }
            let known =
                state.refused.as_ref().filter(|refused| refused.what.as_ref() == newest.as_ref().ok());
            if known.is_some_and(|refused| refused.at.elapsed() < RETRY_INTERVAL) {
                return None;
            }
        }
        newest.map_err(|error| self.refuse(None, error)).ok()
    }

    /// Records that these secrets work, and are in use from now on.
    pub fn take(&self, secrets: S) {
        let mut state = self.state.lock();
        state.down = None;
        if state.in_use.as_ref() == Some(&secrets) {
            return;
        }
        state.refused = None;
        if state.in_use.replace(secrets).is_some() {
            tracing::info!("now using the changed {}", self.subject);
        }
    }

    /// Records that these secrets can't be used; `None` if they can't even be read.
    pub fn refuse(&self, what: Option<S>, why: String) {
        let mut state = self.state.lock();
        if state.refused.as_ref().is_none_or(|refused| refused.what != what) {
            let subject = self.subject;
            if state.in_use.is_some() {
                tracing::error!(error = why, "the changed {subject} can't be used; keeping the previous one");
            } else {
                tracing::error!(error = why, "the {subject} can't be used");
            }
        }
        state.refused = Some(Rejected { what, at: Instant::now(), why });
    }

    /// Records that there is no connection. Returns true if the reason is new.
    pub fn is_down(&self, why: String) -> bool {
        let mut state = self.state.lock();
        let is_news = state.down.as_ref() != Some(&why);
        state.down = Some(why);
        is_news
    }

    /// Returns the reason why there is no connection, or why the newest secrets are not in use.
    pub fn last_error(&self) -> Option<String> {
        let state = self.state.lock();
        let refused = state.refused.as_ref().map(|Rejected { why, .. }| match &state.in_use {
            Some(_) => format!("the changed {} can't be used: {why}", self.subject),
            None => why.clone(),
        });
        state.down.clone().or(refused)
    }
}

impl<S> std::fmt::Debug for Reload<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reload").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secrets;

    fn secrets(url: &str) -> Secrets {
        Secrets { url: url.to_owned(), ca: None }
    }

    #[test]
    fn changed_secret_is_tried_once_until_it_changes_or_time_has_passed() {
        let reload = Reload::new("URL or CA of redis");
        assert!(reload.is_down("starting".to_owned()) && !reload.is_down("starting".to_owned()));
        reload.take(secrets("a"));
        assert_eq!(reload.last_error(), None);
        assert!(reload.candidate(Ok(secrets("a"))).is_none());
        assert!(reload.candidate(Ok(secrets("b"))) == Some(secrets("b")));
        for _ in 0..2 {
            reload.refuse(Some(secrets("b")), "no".to_owned());
            assert!(reload.candidate(Ok(secrets("b"))).is_none());
        }
        assert!(reload.last_error().unwrap().ends_with("can't be used: no"));
        if let Some(refused) = &mut reload.state.lock().refused {
            refused.at -= RETRY_INTERVAL;
        }
        assert!(reload.candidate(Ok(secrets("b"))).is_some(), "its server may have started");
        assert!(reload.candidate(Ok(secrets("c"))).is_some());
        assert!(reload.candidate(Err("gone".to_owned())).is_none());
        assert!(reload.last_error().unwrap().ends_with("can't be used: gone"));
        assert!(reload.candidate(Ok(secrets("a"))).is_none());
        assert_eq!(reload.last_error(), None, "it is as it was");
        reload.take(secrets("c"));
        assert!(reload.instead_of(&Ok(secrets("a"))) == Some(secrets("c")));
    }

    #[test]
    fn working_secret_is_used_instead_of_a_broken_one() {
        let reload = Reload::new("URL or CA of redis");
        assert!(reload.instead_of(&Ok(secrets("a"))).is_none());
        reload.take(secrets("a"));
        assert!(reload.instead_of(&Ok(secrets("a"))).is_none());
        assert!(reload.instead_of(&Ok(secrets("b"))) == Some(secrets("a")));
        assert!(reload.instead_of(&Err("gone".to_owned())) == Some(secrets("a")));
    }

    #[test]
    fn first_secrets_that_can_not_be_read_are_reported_and_replaced_once_they_can() {
        let reload = Reload::new("URL or CA of redis");
        assert!(reload.candidate(Err("gone".to_owned())).is_none());
        assert_eq!(reload.last_error().unwrap(), "gone");
        assert!(reload.candidate(Err("gone".to_owned())).is_none());
        assert_eq!(reload.last_error().unwrap(), "gone");
        assert!(reload.candidate(Ok(secrets("a"))) == Some(secrets("a")));
        reload.take(secrets("a"));
        assert_eq!(reload.last_error(), None);
    }
}
