//! Requests of a policy's sidecars over the last minute, for the status.
//!
//! # Guarantees
//! - A counter that begins anew, because its sidecar did, loses nothing and adds nothing that was counted before.
//! - What is published changes at once by what a person would notice, and otherwise once a minute at most.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

use larder_api::admin::{PolicyReport, RequestCounts};
use larder_crds::Traffic;
use tokio::time::Instant;

/// Time over which requests are counted.
const WINDOW: Duration = Duration::from_secs(60);
/// Minimum time between two publications that a person would not notice.
const PUBLICATION_INTERVAL: Duration = Duration::from_secs(60);
/// Change of the hit ratio that a person would notice, in percentage points.
const NOTICED_POINTS: i32 = 5;
/// Minimum number of hits and misses of which a ratio says something at once. That of fewer changes with each request.
const MIN_COUNTED: f64 = 100.0;
/// Change of the request rate that a person would notice, as a share of the larger one.
const NOTICED_SHARE: f64 = 0.2;
/// Minimum change of the request rate that a person would notice, in requests a second.
const NOTICED_RATE: f64 = 1.0;

/// Requests of a policy's sidecars.
#[derive(Debug, Default)]
pub struct Throughput {
    /// The last counts of each sidecar, by pod.
    last: HashMap<String, RequestCounts>,
    /// The sums of all counts since the first, the oldest first.
    sums: VecDeque<(Instant, RequestCounts)>,
    published: Option<(Instant, Traffic, Figures)>,
}

/// The figures behind a publication.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Figures {
    hit_percent: Option<i32>,
    /// Hits and misses of the window.
    counted: f64,
    requests_per_second: f64,
    /// The rate since the observation before.
    recent: f64,
}

impl Throughput {
    /// Adds what sidecars responded; returns what to publish, which is nothing until a sidecar has reported counts twice.
    pub fn observe(
        &mut self,
        answers: &BTreeMap<String, Result<PolicyReport, String>>,
        now: Instant,
    ) -> Option<Traffic> {
        self.last.retain(|pod, _| answers.contains_key(pod));
        let mut sum = self.sums.back().map(|(_, sum)| *sum).unwrap_or_default();
        let mut has_counts = false;
        for (pod, counts) in
            answers.iter().filter_map(|(pod, answer)| Some((pod, answer.as_ref().ok()?.requests?)))
        {
            has_counts = true;
            if let Some(before) = self.last.insert(pod.clone(), counts) {
                let is_continued = counts.total >= before.total
                    && counts.hits >= before.hits
                    && counts.misses >= before.misses;
                let before = if is_continued { before } else { RequestCounts::default() };
                sum.total += counts.total - before.total;
                sum.hits += counts.hits - before.hits;
                sum.misses += counts.misses - before.misses;
            }
        }
        if has_counts || !self.sums.is_empty() {
            self.sums.push_back((now, sum));
        }
        // One that is older than the window is where the window begins.
        while self.sums.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW) {
            self.sums.pop_front();
        }
        self.publish(now)
    }

    fn publish(&mut self, now: Instant) -> Option<Traffic> {
        let ((start, first), (end, last)) = (*self.sums.front()?, *self.sums.back()?);
        if end == start {
            return None;
        }
        let since = |of: fn(&RequestCounts) -> u64| (of(&last) - of(&first)) as f64;
        let (hits, misses) = (since(|counts| counts.hits), since(|counts| counts.misses));
        let seconds = end.duration_since(start).as_secs_f64();
        let (before, sum_before) = self.sums[self.sums.len() - 2];
        let figures = Figures {
            hit_percent: (hits + misses > 0.0).then(|| (hits / (hits + misses) * 100.0).round() as i32),
            counted: hits + misses,
            requests_per_second: since(|counts| counts.total) / seconds,
            recent: (last.total - sum_before.total) as f64 / end.duration_since(before).as_secs_f64(),
        };
        let is_due = self.published.as_ref().is_none_or(|(at, _, published)| {
            now.duration_since(*at) >= PUBLICATION_INTERVAL || is_noticed(published, &figures)
        });
        let traffic = Traffic {
            hit_percent: figures.hit_percent,
            requests_per_second: rounded(figures.requests_per_second),
        };
        if is_due && self.published.as_ref().is_none_or(|(_, published, _)| *published != traffic) {
            self.published = Some((now, traffic, figures));
        }
        self.published.as_ref().map(|(_, traffic, _)| traffic.clone())
    }
}

/// Returns true if a person would notice the difference.
fn is_noticed(before: &Figures, now: &Figures) -> bool {
    let appears = before.hit_percent.is_none() && now.hit_percent.is_some() && now.recent >= NOTICED_RATE;
    let points = before.hit_percent.zip(now.hit_percent).map_or(0, |(before, now)| (before - now).abs());
    let (one, other) = (before.requests_per_second, now.requests_per_second);
    let change = (one - other).abs();
    appears
        || points >= NOTICED_POINTS && now.counted >= MIN_COUNTED
        || change >= NOTICED_RATE && change > NOTICED_SHARE * one.max(other)
}

/// Returns a rate with two significant digits, and not fewer than one hundredth if there is any.
fn rounded(rate: f64) -> String {
    match rate {
        rate if rate <= 0.0 => "0".to_owned(),
        rate if rate < 0.995 => format!("{:.2}", rate.max(0.01)),
        rate if rate < 9.95 => format!("{rate:.1}"),
        rate => {
            let unit = 10_f64.powi(rate.log10().floor() as i32 - 1);
            format!("{:.0}", (rate / unit).round() * unit)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Answers = BTreeMap<String, Result<PolicyReport, String>>;

    fn answers(pods: &[(&str, u64, u64, u64)]) -> Answers {
        let answer = |&(pod, total, hits, misses): &(&str, u64, u64, u64)| {
            let requests = Some(RequestCounts { total, hits, misses });
            (pod.to_owned(), Ok(PolicyReport { requests, ..PolicyReport::default() }))
        };
        pods.iter().map(answer).collect()
    }

    fn shown(traffic: Option<Traffic>) -> (Option<i32>, String) {
        let traffic = traffic.unwrap();
        (traffic.hit_percent, traffic.requests_per_second)
    }

    #[test]
    fn ratio_and_rate_are_those_of_all_sidecars_together() {
        let (start, mut throughput) = (Instant::now(), Throughput::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(throughput.observe(&Answers::new(), at(0)), None);
        let first = answers(&[("a", 1000, 900, 100), ("b", 5, 0, 5)]);
        assert_eq!(throughput.observe(&first, at(0)), None, "of before nothing is known");
        let second = answers(&[("a", 1080, 960, 110), ("b", 25, 10, 10)]);
        assert_eq!(shown(throughput.observe(&second, at(8))), (Some(82), "13".into()));
    }

    #[test]
    fn restarted_sidecar_loses_nothing_and_adds_nothing() {
        let (start, mut throughput) = (Instant::now(), Throughput::default());
        throughput.observe(&answers(&[("a", 1000, 1000, 0)]), start);
        let restarted = throughput.observe(&answers(&[("a", 50, 0, 50)]), start + Duration::from_secs(10));
        assert_eq!(shown(restarted), (Some(0), "5.0".into()));
        let mut gone = throughput.observe(&answers(&[("b", 7000, 7000, 0)]), start + Duration::from_secs(20));
        assert_eq!(shown(gone), (Some(0), "2.5".into()), "a pod that is new here is counted from now on");
        gone = throughput.observe(&Answers::new(), start + Duration::from_secs(80));
        assert_eq!(shown(gone), (None, "0".into()), "without sidecars there are no requests");
    }

    #[test]
    fn counter_that_decreases_alone_began_anew() {
        let (start, mut throughput) = (Instant::now(), Throughput::default());
        throughput.observe(&answers(&[("a", 1000, 900, 100)]), start);
        let restarted =
            throughput.observe(&answers(&[("a", 1200, 0, 1200)]), start + Duration::from_secs(10));
        assert_eq!(shown(restarted), (Some(0), "120".into()));
        let mut throughput = Throughput::default();
        throughput.observe(&answers(&[("a", 1000, 100, 900)]), start);
        let restarted =
            throughput.observe(&answers(&[("a", 1200, 600, 600)]), start + Duration::from_secs(10));
        assert_eq!(shown(restarted), (Some(50), "120".into()));
    }

    #[test]
    fn sparse_traffic_is_published_once_a_minute_at_most() {
        for most in [1, 2, 4] {
            let (start, mut throughput) = (Instant::now(), Throughput::default());
            let mut published = Vec::new();
            let (mut total, mut hits, mut random) = (0, 0, 1_u64);
            for step in 0..200_u64 {
                let mut next = |below: u64| {
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    (random >> 33) % below
                };
                let requests = next(most + 1);
                total += requests;
                hits += next(requests + 1);
                let answers = answers(&[("a", total, hits, total - hits)]);
                published.extend(throughput.observe(&answers, start + Duration::from_secs(6 * step)));
            }
            published.dedup();
            assert!(published.len() <= 2 + 200 * 6 / 60, "up to {most}: {} times", published.len());
        }
    }

    #[test]
    fn first_traffic_after_silence_is_published_at_once() {
        for rate in [1, 2, 50] {
            let (start, mut throughput) = (Instant::now(), Throughput::default());
            let at = |step: u64| start + Duration::from_secs(6 * step);
            for step in 0..19 {
                let silent = throughput.observe(&answers(&[("a", 10, 5, 5)]), at(step));
                assert!(silent.is_none_or(|silent| silent.hit_percent.is_none()));
            }
            let some = answers(&[("a", 10 + 6 * rate, 5 + 6 * rate, 5)]);
            let (ratio, shown) = shown(throughput.observe(&some, at(19)));
            assert_eq!(ratio, Some(100), "{rate}");
            assert_ne!(shown, "0");
        }
    }

    #[test]
    fn ratio_and_rate_of_much_traffic_are_published_at_once() {
        let (start, mut throughput) = (Instant::now(), Throughput::default());
        let at = |step: u64| start + Duration::from_secs(6 * step);
        let mut percent = None;
        for step in 0..20 {
            percent = throughput.observe(&answers(&[("a", 600 * step, 600 * step, 0)]), at(step));
        }
        assert_eq!(shown(percent), (Some(100), "100".into()));
        let lower = throughput.observe(&answers(&[("a", 12_000, 11_400, 600)]), at(20));
        assert_eq!(shown(lower), (Some(90), "100".into()));
        let more = throughput.observe(&answers(&[("a", 14_400, 13_680, 720)]), at(21));
        assert_eq!(shown(more).1, "130");
    }

    #[test]
    fn steady_traffic_is_published_once_a_minute_at_most() {
        let (start, mut throughput) = (Instant::now(), Throughput::default());
        let mut published = Vec::new();
        let (mut total, mut hits) = (0, 0);
        for step in 0..100_u64 {
            // From 90 to 110 requests a second, of which 47 to 53 percent are hits.
            let requests = 8 * (90 + step * 7 % 21);
            total += requests;
            hits += requests * (47 + step * 3 % 7) / 100;
            let answers = answers(&[("a", total, hits, total - hits)]);
            published.extend(throughput.observe(&answers, start + Duration::from_secs(8 * step)));
        }
        published.dedup();
        assert!(published.len() <= 2 + 100 * 8 / 60, "{} times", published.len());
    }

    #[test]
    fn silence_is_published_once() {
        let (start, mut throughput) = (Instant::now(), Throughput::default());
        let quiet = answers(&[("a", 10, 5, 5)]);
        let mut published: Vec<_> = (0..100)
            .filter_map(|step| throughput.observe(&quiet, start + Duration::from_secs(8 * step)))
            .collect();
        published.dedup();
        assert_eq!(published.len(), 1);
    }

    #[test]
    fn rates_have_two_significant_digits() {
        for (rate, text) in [
            (0.0, "0"),
            (0.001, "0.01"),
            (0.125, "0.12"),
            (0.999, "1.0"),
            (3.12, "3.1"),
            (9.99, "10"),
            (42.4, "42"),
            (995.0, "1000"),
            (1234.0, "1200"),
        ] {
            assert_eq!(rounded(rate), text);
        }
    }
}
