//! Treatment of requests as a whole.

use crate::cache_status::Bypass;

larder_api::labelled! {
    /// Treatment of requests as a whole.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Mode {
        /// Requests that match a route are looked up.
        Serving = "serving",
        /// Every request passes because the policy is suspended. Writes still purge, so that no stale response is
        /// served afterwards.
        Suspended = "suspended",
        /// Every request passes because pods without a sidecar take writes, or may. Writes still purge.
        Waiting = "waiting",
        /// Every request passes because there is no policy.
        Absent = "absent",
    }
}

impl Mode {
    /// Returns the reason if every request passes.
    pub const fn bypass(self) -> Option<Bypass> {
        match self {
            Self::Serving => None,
            Self::Suspended => Some(Bypass::Suspended),
            Self::Waiting => Some(Bypass::WaitingForPods),
            Self::Absent => Some(Bypass::NoPolicy),
        }
    }
}
