//! Work that goes on for requests, with or without their clients.
//!
//! A client may leave as soon as it has sent its request, and the work goes on: a fill that others share, a write whose purges must
//! follow. Such work counts in the process and on the connection that caused it, until it ends.

use std::sync::Arc;

use crate::{
    budget::Budget,
    in_progress::{Counted, InProgress},
};

/// The work that a request causes, counted in the process and on its connection. Whatever goes on for the request holds a clone.
#[derive(Clone, Debug)]
pub struct Work {
    _counted: Arc<[Counted; 2]>,
}

impl Work {
    /// Begins the work for a request, if there is a place for it in the process and on its connection.
    ///
    /// A connection may have as many places as half of those that nobody has, and one in any case, so that a few connections
    /// of HTTP/2 do not take all of them.
    pub fn begin(budget: &Budget, connection: &Arc<InProgress>) -> Option<Self> {
        let places = budget.places();
        let Some((process, taken)) = Counted::begin(&budget.in_progress, places) else {
            budget.make_room();
            return None;
        };
        let share = ((places - taken) / 2).max(1);
        let (connection, _) = Counted::begin(connection, connection.max().min(share))?;
        Some(Self { _counted: Arc::new([process, connection]) })
    }
}

#[cfg(test)]
mod tests {
    use std::iter;

    use super::*;
    use crate::budget::MemoryLimit;

    fn budget(memory: u64) -> Arc<Budget> {
        Arc::new(Budget::new(MemoryLimit { bytes: Some(memory), ..MemoryLimit::default() }))
    }

    #[test]
    fn work_counts_in_both_places_until_its_last_clone_is_gone() {
        let (budget, connection) = (budget(128 << 20), Arc::<InProgress>::default());
        connection.limit_to(2);
        let first = Work::begin(&budget, &connection).unwrap();
        let second = Work::begin(&budget, &connection).unwrap();
        assert!(Work::begin(&budget, &connection).is_none(), "the connection has its share");
        assert_eq!((budget.in_progress.count(), connection.count()), (2, 2));
        let detached = first.clone();
        drop(first);
        assert!(Work::begin(&budget, &connection).is_none(), "its work goes on");
        drop(detached);
        assert!(Work::begin(&budget, &connection).is_some());
        let others: Vec<_> = iter::from_fn(|| Work::begin(&budget, &Arc::default())).collect();
        assert!(Work::begin(&budget, &Arc::default()).is_none(), "the process has its share");
        drop(others);
        drop(second);
        assert_eq!((budget.in_progress.count(), connection.count()), (0, 0));
    }

    #[test]
    fn few_connections_leave_places_for_others() {
        let budget = budget(128 << 20);
        let mut held = Vec::new();
        let mut shares = Vec::new();
        for _ in 0..8 {
            let connection = Arc::<InProgress>::default();
            connection.limit_to(1_000);
            held.extend(iter::from_fn(|| Work::begin(&budget, &connection)));
            shares.push(connection.count());
        }
        assert!(shares.is_sorted_by(|a, b| a >= b), "{shares:?}");
        assert!(shares[0] >= budget.places() / 3, "{shares:?}");
        let others: Vec<Arc<InProgress>> = (0..4).map(|_| Arc::default()).collect();
        held.extend(others.iter().map(|other| Work::begin(&budget, other).expect("a place")));
    }

    #[test]
    fn connection_of_its_own_has_the_last_place() {
        let budget = budget(128 << 20);
        let _others: Vec<_> =
            (3..budget.places()).map(|_| Work::begin(&budget, &Arc::default()).unwrap()).collect();
        let connections: Vec<Arc<InProgress>> = (0..4).map(|_| Arc::default()).collect();
        let works: Vec<_> = connections.iter().map(|connection| Work::begin(&budget, connection)).collect();
        assert!(works[..3].iter().all(Option::is_some) && works[3].is_none());
    }
}
