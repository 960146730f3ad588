//! A URL or a CA that changes while it is used: a bad one is kept out, and what works goes on.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::connection::Secrets;

/// Interval at which refused secrets are tried again, because their server may only be starting.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// The secrets that work, and the error of those that do not.
#[derive(Default)]
pub(super) struct Reload(Mutex<State>);

#[derive(Default)]
struct State {
    /// The secrets that connected last.
    in_use: Option<Secrets>,
    refused: Option<Refused>,
    /// Why there is no connection.
    down: Option<String>,
}

struct Refused {
    /// `None`: they could not be read.
    what: Option<Secrets>,
    at: Instant,
    why: String,
}

/// Secrets as they were read just now; an error says why they could not be.
pub(super) type Newest = Result<Secrets, String>;

impl Reload {
    /// Returns the secrets that connected last, unless they are the newest.
    pub(super) fn instead_of(&self, newest: &Newest) -> Option<Secrets> {
        self.0.lock().in_use.clone().filter(|in_use| newest.as_ref() != Ok(in_use))
    }

    /// The secrets that connected last.
    pub(super) fn in_use(&self) -> Option<Secrets> {
        self.0.lock().in_use.clone()
    }

    /// Returns the secrets to try beside the present connection, if there are any.
    pub(super) fn candidate(&self, newest: Newest) -> Option<Secrets> {
        {
            let mut state = self.0.lock();
            if newest.as_ref().ok() == state.in_use.as_ref() {
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

    /// Notes that these secrets connected.
    pub(super) fn take(&self, secrets: Secrets) {
        let mut state = self.0.lock();
        state.down = None;
        if state.in_use.as_ref() == Some(&secrets) {
            return;
        }
        state.refused = None;
        if state.in_use.replace(secrets).is_some() {
            tracing::info!("redis is connected with the changed URL or CA");
        }
    }

    /// Notes that these secrets did not connect, or could not be read, while others are in use.
    pub(super) fn refuse(&self, what: Option<Secrets>, why: String) {
        let mut state = self.0.lock();
        if state.refused.as_ref().is_none_or(|refused| refused.what != what) {
            tracing::error!(error = why, "the changed URL or CA of redis is refused; going on as before");
        }
        state.refused = Some(Refused { what, at: Instant::now(), why });
    }

    /// There is no connection. Says whether that is news.
    pub(super) fn is_down(&self, why: String) -> bool {
        let mut state = self.0.lock();
        let is_news = state.down.as_ref() != Some(&why);
        state.down = Some(why);
        is_news
    }

    /// Why there is no connection, or not the one that is asked for.
    pub(super) fn last_error(&self) -> Option<String> {
        let state = self.0.lock();
        let refused = state
            .refused
            .as_ref()
            .map(|refused| format!("the changed URL or CA is refused: {}", refused.why));
        state.down.clone().or(refused)
    }
}

impl std::fmt::Debug for Reload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reload").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(url: &str) -> Secrets {
        Secrets { url: url.to_owned(), ca: None }
    }

    #[test]
    fn changed_secret_is_tried_once_until_it_changes_or_time_has_passed() {
        let reload = Reload::default();
        assert!(reload.is_down("starting".to_owned()) && !reload.is_down("starting".to_owned()));
        reload.take(secrets("a"));
        assert_eq!(reload.last_error(), None);
        assert!(reload.candidate(Ok(secrets("a"))).is_none());
        assert!(reload.candidate(Ok(secrets("b"))) == Some(secrets("b")));
        for _ in 0..2 {
            reload.refuse(Some(secrets("b")), "no".to_owned());
            assert!(reload.candidate(Ok(secrets("b"))).is_none());
        }
        assert!(reload.last_error().unwrap().ends_with("refused: no"));
        if let Some(refused) = &mut reload.0.lock().refused {
            refused.at -= RETRY_INTERVAL;
        }
        assert!(reload.candidate(Ok(secrets("b"))).is_some(), "its server may have started");
        assert!(reload.candidate(Ok(secrets("c"))).is_some());
        assert!(reload.candidate(Err("gone".to_owned())).is_none());
        assert!(reload.last_error().unwrap().ends_with("refused: gone"));
        assert!(reload.candidate(Ok(secrets("a"))).is_none());
        assert_eq!(reload.last_error(), None, "it is as it was");
        reload.take(secrets("c"));
        assert!(reload.instead_of(&Ok(secrets("a"))) == Some(secrets("c")));
    }

    #[test]
    fn working_secret_is_used_instead_of_a_broken_one() {
        let reload = Reload::default();
        assert!(reload.instead_of(&Ok(secrets("a"))).is_none());
        reload.take(secrets("a"));
        assert!(reload.instead_of(&Ok(secrets("a"))).is_none());
        assert!(reload.instead_of(&Ok(secrets("b"))) == Some(secrets("a")));
        assert!(reload.instead_of(&Err("gone".to_owned())) == Some(secrets("a")));
    }
}
