//! Programs of others that send requests: h2load and redis-benchmark. Both send a given number of requests.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::{CONNECTIONS, HTTP2_CONNECTIONS, SHARED_BYTES, STREAMS};

/// Runs h2load without TLS on a core, and returns the time that the requests took. `calls` is a file with a gRPC message,
/// which each request has then.
///
/// # Errors
/// If it can't be run, or if a response is missing, or is not a 200 with `size` bytes.
pub fn h2load(
    core: usize,
    port: u16,
    target: &str,
    calls: Option<&Path>,
    size: usize,
    requests: u64,
) -> Result<Duration> {
    let mut command = Command::new("taskset");
    command.args(["-c", &core.to_string(), "h2load", "--threads=1"]);
    command.args([
        format!("--requests={requests}"),
        format!("--clients={HTTP2_CONNECTIONS}"),
        format!("--max-concurrent-streams={STREAMS}"),
    ]);
    if let Some(file) = calls {
        command
            .args(["--header=content-type: application/grpc", "--header=te: trailers", "--data"])
            .arg(file);
    }
    command.arg(format!("http://127.0.0.1:{port}{target}"));
    let output = run(&mut command)?;
    let report = H2load::read(&output).with_context(|| format!("h2load said something else:\n{output}"))?;
    let is_whole = report.ok == requests && report.data == requests * size as u64;
    ensure!(is_whole, "not {requests} responses of {size} bytes:\n{output}");
    Ok(Duration::from_secs_f64(report.seconds))
}

#[derive(Debug, PartialEq)]
struct H2load {
    seconds: f64,
    ok: u64,
    data: u64,
}

impl H2load {
    fn read(text: &str) -> Option<Self> {
        let after = |start: &str| text.lines().find_map(|line| line.strip_prefix(start));
        let (time, _) = after("finished in ")?.split_once(',')?;
        let (ok, _) = after("status codes: ")?.split_once(" 2xx")?;
        let (_, data) = after("traffic: ")?.rsplit_once('(')?;
        let (data, _) = data.split_once(')')?;
        Some(Self { seconds: seconds(time)?, ok: ok.parse().ok()?, data: data.parse().ok()? })
    }
}

/// Reads a duration such as `1.02s`, `980.00ms` or `12us`.
fn seconds(text: &str) -> Option<f64> {
    let units = [("us", 1e-6), ("ms", 1e-3), ("s", 1.0)];
    let (number, unit) = units.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))?;
    Some(number.parse::<f64>().ok()? * unit)
}

/// Stores the value that [`redis_benchmark`] reads.
///
/// # Errors
/// If Redis does not take it.
pub fn store_for_redis_benchmark(core: usize, port: u16) -> Result<()> {
    run(&mut redis_benchmark_for(core, port, "set", 1)).map(drop)
}

/// Runs `redis-benchmark -t get` on a core, and returns the number of requests per second.
///
/// # Errors
/// If it can't be run, or says something unexpected.
pub fn redis_benchmark(core: usize, port: u16, requests: u64) -> Result<f64> {
    let output = run(&mut redis_benchmark_for(core, port, "get", requests))?;
    rate_of_gets(&output).with_context(|| format!("redis-benchmark said something else:\n{output}"))
}

fn redis_benchmark_for(core: usize, port: u16, test: &str, requests: u64) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", &core.to_string(), "redis-benchmark", "--csv", "-h", "127.0.0.1"]);
    let numbers = [u64::from(port), CONNECTIONS as u64, requests, SHARED_BYTES as u64];
    for (flag, number) in ["-p", "-c", "-n", "-d"].iter().zip(numbers) {
        command.args([(*flag).to_owned(), number.to_string()]);
    }
    command.args(["-t", test]);
    command
}

fn rate_of_gets(output: &str) -> Option<f64> {
    let line = output.lines().find_map(|line| line.strip_prefix("\"GET\",\""))?;
    line.split('"').next()?.parse().ok()
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().context("taskset")?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    ensure!(output.status.success(), "{command:?}: {text}");
    Ok(text)
}

/// Returns how often each command was called at a Redis, by its name, besides the one that tells.
///
/// # Errors
/// If Redis does not say.
pub fn redis_calls(port: u16) -> Result<Vec<(String, u64)>> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.write_all(b"INFO commandstats\r\nQUIT\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(calls(&text))
}

fn calls(text: &str) -> Vec<(String, u64)> {
    let lines = text.lines().filter_map(|line| {
        let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        Some((name.to_owned(), rest.split(',').next()?.parse().ok()?))
    });
    lines.filter(|(name, _)| !matches!(&**name, "info" | "quit")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_of_h2load_is_read() {
        let text = "finished in 980.50ms, 10198.9 req/s, 10MB/s\n\
            requests: 10000 total, 10000 started, 10000 done, 10000 succeeded, 0 failed, 0 errored, 0 timeout\n\
            status codes: 10000 2xx, 0 3xx, 0 4xx, 0 5xx\n\
            traffic: 10.00MB (10485760) total, 1.00KB (1024) headers (space savings 95.00%), 9.77MB (10240000) data\n";
        let report = H2load::read(text).unwrap();
        assert_eq!((report.ok, report.data), (10_000, 10_240_000));
        assert!((report.seconds - 0.9805).abs() < 1e-9, "{report:?}");
        assert_eq!(["2s", "1.5s", "x"].map(seconds), [Some(2.0), Some(1.5), None]);
    }

    #[test]
    fn figures_of_redis_are_read() {
        let csv = "\"test\",\"rps\",\"avg_latency_ms\"\n\"GET\",\"58004.64\",\"0.5\"\n";
        assert_eq!(rate_of_gets(csv), Some(58004.64));
        let stats = "$99\r\n# Commandstats\r\ncmdstat_get:calls=7,usec=3\r\ncmdstat_info:calls=1,usec=1\r\n\r\n+OK\r\n";
        assert_eq!(calls(stats), [("get".to_owned(), 7)]);
    }
}
