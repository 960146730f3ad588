//! Requests in progress, whether or not their clients still wait for them.
//!
//! A client may leave as soon as it has asked, and the work that it has caused goes on: a fill that others share, a write whose
//! purges must follow. Such work counts, in the process and on the connection that caused it, until it ends.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use http_body::{Body, Frame, SizeHint};

use crate::budget::Budget;

/// Requests in progress, and how many there may be.
#[derive(Debug)]
pub struct InProgress {
    count: AtomicUsize,
    max: AtomicUsize,
}

impl Default for InProgress {
    fn default() -> Self {
        Self { count: AtomicUsize::new(0), max: AtomicUsize::new(usize::MAX) }
    }
}

impl InProgress {
    /// Allows so many at most.
    pub fn limit_to(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// Allows as many as fit into memory.
    pub fn fit_into(&self, budget: &Budget) {
        self.limit_to(usize::try_from(budget.requests()).unwrap_or(usize::MAX));
    }

    fn max(&self) -> usize {
        self.max.load(Ordering::Relaxed)
    }

    /// Number of requests in progress.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Begins a request, if there may be another.
    pub fn begin(self: &Arc<Self>) -> Option<Counted> {
        Counted::begin(self)
    }
}

/// One request in progress, counted until this is dropped.
#[derive(Debug)]
pub struct Counted(Arc<InProgress>);

impl Counted {
    fn begin(among: &Arc<InProgress>) -> Option<Self> {
        // It is counted as soon as this exists, and no longer.
        let counted = Self(Arc::clone(among));
        let before = among.count.fetch_add(1, Ordering::Relaxed);
        (before < among.max()).then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The work that a request causes, counted in the process and on its connection. Whatever goes on for the request holds a clone.
#[derive(Clone, Debug)]
pub struct Work {
    _counted: Arc<[Counted; 2]>,
}

impl Work {
    /// Begins the work for a request, if there may be more in the process and on its connection.
    pub fn begin(process: &Arc<InProgress>, connection: &Arc<InProgress>) -> Option<Self> {
        Some(Self { _counted: Arc::new([process.begin()?, connection.begin()?]) })
    }

    /// The body of the response, which is part of the work.
    pub fn until_end_of<B>(self, body: B) -> WorkBody<B> {
        WorkBody { body, _work: self }
    }
}

/// The body of a response, with the work that it is part of.
#[derive(Debug)]
pub struct WorkBody<B> {
    body: B,
    _work: Work,
}

impl<B: Body + Unpin> Body for WorkBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::MemoryLimit;

    #[test]
    fn no_more_are_in_progress_than_fit_into_memory() {
        let process = Arc::<InProgress>::default();
        for (mebibytes, files, requests) in
            [(128, 1024, 512), (1024, 1 << 20, 10_069), (1024, 1024, 512), (16, 1024, 192)]
        {
            process.fit_into(&Budget::new(MemoryLimit { bytes: Some(mebibytes << 20), files }));
            assert_eq!(process.max(), requests, "{mebibytes} MiB, {files} files");
        }
    }

    #[test]
    fn work_counts_in_both_places_until_its_last_clone_is_gone() {
        let (process, connection) = (Arc::<InProgress>::default(), Arc::<InProgress>::default());
        connection.limit_to(2);
        let first = Work::begin(&process, &connection).unwrap();
        let second = Work::begin(&process, &connection).unwrap();
        assert!(Work::begin(&process, &connection).is_none(), "the connection has its share");
        assert_eq!((process.count(), connection.count()), (2, 2));
        let detached = first.clone();
        drop(first);
        assert!(Work::begin(&process, &connection).is_none(), "its work goes on");
        drop(detached);
        assert!(Work::begin(&process, &connection).is_some());
        process.limit_to(1);
        assert!(Work::begin(&process, &Arc::default()).is_none(), "the process has its share");
        drop(second.until_end_of(()));
        assert_eq!((process.count(), connection.count()), (0, 0));
    }
}
