//! Purges of a response that was found in Redis or elsewhere, as Redis knows them.

use larder_policy::PurgeName;
use tokio::time::Instant;

use super::{
    L2, L2Error, Patience,
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
        let &LookupReply { generation, indirect, .. } = self.reply;
        let own = entry.stamp();
        // What this pod has not heard of yet may be about this response.
        let may_be_purged = own.order < indirect && !self.l2.barriers.know_all_until(generation, indirect);
        if own.generation != generation || own.order < self.reply.covering() || may_be_purged {
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
        Ok(!reply.is_listed || reply.generation != generation || order < reply.covering())
    }
}

impl L2 {
    /// Returns true if a response that another store has kept was purged before now, or may have been, as Redis says. Purges by pods of
    /// other versions of the policy do not count: that store knows of them itself.
    ///
    /// # Errors
    /// If Redis is down, slow or unwilling.
    pub async fn has_purged(&self, entry: &Entry) -> Result<bool, L2Error> {
        let connection = self.link.shared_connection().ok_or(L2Error::Down)?;
        let deadline = Instant::now() + self.deadline(Patience::Hard);
        let names: Vec<_> = entry.names().filter(|name| *name != self.version.name()).collect();
        let reply = commands::lookup(&connection, deadline, &self.question, &names, None).await?;
        if !reply.is_listed {
            return Err(L2Error::Down);
        }
        let LookupReply { generation, barrier, indirect, .. } = reply;
        let own = entry.stamp();
        // A response of an earlier generation is older than all purges of this one.
        let order = if own.generation == generation { own.order } else { 0 };
        let may_be_purged = order < indirect && !self.barriers.know_all_until(generation, indirect);
        Ok(order < barrier || may_be_purged)
    }
}
