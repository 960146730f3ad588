//! Purges of a response that was found in Redis.

use larder_policy::PurgeName;
use tokio::time::Instant;

use super::{
    L2, L2Error,
    commands::{self, LookupReply},
    connection::Connection,
};
use crate::{barriers::Stamp, entry::Entry};

/// A reply to a lookup, by which responses that were found are judged.
pub(super) struct Coverage<'a> {
    pub(super) l2: &'a L2,
    /// Connection of the lookup, and its deadline.
    pub(super) at: (&'a Connection, Instant),
    /// Names that the lookup asked for: those that the request knows.
    pub(super) asked: &'a [PurgeName],
    pub(super) reply: &'a LookupReply,
}

impl Coverage<'_> {
    /// Returns true if a response was purged before the lookup, or may have been.
    ///
    /// # Errors
    /// If Redis has to be asked for names that the response alone knows, and does not respond.
    pub(super) async fn is_purged(&self, entry: &Entry) -> Result<bool, L2Error> {
        let &LookupReply { generation, barrier, indirect, .. } = self.reply;
        let own = entry.stamp();
        // What this pod has not heard of yet may be about this response.
        let may_be_purged = own.order < indirect && !self.l2.barriers.know_all_until(generation, indirect);
        if own.generation != generation || own.order < barrier || may_be_purged {
            return Ok(true);
        }
        Ok(self.is_purged_unheard(entry).await? || entry.is_covered(&self.l2.barriers))
    }

    /// Returns true if one of the names that the response alone knows, such as tags from its headers, was purged, and this pod may not
    /// have heard of it.
    async fn is_purged_unheard(&self, entry: &Entry) -> Result<bool, L2Error> {
        let &LookupReply { generation, order: last, .. } = self.reply;
        let Stamp { order, .. } = entry.stamp();
        if order >= last || self.l2.barriers.know_all_until(generation, last) {
            return Ok(false);
        }
        let (connection, deadline) = self.at;
        let names: Vec<_> = entry.names().filter(|name| !self.asked.contains(name)).collect();
        if names.is_empty() {
            return Ok(false);
        }
        let reply = commands::lookup(connection, deadline, &self.l2.question, &names, None).await?;
        Ok(!reply.is_listed || reply.generation != generation || order < reply.barrier)
    }
}
