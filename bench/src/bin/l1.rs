//! `./dev bench l1`: candidates for L1 side by side: hit ratio, speed and memory.

use std::{
    env,
    hint::black_box,
    io::{self, Write as _},
    path::PathBuf,
    process::Command,
    sync::{
        Barrier,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use larder_bench::{
    candidates::{Cache, Candidate},
    memory::{self, Fill, Taken},
    table,
    traces::{KEYS, Random, Trace, Zipf},
};
use larder_sidecar::l1::Stored;
use tikv_jemallocator::Jemalloc;

/// The sidecar's allocator.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Number of entries of the usual size in a cache when hits are counted: a twentieth of the keys.
const HELD: u32 = KEYS / 20;

/// Number of keys that are looked up in turn, repeatedly, when time is measured.
const ASKED: usize = 1 << 18;

/// Compares candidates for L1.
#[derive(Parser)]
struct Arguments {
    /// Number of measured rounds; one more, before them, is discarded.
    #[arg(long, default_value_t = 5)]
    rounds: usize,

    /// Milliseconds for which each candidate is measured in a round.
    #[arg(long, default_value_t = 400)]
    milliseconds: u64,

    /// Measure only these.
    #[arg(long, value_delimiter = ',')]
    candidate: Vec<Candidate>,

    /// Put the tables into this file, between the marks that docs/benchmarks.md has.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,

    /// Fill only this candidate, and print the memory of this process.
    #[arg(long, hide = true)]
    fill: Option<Fill>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let candidates =
        if arguments.candidate.is_empty() { Candidate::ALL.to_vec() } else { arguments.candidate.clone() };
    if let Some(fill) = arguments.fill {
        let bound = if fill == Fill::Entries { u64::MAX / 4 } else { memory::BOUND };
        let taken = memory::fill(&*candidates[0].make(bound, 50_000), fill)?;
        return say(&serde_json::to_string(&taken)?);
    }
    let text = [hits(&candidates)?, speed(&arguments, &candidates)?, memory(&candidates)?].join("\n");
    match &arguments.markdown {
        Some(file) => table::put_into(file, "l1", &text),
        None => Ok(()),
    }
}

/// Returns the hit ratio of each candidate on each trace.
fn hits(candidates: &[Candidate]) -> Result<String> {
    let mut lines = vec![titles("hits, %", Trace::ALL.map(Trace::name))];
    lines[0].push("Zipf 0.9, sizes".to_owned());
    let traces: Vec<Vec<u32>> = Trace::ALL.map(|trace| trace.keys(HELD)).into();
    let usual = memory::answer("", 1024);
    let sizes = sizes();
    for candidate in candidates {
        let mut line = vec![candidate.name().to_owned()];
        for trace in &traces {
            line.push(share(&*bounded(*candidate), trace, |_| usual.clone()));
        }
        line.push(share(&*bounded(*candidate), &Trace::Zipf(0.9).keys(HELD), |key| {
            sizes[key as usize % sizes.len()].clone()
        }));
        lines.push(line);
    }
    let text = format!(
        "{}\n{} requests for {KEYS} keys, of which about {HELD} have room; the first quarter fills the cache and does not count. \
         In the last column entries have 256 bytes to 16 KiB.\n",
        table::layout(&lines),
        traces[0].len(),
    );
    say(&text)?;
    Ok(text)
}

/// Entries of several sizes, each once: entries share their bodies where only their weight matters.
fn sizes() -> Vec<Stored> {
    let mut random = Random(5);
    (0..499).map(|_| memory::answer("", (256.0 * (random.share() * 6.0).exp2()) as usize)).collect()
}

fn bounded(candidate: Candidate) -> Box<dyn Cache> {
    candidate.make(usual_bytes() * u64::from(HELD), HELD as usize)
}

/// Returns the weight of an entry of 1 KiB.
fn usual_bytes() -> u64 {
    let one = Candidate::LarderLru.make(u64::MAX, 1);
    one.insert(&memory::key(10_000), memory::answer("", 1024));
    one.bytes()
}

fn share(cache: &dyn Cache, trace: &[u32], answer: impl Fn(u32) -> Stored) -> String {
    let mut hits = 0_usize;
    let warm = trace.len() / 4;
    for (request, number) in trace.iter().enumerate() {
        let key = memory::key(*number);
        if cache.get(&key).is_some() {
            hits += usize::from(request >= warm);
        } else {
            cache.insert(&key, answer(*number));
        }
    }
    format!("{:.1}", hits as f64 * 100.0 / (trace.len() - warm) as f64)
}

/// Returns the lookups per second of each candidate.
fn speed(arguments: &Arguments, candidates: &[Candidate]) -> Result<String> {
    let span = Duration::from_millis(arguments.milliseconds);
    let cases = [(true, 1), (true, 2), (false, 1), (false, 2)];
    let mut samples = vec![[const { Vec::new() }; 4]; candidates.len()];
    let zipf = Zipf::new(KEYS, 0.9);
    let mut random = Random(11);
    let mixed: Vec<String> = (0..ASKED).map(|_| memory::key(zipf.next(&mut random))).collect();
    let zipf = Zipf::new(HELD / 2, 0.9);
    let resident: Vec<String> = (0..ASKED).map(|_| memory::key(zipf.next(&mut random))).collect();
    let usual = memory::answer("", 1024);
    for round in 0..=arguments.rounds {
        for (candidate, samples) in candidates.iter().zip(&mut samples) {
            for ((only_hits, threads), samples) in cases.into_iter().zip(samples) {
                let cache = bounded(*candidate);
                let keys = if only_hits { &resident } else { &mixed };
                for key in keys.iter().chain(keys.iter().filter(|_| only_hits)) {
                    ask(&*cache, key, &usual);
                }
                let sample = per_second(&*cache, keys, &usual, threads, span);
                if round > 0 {
                    samples.push(sample);
                }
            }
        }
    }
    let base = candidates.iter().position(|candidate| *candidate == Candidate::MokaLru);
    let mut lines = vec![titles(
        "millions/s",
        [
            "hits",
            "to moka LRU",
            "2 threads",
            "to moka LRU",
            "mixed",
            "to moka LRU",
            "2 threads",
            "to moka LRU",
        ],
    )];
    for (candidate, own) in candidates.iter().zip(&samples) {
        let mut line = vec![candidate.name().to_owned()];
        for (case, own) in own.iter().enumerate() {
            let ratios = base.map(|base| own.iter().zip(&samples[base][case]).map(|(own, base)| own / base));
            line.push(shown(table::median(own.clone()).map(|value| value / 1e6)));
            line.push(shown(ratios.and_then(|ratios| table::median(ratios.collect()))));
        }
        lines.push(line);
    }
    let text = format!(
        "{}\nMedians of {} interleaved rounds of {} ms, and of the ratios within each. *hits*: all keys are there; *mixed*: Zipf 0.9, what is \
         missing is stored. All threads together.\n",
        table::layout(&lines),
        arguments.rounds,
        arguments.milliseconds,
    );
    say(&text)?;
    Ok(text)
}

fn ask(cache: &dyn Cache, key: &str, answer: &Stored) {
    if black_box(cache.get(key)).is_none() {
        cache.insert(key, answer.clone());
    }
}

fn per_second(cache: &dyn Cache, keys: &[String], answer: &Stored, threads: usize, span: Duration) -> f64 {
    const BATCH: usize = 256;
    let (asked, over, start) = (AtomicU64::new(0), AtomicBool::new(false), Barrier::new(threads + 1));
    thread::scope(|scope| {
        for thread in 0..threads {
            let (asked, over, start) = (&asked, &over, &start);
            scope.spawn(move || {
                start.wait();
                let mut own = 0;
                for batch in keys.chunks_exact(BATCH).cycle().skip(thread * keys.len() / BATCH / threads) {
                    batch.iter().for_each(|key| ask(cache, key, answer));
                    own += BATCH as u64;
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                }
                asked.fetch_add(own, Ordering::Relaxed);
            });
        }
        start.wait();
        thread::sleep(span);
        over.store(true, Ordering::Relaxed);
    });
    asked.load(Ordering::Relaxed) as f64 / span.as_secs_f64()
}

/// Returns the memory of each candidate.
fn memory(candidates: &[Candidate]) -> Result<String> {
    let mebibytes = |bytes: u64| format!("{:.0}", bytes as f64 / f64::from(1 << 20));
    let mut lines = vec![titles(
        "memory",
        [
            "bytes / entry",
            "varied, peak",
            "at the end",
            "counted",
            "small then large, peak",
            "at the end",
            "counted",
        ],
    )];
    for candidate in candidates {
        let entries = taken(*candidate, Fill::Entries)?;
        let mut line =
            vec![candidate.name().to_owned(), (entries.resident / entries.entries.max(1)).to_string()];
        for fill in [Fill::Varied, Fill::SmallThenLarge] {
            let Taken { resident, peak, counted, .. } = taken(*candidate, fill)?;
            line.extend([peak, resident, counted].map(mebibytes));
        }
        lines.push(line);
    }
    let text = format!(
        "{}\nResident memory of a process each: bytes for an entry of 1 KiB (counted as {}), and MiB while caches of {} MiB are churned.\n",
        table::layout(&lines),
        usual_bytes(),
        memory::BOUND >> 20,
    );
    say(&text)?;
    Ok(text)
}

fn taken(candidate: Candidate, fill: Fill) -> Result<Taken> {
    let value = |value: Option<clap::builder::PossibleValue>| value.map(|value| value.get_name().to_owned());
    let candidate = value(clap::ValueEnum::to_possible_value(&candidate)).context("candidates have names")?;
    let fill = value(clap::ValueEnum::to_possible_value(&fill)).context("fills have names")?;
    let output = Command::new(env::current_exe()?)
        .args(["--candidate", &candidate, "--fill", &fill])
        .output()
        .context("this program again")?;
    ensure!(output.status.success(), "{candidate}, {fill}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn titles(first: &str, others: impl IntoIterator<Item = impl Into<String>>) -> Vec<String> {
    [first.to_owned()].into_iter().chain(others.into_iter().map(Into::into)).collect()
}

fn shown(value: Option<f64>) -> String {
    value.map_or(String::new(), |value| format!("{value:.2}"))
}

fn say(text: &str) -> Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}
