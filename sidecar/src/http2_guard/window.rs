//! The client's flow-control window of a connection, of which hyper is lent a part (RFC 9113, section 6.9).
//!
//! # Guarantees
//! - What the guard may send and what hyper believes it may send are together exactly what the client has granted.
//! - hyper is not starved: as long as the client's window is not used up, hyper has a part of it.

use super::frame::MAX_31;

/// Window of a new connection.
const INITIAL: u32 = (64 << 10) - 1;
/// Maximum that hyper is lent at a time: more than it can use until it is lent more.
const MAX_LOAN: u32 = 1 << 20;
/// Size up to which all of a small window is hyper's.
const MIN_LOAN: u32 = 16 << 10;

/// The window of a connection.
#[derive(Debug)]
pub(super) struct Window {
    /// Part that hyper has and has not used.
    lent: u32,
    /// Part of the guard.
    own: u32,
    /// Part that hyper is lent and has not been told of.
    untold: u32,
}

/// The client granted more than a window may be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Overflow;

impl Window {
    pub(super) fn new() -> Self {
        Self { lent: INITIAL, own: 0, untold: 0 }
    }

    /// Returns what the guard may send.
    pub(super) fn own(&self) -> usize {
        self.own as usize
    }

    /// Counts what the client grants.
    pub(super) fn granted(&mut self, increment: u32) -> Result<(), Overflow> {
        if increment > MAX_31 - self.lent - self.own {
            return Err(Overflow);
        }
        self.own += increment;
        self.lend(self.loan());
        Ok(())
    }

    /// Counts bytes that hyper sent.
    pub(super) fn hyper_sent(&mut self, bytes: usize) {
        self.lent = self.lent.saturating_sub(u32::try_from(bytes).unwrap_or(u32::MAX));
        let loan = self.loan();
        // Lent in large parts, because hyper has to be told.
        if self.lent < loan.div_ceil(2) {
            self.lend(loan);
        }
    }

    /// Takes bytes that the guard sends; the caller has compared them with [`Self::own`].
    pub(super) fn send(&mut self, bytes: usize) {
        self.own = self.own.saturating_sub(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// Returns true if hyper must be told of a loan.
    pub(super) fn has_untold(&self) -> bool {
        self.untold > 0
    }

    /// Returns the increment that hyper must be told of.
    pub(super) fn tell(&mut self) -> u32 {
        std::mem::take(&mut self.untold)
    }

    /// Returns what hyper should have: half, but no more than it can use and no less than a few frames.
    fn loan(&self) -> u32 {
        let all = self.lent + self.own;
        (all / 2).min(MAX_LOAN).max(all.min(MIN_LOAN))
    }

    fn lend(&mut self, loan: u32) {
        let more = loan.saturating_sub(self.lent).min(self.own);
        self.own -= more;
        self.lent += more;
        self.untold += more;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        /// The client grants so many bytes.
        Grants(u32),
        /// hyper sends, in thousandths of what it was told of.
        HyperSends(u32),
        /// The guard sends, in thousandths of what it has.
        Sends(u32),
        /// hyper is told of its loans.
        IsTold,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            prop_oneof![1..1_000_u32, 1..1_000_000_u32, 1..=MAX_31].prop_map(Step::Grants),
            (0..=1000_u32).prop_map(Step::HyperSends),
            (0..=1000_u32).prop_map(Step::Sends),
            Just(Step::IsTold),
        ]
    }

    proptest! {
        #[test]
        fn window_is_conserved_and_hyper_is_never_starved(steps in prop::collection::vec(step(), 1..200)) {
            let mut window = Window::new();
            // What the client has granted and nobody has used, and what hyper knows of.
            let (mut client, mut hyper) = (i64::from(INITIAL), i64::from(INITIAL));
            for step in steps {
                match step {
                    Step::Grants(increment) => {
                        let fits = client + i64::from(increment) <= i64::from(MAX_31);
                        prop_assert_eq!(window.granted(increment).is_ok(), fits);
                        client += if fits { i64::from(increment) } else { 0 };
                    }
                    Step::HyperSends(part) => {
                        let bytes = hyper * i64::from(part) / 1000;
                        (hyper, client) = (hyper - bytes, client - bytes);
                        window.hyper_sent(usize::try_from(bytes).unwrap());
                    }
                    Step::Sends(part) => {
                        let bytes = window.own() * part as usize / 1000;
                        window.send(bytes);
                        client -= i64::try_from(bytes).unwrap();
                    }
                    Step::IsTold => hyper += i64::from(window.tell()),
                }
                prop_assert_eq!(client, i64::from(window.lent) + i64::from(window.own));
                prop_assert_eq!(hyper + i64::from(window.untold), i64::from(window.lent));
                prop_assert!(client >= 0 && hyper >= 0);
                prop_assert!(client == 0 || window.lent > 0, "{:?}", window);
                prop_assert!(2 * window.lent >= window.loan(), "{:?}", window);
            }
        }
    }

    #[test]
    fn smallest_window_is_shared_by_hyper_and_the_guard() {
        let mut window = Window::new();
        window.hyper_sent(32 << 10);
        assert_eq!((window.own(), window.has_untold()), (0, false));
        window.granted(32 << 10).unwrap();
        assert!(window.own() >= 31 << 10, "{window:?}");
    }

    #[test]
    fn client_that_waits_until_its_window_is_used_up_gets_all_of_it() {
        let mut window = Window::new();
        window.granted(1 << 20).unwrap();
        window.tell();
        let mut sent = 0;
        while window.lent > 0 {
            let bytes = window.lent as usize;
            window.hyper_sent(bytes);
            window.tell();
            sent += bytes;
        }
        assert_eq!(sent, (1 << 20) + INITIAL as usize);
    }
}
