//! The admin API of a sidecar, by port-forward.

mod connection;

use std::time::Duration;

use futures::{StreamExt, stream};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use larder_api::admin::Problem;
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::timeout;

pub(crate) use connection::Connection;

use crate::{
    cluster::Cluster,
    error::{Error, Result, innermost},
    pods::SidecarPod,
    right::Right,
    wording,
};

/// Maximum time of a request, forwarding included.
const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_RESPONSE: usize = 4 << 20;
/// Maximum number of sidecars that are asked at a time.
const MAX_CONCURRENT: usize = 16;
/// Maximum number of sidecars that are asked one after the other.
const MAX_TRIES: usize = 5;

/// A sidecar's admin API.
pub(crate) struct Sidecar<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) pod: &'a SidecarPod,
    /// Token, for what requires it.
    pub(crate) token: Option<&'a str>,
}

/// The body of a response without an end.
pub(crate) struct Stream {
    body: Incoming,
    _connection: Connection,
}

impl Stream {
    /// Returns the next bytes, or none at the end.
    pub(crate) async fn next(&mut self) -> std::result::Result<Option<Bytes>, hyper::Error> {
        loop {
            let Some(frame) = self.body.frame().await.transpose()? else { return Ok(None) };
            if let Ok(piece) = frame.into_data() {
                return Ok(Some(piece));
            }
        }
    }
}

impl Sidecar<'_> {
    /// Sends a GET.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.get_over(&mut None, path).await
    }

    /// Sends a GET over a connection that is open, or over a new one, which stays open for the next.
    pub(crate) async fn get_over<T: DeserializeOwned>(
        &self,
        open: &mut Option<Connection>,
        path: &str,
    ) -> Result<T> {
        let exchange = async {
            if let Some(mut connection) = open.take()
                // It may have ended. A GET can be sent again.
                && let Ok(exchanged) = self.exchange(&mut connection, Method::GET, path, Bytes::new()).await
            {
                *open = Some(connection);
                return Ok(exchanged);
            }
            let mut connection = self.connect().await?;
            let exchanged = self.exchange(&mut connection, Method::GET, path, Bytes::new()).await?;
            *open = Some(connection);
            Ok(exchanged)
        };
        Ok(self.read(exchange).await?.1)
    }

    /// Sends a POST with a body in JSON.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<(StatusCode, T)> {
        let body = serde_json::to_vec(body).map_err(|error| self.unreachable(error))?;
        let exchange = async {
            let mut connection = self.connect().await?;
            self.exchange(&mut connection, Method::POST, path, body.into()).await
        };
        self.read(exchange).await
    }

    /// Reads the response of an exchange, which must be in time.
    async fn read<T: DeserializeOwned>(
        &self,
        exchange: impl Future<Output = Result<(StatusCode, Bytes)>>,
    ) -> Result<(StatusCode, T)> {
        let (status, body) = self.in_time(exchange).await?;
        if status.is_success() {
            let value = serde_json::from_slice(&body);
            let value =
                value.map_err(|error| self.unreachable(format!("its response is not readable ({error})")));
            return Ok((status, value?));
        }
        Err(self.refusal(status, &body))
    }

    async fn in_time<T>(&self, exchange: impl Future<Output = Result<T>>) -> Result<T> {
        let in_time = timeout(TIMEOUT, exchange).await;
        in_time.unwrap_or_else(|_| Err(self.unreachable(format!("no response within {TIMEOUT:?}"))))
    }

    async fn exchange(
        &self,
        connection: &mut Connection,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes)> {
        let response = self.send(connection, method, path, body).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_RESPONSE).collect().await;
        Ok((status, body.map_err(|error| self.unreachable(error))?.to_bytes()))
    }

    /// Sends a GET whose response has no end. Returns its body.
    pub(crate) async fn open(&self, path: &str) -> Result<Stream> {
        let begun = async {
            let mut connection = self.connect().await?;
            let response = self.send(&mut connection, Method::GET, path, Bytes::new()).await?;
            Ok((response, connection))
        };
        let (response, connection) = self.in_time(begun).await?;
        let status = response.status();
        let mut body = response.into_body();
        if status.is_success() {
            return Ok(Stream { body, _connection: connection });
        }
        let problem = timeout(TIMEOUT, Limited::new(&mut body, MAX_RESPONSE).collect()).await;
        let problem = problem.ok().and_then(|read| Some(read.ok()?.to_bytes()));
        Err(self.refusal(status, &problem.unwrap_or_default()))
    }

    fn refusal(&self, status: StatusCode, body: &[u8]) -> Error {
        let detail =
            serde_json::from_slice::<Problem>(body).map(|problem| wording::one_line(&problem.detail));
        Error::SidecarRefused {
            pod: self.pod.name.clone(),
            detail: detail.unwrap_or_else(|_| format!("status {status}")),
        }
    }

    /// Forwards the port of the admin API.
    async fn connect(&self) -> Result<Connection> {
        let SidecarPod { namespace, name, port, .. } = self.pod;
        match self.cluster.pods(namespace).portforward(name, &[*port]).await {
            Ok(forwarded) => {
                Connection::over(forwarded, *port).await.map_err(|reason| self.unreachable(reason))
            }
            Err(error) => Err(self.not_forwarded(error).await),
        }
    }

    async fn send(
        &self,
        connection: &mut Connection,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "larder")
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Full::new(body)).map_err(|error| self.unreachable(error))?;
        connection.send(request).await.map_err(|reason| self.unreachable(reason))
    }

    /// Returns the error of a port-forward. Only a right that is proven to be missing is missing for other pods as well.
    async fn not_forwarded(&self, error: kube::Error) -> Error {
        let kube::Error::Api(status) = error else { return self.unreachable(innermost(&error)) };
        let right = match status.code {
            403 => match Right::of_refusal(&status.message) {
                None => self.cluster.lacked_right_to_forward(&self.pod.namespace).await,
                right => right,
            },
            _ => None,
        };
        match right {
            Some(right) => Error::Forbidden(Box::new(right)),
            None if status.message.is_empty() => self.unreachable(format!("status {}", status.code)),
            None => self.unreachable(&status.message),
        }
    }

    fn unreachable(&self, reason: impl ToString) -> Error {
        let reason = wording::one_line(&reason.to_string());
        Error::SidecarUnreachable { pod: self.pod.name.clone(), reason }
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
            Err(error @ Error::Forbidden(_)) => return Err(error),
            response => kept.push((pod, response)),
        }
    }
    Ok(kept)
}

/// Asks the sidecars of some pods, one after the other until one responds; returns that response, or the error of each.
///
/// # Errors
/// Errors that are none of a pod's.
pub(crate) async fn ask_one<'a, T>(
    pods: &'a [SidecarPod],
    ask: impl AsyncFn(&'a SidecarPod) -> Result<T>,
) -> Result<Vec<(&'a SidecarPod, Result<T>)>> {
    let mut asked = Vec::new();
    for pod in pods.iter().take(MAX_TRIES) {
        match ask(pod).await {
            Ok(response) => return Ok(vec![(pod, Ok(response))]),
            Err(error @ Error::SidecarUnreachable { .. }) => asked.push((pod, Err(error))),
            Err(error) => return Err(error),
        }
    }
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::fake::{refusal, with_server};

    /// Returns the error of a port-forward that is refused, and of which the API server says that the user may it or not.
    fn refused(code: u16, words: &'static str, allowed: bool) -> Error {
        let respond = move |_: &Method, path: &str| match path.rsplit('/').next() {
            Some("selfsubjectaccessreviews") => json!({"spec": {}, "status": {"allowed": allowed}}),
            Some("selfsubjectreviews") => json!({"status": {"userInfo": {"username": "jane"}}}),
            _ => refusal(code, words),
        };
        with_server(respond, async |cluster| {
            let (pod, token) = (&SidecarPod::named("shop-1"), None);
            Sidecar { cluster, pod, token }.get::<Value>("/policy").await.unwrap_err()
        })
    }

    #[test]
    fn only_a_right_that_is_proven_to_be_missing_is_missing_for_all_pods() {
        let rbac = r#"pods "shop-1" is forbidden: User "jane" cannot get resource "pods/portforward" in API group "" in the namespace "shop""#;
        assert!(matches!(refused(403, rbac, true), Error::Forbidden(_)));
        assert!(matches!(refused(403, "", false), Error::Forbidden(_)));
        let webhook = refused(403, r#"admission webhook "a.test" denied the request: not here"#, true);
        assert!(
            matches!(&webhook, Error::SidecarUnreachable { reason, .. } if reason.contains("not here")),
            "{webhook}"
        );
        for (code, words) in [(404, "pods \"shop-1\" not found"), (401, "Unauthorized"), (500, "")] {
            let error = refused(code, words, false);
            assert!(matches!(error, Error::SidecarUnreachable { .. }), "{error}");
        }
    }

    #[test]
    fn some_sidecars_are_tried_until_one_responds() {
        let pods = ["a", "b", "c", "d", "e", "f"].map(SidecarPod::named);
        let asked = |last: &str| {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let asked = runtime.block_on(ask_one(&pods, async |pod| match pod.name == last {
                true => Ok(()),
                false => Err(Error::SidecarUnreachable { pod: pod.name.clone(), reason: "gone".into() }),
            }));
            let names = |(pod, response): (&SidecarPod, Result<()>)| (pod.name.clone(), response.is_ok());
            asked.unwrap().into_iter().map(names).collect::<Vec<_>>()
        };
        assert_eq!(asked("b"), [("b".to_owned(), true)]);
        assert_eq!(asked("f").len(), MAX_TRIES);
        assert!(asked("f").iter().all(|(_, is_ok)| !is_ok));
    }
}
