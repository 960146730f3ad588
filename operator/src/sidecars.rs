//! Reports of the sidecars on their configuration.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use larder_api::admin::{PolicyReport, path};
use tokio::sync::Semaphore;

const POLL_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_REPORT: usize = 64 << 10;
/// Maximum number of sidecars of a policy that are polled at a time.
const MAX_OF_POLICY: usize = 64;
/// Maximum number of sidecars that are polled at a time. A poll that waits for its turn is not late.
const MAX_CONCURRENT: usize = 128;

/// A sidecar to poll.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sidecar {
    /// The pod's name.
    pub pod: String,
    /// The pod's address.
    pub address: IpAddr,
    /// The port of the admin API.
    pub port: u16,
}

/// Client that polls sidecars over HTTP, without a token.
#[derive(Clone, Debug)]
pub struct Sidecars {
    client: Client<HttpConnector, Empty<Bytes>>,
    turns: Arc<Semaphore>,
}

impl Sidecars {
    /// Creates a client that keeps no connection open: thousands of them would hold more memory than all else.
    pub fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(POLL_TIMEOUT));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(0)
            .build(connector);
        Self { client, turns: Arc::new(Semaphore::new(MAX_CONCURRENT)) }
    }

    /// Polls all sidecars concurrently; returns, by pod, the response or the error.
    pub async fn ask(&self, sidecars: Vec<Sidecar>) -> BTreeMap<String, Result<PolicyReport, String>> {
        stream::iter(sidecars)
            .map(|sidecar| async move {
                let _turn = self.turns.acquire().await;
                let answer = tokio::time::timeout(POLL_TIMEOUT, self.ask_one(&sidecar)).await;
                let answer = answer.unwrap_or_else(|_| Err("no response within 1 s".into()));
                (sidecar.pod, answer.map_err(|error| error.to_string()))
            })
            .buffer_unordered(MAX_OF_POLICY)
            .collect()
            .await
    }

    async fn ask_one(
        &self,
        sidecar: &Sidecar,
    ) -> Result<PolicyReport, Box<dyn std::error::Error + Send + Sync>> {
        let address = std::net::SocketAddr::new(sidecar.address, sidecar.port);
        let response = self.client.get(format!("http://{address}{}", path::POLICY).parse()?).await?;
        let status = response.status();
        if !status.is_success() {
            return Err(format!("the response has status {status}").into());
        }
        let body = Limited::new(response.into_body(), MAX_REPORT).collect().await?.to_bytes();
        Ok(serde_json::from_slice(&body)?)
    }
}

impl Default for Sidecars {
    fn default() -> Self {
        Self::new()
    }
}
