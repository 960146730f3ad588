//! `./dev bench hit`: the CPU time of a hit in each server, in interleaved rounds.

use std::{
    env,
    io::{self, Write as _},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use larder_bench::{
    answer, cpu,
    load::Load,
    probe,
    process::{Process, free_ports},
    server::{Place, Running, Server},
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
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,

    /// Number of connections, each with one request at a time.
    #[arg(long, default_value_t = 64)]
    connections: usize,

    /// Size of the object in bytes.
    #[arg(long, default_value_t = 1024)]
    size: u64,

    /// A further header of each request, such as "Accept: */*".
    #[arg(long)]
    header: Vec<String>,

    /// Measure only these.
    #[arg(long, value_delimiter = ',')]
    server: Vec<Server>,

    /// Put the table into this file, between the marks that docs/benchmarks.md has.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,

    /// The sidecar [default: beside this program].
    #[arg(long, value_name = "FILE")]
    larder: Option<PathBuf>,

    /// A folder on tmpfs for configurations, logs and nginx's cache; its creator removes it.
    #[arg(long, value_name = "FOLDER")]
    scratch: PathBuf,

    /// The core of the servers.
    #[arg(long, default_value_t = 0)]
    server_core: usize,

    /// The core of the load and the origin.
    #[arg(long, default_value_t = 1)]
    load_core: usize,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    ensure!(
        arguments.server_core != arguments.load_core,
        "the load would take CPU from the servers on the same core"
    );
    let programs = env::current_exe()?.parent().context("a program is in a folder")?.to_owned();
    let place = Place {
        larder: arguments.larder.clone().unwrap_or_else(|| programs.join("larder-sidecar")),
        programs,
        scratch: arguments.scratch.canonicalize().context("--scratch")?,
        core: arguments.server_core,
    };
    let path = format!("/{}", arguments.size);
    ensure!(answer::size_of(&path).is_some(), "the origin has no object of {} bytes", arguments.size);

    let servers = start(&arguments, &place, &path)?;
    let load = Load {
        program: place.programs.join("load"),
        core: arguments.load_core,
        size: arguments.size,
        connections: arguments.connections,
        seconds: arguments.seconds,
        headers: arguments.header.clone(),
    };
    let rows = measure(&arguments, &load, &servers)?;
    drop(servers);
    publish(&arguments, &rows)
}

/// Starts the servers, warms each, and leaves them without an origin: every response from now on is a hit.
fn start(arguments: &Arguments, place: &Place, path: &str) -> Result<Vec<Running>> {
    let port = free_ports(1)?[0];
    let program = place.programs.join("origin").display().to_string();
    let command = [program, format!("--listen=127.0.0.1:{port}")];
    let origin = Process::start(arguments.load_core, &command, place.scratch.join("origin.log"), port)?;

    let mut servers = Vec::new();
    for server in Server::ALL {
        if arguments.server.is_empty() || arguments.server.contains(&server) {
            let running = server.start(place, port, path)?;
            warm(arguments, &running, path).with_context(|| running.name.clone())?;
            servers.push(running);
        }
    }
    drop(origin);
    for running in &servers {
        check(arguments, running, path).with_context(|| format!("{}, without the origin", running.name))?;
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
    ensure!(answer.status == 200 && answer.length as u64 == arguments.size, "not the object: {answer:?}");
    Ok(answer)
}

fn measure(arguments: &Arguments, load: &Load, servers: &[Running]) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = servers
        .iter()
        .map(|running| Row { server: running.server, name: running.name.clone(), samples: Vec::new() })
        .collect();
    for round in 0..=arguments.rounds {
        let title =
            if round == 0 { "warm-up".to_owned() } else { format!("round {round} of {}", arguments.rounds) };
        for (running, row) in servers.iter().zip(&mut rows) {
            let sample =
                sample(load, arguments.server_core, running).with_context(|| running.name.clone())?;
            say(&format!(
                "{title}: {}: {:.0} req/CPU-s; its core: {:.0} % its own, {:.0} % idle; the load: {:.0} req/CPU-s",
                running.name,
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

fn sample(load: &Load, core: usize, running: &Running) -> Result<Sample> {
    let (cpu_before, idle_before) = (cpu::time_of_tree(running.process.id()), cpu::idle_time(core)?);
    let report = load.run(running.port)?;
    let idle = cpu::idle_time(core)?.saturating_sub(idle_before).as_secs_f64();
    let cpu = cpu::time_of_tree(running.process.id()).saturating_sub(cpu_before).as_secs_f64();
    ensure!(cpu > 0.0, "it used no CPU time that /proc shows");
    let (requests, seconds) = (report.requests as f64, report.micros as f64 / 1e6);
    Ok(Sample {
        per_cpu_second: requests / cpu,
        per_second: requests / seconds,
        busy: cpu / seconds,
        idle: idle / seconds,
        load_per_cpu_second: requests * 1e6 / report.cpu_micros as f64,
        p50: report.p50 as f64 / 1000.0,
        p99: report.p99 as f64 / 1000.0,
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
