//! Tells one pod of purges, as long as it is there.

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use tokio::time::{Instant, sleep, timeout};

use super::{
    Peers,
    client::{Client, PeerError},
    ledger::Outcome,
    log::Known,
    members::Member,
};
use crate::clock::boot_ms;

/// Maximum time of a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

impl Peers {
    /// Tells another pod of purges as they come, and asks it for those that it knows whenever they are to be compared.
    pub(super) async fn keep_told(self: Arc<Self>, member: Arc<Member>) {
        let mut client = Client::new(member.address);
        let mut pause = SHORTEST_PAUSE;
        let mut lacks = None;
        loop {
            let asked_at = Instant::now();
            let progress = match self.exchange(&member, &mut client, lacks.take()).await {
                Ok(Outcome::Own) => return member.is_own(),
                Ok(Outcome::Other(progress)) => progress,
                Err(error) => {
                    client.close();
                    member.failed(&error.to_string(), error.is_refused(), asked_at);
                    member.rest(pause).await;
                    let is_pressed = self.is_joining() || self.is_leaving.load(Ordering::Acquire);
                    pause = if is_pressed { SHORTEST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
                    // It may be another process by now.
                    member.compare();
                    continue;
                }
            };
            pause = SHORTEST_PAUSE;
            let is_behind = progress.acknowledged < self.ledger.lock().own_last(boot_ms());
            if progress.takes_nothing {
                sleep(SHORTEST_PAUSE).await;
            } else if !is_behind && progress.lacks.is_none() && !member.is_to_be_compared() {
                member.woken().await;
            }
            lacks = progress.lacks;
        }
    }

    /// Sends what the pod does not know: purges through this process, and others if it is known to lack them.
    async fn exchange(
        &self,
        member: &Member,
        client: &mut Client,
        lacks: Option<Known>,
    ) -> Result<Outcome, PeerError> {
        let (compares, asked_at) = (member.take_comparison(), Instant::now());
        let mut request =
            self.ledger.lock().request(&member.state(), lacks.as_ref(), compares, self.conditions());
        request.message.address = self.options.address.map(|address| address.to_string());
        let keys = self.keys().await.ok_or(PeerError::NoToken)?;
        let reply = timeout(REQUEST_TIMEOUT, client.send(&keys, &request.message)).await;
        let reply = reply.map_err(|_| PeerError::Late)??;
        let outcome = self.ledger.lock().take_reply(&request, reply, self.conditions(), &mut self.applying());
        let outcome = outcome.ok_or_else(|| PeerError::Reply("malformed purges".into()))?;
        if let Outcome::Other(progress) = &outcome {
            if progress.is_to_be_compared {
                member.compare();
            }
            member.replied(progress.acknowledged, progress.replied, asked_at);
        }
        Ok(outcome)
    }
}
