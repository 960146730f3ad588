//! An application that sends its response in steps.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{io::AsyncWriteExt, sync::Semaphore};

use super::{RawOrigin, read_head, until};

/// An application that sends the first step of a response at once, and each other with a permit.
#[derive(Debug)]
pub(crate) struct Steps {
    pub(crate) address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    permits: Arc<Semaphore>,
    _origin: RawOrigin,
}

impl Steps {
    /// Starts an application that responds to every request in the same steps, and closes the connection if `ends` says so.
    pub(crate) async fn new(steps: &[&str], ends: bool) -> Self {
        let steps: Vec<_> = steps.iter().map(|&step| step.to_owned()).collect();
        Self::answering(move |_| steps.clone(), ends).await
    }

    /// Starts an application whose response depends on the head of a request without a body.
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

    /// Permits so many steps.
    pub(crate) fn let_go(&self, steps: usize) {
        self.permits.add_permits(steps);
    }

    /// Returns the number of requests seen.
    pub(crate) fn asked(&self) -> usize {
        self.heads.lock().unwrap().len()
    }

    /// Returns the request heads seen.
    pub(crate) fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    /// Waits for so many requests.
    pub(crate) async fn until_asked(&self, times: usize) {
        until(&format!("{times} requests"), async || (self.asked() >= times).then_some(())).await;
    }
}
