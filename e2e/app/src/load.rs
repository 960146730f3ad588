//! Load at a constant rate: a request is sent when it is due, independent of the responses to earlier ones.
//!
//! # Guarantees
//! A request is sent again in one case alone: hyper returned it unsent, because the server had closed the idle
//! connection. That is counted (`resent`). Every other failure counts in `errors`.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{Read, Write},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Full};
use serde::Serialize;
use tokio::{
    sync::oneshot,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::connection::{self, Connection};

/// A request that takes longer is an error.
const TIMEOUT: Duration = Duration::from_secs(5);

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
    /// The first few errors, in words, with the second in which they occurred.
    examples: Vec<String>,
    p50_ms: u64,
    p99_ms: u64,
    max_ms: u64,
}

struct Load {
    uri: Uri,
    url: String,
    keep: usize,
    started: Instant,
    idle: Mutex<VecDeque<Connection>>,
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
        started: Instant::now(),
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
        let started = Instant::now();
        let outcome = match timeout(TIMEOUT, self.send(number)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure { kind: "timeout", words: format!("no answer in {TIMEOUT:?}") }),
        };
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        results.times.push(started.elapsed().as_millis() as u64);
        let report = &mut results.report;
        report.sent += 1;
        match outcome {
            Ok(status) if (200..300).contains(&status) => report.ok += 1,
            Ok(status) => *report.not_2xx.entry(status).or_default() += 1,
            Err(failure) => {
                *report.errors.entry(failure.kind.to_owned()).or_default() += 1;
                report.resets += u64::from(failure.kind == "reset");
                if report.examples.len() < 5 {
                    let second = self.started.elapsed().as_secs_f32();
                    report.examples.push(format!("at {second:.1} s: {}", failure.words));
                }
            }
        }
    }

    async fn send(&self, number: u64) -> Result<u16, Failure> {
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
            let (mut connection, reused) = match self.take() {
                Some(connection) => (connection, true),
                None => (connection::open(&self.uri).await.map_err(Failure::of("connect"))?, false),
            };
            match connection.try_send_request(request).await {
                Ok(response) => {
                    let status = response.status().as_u16();
                    response.into_body().collect().await.map_err(Failure::of("body"))?;
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
    fn take(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|connection| !connection.is_closed());
        if idle.len() < self.keep { None } else { idle.pop_front() }
    }

    async fn give_back(&self, mut connection: Connection) {
        if self.keep > 0 && connection.ready().await.is_ok() {
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
