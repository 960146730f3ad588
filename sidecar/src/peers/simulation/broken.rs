//! Faults that the simulation must notice.

/// A fault that is put in on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    Nothing,
    /// A pod acknowledges what it hears at once, and applies it some time later.
    AcknowledgedBeforeApplied,
    /// A writer takes every pod for one that has acknowledged its purge.
    AcknowledgementsNotAwaited,
    /// A pod that begins takes over numbers, and tells who lacks them that there is nothing to hear.
    AdoptedWithoutFloor,
    /// A pod drops purges from its log as if every pod had heard of them.
    ForgottenWithoutFloor,
    /// Replies to the process before count as replies to the one that took its place.
    ReplyToOldProcess,
    /// A pod that was out of reach for longer than logs remember goes on with what it has.
    GapIgnored,
    /// A pod tells of its own purges alone.
    OthersNotToldOn,
    /// A message leaves out the fact that some prefix was purged.
    PrefixWithoutItsFact,
    /// A message leaves out the fact that some name was purged softly.
    SoftWithoutItsFact,
}
