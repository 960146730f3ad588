//! Outcomes of commands.

/// Outcome of a command, whose number is the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// The command did what it was asked for, and all is well.
    Good = 0,
    /// The command found errors, a policy that is not ready, or a purge that is not in Redis.
    Faulty = 1,
    /// The command line is wrong, or something can't be reached or read.
    Failed = 2,
}
