//! Work that is finished even if nobody waits for it any more.

use std::{
    mem,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::runtime::Handle;

/// A future that is driven by the task that waits for it. If that leaves before the end, `go_on` makes another future of it, for a
/// task of its own.
///
/// Most clients wait for their response. A task for each request would cost two wake-ups and a channel, for those that do not.
///
/// # Guarantees
/// - The future is never cancelled, unless the runtime ends.
/// - One that panicked is not driven any further, and its panic is passed on.
pub struct Outliving<F, G, R>
where
    G: FnOnce(Pin<Box<F>>) -> R,
    R: Future<Output = ()> + Send + 'static,
{
    state: State<F, G>,
}

enum State<F, G> {
    Awaited(Pin<Box<F>>, G),
    Ended,
}

impl<F, G, R> Outliving<F, G, R>
where
    F: Future,
    G: FnOnce(Pin<Box<F>>) -> R,
    R: Future<Output = ()> + Send + 'static,
{
    /// Wraps a future.
    pub fn new(future: F, go_on: G) -> Self {
        Self { state: State::Awaited(Box::pin(future), go_on) }
    }
}

impl<F, G, R> Future for Outliving<F, G, R>
where
    F: Future,
    G: FnOnce(Pin<Box<F>>) -> R + Unpin,
    R: Future<Output = ()> + Send + 'static,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        let State::Awaited(mut future, go_on) = mem::replace(&mut this.state, State::Ended) else {
            panic!("a future is not polled after its end");
        };
        let polled = future.as_mut().poll(context);
        if polled.is_pending() {
            this.state = State::Awaited(future, go_on);
        }
        polled
    }
}

impl<F, G, R> Drop for Outliving<F, G, R>
where
    G: FnOnce(Pin<Box<F>>) -> R,
    R: Future<Output = ()> + Send + 'static,
{
    fn drop(&mut self) {
        if let State::Awaited(future, go_on) = mem::replace(&mut self.state, State::Ended)
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(go_on(future));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn};

    use tokio::{sync::oneshot, task};

    use super::*;

    #[tokio::test]
    async fn future_is_driven_by_the_task_that_waits_for_it() {
        let future = async { task::try_id() };
        let driven = tokio::spawn(async { (Outliving::new(future, drop_when_left).await, task::id()) });
        let (driver, own) = driven.await.unwrap();
        assert_eq!(driver, Some(own));
    }

    async fn drop_when_left<F: Future>(_: Pin<Box<F>>) {}

    #[tokio::test]
    async fn future_goes_on_when_nobody_waits_for_it() {
        for is_begun in [false, true] {
            let ((lets_go, gate), (tells, told)) = (oneshot::channel::<()>(), oneshot::channel());
            let mut future = Outliving::new(
                async move {
                    gate.await.unwrap();
                    7
                },
                |future| async move { tells.send(future.await).unwrap() },
            );
            if is_begun {
                let polled = poll_fn(|context| Poll::Ready(Pin::new(&mut future).poll(context))).await;
                assert!(polled.is_pending());
            }
            drop(future);
            lets_go.send(()).unwrap();
            assert_eq!(told.await, Ok(7), "{is_begun}");
        }
    }

    #[tokio::test]
    async fn future_that_ended_or_panicked_does_not_go_on() {
        for panics in [false, true] {
            let (goes_on, mut gone_on) = oneshot::channel();
            let future = Outliving::new(async move { assert!(!panics, "on purpose") }, |future| async move {
                goes_on.send(()).unwrap();
                future.await;
                pending().await
            });
            assert_eq!(tokio::spawn(future).await.is_err(), panics);
            task::yield_now().await;
            assert_eq!(gone_on.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        }
    }
}
