//! Purges that responses of the application ask for, in `Larder-Purge`.
//!
//! # Guarantees
//! - The purge holds before the response leaves, and whatever its client does.
//! - The field is taken out of every response, whether the policy obeys it or not, and is never stored.
//! - A response that says that a cache or a proxy passed it on purges nothing: it may say again what its application said once.
//! - A field that names nothing harms no response. It is logged with the remedy, and counted.
//!
//! # Assumptions
//! A cache between the application and the sidecar says so in `Age`, `Via` or `Cache-Status`, or leaves the field out of what it stores.
//! A cache of nginx (`proxy_cache`) does neither on its own: each of its hits would purge again.

use std::sync::Arc;

use futures::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue};
use larder_api::admin::PurgeRequest;
use larder_policy::{Fields, Policy};

use super::Proxy;
use crate::{
    headers::LARDER_PURGE,
    purge::{Purging, document},
    stats::{PurgeOrigin, RefusedPurge},
};

/// Fields by which a cache or a proxy says that it passed a response on.
const OF_INTERMEDIARIES: [&str; 3] = ["age", "via", "cache-status"];

impl Proxy {
    /// Purges what a response with these fields, as they came, asks for. Goes on if it is dropped.
    pub(super) async fn obey(&self, fields: &impl Fields) {
        if let Some(purge) = self.told(fields) {
            carry_out(purge).await;
        }
    }

    /// Returns the purge that a response with these fields, as they came, asks for, if the policy obeys it.
    pub(super) fn told(&self, fields: &impl Fields) -> Option<BoxFuture<'static, ()>> {
        if !fields.has(LARDER_PURGE.as_str()) || !self.config.snapshot_guard().policy().obeys_responses {
            return None;
        }
        if let Some(name) = OF_INTERMEDIARIES.into_iter().find(|name| fields.has(name)) {
            self.refuse_purge(
                RefusedPurge::Relayed,
                &format!("the response has {name}, so a cache or a proxy may repeat it: set Larder-Purge in the application behind that, and let it add no {name}"),
            );
            return None;
        }
        let mut requests = vec![];
        for line in fields.values(LARDER_PURGE.as_str()) {
            match read(line, self.config.snapshot_guard().policy()) {
                Ok(of_line) => requests.extend(of_line),
                Err(reason) => self.refuse_purge(RefusedPurge::Malformed, &reason),
            }
        }
        if requests.is_empty() {
            return None;
        }
        let (config, telemetry) = (Arc::clone(&self.config), Arc::clone(&self.telemetry));
        let peers = self.peers.clone();
        Some(Box::pin(async move {
            let names = |policy: &Policy| {
                requests.iter().flat_map(|request| document::names_of(request, policy)).collect()
            };
            let purging = Purging { config: &config, peers: peers.as_deref(), stats: &telemetry.stats };
            purging.on_request(names, PurgeOrigin::Response).await;
            config.snapshot().store.note_write();
        }))
    }

    fn refuse_purge(&self, reason: RefusedPurge, remedy: &str) {
        if self.telemetry.stats.purge_refused(reason) {
            let reason = reason.as_str();
            tracing::warn!(reason, remedy, "a Larder-Purge purged nothing; further ones are only counted");
        }
    }
}

/// Carries a purge out, which goes on if this is dropped.
pub(super) async fn carry_out(purge: BoxFuture<'static, ()>) {
    drop(tokio::spawn(purge).await);
}

/// Copies the fields on which the purge of a response depends.
pub(super) fn copy(from: &impl Fields, to: &mut HeaderMap) {
    if !from.has(LARDER_PURGE.as_str()) {
        return;
    }
    for name in OF_INTERMEDIARIES.into_iter().chain([LARDER_PURGE.as_str()]) {
        for value in from.values(name).filter_map(|value| HeaderValue::from_bytes(value).ok()) {
            to.append(HeaderName::from_static(name), value);
        }
    }
}

/// Reads the documents of a line, of which there may be several with commas between.
///
/// # Errors
/// The reason why one of them purges nothing, and what to send.
fn read(line: &[u8], policy: &Policy) -> Result<Vec<PurgeRequest>, String> {
    let list = [b"[", line, b"]"].concat();
    let requests: Vec<PurgeRequest> =
        serde_json::from_slice(&list).map_err(|error| format!("send {}: {error}", document::SHAPE))?;
    if requests.iter().any(|request| document::names_of(request, policy).is_empty()) || requests.is_empty() {
        return Err(format!("nothing to purge: send {}", document::SHAPE));
    }
    requests.iter().find_map(document::names_nothing).map_or(Ok(requests), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_has_one_document_or_several() {
        let read = |line: &str| read(line.as_bytes(), &Policy::bare());
        for (line, count) in [
            (r#"{"tags": ["user:7"]}"#, 1),
            (r#" {"tags":["a"],"soft":true} , {"everything": true}"#, 2),
            (r#"{"keys": ["GET:/a"], "paths": ["/a,b"], "prefixes": ["/x"]}"#, 1),
            (r#"{"tags": ["caf\u00e9", "é"]}"#, 1),
        ] {
            assert_eq!(read(line).unwrap().len(), count, "{line}");
        }
        for (line, says) in [
            ("", "nothing to purge"),
            ("{}", "nothing to purge"),
            (r#"{"tags": ["a"]}, {"soft": true}"#, "nothing to purge"),
            ("user:7", "send {"),
            (r#"{"tag": "a"}"#, "unknown field"),
            (r#"{"tags": "a"}"#, "send {"),
            (r#"{"tags": ["a"]} {"tags": ["b"]}"#, "send {"),
            (r#"{"tags": ["a"]}]"#, "send {"),
            (r#"{"tags": [" a"]}"#, "remove the spaces"),
            (r#"{"paths": ["a"]}"#, "start it with '/'"),
        ] {
            let reason = read(line).unwrap_err();
            assert!(reason.contains(says), "{line}: {reason}");
        }
        assert!(super::read(b"{\"tags\": [\"\xff\"]}", &Policy::bare()).is_err());
    }
}
