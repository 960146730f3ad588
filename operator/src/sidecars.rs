//! Requests to the admin APIs of sidecars.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request, StatusCode,
    body::Bytes,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use larder_api::admin::{PolicyReport, Problem, PurgeReport, PurgeRequest, path};
use tokio::sync::Semaphore;

const POLL_TIMEOUT: Duration = Duration::from_secs(1);
/// Timeout of a purge, longer than a sidecar waits for Redis and for other pods.
const PURGE_TIMEOUT: Duration = Duration::from_secs(5);
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

/// The reason that a sidecar has not purged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PurgeError {
    /// The sidecar has purged, and Redis or another pod does not know yet, with the reason.
    Pending(String),
    /// The sidecar has another token.
    Unauthorized,
    /// The purge is wrong, with the sidecar's reason.
    Refused(String),
    /// There is no usable response.
    Failed(String),
}

/// Client that polls sidecars over HTTP without a token, and has them purge with it.
#[derive(Clone, Debug)]
pub struct Sidecars {
    client: Client<HttpConnector, Full<Bytes>>,
    turns: Arc<Semaphore>,
    /// Turns of purges, which may take longer than a poll.
    purges: Arc<Semaphore>,
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
        let turns = || Arc::new(Semaphore::new(MAX_CONCURRENT));
        Self { client, turns: turns(), purges: turns() }
    }

    /// Polls all sidecars concurrently; returns, by pod, the response or the error.
    pub async fn ask(&self, sidecars: Vec<Sidecar>) -> BTreeMap<String, Result<PolicyReport, String>> {
        let request = |sidecar: &Sidecar| Request::get(sidecar.url(path::POLICY)).body(Full::default());
        let responses = self.send_all(sidecars, &self.turns, POLL_TIMEOUT, request).await;
        responses.map_each(|(status, body)| {
            if !status.is_success() {
                return Err(format!("the response has status {status}"));
            }
            serde_json::from_slice(&body).map_err(|error| error.to_string())
        })
    }

    /// Has all sidecars purge, concurrently; returns, by pod, the outcome. The sidecar of the pod `teller` tells those that can't be asked
    /// from here as well; where every one did, so many messages would be sent as there are pairs of pods.
    pub async fn purge(
        &self,
        sidecars: Vec<Sidecar>,
        token: &str,
        purge: &PurgeRequest,
        teller: Option<&str>,
    ) -> BTreeMap<String, Result<(), PurgeError>> {
        let body = Bytes::from(serde_json::to_vec(purge).unwrap_or_default());
        let request = |sidecar: &Sidecar| {
            let query = if teller == Some(&*sidecar.pod) { "" } else { "?each_pod=true" };
            Request::post(sidecar.url(&[path::PURGE, query].concat()))
                .header(AUTHORIZATION, format!("Bearer {token}"))
                .header(CONTENT_TYPE, "application/json")
                .body(Full::new(body.clone()))
        };
        self.send_all(sidecars, &self.purges, PURGE_TIMEOUT, request).await.map_each(purged)
    }

    /// Sends a request to each sidecar, concurrently.
    async fn send_all(
        &self,
        sidecars: Vec<Sidecar>,
        turns: &Semaphore,
        timeout: Duration,
        request: impl Fn(&Sidecar) -> hyper::http::Result<Request<Full<Bytes>>>,
    ) -> Responses {
        let responses = stream::iter(sidecars).map(|sidecar| {
            let request = request(&sidecar);
            async move {
                let _turn = turns.acquire().await;
                let response = tokio::time::timeout(timeout, self.send(request)).await;
                let response = response
                    .unwrap_or_else(|_| Err(format!("no response within {} s", timeout.as_secs()).into()));
                (sidecar.pod, response.map_err(|error| error.to_string()))
            }
        });
        Responses(responses.buffer_unordered(MAX_OF_POLICY).collect().await)
    }

    async fn send(
        &self,
        request: hyper::http::Result<Request<Full<Bytes>>>,
    ) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
        let response = self.client.request(request?).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_REPORT).collect().await;
        // The status of a long report says enough.
        let body = if status == StatusCode::ACCEPTED { body.unwrap_or_default() } else { body? };
        Ok((status, body.to_bytes()))
    }
}

/// A response, or the reason that there is none.
type Response = Result<(StatusCode, Bytes), String>;

/// Responses of sidecars, by pod.
struct Responses(Vec<(String, Response)>);

impl Responses {
    fn map_each<T, E: From<String>>(
        self,
        read: impl Fn((StatusCode, Bytes)) -> Result<T, E>,
    ) -> BTreeMap<String, Result<T, E>> {
        let read = |response: Response| response.map_err(E::from).and_then(&read);
        self.0.into_iter().map(|(pod, response)| (pod, read(response))).collect()
    }
}

/// Reads the response to a purge. A report repeats the names, so that it may be long and is not read for a purge that holds.
fn purged((status, body): (StatusCode, Bytes)) -> Result<(), PurgeError> {
    match status {
        StatusCode::OK => Ok(()),
        StatusCode::ACCEPTED => {
            let pending = serde_json::from_slice::<PurgeReport>(&body).ok().and_then(|report| report.pending);
            Err(PurgeError::Pending(pending.unwrap_or_else(|| "the sidecar has not told it".into())))
        }
        StatusCode::UNAUTHORIZED => Err(PurgeError::Unauthorized),
        StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE => {
            let problem = serde_json::from_slice::<Problem>(&body).map(|problem| problem.detail);
            Err(PurgeError::Refused(problem.unwrap_or_else(|_| format!("the response has status {status}"))))
        }
        _ => Err(PurgeError::Failed(format!("the response has status {status}"))),
    }
}

impl From<String> for PurgeError {
    fn from(reason: String) -> Self {
        Self::Failed(reason)
    }
}

impl Sidecar {
    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", std::net::SocketAddr::new(self.address, self.port))
    }
}

impl Default for Sidecars {
    fn default() -> Self {
        Self::new()
    }
}
