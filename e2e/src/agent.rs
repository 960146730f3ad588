//! A pod to send requests from, so that they go through Services and kube-proxy as anybody's do.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::AttachedProcess};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    sync::Mutex,
};

use crate::{eventually, eventually::SHORT_TIMEOUT, exec};

/// The agent's pod and container.
pub(crate) const NAME: &str = "agent";

/// A pod with the client running in it.
pub struct Agent {
    pub(crate) pods: Api<Pod>,
    /// The client, once it has been asked for.
    session: Mutex<Option<Session>>,
}

/// A client that runs in the pod: a line in for each request, a line out for each answer.
struct Session {
    stdin: Box<dyn AsyncWrite + Send + Unpin>,
    stdout: Box<dyn AsyncBufRead + Send + Unpin>,
    /// Ends the client when it is dropped.
    _process: AttachedProcess,
}

/// A request.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ask {
    method: String,
    url: String,
    headers: Vec<(String, String)>,
    body: String,
    timeout_ms: u64,
}

/// An answer.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers by their names in small letters.
    pub headers: BTreeMap<String, Vec<String>>,
    /// The body, as text.
    pub body: String,
    /// Duration of the request, connecting included.
    pub time_ms: u64,
}

impl Ask {
    /// A request of that method.
    pub fn new(method: &str, url: &str) -> Self {
        Self {
            method: method.to_owned(),
            url: url.to_owned(),
            headers: Vec::new(),
            body: String::new(),
            timeout_ms: 20_000,
        }
    }

    /// A GET.
    pub fn get(url: &str) -> Self {
        Self::new("GET", url)
    }

    /// A header more. A `host` stands in place of the URL's.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A bearer token.
    pub fn token(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    /// A JSON body.
    pub fn json(mut self, body: &Value) -> Self {
        self.body = body.to_string();
        self.header("content-type", "application/json")
    }

    /// Sets the timeout of the response; default 20 s.
    pub fn within(mut self, timeout: Duration) -> Self {
        self.timeout_ms = timeout.as_millis() as u64;
        self
    }
}

impl Answer {
    /// A header's value, or several joined as RFC 9110 section 5.3 joins them.
    pub fn header(&self, name: &str) -> String {
        self.headers.get(name).map(|values| values.join(", ")).unwrap_or_default()
    }

    /// Returns the `Cache-Status` of the response.
    pub fn cache_status(&self) -> String {
        self.header("cache-status")
    }

    /// Returns true if the response came from the cache.
    pub fn is_hit(&self) -> bool {
        self.cache_status().starts_with("larder; hit")
    }

    /// Returns true if the cache was looked up and had no response.
    pub fn is_miss(&self) -> bool {
        self.cache_status().contains("fwd=uri-miss")
    }

    /// Returns true if the response was not in the cache, and is stored now.
    pub fn is_stored(&self) -> bool {
        self.is_miss() && self.cache_status().contains("; stored")
    }

    /// Reads the body as JSON of a type.
    pub fn read<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        serde_json::from_str(&self.body).with_context(|| format!("not the type: {self:?}"))
    }

    /// The body as JSON.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.body).with_context(|| format!("not JSON: {self:?}"))
    }
}

impl Agent {
    pub(crate) fn new(pods: Api<Pod>) -> Self {
        Self { pods, session: Mutex::new(None) }
    }

    /// Sends a request. It is sent once.
    ///
    /// # Errors
    /// When there is no answer, with the reason.
    pub async fn send(&self, ask: &Ask) -> anyhow::Result<Answer> {
        let told = self.tell(&serde_json::to_string(ask)?).await?;
        if let Some(error) = told["error"].as_str() {
            bail!("{} {}: {error}", ask.method, ask.url);
        }
        Ok(serde_json::from_value(told)?)
    }

    /// Sends a GET.
    ///
    /// # Errors
    /// When there is no answer, with the reason.
    pub async fn get(&self, url: &str) -> anyhow::Result<Answer> {
        self.send(&Ask::get(url)).await
    }

    /// Waits until a Service of the HTTP application answers: endpoints lag behind the pods.
    pub async fn reaches(&self, service: &str) -> anyhow::Result<()> {
        eventually(&format!("the Service {service} answers"), SHORT_TIMEOUT, async || {
            let answer = self.get(&format!("http://{service}/healthz")).await?;
            ensure!(answer.status == 200, "{answer:?}");
            Ok(())
        })
        .await
    }

    /// Listens for a line, then says these and listens for one after each. Gives what was heard.
    ///
    /// # Errors
    /// When the other side stays silent for 20 s.
    pub async fn talk(&self, address: &str, lines: &[&str]) -> anyhow::Result<Vec<String>> {
        let ask = serde_json::json!({"address": address, "lines": lines, "timeoutMs": 20_000});
        let told = self.tell(&ask.to_string()).await?;
        if let Some(error) = told["error"].as_str() {
            bail!("{address}: {error}");
        }
        Ok(serde_json::from_value(told["lines"].clone())?)
    }

    async fn tell(&self, line: &str) -> anyhow::Result<Value> {
        let mut kept = self.session.lock().await;
        // A session that failed half way is not used again: its next line might be the last answer.
        let mut session = match kept.take() {
            Some(session) => session,
            None => self.open().await?,
        };
        session
            .stdin
            .write_all(format!("{line}\n").as_bytes())
            .await
            .context("the agent's client is gone")?;
        let mut answer = String::new();
        session.stdout.read_line(&mut answer).await.context("the agent's client is gone")?;
        let told = serde_json::from_str(&answer).with_context(|| format!("not an answer: {answer:?}"))?;
        *kept = Some(session);
        Ok(told)
    }

    async fn open(&self) -> anyhow::Result<Session> {
        let mut process = exec::start(&self.pods, NAME, NAME, &[exec::PROGRAM, "client"]).await?;
        Ok(Session {
            stdin: Box::new(process.stdin().context("no standard input")?),
            stdout: Box::new(BufReader::new(process.stdout().context("no standard output")?)),
            _process: process,
        })
    }
}
