//! An application that answers in steps.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{io::AsyncWriteExt, sync::Semaphore};

use super::{RawOrigin, read_head, until};

/// An application that says the first step of an answer when it is asked, and each other when it is let.
#[derive(Debug)]
pub(crate) struct Steps {
    pub(crate) address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    permits: Arc<Semaphore>,
    _origin: RawOrigin,
}

impl Steps {
    /// An application that answers every request in the same steps. It ends the connection where `ends` says so.
    pub(crate) async fn new(steps: &[&str], ends: bool) -> Self {
        let steps: Vec<_> = steps.iter().map(|&step| step.to_owned()).collect();
        Self::answering(move |_| steps.clone(), ends).await
    }

    /// An application whose answer depends on the head of a request, which has no body.
    pub(crate) async fn answering(
        answer: impl Fn(&str) -> Vec<String> + Send + Sync + 'static,
        ends: bool,
    ) -> Self {
        let (answer, permits) = (Arc::new(answer), Arc::new(Semaphore::new(0)));
        let heads = Arc::<Mutex<Vec<_>>>::default();
        let (gate, log) = (Arc::clone(&permits), Arc::clone(&heads));
        let origin = RawOrigin::start(move |mut stream| {
            let (answer, gate, log) = (Arc::clone(&answer), Arc::clone(&gate), Arc::clone(&log));
            async move {
                loop {
                    let head = read_head(&mut stream).await;
                    if head.is_empty() {
                        return;
                    }
                    let steps = answer(&head);
                    log.lock().unwrap().push(head);
                    for (number, step) in steps.iter().enumerate() {
                        if number > 0 {
                            gate.acquire().await.unwrap().forget();
                        }
                        if stream.write_all(step.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                    if ends {
                        return;
                    }
                }
            }
        })
        .await;
        Self { address: origin.address, heads, permits, _origin: origin }
    }

    /// Lets it take so many steps.
    pub(crate) fn let_go(&self, steps: usize) {
        self.permits.add_permits(steps);
    }

    /// How many requests it has seen.
    pub(crate) fn asked(&self) -> usize {
        self.heads.lock().unwrap().len()
    }

    /// The heads that it has seen.
    pub(crate) fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    /// Waits until it has been asked so often.
    pub(crate) async fn until_asked(&self, times: usize) {
        until(&format!("{times} requests"), async || (self.asked() >= times).then_some(())).await;
    }
}
