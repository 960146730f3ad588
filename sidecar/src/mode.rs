//! Treatment of requests as a whole.

use crate::cache_status::Bypass;

/// Treatment of requests as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Requests of routes are looked up.
    Serving,
    /// Everything passes because the policy says so. Writes still purge, so that nothing stale is served when it resumes.
    Suspended,
    /// Everything passes because pods without a sidecar take writes, or may. Writes still purge.
    Waiting,
    /// Everything passes because there is no policy.
    Absent,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 4] = [Self::Serving, Self::Suspended, Self::Waiting, Self::Absent];

    /// Returns the mode in the admin API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Suspended => "suspended",
            Self::Waiting => "waiting",
            Self::Absent => "absent",
        }
    }

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
