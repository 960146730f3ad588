//! The client: one process for all the requests of a test, so that polling is cheap.

use std::{
    collections::BTreeMap,
    io::Write,
    time::{Duration, Instant},
};

use anyhow::Context;
use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Full};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};

use crate::connection;

/// One line of standard input.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", untagged)]
enum Ask {
    /// An HTTP request on a connection of its own.
    Http {
        method: String,
        url: String,
        #[serde(default)]
        headers: Vec<(String, String)>,
        #[serde(default)]
        body: String,
        #[serde(rename = "timeoutMs")]
        timeout_ms: u64,
    },
    /// A conversation over TCP: a line is awaited first, then one for each line sent.
    Talk {
        address: String,
        lines: Vec<String>,
        #[serde(rename = "timeoutMs")]
        timeout_ms: u64,
    },
}

/// One line of standard output.
#[derive(Serialize)]
#[serde(rename_all = "camelCase", untagged)]
enum Told {
    Http {
        status: u16,
        headers: BTreeMap<String, Vec<String>>,
        body: String,
        #[serde(rename = "timeMs")]
        time_ms: u128,
    },
    Talk {
        lines: Vec<String>,
    },
    Error {
        error: String,
    },
}

/// Answers requests until standard input ends.
pub(crate) async fn run() -> anyhow::Result<()> {
    // One request at a time, and nothing else to do meanwhile: a blocking read is as good as another.
    while let Some(line) = tokio::task::block_in_place(|| std::io::stdin().lines().next()) {
        let told = answer(&line?).await.unwrap_or_else(|error| Told::Error { error: format!("{error:#}") });
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(&told)?)?;
        out.flush()?;
    }
    Ok(())
}

async fn answer(line: &str) -> anyhow::Result<Told> {
    match serde_json::from_str(line)? {
        Ask::Http { method, url, headers, body, timeout_ms } => {
            let uri: Uri = url.parse()?;
            let path = uri.path_and_query().map_or("/", |path| path.as_str());
            let mut request = Request::builder().method(method.as_str()).uri(path);
            if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
                request =
                    request.header(header::HOST, uri.authority().context("no host in the URL")?.as_str());
            }
            for (name, value) in &headers {
                request = request.header(name, value);
            }
            let request = request.body(Full::new(Bytes::from(body)))?;
            timeout(Duration::from_millis(timeout_ms), http(&uri, request))
                .await
                .context("no answer in time")?
        }
        Ask::Talk { address, lines, timeout_ms } => {
            let lines = timeout(Duration::from_millis(timeout_ms), talk(&address, &lines))
                .await
                .context("no line in time")??;
            Ok(Told::Talk { lines })
        }
    }
}

async fn http(uri: &Uri, request: Request<Full<Bytes>>) -> anyhow::Result<Told> {
    let started = Instant::now();
    let (mut connection, _) = connection::open(uri).await.context("connect")?;
    let (head, body) = connection.send_request(request).await?.into_parts();
    let body = body.collect().await.context("the body broke off")?.to_bytes();
    let mut headers = BTreeMap::<_, Vec<_>>::new();
    for (name, value) in &head.headers {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        headers.entry(name.to_string()).or_default().push(value);
    }
    let body = String::from_utf8_lossy(&body).into_owned();
    Ok(Told::Http { status: head.status.as_u16(), headers, body, time_ms: started.elapsed().as_millis() })
}

async fn talk(address: &str, say: &[String]) -> anyhow::Result<Vec<String>> {
    let mut stream = TcpStream::connect(address).await.context("connect")?;
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader).lines();
    let mut heard = Vec::new();
    let mut say = say.iter();
    while let Some(line) = reader.next_line().await? {
        heard.push(line);
        match say.next() {
            Some(line) => writer.write_all(format!("{line}\n").as_bytes()).await?,
            None => break,
        }
    }
    Ok(heard)
}
