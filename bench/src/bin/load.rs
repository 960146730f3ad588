//! The load: a few connections that each send a request as soon as they have the response to the last one.
//!
//! Each request takes one read and one write. wrk, which also changes its epoll interest twice a request, is no faster
//! than the servers that it would have to keep busy.

use std::{
    cell::{Cell, RefCell},
    io::{self, Write as _},
    net::SocketAddr,
    process,
    rc::Rc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use clap::Parser;
use larder_bench::{
    cpu::{self, Tree},
    load::{NUMBER, Report},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Notify,
    task::{JoinSet, LocalSet},
    time::{sleep, timeout},
};

/// Maximum time of a response.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Time between the first response of every connection and the beginning of what counts.
const WARM_UP: Duration = Duration::from_millis(100);

/// Maximum size of a response's head, in bytes.
const HEAD: usize = 16 << 10;

/// Number of digits of a number in a target.
const DIGITS: usize = 16;

/// Sends one request repeatedly, and fails at the first response with another status or size.
#[derive(Parser)]
struct Arguments {
    /// Address of the server.
    #[arg(long)]
    server: SocketAddr,

    /// Process of the server.
    #[arg(long)]
    pid: u32,

    /// Core of the server.
    #[arg(long)]
    core: usize,

    /// Number of connections.
    #[arg(long)]
    connections: usize,

    /// Duration in seconds.
    #[arg(long)]
    seconds: f64,

    /// Method of each request.
    #[arg(long, default_value = "GET")]
    method: String,

    /// Target of each request; {n} is a number.
    #[arg(long)]
    target: String,

    /// Number of different numbers; 0 for numbers that never come again.
    #[arg(long, default_value_t = 0)]
    numbers: u64,

    /// Length of the body of each request, in bytes.
    #[arg(long, default_value_t = 0)]
    content: usize,

    /// Expected status code.
    #[arg(long, default_value_t = 200)]
    status: u16,

    /// Expected size of the body, in bytes.
    #[arg(long)]
    size: usize,

    /// Expected text in the head of each response.
    #[arg(long)]
    says: Option<String>,

    /// A further header of each request.
    #[arg(long)]
    header: Vec<String>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = LocalSet::new().block_on(&runtime, run(&arguments))?;
    serde_json::to_writer(io::stdout(), &report)?;
    Ok(writeln!(io::stdout())?)
}

/// State that all connections share.
struct Shared {
    connections: usize,
    /// The next number in a target.
    next: Cell<u64>,
    /// Count of numbers in targets; 0 without a limit.
    numbers: u64,
    /// Number of connections that have had a response.
    begun: Cell<usize>,
    all_begun: Notify,
    /// True while responses count.
    counts: Cell<bool>,
    ends: Cell<bool>,
    /// Number of responses that count and lack the expected text.
    odd: Cell<u64>,
    /// Time of each response that counts, in nanoseconds.
    latencies: RefCell<Vec<u32>>,
}

async fn run(arguments: &Arguments) -> Result<Report> {
    // A run of a moment later begins beyond the numbers of this one.
    let micros = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros();
    let shared = Rc::new(Shared {
        connections: arguments.connections,
        next: Cell::new(if arguments.numbers == 0 { u64::try_from(micros)? } else { 0 }),
        numbers: arguments.numbers,
        begun: Cell::new(0),
        all_begun: Notify::new(),
        counts: Cell::new(false),
        ends: Cell::new(false),
        odd: Cell::new(0),
        latencies: RefCell::new(Vec::with_capacity(1 << 20)),
    });
    let request = Rc::new(Request::new(arguments));
    let expected = Rc::new(Expected {
        start: format!("HTTP/1.1 {} ", arguments.status).into_bytes(),
        size: arguments.size,
        says: arguments.says.as_ref().map(|text| text.clone().into_bytes()),
    });
    let mut streams = Vec::new();
    for _ in 0..arguments.connections {
        let stream = TcpStream::connect(arguments.server).await?;
        stream.set_nodelay(true)?;
        streams.push(stream);
    }
    let mut asking = JoinSet::new();
    for stream in streams {
        asking.spawn_local(ask(stream, Rc::clone(&shared), Rc::clone(&request), Rc::clone(&expected)));
    }
    let (server, own) = (Tree::of(arguments.pid), Tree::of(process::id()));
    let measured = async {
        let begun = timeout(TIMEOUT, shared.all_begun.notified()).await;
        begun.context("a first response did not come")?;
        sleep(WARM_UP).await;
        let before = (server.time()?, own.time()?, cpu::idle_time(arguments.core)?);
        let started = Instant::now();
        shared.counts.set(true);
        sleep(Duration::from_secs_f64(arguments.seconds)).await;
        shared.counts.set(false);
        let time = started.elapsed();
        let after = (server.time()?, own.time()?, cpu::idle_time(arguments.core)?);
        shared.ends.set(true);
        Ok::<_, anyhow::Error>((before, after, time))
    };
    let all = async {
        while let Some(asked) = asking.join_next().await {
            asked??;
        }
        Ok::<_, anyhow::Error>(())
    };
    // A connection that fails ends the run at once.
    let limit = Duration::from_secs_f64(arguments.seconds) + 2 * TIMEOUT;
    let both = async { tokio::try_join!(measured, all) };
    let ((before, after, time), ()) =
        timeout(limit, both).await.context("a response did not come, or not whole")??;

    let mut latencies = shared.latencies.take();
    latencies.sort_unstable();
    let percentile = |percent: usize| {
        latencies.get(latencies.len() * percent / 100).copied().map(u64::from).unwrap_or_default()
    };
    Ok(Report {
        requests: latencies.len() as u64,
        odd: shared.odd.get(),
        time: nanos(time),
        server: nanos(after.0.saturating_sub(before.0)),
        load: nanos(after.1.saturating_sub(before.1)),
        idle: nanos(after.2.saturating_sub(before.2)),
        p50: percentile(50),
        p99: percentile(99),
    })
}

/// The bytes of a request, with the place of its number.
struct Request {
    bytes: Vec<u8>,
    number: Option<usize>,
}

impl Request {
    fn new(arguments: &Arguments) -> Self {
        let Arguments { server, method, target, content, header, .. } = arguments;
        let number = target.find(NUMBER).map(|at| method.len() + 1 + at);
        let target = target.replace(NUMBER, &"0".repeat(DIGITS));
        let length = if *content > 0 { format!("Content-Length: {content}\r\n") } else { String::new() };
        let more: String = header.iter().map(|header| format!("{header}\r\n")).collect();
        let head = format!("{method} {target} HTTP/1.1\r\nHost: {server}\r\n{length}{more}\r\n");
        Self { bytes: [head.as_bytes(), &vec![b'y'; *content]].concat(), number }
    }
}

impl Shared {
    fn begins(&self) {
        self.begun.set(self.begun.get() + 1);
        if self.begun.get() == self.connections {
            self.all_begun.notify_one();
        }
    }

    fn number(&self) -> u64 {
        let number = self.next.get();
        self.next.set(number + 1);
        if self.numbers == 0 { number } else { number % self.numbers }
    }
}

/// Sends requests until the end.
async fn ask(
    mut stream: TcpStream,
    shared: Rc<Shared>,
    request: Rc<Request>,
    expected: Rc<Expected>,
) -> Result<()> {
    let mut bytes = request.bytes.clone();
    let mut buffer = vec![0; expected.size + HEAD];
    let mut is_first = true;
    let mut asked = Instant::now();
    while !shared.ends.get() {
        if let Some(place) = request.number {
            write_number(&mut bytes[place..place + DIGITS], shared.number());
        }
        stream.write_all(&bytes).await?;
        let mut filled = 0;
        while !expected.is_whole(&buffer[..filled]) {
            match stream.read(&mut buffer[filled..]).await? {
                0 => bail!("not the response: {}", String::from_utf8_lossy(&buffer[..filled.min(600)])),
                read => filled += read,
            }
            if !expected.may_begin(&buffer[..filled]) {
                break;
            }
        }
        if !buffer[..filled].starts_with(&expected.start) {
            bail!("not the response: {}", String::from_utf8_lossy(&buffer[..filled.min(600)]));
        }
        let now = Instant::now();
        if shared.counts.get() {
            let latency = u32::try_from((now - asked).as_nanos()).unwrap_or(u32::MAX);
            shared.latencies.borrow_mut().push(latency);
            shared.odd.set(shared.odd.get() + u64::from(!expected.says(&buffer[..filled])));
        }
        asked = now;
        if std::mem::take(&mut is_first) {
            shared.begins();
        }
    }
    Ok(())
}

fn write_number(place: &mut [u8], mut number: u64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

struct Expected {
    start: Vec<u8>,
    size: usize,
    says: Option<Vec<u8>>,
}

impl Expected {
    /// Returns true if a response with a body of this size is complete. The body has no line ends, so the blank line
    /// before its last bytes can only be the end of the head.
    fn is_whole(&self, response: &[u8]) -> bool {
        response.len().checked_sub(self.size).is_some_and(|head| response[..head].ends_with(b"\r\n\r\n"))
    }

    /// Returns true if a response may begin like this.
    fn may_begin(&self, response: &[u8]) -> bool {
        let seen = response.len().min(self.start.len());
        response[..seen] == self.start[..seen]
    }

    /// Returns true if the head of a whole response has the expected text.
    fn says(&self, response: &[u8]) -> bool {
        let head = &response[..response.len() - self.size];
        self.says.as_ref().is_none_or(|text| memchr::memmem::find(head, text).is_some())
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_is_whole_when_its_body_is() {
        let expected =
            |size| Expected { start: b"HTTP/1.1 200 ".into(), size, says: Some(b"-length: ".into()) };
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nxxx";
        for length in 0..answer.len() {
            assert!(!expected(3).is_whole(&answer[..length]), "{length}");
        }
        assert!(expected(3).is_whole(answer) && expected(3).says(answer));
        assert!(!expected(2).is_whole(answer) && !expected(4).is_whole(answer));
        assert!(expected(0).is_whole(b"HTTP/1.1 200 OK\r\n\r\n"));
        assert!(!expected(0).says(b"HTTP/1.1 200 OK\r\n\r\n"), "it does not say its length");
        assert!(expected(3).may_begin(b"HTTP") && !expected(3).may_begin(b"HTTP/1.1 5"));
    }

    #[test]
    fn number_is_written_into_its_place() {
        let server = "127.0.0.1:1";
        let arguments = Arguments::parse_from(
            ["load", "--server", server, "--pid=1", "--core=0", "--connections=1", "--seconds=1"]
                .into_iter()
                .chain(["--target=/10/{n}", "--size=10", "--content=2", "--method=POST"]),
        );
        let mut request = Request::new(&arguments);
        let place = request.number.unwrap();
        write_number(&mut request.bytes[place..place + DIGITS], 123);
        let expected =
            format!("POST /10/0000000000000123 HTTP/1.1\r\nHost: {server}\r\nContent-Length: 2\r\n\r\nyy");
        assert_eq!(String::from_utf8(request.bytes).unwrap(), expected);
    }
}
