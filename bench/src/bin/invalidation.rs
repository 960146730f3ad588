//! `./dev bench invalidation`: what a purge costs, whatever is stored, and how soon every sidecar has it.

use std::{
    env,
    io::{self, Write as _},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Parser;
use larder_bench::{
    cpu::Tree,
    invalidation::{Fleet, Sidecar, Times, Way, fill, path},
    memory::resident,
};

/// Purges, over stores of different sizes and through fleets of different sizes.
#[derive(Parser)]
struct Arguments {
    /// Numbers of stored responses over which a tag is purged.
    #[arg(long, value_delimiter = ',', default_value = "1000,100000,1000000")]
    stored: Vec<usize>,

    /// Purges for each of these numbers, and through the fleet.
    #[arg(long, default_value_t = 1000)]
    purges: usize,

    /// Sidecars that acknowledge purges, one purge after another.
    #[arg(long, default_value_t = 20)]
    fleet: usize,

    /// Distinct tags that are purged to fill the tables of barriers.
    #[arg(long, default_value_t = 1_000_000)]
    tags: usize,

    /// Sidecars that acknowledge purges at a rate.
    #[arg(long, default_value_t = 100)]
    large_fleet: usize,

    /// Purges per second, through fifty sidecars of the large fleet.
    #[arg(long, default_value_t = 1000)]
    rate: usize,

    /// Duration of the rate in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: usize,

    /// Sidecars without Redis, which tell one another and acknowledge one purge after another.
    #[arg(long, default_value_t = 20)]
    peers: usize,

    /// Sidecars without Redis, which tell one another and acknowledge purges at the rate.
    #[arg(long, default_value_t = 100)]
    many_peers: usize,

    /// A folder on tmpfs for policies and logs; its creator removes it.
    #[arg(long, value_name = "FOLDER")]
    scratch: PathBuf,

    /// The sidecar [default: beside this program].
    #[arg(long, value_name = "FILE")]
    larder: Option<PathBuf>,
}

/// Tags of one request while barriers are counted.
const BATCH: usize = 1000;
/// Clients that keep up a rate: each waits for the response to its purge before the next.
const CLIENTS: usize = 50;

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let larder = match &arguments.larder {
        Some(larder) => larder.clone(),
        None => env::current_exe()?.with_file_name("larder-sidecar"),
    };
    let start_by = |way, name: &str, sidecars, l1| {
        let scratch = arguments.scratch.join(name);
        Fleet::start(&larder, &scratch, sidecars, l1, way).with_context(|| name.to_owned())
    };
    let start = |name: &str, sidecars, l1| start_by(Way::Redis, name, sidecars, l1);
    if !arguments.stored.is_empty() {
        over_stored_responses(&start("stored", 1, "4Gi")?, &arguments)?;
    }
    if arguments.tags > 0 {
        distinct_tags(&start("tags", 2, "64Mi")?, &arguments)?;
    }
    if arguments.fleet > 0 {
        one_after_another(&start("fleet", arguments.fleet, "16Mi")?, &arguments)?;
    }
    if arguments.large_fleet > 0 {
        at_a_rate(&start("rate", arguments.large_fleet, "16Mi")?, &arguments)?;
    }
    if arguments.peers > 0 {
        one_after_another(&start_by(Way::Peers, "peers", arguments.peers, "16Mi")?, &arguments)?;
    }
    if arguments.many_peers > 0 {
        at_a_rate(&start_by(Way::Peers, "many-peers", arguments.many_peers, "16Mi")?, &arguments)?;
    }
    Ok(())
}

/// Purges one tag at a time while memory and Redis have more and more responses.
fn over_stored_responses(fleet: &Fleet, arguments: &Arguments) -> Result<()> {
    say("| stored responses | purge of a tag, median | 99th percentile |\n| ---: | ---: | ---: |")?;
    let sidecar = &fleet.sidecars[0];
    let mut filled = 0;
    for stored in &arguments.stored {
        fill(sidecar, filled..*stored)?;
        // Connections that were idle for as long as this took may be closed.
        let (mut purger, mut client) = (sidecar.purger()?, sidecar.client()?);
        filled = filled.max(*stored);
        let mut times = Times::default();
        for number in 0..arguments.purges.min(*stored) {
            times.add(purger.purge(&[format!("item:{number}")])?.0);
            ensure!(!client.get(&path(number), &[])?.says_hit(), "{number} is served after its purge");
        }
        say(&format!("| {stored} | {:.2} ms | {:.2} ms |", times.quantile(0.5)?, times.quantile(0.99)?))?;
    }
    Ok(())
}

/// Purges many distinct tags, and shows the memory that their barriers take.
fn distinct_tags(fleet: &Fleet, arguments: &Arguments) -> Result<()> {
    say(
        "\n| distinct tags purged | sidecar that purges | sidecar that hears of it | Redis |\n| ---: | ---: | ---: | ---: |",
    )?;
    let mut purger = fleet.sidecars[0].purger()?;
    let redis = fleet.redis.as_ref().context("they share no redis")?;
    let show = |purged: usize| {
        let of =
            |process: u32| Ok::<_, anyhow::Error>(resident(process, "VmRSS")? as f64 / f64::from(1 << 20));
        let [first, second] = [0, 1].map(|sidecar: usize| of(fleet.sidecars[sidecar].process.id()));
        say(&format!("| {purged} | {:.1} MiB | {:.1} MiB | {:.1} MiB |", first?, second?, of(redis.id())?))
    };
    show(0)?;
    let mut shown = 1000;
    for first in (0..arguments.tags).step_by(BATCH) {
        let tags: Vec<_> = (first..first + BATCH).map(|number| format!("tag:{number}")).collect();
        purger.purge(&tags)?;
        if first + BATCH >= shown {
            show(first + BATCH)?;
            shown *= 10;
        }
    }
    Ok(())
}

/// Purges through each sidecar in turn. The response comes when all others have acknowledged the purge.
fn one_after_another(fleet: &Fleet, arguments: &Arguments) -> Result<()> {
    let mut purgers = fleet.sidecars.iter().map(Sidecar::purger).collect::<Result<Vec<_>>>()?;
    let mut clients = fleet.sidecars.iter().map(Sidecar::client).collect::<Result<Vec<_>>>()?;
    let (mut times, mut late) = (Times::default(), 0);
    for number in 0..arguments.purges {
        for client in &mut clients {
            client.get(&path(number), &[])?;
        }
        let count = purgers.len();
        let (took, is_everywhere) = purgers[number % count].purge(&[format!("item:{number}")])?;
        times.add(took);
        if !is_everywhere {
            late += 1;
            continue;
        }
        for client in &mut clients {
            let response = client.get(&path(number), &[])?;
            // The first sidecar fills Redis for the others.
            let from_memory =
                response.header("cache-status").is_none_or(|status| status.contains("detail=l1"));
            ensure!(!from_memory, "{number} is served after its purge was acknowledged");
        }
    }
    say(&format!(
        "\n| sidecars | told by | purge until all have acknowledged it, median | 99th percentile | maximum | not by all in time |\n\
         | ---: | :--- | ---: | ---: | ---: | ---: |\n| {} | {} | {:.2} ms | {:.2} ms | {:.2} ms | {late} |",
        fleet.sidecars.len(),
        told_by(fleet),
        times.quantile(0.5)?,
        times.quantile(0.99)?,
        times.quantile(1.0)?
    ))
}

/// Purges at a rate, through some of the sidecars, and shows what that costs each of them.
fn at_a_rate(fleet: &Fleet, arguments: &Arguments) -> Result<()> {
    let trees: Vec<_> = fleet.sidecars.iter().map(|sidecar| Tree::of(sidecar.process.id())).collect();
    let redis = fleet.redis.as_ref().map(|redis| Tree::of(redis.id()));
    let of_redis = || redis.as_ref().map_or(Ok(Duration::ZERO), Tree::time);
    let before = trees.iter().map(Tree::time).collect::<Result<Vec<_>>>()?;
    let (redis_before, began) = (of_redis()?, Instant::now());
    let of_each = arguments.rate * arguments.seconds / CLIENTS;
    let interval = Duration::from_secs(arguments.seconds as u64).div_f64(of_each.max(1) as f64);
    let (mut times, mut late) = (Times::default(), 0);
    thread::scope(|scope| {
        let clients = (0..CLIENTS).map(|client| {
            let sidecar = &fleet.sidecars[client * fleet.sidecars.len() / CLIENTS];
            scope.spawn(move || {
                let (mut purger, mut times, mut late) = (sidecar.purger()?, Vec::with_capacity(of_each), 0);
                for number in 0..of_each {
                    let due = began + interval.mul_f64(number as f64 + client as f64 / CLIENTS as f64);
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    let (_, is_everywhere) = purger.purge(&[format!("item:{client}-{number}")])?;
                    late += usize::from(!is_everywhere);
                    // From when it was due: what waits for an earlier one counts as well.
                    times.push(due.elapsed());
                }
                Ok::<_, anyhow::Error>((times, late))
            })
        });
        for client in clients.collect::<Vec<_>>() {
            let (of_client, late_ones) = client.join().map_err(|_| anyhow!("a client panicked"))??;
            times.extend(of_client);
            late += late_ones;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    let took = began.elapsed().as_secs_f64();
    let shares =
        trees.iter().zip(before).map(|(tree, before)| Ok((tree.time()? - before).as_secs_f64() / took));
    let mut shares = shares.collect::<Result<Vec<_>>>()?;
    shares.sort_by(f64::total_cmp);
    let redis = (of_redis()? - redis_before).as_secs_f64() / took;
    say(&format!(
        "\n| sidecars | told by | purges per second | until acknowledged, median | 99th percentile | not by all in time | CPU of a sidecar, median | maximum | CPU of Redis |\n\
         | ---: | :--- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n\
         | {} | {} | {:.0} | {:.1} ms | {:.1} ms | {late} | {:.1} % | {:.1} % | {:.1} % |",
        shares.len(),
        told_by(fleet),
        (of_each * CLIENTS) as f64 / took,
        times.quantile(0.5)?,
        times.quantile(0.99)?,
        shares[shares.len() / 2] * 100.0,
        shares.last().copied().unwrap_or_default() * 100.0,
        redis * 100.0
    ))
}

const fn told_by(fleet: &Fleet) -> &'static str {
    if fleet.redis.is_some() { "Redis" } else { "one another" }
}

fn say(text: &str) -> Result<()> {
    Ok(writeln!(io::stdout(), "{text}")?)
}
