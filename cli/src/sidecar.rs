//! The admin API of a sidecar, by port-forward.

use std::time::Duration;

use futures::{StreamExt, future, stream};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use larder_api::admin::Problem;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    cluster::Cluster,
    error::{Error, Result},
    pods::SidecarPod,
    right::Right,
};

/// Maximum time of a request, forwarding included.
const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_RESPONSE: usize = 4 << 20;
/// Maximum number of sidecars that are asked at a time.
const MAX_CONCURRENT: usize = 16;

/// A sidecar's admin API.
pub(crate) struct Sidecar<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) pod: &'a SidecarPod,
    /// Token, for what requires it.
    pub(crate) token: Option<&'a str>,
}

impl Sidecar<'_> {
    /// Sends a GET.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        Ok(self.send(Method::GET, path, Bytes::new()).await?.1)
    }

    /// Sends a POST with a body in JSON.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<(StatusCode, T)> {
        let body = serde_json::to_vec(body).map_err(|error| self.unreachable(error))?;
        self.send(Method::POST, path, body.into()).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, T)> {
        let sent = tokio::time::timeout(TIMEOUT, self.exchange(method, path, body)).await;
        let (status, body) =
            sent.unwrap_or_else(|_| Err(self.unreachable(format!("no response within {TIMEOUT:?}"))))?;
        if status.is_success() {
            let value = serde_json::from_slice(&body);
            let value =
                value.map_err(|error| self.unreachable(format!("its response is not readable ({error})")));
            return Ok((status, value?));
        }
        let detail = serde_json::from_slice::<Problem>(&body).map(|problem| problem.detail);
        Err(Error::SidecarRefused {
            pod: self.pod.name.clone(),
            detail: detail.unwrap_or_else(|_| format!("status {status}")),
        })
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<(StatusCode, Bytes)> {
        let SidecarPod { namespace, name, port, .. } = self.pod;
        let forwarded = self.cluster.pods(namespace).portforward(name, &[*port]).await;
        let mut forwarded = match forwarded {
            Ok(forwarded) => forwarded,
            Err(error) => return Err(self.not_forwarded(error).await),
        };
        let stream =
            forwarded.take_stream(*port).ok_or_else(|| self.unreachable("the port is not forwarded"))?;
        let refusal = forwarded.take_error(*port);
        let response = async {
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            let mut request = Request::builder()
                .method(method)
                .uri(path)
                .header(header::HOST, "larder")
                .header(header::CONTENT_TYPE, "application/json");
            if let Some(token) = self.token {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            let request = request.body(Full::new(body))?;
            let response = async {
                let response = sender.send_request(request).await?;
                let status = response.status();
                let body = Limited::new(response.into_body(), MAX_RESPONSE).collect().await?.to_bytes();
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>((status, body))
            };
            // The connection ends with the response.
            tokio::pin!(response);
            match future::select(response, std::pin::pin!(connection)).await {
                future::Either::Left((response, _)) => response,
                future::Either::Right((ended, response)) => {
                    ended?;
                    response.await
                }
            }
        };
        match response.await {
            Ok(response) => Ok(response),
            Err(error) => {
                // The kubelet's own words, if it has any, tell more than the end of the connection.
                let words = match refusal {
                    Some(refusal) => {
                        tokio::time::timeout(Duration::from_millis(100), refusal).await.ok().flatten()
                    }
                    None => None,
                };
                Err(self.unreachable(words.unwrap_or_else(|| error.to_string())))
            }
        }
    }

    async fn not_forwarded(&self, error: kube::Error) -> Error {
        let SidecarPod { namespace, name, .. } = self.pod;
        let is_forbidden = matches!(&error, kube::Error::Api(status) if status.code == 403);
        match Error::of_api(error, &format!("forward a port of pod {name}")) {
            Error::Unreachable(reason) => self.unreachable(reason),
            refused @ Error::Refused { .. } if is_forbidden => match self.cluster.user().await {
                Some(user) => Error::Forbidden(Box::new(Right::to_forward(&user, namespace))),
                None => refused,
            },
            error => error,
        }
    }

    fn unreachable(&self, reason: impl ToString) -> Error {
        Error::SidecarUnreachable { pod: self.pod.name.clone(), reason: reason.to_string() }
    }
}

/// Asks the sidecars of pods, some at a time; returns the responses in the order of the pods.
///
/// # Errors
/// A right that is missing is missing for all pods, and is the error of the whole; other errors belong to their pods.
pub(crate) async fn ask_all<'a, T>(
    pods: impl IntoIterator<Item = &'a SidecarPod>,
    ask: impl AsyncFn(&'a SidecarPod) -> Result<T>,
) -> Result<Vec<(&'a SidecarPod, Result<T>)>> {
    let responses = stream::iter(pods).map(|pod| {
        let response = ask(pod);
        async move { (pod, response.await) }
    });
    let responses: Vec<_> = responses.buffered(MAX_CONCURRENT).collect().await;
    let mut kept = Vec::with_capacity(responses.len());
    for (pod, response) in responses {
        match response {
            Err(error @ (Error::Forbidden(_) | Error::Unauthorized)) => return Err(error),
            response => kept.push((pod, response)),
        }
    }
    Ok(kept)
}
