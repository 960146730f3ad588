//! Tells one pod of purges, as long as it is there.

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use larder_api::admin::{PeerReplied, PeerReply, PeerRequest};
use tokio::time::{Instant, sleep, timeout};

use super::{
    Peers,
    client::{Client, PeerError},
    log::Known,
    members::Member,
    message,
};
use crate::clock::boot_ms;

/// Maximum time of a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Outcome of a request.
enum Outcome {
    /// The other pod is this one.
    Own,
    /// Replied.
    Replied(Progress),
}

/// Progress with another pod.
#[derive(Debug)]
struct Progress {
    /// The last number that the pod had acknowledged when the request left.
    acknowledged: u64,
    /// The last purge through this process that the request told of, if it told of any.
    told: Option<u64>,
    /// Number of the last purge of each process that the pod knows, if it lacks any that is known here.
    lacks: Option<Known>,
}

impl Progress {
    /// Returns true if the pod has acknowledged nothing of what it was told, and would not if it was told at once again.
    fn takes_nothing(&self, acknowledged: u64) -> bool {
        self.lacks.is_none()
            && acknowledged == self.acknowledged
            && self.told.is_some_and(|told| told > acknowledged)
    }
}

impl Peers {
    /// Tells another pod of purges as they come, and asks it for those that it knows whenever they are to be compared.
    pub(super) async fn keep_told(self: Arc<Self>, member: Arc<Member>) {
        let mut client = Client::new(member.address);
        let mut pause = SHORTEST_PAUSE;
        let mut lacks = None;
        loop {
            let progress = match self.exchange(&member, &mut client, lacks.take()).await {
                Ok(Outcome::Own) => return member.is_own(),
                Ok(Outcome::Replied(progress)) => progress,
                Err(error) => {
                    client.close();
                    member.failed(&error.to_string());
                    member.rest(pause).await;
                    let is_pressed =
                        [&self.is_joining, &self.is_leaving].iter().any(|is| is.load(Ordering::Acquire));
                    pause = if is_pressed { SHORTEST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
                    // It may be another process by now.
                    member.compare();
                    continue;
                }
            };
            pause = SHORTEST_PAUSE;
            let acknowledged = member.state().acknowledged;
            let is_behind = acknowledged < self.log.lock().own_last(boot_ms());
            if progress.takes_nothing(acknowledged) {
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
        let compares = member.take_comparison();
        let begins = self.is_joining.load(Ordering::Acquire);
        let (now, asked_at) = (boot_ms(), Instant::now());
        let state = member.state();
        let (request, told) = {
            let log = self.log.lock();
            let purges: Vec<_> = match lacks {
                Some(known) => log.missing(&known, 0, now),
                // What it knows is not known yet.
                None if state.has_never_replied() => vec![],
                None => log.own_after(state.acknowledged, now).into_iter().collect(),
            };
            let own = purges.iter().find(|segment| segment.origin == self.instance);
            let told = own.map(|segment| segment.last);
            let request = PeerRequest {
                instance: self.instance,
                age_ms: self.age_ms(),
                address: self.options.address.map(|address| address.to_string()),
                begins,
                known: compares.then(|| log.known(now)),
                replied: state.replied,
                purges: purges.into_iter().map(Into::into).collect(),
            };
            (request, told)
        };
        let token = tokio::fs::read_to_string(&self.options.token_file).await;
        let token = token.map_err(|_| PeerError::Token)?;
        let reply = timeout(REQUEST_TIMEOUT, client.send(token.trim(), &request)).await;
        let PeerReply { instance, age_ms, acknowledged, known, purges } =
            reply.map_err(|_| PeerError::Late)??;
        if instance == self.instance {
            return Ok(Outcome::Own);
        }
        let segments = purges.into_iter().map(message::segment).collect::<Option<Vec<_>>>();
        let segments = segments.ok_or_else(|| PeerError::Reply("malformed purges".into()))?;
        self.hear(segments, instance, age_ms);
        if known.is_some() && !begins {
            self.close_gap(instance, age_ms, now);
        }
        let mut progress = Progress { acknowledged: state.acknowledged, told, lacks: None };
        if let Some(known) = known {
            let mut log = self.log.lock();
            if begins && self.is_joining.load(Ordering::Acquire) {
                log.adopt(&known, now);
                self.contacts.lock().record(instance, now);
            } else if begins {
                // Something may be stored by now that a purge in between was about.
                member.compare();
            }
            if !log.missing(&known, instance, now).is_empty() {
                progress.lacks = Some(known);
            }
        }
        member.replied(acknowledged, PeerReplied { instance, age_ms }, asked_at);
        Ok(Outcome::Replied(progress))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pod_takes_nothing_only_if_it_was_told_something() {
        let progress = |told, lacks| Progress { acknowledged: 3, told, lacks };
        assert!(progress(Some(5), None).takes_nothing(3));
        assert!(!progress(None, None).takes_nothing(3), "what came up meanwhile is told at once");
        assert!(!progress(Some(3), None).takes_nothing(3), "and what came up later");
        assert!(!progress(Some(5), None).takes_nothing(4), "it takes them bit by bit");
        assert!(!progress(Some(5), None).takes_nothing(0), "it is another process");
        assert!(!progress(Some(5), Some(Known::new())).takes_nothing(3));
    }
}
