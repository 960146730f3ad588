//! The load: a few connections that request one object, each again as soon as it has the response.
//!
//! Each request takes one read and one write. wrk, which also changes its epoll interest twice a request, is no faster
//! than the servers that it would have to keep busy.

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Parser;
use larder_bench::{cpu, load::Report};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

/// Maximum time of a response.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum size of a response's head, in bytes.
const HEAD: usize = 16 << 10;

/// Requests one object repeatedly, and fails at the first wrong response.
#[derive(Parser)]
struct Arguments {
    /// Address of the server.
    #[arg(long)]
    server: SocketAddr,

    /// Size of the object to request, in bytes.
    #[arg(long)]
    size: usize,

    /// Number of connections.
    #[arg(long)]
    connections: usize,

    /// Duration in seconds.
    #[arg(long)]
    seconds: u64,

    /// A further header of each request.
    #[arg(long)]
    header: Vec<String>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(run(&arguments))?;
    serde_json::to_writer(io::stdout(), &report)?;
    Ok(writeln!(io::stdout())?)
}

async fn run(arguments: &Arguments) -> Result<Report> {
    let Arguments { server, size, .. } = arguments;
    let more: String = arguments.header.iter().map(|header| format!("{header}\r\n")).collect();
    let request: Arc<[u8]> =
        format!("GET /{size} HTTP/1.1\r\nHost: {server}\r\n{more}\r\n").into_bytes().into();
    let mut streams = Vec::new();
    for _ in 0..arguments.connections {
        let stream = TcpStream::connect(server).await?;
        stream.set_nodelay(true)?;
        streams.push(stream);
    }

    let started = Instant::now();
    let duration = Duration::from_secs(arguments.seconds);
    let mut asking: JoinSet<_> = streams
        .into_iter()
        .map(|stream| ask(stream, Arc::clone(&request), *size, started + duration))
        .collect();
    let mut latencies = Vec::new();
    let all = async {
        while let Some(asked) = asking.join_next().await {
            latencies.extend(asked??);
        }
        Ok::<_, anyhow::Error>(())
    };
    tokio::time::timeout(duration + TIMEOUT, all).await.context("an answer did not come, or not whole")??;

    let micros = micros(started.elapsed());
    latencies.sort_unstable();
    let percentile =
        |percent: usize| latencies.get(latencies.len() * percent / 100).copied().unwrap_or_default();
    Ok(Report {
        requests: latencies.len() as u64,
        micros,
        cpu_micros: self::micros(cpu::time_of_tree(std::process::id())),
        p50: percentile(50),
        p99: percentile(99),
    })
}

/// Sends requests until the deadline; returns the time of each response, in microseconds.
async fn ask(mut stream: TcpStream, request: Arc<[u8]>, size: usize, deadline: Instant) -> Result<Vec<u64>> {
    let mut latencies = Vec::with_capacity(1 << 14);
    let mut buffer = vec![0; size + HEAD];
    let mut asked = Instant::now();
    while asked < deadline {
        stream.write_all(&request).await?;
        let mut filled = 0;
        while !is_whole(&buffer[..filled], size) {
            match stream.read(&mut buffer[filled..]).await? {
                0 => bail!("not the object: {}", String::from_utf8_lossy(&buffer[..filled.min(300)])),
                read => filled += read,
            }
        }
        if !buffer.starts_with(b"HTTP/1.1 200 ") {
            bail!("not a 200: {}", String::from_utf8_lossy(&buffer[..filled.min(300)]));
        }
        let now = Instant::now();
        latencies.push(micros(now - asked));
        asked = now;
    }
    Ok(latencies)
}

/// Returns true if a response of `size` bytes is complete. Its body has no line ends, so the blank line before the last
/// `size` bytes can only be the end of the head.
fn is_whole(answer: &[u8], size: usize) -> bool {
    answer.len().checked_sub(size).is_some_and(|head| answer[..head].ends_with(b"\r\n\r\n"))
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_is_whole_when_its_body_is() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nxxx";
        for length in 0..answer.len() {
            assert!(!is_whole(&answer[..length], 3), "{length}");
        }
        assert!(is_whole(answer, 3));
        assert!(!is_whole(answer, 2) && !is_whole(answer, 4));
        assert!(is_whole(b"HTTP/1.1 200 OK\r\n\r\n", 0));
    }
}
