//! Numbers of calls by route, which show what a cache in front of this process saves.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

/// Calls since the start of this process, by method and route, such as `GET /api/users/{id}`.
#[derive(Clone, Default)]
pub(crate) struct Calls(Arc<Mutex<BTreeMap<String, u64>>>);

impl Calls {
    /// Counts one call.
    pub(crate) fn count(&self, method: &str, route: &str) {
        *self.lock().entry(format!("{method} {route}")).or_default() += 1;
    }

    /// The counts so far.
    pub(crate) fn snapshot(&self) -> BTreeMap<String, u64> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.0.lock().expect("no holder of the lock panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_and_methods_are_counted_apart() {
        let calls = Calls::default();
        calls.count("GET", "/api/users/{id}");
        calls.clone().count("GET", "/api/users/{id}");
        calls.count("PUT", "/api/users/{id}");
        let counted: Vec<_> = calls.snapshot().into_iter().collect();
        assert_eq!(counted, [("GET /api/users/{id}".to_owned(), 2), ("PUT /api/users/{id}".to_owned(), 1)]);
    }
}
