//! `./dev bench paths`: the CPU time of every path of a request in each server, in interleaved rounds.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use larder_bench::{
    paths::{
        self, Case, Subject,
        measure::Bench,
        report::{self, Results},
        tools,
    },
    server::{Places, Role, Server},
    table,
};

/// The file of the chart, and what it says to those who can't see it.
const CHART: &str = "benchmarks-paths.svg";
const ALTERNATIVE: &str = "Bars: requests for each second of CPU, Larder to the best of HAProxy, nginx and Envoy; the table has the figures";

/// Seconds of each sample of the round that does not count.
const WARM_UP: f64 = 0.2;

/// Measures what each path of a request costs in each server, in requests per second of its own CPU.
#[derive(Parser)]
struct Arguments {
    /// Number of measured rounds; a short one, before them, is discarded.
    #[arg(long, default_value_t = 7)]
    rounds: usize,

    /// Seconds for which each server is measured on each path in a round.
    #[arg(long, default_value_t = 0.7)]
    seconds: f64,

    /// Measure only these paths, such as hit-1k, pass, pass-1k or pass-1k-64; a wrong name lists them.
    #[arg(long, value_delimiter = ',')]
    path: Vec<String>,

    /// Measure only these servers.
    #[arg(long, value_delimiter = ',')]
    server: Vec<Server>,

    /// Put the tables into this file, between the marks that docs/benchmarks.md has, and the chart beside it.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,

    /// Write every sample into this file, as CSV.
    #[arg(long, value_name = "FILE")]
    raw: Option<PathBuf>,

    /// Envoy [default: measure without it].
    #[arg(long, value_name = "FILE")]
    envoy: Option<PathBuf>,

    #[command(flatten)]
    places: Places,
}

fn main() -> Result<()> {
    let mut arguments = Arguments::parse();
    ensure!(arguments.seconds > 0.0, "nothing happens in no time");
    let cases = chosen(&arguments.path)?;
    if arguments.server.is_empty() {
        arguments.server = Server::ALL.into();
    }
    arguments.server.retain(|server| *server != Server::Envoy || arguments.envoy.is_some());
    let place = arguments.places.of_servers(arguments.envoy.as_deref())?;
    let is_whole = arguments.path.is_empty();
    let mut bench = Bench::start(
        place,
        [arguments.places.server_core, arguments.places.load_core],
        &cases,
        &arguments.server,
    )?;
    let footprint =
        if is_whole { bench.footprint(&arguments.server)? } else { paths::footprint::Footprint::default() };
    let (results, repeated) = measure(&arguments, &mut bench, cases)?;
    let names = names(&bench, &results)?;
    drop(bench);
    let text = report::render(&results, &names, &footprint, (arguments.rounds, arguments.seconds));
    publish(&arguments, &results, &(text + &report::repeated(&repeated)))
}

/// Returns the cases of these names, and the one that some are compared with.
fn chosen(names: &[String]) -> Result<Vec<Case>> {
    let all = paths::all();
    if let Some(wrong) = names.iter().find(|name| !all.iter().any(|case| case.is_named(name))) {
        let known: Vec<_> = all.iter().map(|case| &*case.name).collect();
        bail!("there is no path {wrong}: there are {}", known.join(", "));
    }
    let is_chosen = |case: &Case| names.is_empty() || names.iter().any(|name| case.is_named(name));
    let compares = all.iter().any(|case| is_chosen(case) && matches!(&*case.name, "l2" | "304"));
    Ok(all.into_iter().filter(|case| is_chosen(case) || compares && case.name == "hit-1k").collect())
}

/// Returns the results, and the reasons why samples were taken a second time.
fn measure(
    arguments: &Arguments,
    bench: &mut Bench,
    cases: Vec<Case>,
) -> Result<(Vec<Results>, Vec<String>)> {
    let mut repeated = Vec::new();
    let results = cases.into_iter().map(|case| {
        let subjects = case.subjects(&arguments.server);
        let rows = subjects.into_iter().map(|subject| (subject, Vec::new())).collect();
        Results { case, rows, commands: Vec::new() }
    });
    let mut results: Vec<_> = results.collect();
    for round in 0..=arguments.rounds {
        let (title, seconds) = match round {
            0 => ("warm-up".to_owned(), WARM_UP),
            _ => (format!("round {round} of {}", arguments.rounds), arguments.seconds),
        };
        for Results { case, rows, commands } in &mut results {
            let mut figures = Vec::new();
            for (subject, samples) in rows {
                let of_sidecar = case.role == Role::Shared && *subject == Subject::Server(Server::Larder);
                let before = if of_sidecar { tools::redis_calls(bench.redis())? } else { Vec::new() };
                let place = format!("{}, {}", case.title, subject.as_str());
                let mut sample = bench.sample(case, *subject, seconds);
                if let Err(error) = &sample {
                    say(&format!("{title}: {place}: once more, because {error:#}"))?;
                    repeated.push(format!("{place}: {error}"));
                    sample = bench.sample(case, *subject, seconds);
                }
                let sample = sample.context(place)?;
                figures.push(format!("{} {:.1}k", subject.as_str(), sample.per_cpu_second() / 1000.0));
                if round > 0 {
                    samples.push(sample);
                }
                if of_sidecar {
                    *commands = per_lookup(&before, &tools::redis_calls(bench.redis())?);
                }
            }
            say(&format!("{title}: {}: {}", case.title, figures.join(", ")))?;
        }
    }
    Ok((results, repeated))
}

/// Returns how often Redis saw each command for each lookup, of which each reads the barriers once.
fn per_lookup(before: &[(String, u64)], after: &[(String, u64)]) -> Vec<(String, f64)> {
    let count_before =
        |name: &str| before.iter().find(|(known, _)| known == name).map_or(0, |(_, count)| *count);
    let since = after.iter().map(|(name, count)| (name.clone(), count - count_before(name)));
    let since: Vec<_> = since.collect();
    let lookups = since.iter().find(|(name, _)| name == "hmget").map_or(0, |(_, count)| *count);
    let shares = since.into_iter().map(|(name, count)| (name, count as f64 / lookups as f64));
    shares.filter(|(_, share)| *share >= 0.01).collect()
}

/// Returns the names of the servers that were measured.
fn names(bench: &Bench, results: &[Results]) -> Result<Vec<(Server, String)>> {
    let is_there = |server| {
        let mut subjects = results.iter().flat_map(|result| &result.rows).map(|(subject, _)| *subject);
        subjects.any(|subject| subject == Subject::Server(server))
    };
    let there = Server::ALL.into_iter().filter(|server| is_there(*server));
    there.map(|server| Ok((server, bench.name_of(server)?))).collect()
}

fn publish(arguments: &Arguments, results: &[Results], text: &str) -> Result<()> {
    say(&format!("\n{text}"))?;
    if let Some(file) = &arguments.raw {
        write(file, &report::raw(results))?;
    }
    if let Some(file) = &arguments.markdown {
        write(&file.with_file_name(CHART), &report::chart(results))?;
        table::put_into(file, "paths", &format!("![{ALTERNATIVE}]({CHART})\n\n{text}"))?;
    }
    Ok(())
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| file.display().to_string())
}

fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{text}")?;
    out.flush()
}
