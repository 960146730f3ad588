//! Checks of an installation over a client of the API server, with whatever rights that client has: `helm test` runs them under the
//! operator's account, `larder check` under a person's.
//!
//! # Guarantees
//! - Nothing is created: pods are tried by dry runs.
//! - A fault says how to correct it, or which request to the API server failed.

mod admission;
mod installation;

pub use admission::{admit, injects, pod_of, restricted_pod, try_pod};
pub use installation::{definition, leader, registered};

/// Success in words, or the fault.
pub type Checked = Result<String, Fault>;

/// Reason that a check did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A part of the installation is not as it should be.
    #[error("{problem}; {remedy}")]
    Wrong {
        /// The part, and its state.
        problem: String,
        /// The steps that correct it.
        remedy: String,
    },
    /// The check could not be made on this cluster, for a reason that need not be a fault.
    #[error("{reason}; {remedy}")]
    Untried {
        /// The obstacle.
        reason: String,
        /// The steps that remove it.
        remedy: String,
    },
    /// The API server gave no answer, so that nothing is known.
    #[error("could not {action}: {error}")]
    Unknown {
        /// The request, as a verb and an object.
        action: String,
        /// The error of the request.
        error: Box<kube::Error>,
    },
}

impl Fault {
    /// Returns a fault of the installation.
    pub fn wrong(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Wrong { problem: problem.into(), remedy: remedy.into() }
    }

    /// Returns the fault of a request that failed; `action` completes "could not".
    pub fn unknown(action: &str, error: kube::Error) -> Self {
        Self::Unknown { action: action.to_owned(), error: Box::new(error) }
    }
}
