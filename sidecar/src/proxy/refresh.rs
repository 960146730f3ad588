//! Renewing what is stored while it is served (RFC 5861, section 3).

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use http::{Method, header};
use http_body_util::BodyExt as _;
use larder_flight::{Fill, Joined, Lead, Reader};
use larder_policy::range;
use tokio::time::{sleep, timeout};

use super::{
    Proxy,
    ask::{ABANDONED_TIMEOUT, Landing, is_overdue},
    fetch::Errand,
    question::Question,
};
use crate::{
    body::{Body, Source},
    cache_status::Forward,
    entry::Entry,
};

/// How long the application may take for a head, and for a body, that no client waits for: nobody else would end it.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);

impl Proxy {
    /// Asks for what is stored again, unless somebody is asking already and has given a sign of life within the route's
    /// `collapseTimeout`. Nobody waits for it.
    pub(super) fn refresh_in_background(self: &Arc<Self>, question: &Question, stored: &Arc<Entry>) {
        let question = question.without_its_client();
        let flights = &question.serving.flights;
        let mut joined = flights.join(&question.flight(question.key.as_str()));
        if let Joined::Wait(mut wait) = joined {
            if !is_overdue(&mut wait, question.route().collapse_timeout) {
                return;
            }
            joined = flights.overtake(wait);
        }
        if let Joined::Lead(lead) = joined {
            tokio::spawn(Arc::clone(self).refresh(question, lead, Arc::clone(stored)));
        }
    }

    fn refresh(
        self: Arc<Self>,
        question: Question,
        lead: Lead<Landing>,
        stored: Arc<Entry>,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let errand = Errand::new(question, Some(lead), Forward::Stale);
            let errand = Errand { candidate: Some(stored), is_refresh: true, ..errand };
            let limit = errand.question.serving.policy.l1.max_object_size.0;
            match timeout(DEADLINE, self.fetch(errand)).await {
                Ok(answered) => drain(answered.response.into_body(), limit, DEADLINE).await,
                Err(_) => tracing::warn!("the application did not renew an answer in {DEADLINE:?}"),
            }
        })
    }
}

/// Reads a body that nobody wants, for so long, for the sake of what is made of it: nothing, if it is passed on, or too large.
pub(super) async fn drain(mut body: Body, limit: u64, timeout: Duration) {
    let read_all = async {
        let mut read = 0;
        while let Body::Fill(reader) = &body {
            // Nothing is made of it any more.
            if read > limit || !reader.is_kept() {
                return;
            }
            match body.frame().await {
                Some(Ok(frame)) => read += frame.data_ref().map_or(0, |data| data.len() as u64),
                _ => return,
            }
        }
    };
    let _ = tokio::time::timeout(timeout, read_all).await;
}

/// Reads a body ahead of its clients, for other pods, until it has been the only reader for a while.
pub(super) async fn drain_ahead(fill: Fill<Source>, reader: Reader<Source>, limit: u64) {
    let alone = async {
        let mut was_alone = false;
        loop {
            sleep(ABANDONED_TIMEOUT).await;
            let is_alone = fill.readers() <= 1;
            if was_alone && is_alone {
                return;
            }
            was_alone = is_alone;
        }
    };
    tokio::select! {
        () = drain(Body::Fill(reader), limit, DEADLINE) => {}
        () = alone => {}
    }
}

impl Question {
    /// The same question for its own sake: of GET, without what this client has or wants of it.
    fn without_its_client(&self) -> Self {
        let mut question = self.clone();
        for name in [header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE, header::IF_RANGE, header::RANGE] {
            question.headers.remove(name);
        }
        question.client.turnstile = None;
        question.range = range::Asked::Whole;
        question.asked = Default::default();
        if let Some(key) = question.key_of_get.take() {
            question.key = key;
            question.method = Method::GET;
            question.asker.method = Method::GET;
        }
        question
    }
}
