//! The printed report of a load.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::Serialize;

/// Results of all requests of a load.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    requests: usize,
    /// Requests without an answer of status 2xx.
    failed: u64,
    /// Why those failed, and how often.
    failures: BTreeMap<String, u64>,
    seconds: f64,
    requests_per_second: f64,
    /// All that were answered.
    times: Times,
    /// Those that were answered, by what the cache said of them.
    answers: BTreeMap<String, Times>,
}

/// Response times, in milliseconds.
#[derive(Debug, Serialize)]
pub(crate) struct Times {
    count: usize,
    mean_ms: f64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, failed, failures, seconds, requests_per_second, times, answers } = self;
        writeln!(f, "{requests} requests in {seconds} s, {requests_per_second} a second, {failed} failed")?;
        for (reason, count) in failures {
            writeln!(f, "{count} of them: {reason}")?;
        }
        writeln!(f, "{:24}{:>8}{:>12}{:>12}{:>12}", "", "count", "p50 ms", "p99 ms", "max ms")?;
        let answers = answers.iter().map(|(answer, times)| (answer.as_str(), times));
        for (answer, times) in [("all", times)].into_iter().chain(answers) {
            let Times { count, mean_ms: _, p50_ms, p99_ms, max_ms } = times;
            writeln!(f, "{answer:24}{count:>8}{p50_ms:>12.3}{p99_ms:>12.3}{max_ms:>12.3}")?;
        }
        Ok(())
    }
}

/// Results of one user, or several.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Response times, by cache status.
    pub(crate) answers: BTreeMap<String, Vec<Duration>>,
    /// Numbers of requests without a response, by reason.
    pub(crate) failures: BTreeMap<String, u64>,
}

impl Found {
    /// Adds what another user found.
    pub(crate) fn add(&mut self, other: Self) {
        for (answer, times) in other.answers {
            self.answers.entry(answer).or_default().extend(times);
        }
        for (reason, count) in other.failures {
            *self.failures.entry(reason).or_default() += count;
        }
    }

    /// The report of what was found in so long a time.
    pub(crate) fn report(self, lasted: Duration) -> Report {
        let Self { answers, failures } = self;
        let all: Vec<_> = answers.values().flatten().copied().collect();
        let failed = failures.values().sum();
        let requests = all.len() + usize::try_from(failed).unwrap_or(usize::MAX);
        Report {
            requests,
            failed,
            failures,
            seconds: rounded(lasted.as_secs_f64()),
            requests_per_second: rounded(requests as f64 / lasted.as_secs_f64()),
            times: Times::new(all),
            answers: answers.into_iter().map(|(answer, times)| (answer, Times::new(times))).collect(),
        }
    }
}

impl Times {
    fn new(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let ms = |time: Duration| rounded(time.as_secs_f64() * 1_000.0);
        let at = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or_default();
        let sum: Duration = times.iter().sum();
        Self {
            count: times.len(),
            mean_ms: rounded(sum.as_secs_f64() * 1_000.0 / times.len().max(1) as f64),
            p50_ms: ms(at(50)),
            p99_ms: ms(at(99)),
            max_ms: ms(times.last().copied().unwrap_or_default()),
        }
    }
}

/// Returns the cache status of a response: `hit` and its tier, or the reason why it was forwarded.
pub(crate) fn outcome(cache_status: &str) -> String {
    let mut said = cache_status.split("; ").skip(1);
    let first = said.next().unwrap_or("no cache");
    let rest: Vec<_> = said.collect();
    let mut outcome = first.strip_prefix("fwd=").unwrap_or(first).to_owned();
    let of_interest = rest.iter().filter(|word| **word == "collapsed" || word.starts_with("detail="));
    for word in of_interest {
        outcome.push(' ');
        outcome.push_str(word.strip_prefix("detail=").unwrap_or(word));
    }
    outcome
}

/// With three digits after the point.
fn rounded(number: f64) -> f64 {
    (number * 1_000.0).round() / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcome_is_read_from_cache_status() {
        for (said, expected) in [
            ("larder; hit; ttl=119; detail=l1", "hit l1"),
            ("larder; fwd=uri-miss; fwd-status=200; stored; detail=postgres", "uri-miss postgres"),
            ("larder; fwd=uri-miss; collapsed", "uri-miss collapsed"),
            ("", "no cache"),
        ] {
            assert_eq!(outcome(said), expected, "{said:?}");
        }
    }

    #[test]
    fn a_report_has_all_that_was_found() {
        let times = |from: u64, to: u64| (from..=to).map(Duration::from_millis).collect::<Vec<_>>();
        let mut found = Found {
            answers: [("hit l1".to_owned(), times(1, 99))].into(),
            failures: [("status 503".to_owned(), 2)].into(),
        };
        found.add(Found {
            answers: [("hit l1".to_owned(), times(100, 100))].into(),
            failures: [("status 503".to_owned(), 1)].into(),
        });
        let report = found.report(Duration::from_secs(2));
        assert_eq!((report.requests, report.failed, report.requests_per_second), (103, 3, 51.5));
        let printed = report.to_string();
        for line in [
            "103 requests in 2 s, 51.5 a second, 3 failed\n3 of them: status 503",
            "100.000     100.000\nhit l1 ",
        ] {
            assert!(printed.contains(line), "{line:?} is not in {printed}");
        }
        let times = &report.answers["hit l1"];
        assert_eq!((times.count, times.mean_ms, times.p50_ms, times.p99_ms), (100, 50.5, 51.0, 100.0));
    }
}
