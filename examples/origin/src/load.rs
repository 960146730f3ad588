//! Users that ask, each on a connection of its own and again as soon as it has its answer.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use anyhow::Context;
use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::JoinSet, time::timeout};

use crate::report::{Found, outcome};

/// A request that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// URL to request, such as http://app/data/{n}: `{n}` becomes a number from 1 to --keys, one after the other.
    url: String,

    /// Number of users.
    #[arg(long, default_value_t = 20)]
    users: u32,

    /// For how long each of them goes on; each asks once at least.
    #[arg(long = "for", default_value = "10s", value_parser = crate::duration)]
    lasting: Duration,

    /// Time that a user waits before the next request.
    #[arg(long, default_value = "0s", value_parser = crate::duration)]
    pause: Duration,

    /// Number of values of `{n}`.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    keys: u32,

    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

/// Asks, and prints the report.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let base: Uri = args.url.replace("{n}", "1").parse()?;
    base.host().context("no host in the URL")?;
    let started = Instant::now();
    let json = args.json;
    let mut users: JoinSet<_> =
        (0..args.users).map(|user| User::new(args.clone(), user).ask(started)).collect();
    let mut found = Found::default();
    while let Some(user) = users.join_next().await {
        found.add(user?);
    }
    let report = found.report(started.elapsed());
    let text = if json { serde_json::to_string(&report)? } else { report.to_string() };
    writeln!(std::io::stdout(), "{}", text.trim_end())?;
    Ok(())
}

struct User {
    args: Args,
    number: u32,
    connection: Option<SendRequest<Empty<Bytes>>>,
}

impl User {
    fn new(args: Args, number: u32) -> Self {
        Self { args, number, connection: None }
    }

    async fn ask(mut self, started: Instant) -> Found {
        let mut found = Found::default();
        // The users' first requests are as far apart as their later ones.
        tokio::time::sleep(self.args.pause * self.number / self.args.users).await;
        for request in 0_u32.. {
            let n = self.number.wrapping_add(request) % self.args.keys + 1;
            let asked = Instant::now();
            match timeout(TIMEOUT, self.send(n)).await {
                Ok(Ok((200..300, cache_status))) => {
                    found.answers.entry(outcome(&cache_status)).or_default().push(asked.elapsed());
                }
                Ok(Ok((status, _))) => *found.failures.entry(format!("status {status}")).or_default() += 1,
                Ok(Err(error)) => *found.failures.entry(format!("{error:#}")).or_default() += 1,
                Err(_) => *found.failures.entry(format!("no answer in {TIMEOUT:?}")).or_default() += 1,
            }
            if started.elapsed() + self.args.pause >= self.args.lasting {
                break;
            }
            tokio::time::sleep(self.args.pause).await;
        }
        found
    }

    /// The status and the `Cache-Status` of an answer, once all of it is there. A connection that the server closed before
    /// anything was sent on it is replaced.
    async fn send(&mut self, n: u32) -> anyhow::Result<(u16, String)> {
        let uri: Uri = self.args.url.replace("{n}", &n.to_string()).parse()?;
        loop {
            let kept = self.connection.take();
            let was_kept = kept.is_some();
            let mut connection = match kept {
                Some(connection) => connection,
                None => open(&uri).await.context("connect")?,
            };
            let request = Request::builder()
                .uri(uri.path_and_query().map_or("/", |target| target.as_str()))
                .header(header::HOST, uri.authority().map_or("", |authority| authority.as_str()))
                .body(Empty::new())?;
            match connection.try_send_request(request).await {
                Ok(response) => {
                    let (head, body) = response.into_parts();
                    body.collect().await.context("the body broke off")?;
                    if connection.ready().await.is_ok() {
                        self.connection = Some(connection);
                    }
                    let cache_status = head.headers.get("cache-status");
                    let cache_status = cache_status.and_then(|value| value.to_str().ok()).unwrap_or_default();
                    return Ok((head.status.as_u16(), cache_status.to_owned()));
                }
                Err(mut error) => {
                    if !was_kept || error.take_message().is_none() {
                        return Err(error.into_error().into());
                    }
                }
            }
        }
    }
}

async fn open(uri: &Uri) -> anyhow::Result<SendRequest<Empty<Bytes>>> {
    let host = uri.host().unwrap_or_default();
    let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(80))).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // An error of the connection is an error of the request in progress.
    tokio::spawn(connection);
    Ok(sender)
}
