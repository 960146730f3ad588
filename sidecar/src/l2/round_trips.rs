//! Round trips to Redis that those who wait for one share.

use tokio::{sync::Mutex, time::Instant};

/// Round trips, of which one is in progress at a time.
#[derive(Debug, Default)]
pub(super) struct RoundTrips(Mutex<Option<RoundTrip>>);

/// The last round trip.
#[derive(Clone, Copy, Debug)]
struct RoundTrip {
    began_at: Instant,
    has_succeeded: bool,
}

impl RoundTrips {
    /// Returns the outcome of a round trip that began after this was called: of one that another caller began meanwhile, or of `own`.
    pub(super) async fn after_now(&self, own: impl Future<Output = bool>) -> bool {
        let called_at = Instant::now();
        let mut last = self.0.lock().await;
        if let Some(RoundTrip { has_succeeded, .. }) = last.filter(|last| last.began_at > called_at) {
            return has_succeeded;
        }
        let began_at = Instant::now();
        let has_succeeded = own.await;
        *last = Some(RoundTrip { began_at, has_succeeded });
        has_succeeded
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures::join;
    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn callers_share_a_round_trip_that_began_after_they_called() {
        let (trips, count, replies) = (RoundTrips::default(), Cell::new(0), Notify::new());
        let trip = async |succeeds| {
            count.set(count.get() + 1);
            replies.notified().await;
            succeeds
        };
        let call = |succeeds| trips.after_now(trip(succeeds));
        let both_reply = async {
            replies.notify_one();
            tokio::task::yield_now().await;
            replies.notify_one();
        };
        let outcomes = join!(call(true), call(false), call(true), call(true), both_reply);
        assert_eq!(
            outcomes,
            (true, false, false, false, ()),
            "the one in progress says nothing of later calls"
        );
        assert_eq!(count.get(), 2);
        replies.notify_one();
        assert!(call(true).await, "nor does one that has ended");
        assert_eq!(count.get(), 3);
    }
}
