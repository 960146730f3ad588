//! Results of the paths as tables, and as raw figures.

use std::fmt::Write as _;

use super::{
    Baseline, Case, Subject, chart,
    footprint::{BYTES, Footprint, STORED},
    measure::Sample,
};
use crate::{
    server::{Role, Server},
    table::{layout, median},
};

/// Share of idle time above which a server waited for the load.
const IDLE: f64 = 0.05;

/// All rounds of a case.
pub struct Results {
    /// The case.
    pub case: Case,
    /// The samples of each subject, in the order of the rounds.
    pub rows: Vec<(Subject, Vec<Sample>)>,
    /// Commands that Redis saw for each request of the sidecar, by their names.
    pub commands: Vec<(String, f64)>,
}

impl Results {
    fn samples(&self, subject: Subject) -> &[Sample] {
        let found = self.rows.iter().find(|(found, _)| *found == subject);
        found.map_or(&[], |(_, samples)| samples)
    }

    fn of(&self, server: Server) -> &[Sample] {
        self.samples(Subject::Server(server))
    }

    fn baseline(&self, baseline: Baseline) -> &[Sample] {
        self.samples(Subject::Baseline(baseline))
    }

    /// Returns the median over the rounds of the ratio of Larder to the best of `servers` in the same round, because a
    /// slowdown of the machine affects all of them.
    fn ratio(&self, servers: &[Server]) -> Option<f64> {
        let there = servers.iter().map(|server| self.of(*server)).filter(|samples| !samples.is_empty());
        let there: Vec<_> = there.collect();
        let ratios = self.of(Server::Larder).iter().enumerate().filter_map(|(round, sample)| {
            let best = there.iter().filter_map(|samples| samples.get(round)).map(Sample::per_cpu_second);
            Some(sample.per_cpu_second() / best.reduce(f64::max)?)
        });
        median(ratios.collect())
    }
}

/// Returns the ratios of Larder to the best of the proxies as a chart.
pub fn chart(results: &[Results]) -> String {
    let best = [Server::Haproxy, Server::Nginx, Server::Envoy];
    let bars = results.iter().filter_map(|result| Some((result.case.title.clone(), result.ratio(&best)?)));
    chart::svg(
        "Requests for each second of CPU: Larder to the best of HAProxy, nginx and Envoy",
        &bars.collect::<Vec<_>>(),
    )
}

/// Returns the tables and what there is to say about them.
pub fn render(
    results: &[Results],
    names: &[(Server, String)],
    footprint: &Footprint,
    (rounds, seconds): (usize, f64),
) -> String {
    let mut text = costs(results, names);
    let _ = write!(
        text,
        "\nRequests for each second of the server's CPU; ratios are medians of those within each of {rounds} interleaved rounds of \
         {seconds} s. {} connections where nothing else is said; every response was checked.\n",
        super::CONNECTIONS
    );
    let latencies = latencies(results, names);
    if !latencies.is_empty() {
        let _ = write!(
            text,
            "\n{latencies}\nMedian time of a request over one connection, and by how much more it takes through a server: medians of the \
             differences within each round.\n"
        );
    }
    text += &shared(results);
    text += &two_threads(results);
    text += &memory(footprint, names);
    text + &waits(results)
}

fn costs(results: &[Results], names: &[(Server, String)]) -> String {
    let mut titles = vec!["path".to_owned()];
    titles.extend(names.iter().map(|(_, name)| name.clone()));
    titles.extend(["to HAProxy and nginx".to_owned(), "to Envoy".to_owned()]);
    let mut lines = vec![titles];
    for result in results {
        let mut line = vec![result.case.title.clone()];
        for (server, _) in names {
            let figures = result.of(*server).iter().map(Sample::per_cpu_second).collect();
            line.push(median(figures).map_or(String::new(), thousands));
        }
        for servers in [&[Server::Haproxy, Server::Nginx][..], &[Server::Envoy]] {
            line.push(result.ratio(servers).map_or(String::new(), |ratio| format!("{ratio:.2}")));
        }
        lines.push(line);
    }
    layout(&lines)
}

fn latencies(results: &[Results], names: &[(Server, String)]) -> String {
    let mut titles = vec!["one connection".to_owned(), "direct".to_owned()];
    let names: Vec<_> = names.iter().filter(|(server, _)| server.takes(Role::Pass)).collect();
    titles.extend(names.iter().map(|(_, name)| name.clone()));
    let mut lines = vec![titles];
    for result in results.iter().filter(|result| !result.baseline(Baseline::Direct).is_empty()) {
        let direct: Vec<f64> =
            result.baseline(Baseline::Direct).iter().filter_map(|sample| sample.p50).collect();
        let title = result.case.title.split(',').nth(1).unwrap_or_default().trim();
        let mut line = vec![title.to_owned(), median(direct.clone()).map_or(String::new(), micros)];
        for (server, _) in &names {
            let pairs = result.of(*server).iter().zip(&direct);
            let added = pairs.filter_map(|(sample, direct)| Some(sample.p50? - direct)).collect();
            line.push(median(added).map_or(String::new(), |added| format!("+{}", micros(added))));
        }
        lines.push(line);
    }
    if lines.len() > 1 { layout(&lines) } else { String::new() }
}

/// Returns a sentence on hits in Redis.
fn shared(results: &[Results]) -> String {
    let Some(result) = results.iter().find(|result| result.case.role == Role::Shared) else {
        return String::new();
    };
    let larder = result.of(Server::Larder);
    let rate = |samples: &[Sample]| median(samples.iter().map(Sample::per_second).collect());
    let (Some(own), Some(bare)) = (rate(larder), rate(result.baseline(Baseline::RedisBenchmark))) else {
        return String::new();
    };
    let pairs = larder.iter().zip(result.baseline(Baseline::RedisBenchmark));
    let ratio = median(pairs.map(|(sample, bare)| sample.per_second() / bare.per_second()).collect());
    let mut text = format!(
        "\nL2 hits: {} a second, where `redis-benchmark -t get` reaches {} (ratio {:.2})",
        thousands(own),
        thousands(bare),
        ratio.unwrap_or_default()
    );
    if let Some(hit) = results.iter().find(|result| result.case.name == "hit-1k") {
        let pairs = larder.iter().zip(hit.of(Server::Larder));
        let ratio =
            median(pairs.map(|(sample, hit)| sample.per_cpu_second() / hit.per_cpu_second()).collect());
        if let Some(ratio) = ratio {
            let _ = write!(text, "; {ratio:.2} of an L1 hit for each second of CPU");
        }
    }
    let commands: Vec<_> = result.commands.iter().map(|(name, count)| format!("{count:.2} {name}")).collect();
    text + &format!(". Commands for each: {}.\n", commands.join(", "))
}

/// Returns the sidecar with two threads beside that with one.
fn two_threads(results: &[Results]) -> String {
    let titles = ["two threads", "req / CPU-s, one thread", "two threads", "ratio"];
    let mut lines = vec![titles.map(str::to_owned).to_vec()];
    for result in results {
        let (one, two) = (result.of(Server::Larder), result.samples(Subject::TwoThreads));
        let rate = |samples: &[Sample]| median(samples.iter().map(Sample::per_cpu_second).collect());
        let pairs = two.iter().zip(one).map(|(two, one)| two.per_cpu_second() / one.per_cpu_second());
        if let (Some(one), Some(two), Some(ratio)) = (rate(one), rate(two), median(pairs.collect())) {
            lines.push(vec![
                result.case.title.clone(),
                thousands(one),
                thousands(two),
                format!("{ratio:.2}"),
            ]);
        }
    }
    if lines.len() == 1 {
        return String::new();
    }
    format!(
        "\n{}\nOne thread has a core for itself. Two threads have that core and the one of the load, the origin and Redis, because there \
         are no more: requests for each second of CPU show whether two threads hold each other up. How many requests two free cores \
         would serve in a second was not measured.\n",
        layout(&lines)
    )
}

/// Returns the memory of the servers, and of a stored response.
fn memory(footprint: &Footprint, names: &[(Server, String)]) -> String {
    let mut lines = vec![vec!["memory".to_owned()], vec!["resident, without a request".to_owned()]];
    for (server, bytes) in &footprint.idle {
        let name = names.iter().find(|(known, _)| known == server);
        lines[0].push(name.map_or(server.as_str().to_owned(), |(_, name)| name.clone()));
        lines[1].push(format!("{:.1} MiB", *bytes as f64 / f64::from(1 << 20)));
    }
    let mut text = format!("\n{}", layout(&lines));
    if let Some(bytes) = footprint.stored {
        let _ = write!(
            text,
            "\nA stored response of {BYTES} bytes with six headers takes {bytes} bytes of resident memory, in the mean of {STORED}. HAProxy's cache \
             of 64 MiB is there from the start; figures are sums over a server's processes, which share some of it.\n"
        );
    }
    text
}

/// Names the servers whose core was idle, or not theirs alone.
fn waits(results: &[Results]) -> String {
    let mut lines = Vec::new();
    for result in results.iter().filter(|result| !result.case.is_alone()) {
        let rows = result.rows.iter().filter(|(subject, _)| *subject != Subject::TwoThreads);
        let waited = rows.filter_map(|(subject, samples)| {
            let idle = median(samples.iter().map(|sample| sample.idle).collect())?;
            (idle > IDLE).then(|| format!("{} {:.0} %", subject.as_str(), idle * 100.0))
        });
        let waited: Vec<_> = waited.collect();
        if !waited.is_empty() {
            lines.push(format!("- {}: {}", result.case.title, waited.join(", ")));
        }
    }
    if lines.is_empty() {
        return String::new();
    }
    format!(
        "\nThe load and the origin did not keep these busy; their core was idle for so long:\n\n{}\n",
        lines.join("\n")
    )
}

/// Lists the reasons why samples were taken a second time.
pub fn repeated(reasons: &[String]) -> String {
    if reasons.is_empty() {
        return String::new();
    }
    let reasons: String = reasons.iter().map(|reason| format!("- {reason}\n")).collect();
    format!("\nSamples that were taken a second time, because the first failed:\n\n{reasons}")
}

/// Returns all samples as CSV.
pub fn raw(results: &[Results]) -> String {
    let mut text = "path,server,round,requests,seconds,cpu_seconds,idle_share,p50_us,p99_us\n".to_owned();
    for result in results {
        for (subject, samples) in &result.rows {
            for (round, sample) in samples.iter().enumerate() {
                let Sample { requests, time, server, idle, .. } = sample;
                let micros =
                    |time: Option<f64>| time.map_or(String::new(), |time| format!("{:.1}", time * 1e6));
                let _ = writeln!(
                    text,
                    "{},{},{},{requests},{time:.3},{server:.4},{idle:.3},{},{}",
                    result.case.name,
                    subject.as_str(),
                    round + 1,
                    micros(sample.p50),
                    micros(sample.p99)
                );
            }
        }
    }
    text
}

fn thousands(value: f64) -> String {
    format!("{:.1}k", value / 1000.0)
}

fn micros(seconds: f64) -> String {
    format!("{:.0} µs", seconds * 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::all;

    fn sample(per_cpu_second: u64) -> Sample {
        let (p50, p99) = (Some(per_cpu_second as f64 / 1e6), None);
        Sample { requests: per_cpu_second, time: 2.0, server: 1.0, idle: 0.0, p50, p99 }
    }

    fn results(name: &str, rows: &[(Subject, &[u64])]) -> Results {
        let case = all().into_iter().find(|case| case.name == name).unwrap();
        let rows = rows.iter().map(|(subject, figures)| {
            (*subject, figures.iter().map(|figure| sample(*figure)).collect::<Vec<_>>())
        });
        Results { case, rows: rows.collect(), commands: vec![("get".into(), 2.0)] }
    }

    const LARDER: Subject = Subject::Server(Server::Larder);
    const HAPROXY: Subject = Subject::Server(Server::Haproxy);
    const NGINX: Subject = Subject::Server(Server::Nginx);

    #[test]
    fn ratio_is_to_the_best_of_each_round() {
        let pass = results(
            "pass-1k-64",
            &[(LARDER, &[200, 30, 100]), (HAPROXY, &[100, 10, 50]), (NGINX, &[50, 15, 100])],
        );
        assert_eq!(pass.ratio(&[Server::Haproxy, Server::Nginx]), Some(2.0));
        assert_eq!(pass.ratio(&[Server::Envoy]), None);
    }

    #[test]
    fn latency_is_compared_with_that_of_a_direct_request() {
        let direct = Subject::Baseline(Baseline::Direct);
        let pass = results("pass-1k-1", &[(direct, &[10, 20, 30]), (LARDER, &[30, 50, 70])]);
        let text = latencies(&[pass], &[(Server::Larder, "Larder".into())]);
        assert!(text.contains("| 1 KiB ") && text.contains(" 20 µs ") && text.contains(" +30 µs "), "{text}");
    }

    #[test]
    fn hits_in_redis_are_compared_with_its_own_program_and_with_memory() {
        let benchmark = Subject::Baseline(Baseline::RedisBenchmark);
        let l2 = results("l2", &[(benchmark, &[60_000]), (LARDER, &[30_000])]);
        let text = shared(&[results("hit-1k", &[(LARDER, &[90_000])]), l2]);
        assert!(text.contains("(ratio 0.50); 0.33 of an L1 hit"), "{text}");
        assert!(text.contains("2.00 get"), "{text}");
    }

    #[test]
    fn two_threads_are_compared_with_one() {
        let hit = results("hit-1k", &[(LARDER, &[100, 200]), (Subject::TwoThreads, &[90, 190])]);
        let text = two_threads(&[hit, results("304", &[(LARDER, &[100])])]);
        assert!(text.contains("| L1 hit, 1 KiB ") && text.contains(" 0.93 |"), "{text}");
        assert!(!text.contains("304"), "{text}");
    }

    #[test]
    fn memory_has_a_column_for_each_server() {
        let footprint = Footprint { idle: vec![(Server::Larder, 11 << 20)], stored: Some(1500) };
        let text = memory(&footprint, &[(Server::Larder, "Larder 1".into())]);
        assert!(text.contains("| Larder 1 |") && text.contains(" 11.0 MiB |"), "{text}");
        assert!(text.contains("takes 1500 bytes"), "{text}");
    }

    #[test]
    fn chart_has_a_bar_for_each_path_with_another_server() {
        let text = chart(&[
            results("pass-1k-64", &[(LARDER, &[100]), (HAPROXY, &[80]), (NGINX, &[50])]),
            results("l2", &[(LARDER, &[100])]),
        ]);
        assert!(text.contains(">1.25</text>") && !text.contains("L2"), "{text}");
    }

    #[test]
    fn raw_figures_have_a_line_for_each_sample() {
        let text = raw(&[results("miss-64", &[(LARDER, &[7, 8])])]);
        assert_eq!(text.lines().nth(2), Some("miss-64,larder,2,8,2.000,1.0000,0.000,8.0,"));
        assert_eq!(text.lines().count(), 3);
    }
}
