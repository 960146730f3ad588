//! Load at a constant rate: a request is sent when it is due, independent of the responses to earlier ones.
//!
//! # Guarantees
//! A request is sent again in one case alone: hyper returned it unsent, because the server had closed the idle
//! connection. That is counted (`resent`). Every other failure counts in `errors`, and the first of them are told one by
//! one (`lost`).

use std::{
    collections::{BTreeMap, VecDeque},
    io::{Read, Write},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Full};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::oneshot,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::connection::{self, Connection};

/// A request that takes longer is an error.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of lost requests that are told one by one.
const MAX_LOST: usize = 64;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// URL to request; `{n}` in it becomes the number of the request modulo 50.
    #[arg(long)]
    url: String,
    /// Requests per second.
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// Maximum duration in seconds, if standard input does not end before.
    #[arg(long, default_value_t = 60)]
    duration: u64,
    /// A connection for each request.
    #[arg(long)]
    no_keep_alive: bool,
    /// Number of keep-alive connections, as long as each response arrives before the next request is due.
    #[arg(long, default_value_t = 8)]
    connections: usize,
}

/// Report at the end.
#[derive(Debug, Default, Serialize)]
struct Report {
    sent: u64,
    ok: u64,
    /// By status code.
    not_2xx: BTreeMap<u16, u64>,
    /// By kind: see [`connection::kind_of`].
    errors: BTreeMap<String, u64>,
    resets: u64,
    /// Given back unsent by hyper and sent again.
    resent: u64,
    /// The first requests without a response of 2xx.
    lost: Vec<Lost>,
    p50_ms: u64,
    p99_ms: u64,
    max_ms: u64,
}

/// A request without a response of 2xx.
#[derive(Clone, Debug, Serialize)]
struct Lost {
    /// Milliseconds since 1970 at which it was sent.
    sent_at_ms: u64,
    took_ms: u64,
    /// The phase in which it was lost.
    phase: Phase,
    /// The client's address of its connection, if there was one.
    local: Option<SocketAddr>,
    /// Number of responses that the connection had brought before.
    earlier: u32,
    /// The pod that sent the last of them. A new connection's is unknown: the client sees the Service's address only.
    pod: Option<String>,
    /// The error, in words, or the status.
    cause: String,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Phase {
    /// The connection is being opened.
    Connect,
    /// The request is sent, and no head of a response has come.
    Response,
    /// The head has come, and the body not all of it.
    Body,
}

/// The state of a request, told if it is lost.
struct Trace {
    phase: Phase,
    local: Option<SocketAddr>,
    earlier: u32,
    pod: Option<String>,
}

/// A connection between two requests.
struct Kept {
    sender: Connection,
    local: SocketAddr,
    responses: u32,
    /// The pod at its other end, as its last response says.
    pod: Option<String>,
}

/// The part of a response that names the pod.
#[derive(Deserialize)]
struct Answer {
    pod: String,
}

struct Load {
    uri: Uri,
    url: String,
    keep: usize,
    idle: Mutex<VecDeque<Kept>>,
    results: Mutex<Results>,
}

#[derive(Default)]
struct Results {
    report: Report,
    times: Vec<u64>,
}

/// Runs the load and prints the report.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let load = Arc::new(Load {
        uri: args.url.replace("{n}", "0").parse()?,
        url: args.url,
        keep: if args.no_keep_alive { 0 } else { args.connections },
        idle: Mutex::default(),
        results: Mutex::default(),
    });
    let mut due = interval(Duration::from_secs(1) / args.rate);
    due.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut requests = JoinSet::new();
    let over = tokio::time::sleep(Duration::from_secs(args.duration));
    let (stop, mut stopped) = oneshot::channel();
    thread::spawn(move || {
        let _ended = std::io::stdin().read(&mut [0]);
        let _over = stop.send(());
    });
    tokio::pin!(over);
    for number in 0_u64.. {
        tokio::select! {
            _ = due.tick() => {}
            () = &mut over => break,
            _ = &mut stopped => break,
        }
        let load = load.clone();
        requests.spawn(async move { load.request(number).await });
        while requests.try_join_next().is_some() {}
    }
    while requests.join_next().await.is_some() {}
    writeln!(std::io::stdout(), "{}", serde_json::to_string(&load.report())?)?;
    Ok(())
}

impl Load {
    async fn request(&self, number: u64) {
        let (started, sent_at) = (Instant::now(), SystemTime::now());
        let trace = Mutex::new(Trace { phase: Phase::Connect, local: None, earlier: 0, pod: None });
        let outcome = match timeout(TIMEOUT, self.send(number, &trace)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure { kind: "timeout", words: format!("no answer in {TIMEOUT:?}") }),
        };
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        let took_ms = started.elapsed().as_millis() as u64;
        results.times.push(took_ms);
        let report = &mut results.report;
        report.sent += 1;
        let cause = match outcome {
            Ok(status) if (200..300).contains(&status) => {
                report.ok += 1;
                return;
            }
            Ok(status) => {
                *report.not_2xx.entry(status).or_default() += 1;
                format!("status {status}")
            }
            Err(failure) => {
                *report.errors.entry(failure.kind.to_owned()).or_default() += 1;
                report.resets += u64::from(failure.kind == "reset");
                failure.words
            }
        };
        if report.lost.len() < MAX_LOST {
            let Trace { phase, local, earlier, pod } =
                trace.into_inner().unwrap_or_else(PoisonError::into_inner);
            let sent_at_ms = sent_at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
            report.lost.push(Lost { sent_at_ms, took_ms, phase, local, earlier, pod, cause });
        }
    }

    async fn send(&self, number: u64, trace: &Mutex<Trace>) -> Result<u16, Failure> {
        let enter = |phase| trace.lock().unwrap_or_else(PoisonError::into_inner).phase = phase;
        let uri: Uri =
            self.url.replace("{n}", &(number % 50).to_string()).parse().map_err(Failure::of("url"))?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let host = uri.authority().map_or("", |authority| authority.as_str());
        let mut request = Request::builder().uri(path).header(header::HOST, host);
        if self.keep == 0 {
            request = request.header(header::CONNECTION, "close");
        }
        let mut request = request.body(Full::new(Bytes::new())).map_err(Failure::of("url"))?;
        loop {
            enter(Phase::Connect);
            let mut connection = match self.take() {
                Some(connection) => connection,
                None => {
                    let (sender, local) =
                        connection::open(&self.uri).await.map_err(Failure::of("connect"))?;
                    Kept { sender, local, responses: 0, pod: None }
                }
            };
            let reused = connection.responses > 0;
            *trace.lock().unwrap_or_else(PoisonError::into_inner) = Trace {
                phase: Phase::Response,
                local: Some(connection.local),
                earlier: connection.responses,
                pod: connection.pod.clone(),
            };
            match connection.sender.try_send_request(request).await {
                Ok(response) => {
                    enter(Phase::Body);
                    let status = response.status().as_u16();
                    let body = response.into_body().collect().await.map_err(Failure::of("body"))?.to_bytes();
                    connection.responses += 1;
                    if let Ok(answer) = serde_json::from_slice::<Answer>(&body) {
                        connection.pod = Some(answer.pod.clone());
                        trace.lock().unwrap_or_else(PoisonError::into_inner).pod = Some(answer.pod);
                    }
                    self.give_back(connection).await;
                    return Ok(status);
                }
                Err(mut error) => match error.take_message() {
                    Some(unsent) if reused => {
                        request = unsent;
                        self.results.lock().unwrap_or_else(PoisonError::into_inner).report.resent += 1;
                    }
                    _ => {
                        return Err(Failure::of(if reused { "kept connection" } else { "new connection" })(
                            error.into_error(),
                        ));
                    }
                },
            }
        }
    }

    /// The connection that has been idle the longest, once there are enough of them.
    fn take(&self) -> Option<Kept> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|connection| !connection.sender.is_closed());
        if idle.len() < self.keep { None } else { idle.pop_front() }
    }

    async fn give_back(&self, mut connection: Kept) {
        if self.keep > 0 && connection.sender.ready().await.is_ok() {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.push_back(connection);
            // A slow moment opened more: the oldest go.
            while idle.len() > 2 * self.keep {
                idle.pop_front();
            }
        }
    }

    fn report(&self) -> Report {
        let mut results = std::mem::take(&mut *self.results.lock().unwrap_or_else(PoisonError::into_inner));
        results.times.sort_unstable();
        let at =
            |part: usize| results.times.get(results.times.len() * part / 100).copied().unwrap_or_default();
        Report {
            p50_ms: at(50),
            p99_ms: at(99),
            max_ms: results.times.last().copied().unwrap_or_default(),
            ..results.report
        }
    }
}

/// A request without a complete response.
struct Failure {
    kind: &'static str,
    words: String,
}

impl Failure {
    fn of<E: std::error::Error + 'static>(step: &str) -> impl FnOnce(E) -> Self {
        let step = step.to_owned();
        move |error| {
            let mut words = format!("{step}: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                words.push_str(&format!(": {error}"));
                cause = error.source();
            }
            Self { kind: connection::kind_of(&error), words }
        }
    }
}
