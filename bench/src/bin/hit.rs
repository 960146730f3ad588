//! `./dev bench hit`: the CPU time of a hit in each server, in interleaved rounds.

use std::{
    io::{self, Write as _},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use larder_bench::{
    answer,
    load::{Expected, Load, Request},
    probe,
    process::{Process, free_ports},
    server::{Behind, Place, Places, Role, Running, Server},
    table::{self, Row, Sample},
};

/// Share of idle time above which a server waited for the load.
const IDLE: f64 = 0.05;

/// Share of CPU time below which a server was held up by other processes.
const BUSY: f64 = 0.9;

/// Measures the cost of a hit in each server, in requests per second of its own CPU.
#[derive(Parser)]
struct Arguments {
    /// Number of measured rounds; one more, before them, is discarded.
    #[arg(long, default_value_t = 5)]
    rounds: usize,

    /// Seconds for which each server is measured in a round.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,

    /// Number of connections, each with one request at a time.
    #[arg(long, default_value_t = 64)]
    connections: usize,

    /// Size of the object in bytes.
    #[arg(long, default_value_t = 1024)]
    size: usize,

    /// A further header of each request, such as "Accept: */*".
    #[arg(long)]
    header: Vec<String>,

    /// Measure only these.
    #[arg(long, value_delimiter = ',')]
    server: Vec<Server>,

    /// Put the table into this file, between the marks that docs/benchmarks.md has.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,

    #[command(flatten)]
    places: Places,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let place = arguments.places.of_servers(None)?;
    let path = format!("/{}", arguments.size);
    ensure!(answer::size_of(&path).is_some(), "the origin has no object of {} bytes", arguments.size);

    let servers = start(&arguments, &place, &path)?;
    let load = Load {
        program: place.programs.join("load"),
        core: arguments.places.load_core,
        server_core: arguments.places.server_core,
        connections: arguments.connections,
        seconds: arguments.seconds,
        request: Request { headers: arguments.header.clone(), ..Request::get(&*path) },
        expected: Expected::whole(arguments.size),
    };
    let rows = measure(&arguments, &place, &load, &servers)?;
    drop(servers);
    publish(&arguments, &rows)
}

/// Starts the servers, warms each, and leaves them without an origin: every response from now on is a hit.
fn start(arguments: &Arguments, place: &Place, path: &str) -> Result<Vec<Running>> {
    let port = free_ports(1)?[0];
    let program = place.programs.join("origin").display().to_string();
    let command = [program, format!("--listen=127.0.0.1:{port}")];
    let origin = Process::start(
        &arguments.places.load_core.to_string(),
        &command,
        place.scratch.join("origin.log"),
        port,
    )?;

    let mut servers = Vec::new();
    let behind = Behind { origin: port, near: 0, calls: 0, redis: 0 };
    for server in Server::ALL.into_iter().filter(|server| server.takes(Role::Cache)) {
        if arguments.server.is_empty() || arguments.server.contains(&server) {
            let running = server.start(Role::Cache, place, behind, &[path.to_owned()])?;
            warm(arguments, &running, path).with_context(|| server.as_str())?;
            servers.push(running);
        }
    }
    drop(origin);
    for running in &servers {
        let name = running.server.as_str();
        check(arguments, running, path).with_context(|| format!("{name}, without the origin"))?;
    }
    Ok(servers)
}

/// Sends requests until the response is a hit, where the server reports hits; otherwise twice.
fn warm(arguments: &Arguments, running: &Running, path: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    check(arguments, running, path)?;
    loop {
        let answer = check(arguments, running, path)?;
        if answer.says_hit() || !running.server.says_hit() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "no hit: {answer:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn check(arguments: &Arguments, running: &Running, path: &str) -> Result<probe::Answer> {
    let answer = probe::get(running.port, path, &arguments.header)?;
    ensure!(answer.status == 200 && answer.length == arguments.size, "not the object: {answer:?}");
    Ok(answer)
}

fn measure(arguments: &Arguments, place: &Place, load: &Load, servers: &[Running]) -> Result<Vec<Row>> {
    let rows = servers.iter().map(|Running { server, .. }| {
        let cache = match server {
            Server::Haproxy => " cache",
            Server::Nginx => " proxy_cache",
            Server::Larder | Server::Envoy | Server::Ceiling | Server::Relay => "",
        };
        let name = server.name(place)? + cache;
        Ok(Row { server: *server, name, samples: Vec::new() })
    });
    let mut rows: Vec<Row> = rows.collect::<Result<_>>()?;
    for round in 0..=arguments.rounds {
        let title =
            if round == 0 { "warm-up".to_owned() } else { format!("round {round} of {}", arguments.rounds) };
        for (running, row) in servers.iter().zip(&mut rows) {
            let sample = sample(load, running).with_context(|| row.name.clone())?;
            say(&format!(
                "{title}: {}: {:.0} req/CPU-s; its core: {:.0} % its own, {:.0} % idle; the load: {:.0} req/CPU-s",
                row.name,
                sample.per_cpu_second,
                sample.busy * 100.0,
                sample.idle * 100.0,
                sample.load_per_cpu_second
            ))?;
            if round > 0 {
                row.samples.push(sample);
            }
        }
    }
    Ok(rows)
}

fn sample(load: &Load, running: &Running) -> Result<Sample> {
    let report = load.run(running.port, running.process.id())?;
    let seconds = |nanos: u64| nanos as f64 / 1e9;
    let (requests, time) = (report.requests as f64, seconds(report.time));
    Ok(Sample {
        per_cpu_second: requests / seconds(report.server),
        per_second: requests / time,
        busy: seconds(report.server) / time,
        idle: seconds(report.idle) / time,
        load_per_cpu_second: requests / seconds(report.load),
        p50: report.p50 as f64 / 1e6,
        p99: report.p99 as f64 / 1e6,
    })
}

fn publish(arguments: &Arguments, rows: &[Row]) -> Result<()> {
    let Arguments { rounds, seconds, connections, size, .. } = arguments;
    let mut text = format!(
        "{}\nHits of {size} bytes, {connections} connections, medians of {rounds} interleaved rounds of {seconds} s. \
         Every answer was a 200 with the whole object.\n",
        table::render(rows)
    );
    for row in rows {
        let percent = |share: f64| format!("{:.0} %", share * 100.0);
        if row.idle() > IDLE {
            text += &format!(
                "\n{}: its core was idle for {}: the load did not keep it busy.\n",
                row.name,
                percent(row.idle())
            );
        } else if row.busy() < BUSY {
            text += &format!(
                "\n{}: it had {} of its core: others took the rest.\n",
                row.name,
                percent(row.busy())
            );
        }
    }
    say(&format!("\n{text}"))?;
    match &arguments.markdown {
        Some(file) => table::put_into(file, "hit", &text),
        None => Ok(()),
    }
}

fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{text}")?;
    out.flush()
}
