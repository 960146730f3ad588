//! Errors in what Postgres tells of changes.

use super::Check;
use crate::{policy::Source, spec::Notifications};

impl Check {
    pub(in crate::policy) fn notifications(
        &mut self,
        at: &str,
        notifications: &Notifications,
        sources: &[(String, Source)],
    ) {
        let Notifications { source, channel } = notifications;
        self.postgres_source(at, source, sources);
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        let is_name = channel.len() <= 63
            && channel.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && channel.chars().all(is_plain);
        if !is_name {
            let message = "write the name of a channel in letters, digits and _, . or -, such as larder";
            self.refuse(&format!("{at}.channel"), message);
        }
    }
}
