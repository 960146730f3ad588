//! Treatment of requests as a whole.

use crate::cache_status::Bypass;

larder_api::labelled! {
    /// Treatment of requests as a whole.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Mode {
        /// Requests of routes are looked up.
        Serving = "serving",
        /// Everything passes because the policy says so. Writes still purge, so that nothing stale is served when it resumes.
        Suspended = "suspended",
        /// Everything passes because pods without a sidecar take writes, or may. Writes still purge.
        Waiting = "waiting",
        /// Everything passes because there is no policy.
        Absent = "absent",
    }
}

impl Mode {
    /// Returns the reason why every request passes, if that is so.
    pub const fn bypass(self) -> Option<Bypass> {
        match self {
            Self::Serving => None,
            Self::Suspended => Some(Bypass::Suspended),
            Self::Waiting => Some(Bypass::WaitingForPods),
            Self::Absent => Some(Bypass::NoPolicy),
        }
    }
}
