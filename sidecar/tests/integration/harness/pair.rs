//! Two sidecars that share a Redis.

use std::time::Duration;

use super::{Origin, Policy, Sidecar, until};

/// Two sidecars under one policy, in front of one application.
pub(crate) async fn two(policy: &Policy, origin: &Origin) -> [Sidecar; 2] {
    [Sidecar::start(policy, origin.address).await, Sidecar::start(policy, origin.address).await]
}

/// Waits until one sidecar finds in Redis a response that the other stored. No request fails meanwhile.
pub(crate) async fn until_shared([a, b]: &[Sidecar; 2]) {
    let mut page = 0;
    until("a hit from L2", async || {
        page += 1;
        let path = format!("/shared-{page}");
        let stored = a.get(&path).await;
        // A request before the response is in Redis stores another: a path is good for one try, and the next comes after a while.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let found = b.get(&path).await;
        assert_eq!([stored.status, found.status], [200, 200]);
        (found.hit() == Some("l2") && found.body == stored.body).then_some(())
    })
    .await;
}

/// Responses that two sidecars have stored, with their paths.
pub(crate) struct Pages(Vec<(&'static str, String)>);

impl Pages {
    /// Stores the responses under these paths in both sidecars.
    pub(crate) async fn warm([a, b]: &[Sidecar; 2], paths: impl IntoIterator<Item = &'static str>) -> Self {
        let mut pages = vec![];
        for path in paths {
            let first = a.get(path).await.body;
            until("the response is in Redis", async || (b.get(path).await.body == first).then_some(())).await;
            pages.push((path, first));
        }
        Self(pages)
    }

    /// Returns the indices of those that a sidecar does not have any more.
    pub(crate) async fn purged_in(&self, sidecar: &Sidecar) -> Vec<usize> {
        let mut purged = vec![];
        for (index, (path, page)) in self.0.iter().enumerate() {
            if sidecar.get(path).await.body != *page {
                purged.push(index);
            }
        }
        purged
    }
}
