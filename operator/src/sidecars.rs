//! Reports of the sidecars on their configuration.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use futures::{StreamExt, stream};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use larder_api::admin::{PolicyReport, path};

const POLL_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_REPORT: usize = 64 << 10;
const MAX_CONCURRENT: usize = 64;

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
}

impl Sidecars {
    /// Creates a client that reuses connections for a while.
    pub fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(POLL_TIMEOUT));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(20))
            .build(connector);
        Self { client }
    }

    /// Polls all sidecars concurrently; returns, by pod, the response or the error.
    pub async fn ask(&self, sidecars: Vec<Sidecar>) -> BTreeMap<String, Result<PolicyReport, String>> {
        stream::iter(sidecars)
            .map(|sidecar| async move {
                let answer = tokio::time::timeout(POLL_TIMEOUT, self.ask_one(&sidecar)).await;
                let answer = answer.unwrap_or_else(|_| Err("no response within 1 s".into()));
                (sidecar.pod, answer.map_err(|error| error.to_string()))
            })
            .buffer_unordered(MAX_CONCURRENT)
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
