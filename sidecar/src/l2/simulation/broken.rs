//! Faults that the simulation must notice.

/// A fault that is put in on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    Nothing,
    /// Whatever comes over the bus renews trust.
    TrustByAnyMessage,
    /// A probe that comes back proves until now, not until when it left.
    TrustDatedByReceipt,
    /// A probe counts as back when the server has replied to what it was sent with, whatever waits on the bus.
    ProbeOvertakes,
    /// An entry is dated by when it is stored.
    EntryDatedByStore,
    /// An entry is stamped when it is stored.
    EntryStampedByStore,
    /// Those who join what is under way take it whenever it comes.
    JoinersDoNotAsk,
    /// A purge is acknowledged when it arrives, and applied some time later.
    AcknowledgedBeforeApplied,
    /// Barriers are not read again by a new connection.
    BarriersNotRead,
    /// A server that lost purges goes on counting as the one before.
    GenerationIgnored,
    /// Reports and silence of the Sentinels are ignored until a connection breaks.
    SentinelsIgnored,
    /// A writer does not wait for acknowledgements.
    AcknowledgementsNotAwaited,
    /// A lookup takes what is older than a purge of a prefix that the pod has not heard of.
    UnheardPrefixesIgnored,
    /// A purge is acknowledged if the Sentinels named its server within the grace before, whatever they say after it was ordered.
    VouchedWithinGrace,
}
