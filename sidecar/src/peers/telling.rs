//! Tells one pod of purges, as long as it is there.

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use larder_api::admin::{PeerReply, PeerRequest};
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

/// Progress with another pod.
enum Progress {
    /// The other pod is this one.
    Own,
    /// Replied, and lacks purges of other pods that are known here.
    Lacks(Known),
    /// Replied.
    Told,
}

impl Peers {
    /// Tells another pod of purges as they come, and asks it for those that it knows whenever they are to be compared.
    pub(super) async fn keep_told(self: Arc<Self>, member: Arc<Member>) {
        let mut client = Client::new(member.address);
        let mut pause = SHORTEST_PAUSE;
        let mut lacks = None;
        loop {
            let acknowledged = member.state().acknowledged;
            match self.exchange(&member, &mut client, lacks.take()).await {
                Ok(Progress::Own) => return member.is_own(),
                Ok(Progress::Lacks(known)) => lacks = Some(known),
                Ok(Progress::Told) => {}
                Err(error) => {
                    client.close();
                    member.failed(&error.to_string());
                    member.rest(pause).await;
                    let is_leaving = self.is_leaving.load(Ordering::Acquire);
                    pause = if is_leaving { SHORTEST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
                    // It may be another process by now.
                    member.compare();
                    continue;
                }
            }
            pause = SHORTEST_PAUSE;
            let state = member.state();
            let is_behind = state.acknowledged < self.log.lock().last(self.instance);
            if is_behind && state.acknowledged <= acknowledged && lacks.is_none() {
                // It takes nothing: its process is another one, or it has forgotten this one.
                sleep(SHORTEST_PAUSE).await;
            } else if !is_behind && lacks.is_none() && !member.is_to_be_compared() {
                member.woken().await;
            }
        }
    }

    /// Sends what the pod does not know: purges through this process, and others if it is known to lack them.
    async fn exchange(
        &self,
        member: &Member,
        client: &mut Client,
        lacks: Option<Known>,
    ) -> Result<Progress, PeerError> {
        let compares = member.take_comparison();
        let begins = self.is_joining.load(Ordering::Acquire);
        let (now, asked_at) = (boot_ms(), Instant::now());
        let state = member.state();
        let request = {
            let log = self.log.lock();
            let purges = match lacks {
                Some(known) => log.missing(&known, 0, now),
                // What it knows is not known yet.
                None if state.has_never_replied() => vec![],
                None => log.own_after(state.acknowledged, now).into_iter().collect(),
            };
            PeerRequest {
                instance: self.instance,
                age_ms: self.age_ms(),
                address: self.options.address,
                begins,
                known: compares.then(|| log.known(now)),
                purges: purges.into_iter().map(Into::into).collect(),
            }
        };
        let token = tokio::fs::read_to_string(&self.options.token_file).await;
        let token = token.map_err(|_| PeerError::Token)?;
        let reply = timeout(REQUEST_TIMEOUT, client.send(token.trim(), &request)).await;
        let PeerReply { instance, age_ms, acknowledged, known, purges } =
            reply.map_err(|_| PeerError::Late)??;
        if instance == self.instance {
            return Ok(Progress::Own);
        }
        let segments = purges.into_iter().map(message::segment).collect::<Option<Vec<_>>>();
        self.hear(segments.ok_or_else(|| PeerError::Reply("malformed purges".into()))?, instance, age_ms);
        let mut progress = Progress::Told;
        if let Some(known) = known {
            let mut log = self.log.lock();
            if !begins {
                self.contacts.lock().record(instance, now);
            } else if self.is_joining.load(Ordering::Acquire) {
                log.adopt(&known, now);
                self.contacts.lock().record(instance, now);
            } else {
                // Something may be stored by now that a purge in between was about.
                member.compare();
            }
            if !log.missing(&known, instance, now).is_empty() {
                progress = Progress::Lacks(known);
            }
        }
        member.replied(acknowledged, asked_at);
        Ok(progress)
    }
}
